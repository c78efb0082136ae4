"""Every image-classification architecture of transformers goes all the way, or says in one sentence that it cannot."""

import logging

import numpy as np
import pytest
import torch
from builders import classifiers, tiny
from PIL import Image
from transformers import pipeline
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from madkd_hf import MadkdForImageClassification
from madkd_hf.data.image_processors import ordinary
from madkd_hf.students.classification.data import AspectCollator
from madkd_hf.students.classification.image_batches import pixel_scale


CLASSES = {0: "cat", 1: "dog", 2: "cow", 3: "hen"}
ALWAYS = {"resnet", "vit", "pvt", "timm_wrapper"}  # the others are run before a release


def all_architectures() -> list:
    names = [*classifiers.SETTINGS, *classifiers.LIBRARIES]
    return [pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.slow) for name in names]


def test_no_architecture_of_transformers_is_forgotten():
    known = classifiers.SETTINGS.keys() | classifiers.OTHERS.keys() | classifiers.LIBRARIES.keys()
    assert set(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES) - {"madkd"} <= known


@pytest.mark.parametrize("name", all_architectures())
def test_from_the_configuration_to_the_pipeline(name, tmp_path, caplog):
    if name in classifiers.LIBRARIES:
        pytest.importorskip(classifiers.LIBRARIES[name][0], exc_type=ImportError)
    torch.manual_seed(0)
    model, image_processor = student(name), classifiers.processor(name)
    rows = [
        {"image": image, "label": i, "aspect_logits": [0.0, 1.0, -2.0]}
        for i, image in enumerate([Image.new("RGB", (40, 40), "teal"), *tiny.images(3, size=40)])
    ]
    seen, trained = (AspectCollator(image_processor, 4, augment=augment, num_aspects=3)(rows) for augment in (0, 1))
    assert seen["pixel_values"].shape == trained["pixel_values"].shape
    torch.testing.assert_close(seen["pixel_values"][0], trained["pixel_values"][0])  # colours are what they are
    train(model, trained)

    model.eval()
    with torch.no_grad():
        out = model(seen["pixel_values"])
    assert out.logits.shape == (4, 4) and out.aspect_logits.shape == (4, 3)
    model.save_pretrained(tmp_path / "student")
    ordinary(image_processor).save_pretrained(tmp_path / "student")
    loaded = MadkdForImageClassification.from_pretrained(tmp_path / "student").eval()
    plain = loaded.to_plain()
    with torch.no_grad():
        again, bare = loaded(seen["pixel_values"]), plain(seen["pixel_values"]).logits
    torch.testing.assert_close(again.aspect_logits, out.aspect_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bare, out.logits, atol=1e-5, rtol=1e-5)

    plain.save_pretrained(tmp_path / "plain")
    ordinary(image_processor).save_pretrained(tmp_path / "plain")
    for folder in ("student", "plain"):
        with caplog.at_level(logging.WARNING):
            answers = pipeline("image-classification", str(tmp_path / folder))(rows[1]["image"], top_k=9)
        assert {answer["label"] for answer in answers} == set(CLASSES.values())
        scores = torch.tensor([answer["score"] for answer in sorted(answers, key=lambda each: order(each["label"]))])
        torch.testing.assert_close(scores, out.logits[1].softmax(-1), atol=1e-4, rtol=0)


def order(label: str) -> int:
    return list(CLASSES.values()).index(label)


def student(name: str) -> MadkdForImageClassification:
    return MadkdForImageClassification.from_backbone(classifiers.config(name), CLASSES, tiny.bank(3))


def train(model: torch.nn.Module, batch: dict) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    out = model(batch["pixel_values"], labels=batch["labels"])
    loss = out.loss + torch.nn.functional.binary_cross_entropy_with_logits(
        out.aspect_logits, batch["aspect_logits"].sigmoid()
    )
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", classifiers.OTHERS)
def test_what_is_no_backbone_says_so(name):
    with pytest.raises(ValueError, match="no classifier from an image's pixels .*microsoft/resnet-18"):
        student(name)


@pytest.mark.parametrize("name", [name for name in classifiers.SETTINGS if name not in classifiers.SIDES])
def test_crops_are_only_rescaled_and_normalised(name):
    """A training crop of the whole image has its pixels, whatever the image processor does to others."""
    pixels = np.random.default_rng(0).integers(0, 256, (classifiers.SIDE, classifiers.SIDE, 3), dtype=np.uint8)
    image_processor = classifiers.processor(name)
    make = AspectCollator(image_processor, 4, augment=True, crop_scale=1, horizontal_flip=0)
    made = make([{"image": Image.fromarray(pixels)}])["pixel_values"][0]
    values = torch.from_numpy(pixels).movedim(-1, 0).float()
    if getattr(image_processor, "do_flip_channel_order", False):
        values = values.flip(0)
    for channel, given in zip(made, values):  # as far as a straight line goes
        slope = (channel.max() - channel.min()) / (given.max() - given.min())
        torch.testing.assert_close(channel, (given - given.min()) * slope + channel.min(), atol=1e-4, rtol=1e-4)
    if not getattr(image_processor, "do_flip_channel_order", False):
        assert pixel_scale(make) is not None
