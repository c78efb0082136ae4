"""What image processors and datasets may look like: timm's settings are honoured, pictures are found in any column."""

import json

import numpy as np
import pytest
import torch
from builders import classifier_training as classification
from builders import detector_training as detection
from builders import tiny
from datasets import Array3D, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BaseImageProcessor,
    BatchFeature,
    CLIPImageProcessorPil,
    ImageGPTImageProcessorPil,
    Siglip2ImageProcessorPil,
    TextNetImageProcessorPil,
)

from madkd_hf import MadkdTrainer
from madkd_hf.data.image_processors import load_image_processor, ordinary
from madkd_hf.data.images import load_image
from madkd_hf.students.classification.data import AspectCollator
from madkd_hf.students.classification.image_batches import pixel_scale
from madkd_hf.students.detection.data import DetectionCollator


TIMM = {"input_size": [3, 24, 24], "crop_pct": 0.75, "interpolation": "bilinear", "crop_mode": "center"}
TIMM |= {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 0.2]}


class LikeTimm(BaseImageProcessor):
    """What TimmWrapperImageProcessor lets its callers see: no argument but these, and nothing that is saved."""

    def __init__(self, **settings):
        super().__init__()
        self.data_config, self.val_transforms = TIMM | settings, []

    def preprocess(self, images, return_tensors="pt"):
        raise AssertionError("an ordinary image processor does it")

    def save_pretrained(self, *args, **kwargs):
        pass


def framed(inside: str = "blue", size: tuple[int, int] = (100, 100)) -> Image.Image:
    """A picture whose outer eighth is red."""
    image = Image.new("RGB", size, "red")
    image.paste(Image.new("RGB", (size[0] * 3 // 4, size[1] * 3 // 4), inside), (size[0] // 8, size[1] // 8))
    return image


# Of timm


def test_timm_settings_are_honoured_in_evaluation_and_training():
    blue = (torch.tensor([0.0, 0.0, 1.0]) - torch.tensor(TIMM["mean"])) / torch.tensor(TIMM["std"])
    seen = AspectCollator(LikeTimm(), 2)([{"image": framed()}])["pixel_values"][0]
    assert seen.shape == (3, 24, 24)  # the middle three quarters, without the frame
    torch.testing.assert_close(seen[:, 1:-1, 1:-1], blue[:, None, None].expand(3, 22, 22), atol=1e-4, rtol=0)
    whole = AspectCollator(LikeTimm(), 2, augment=True, crop_scale=1, horizontal_flip=0)
    trained = whole([{"image": Image.new("RGB", (50, 40), "blue")}])["pixel_values"][0]
    torch.testing.assert_close(trained, blue[:, None, None].expand(3, 24, 24))
    red = whole([{"image": framed()}])["pixel_values"][0][:, 0, 0]
    torch.testing.assert_close(
        red, (torch.tensor([1.0, 0, 0]) - torch.tensor(TIMM["mean"])) / torch.tensor(TIMM["std"])
    )
    assert pixel_scale(whole) is not None and pixel_scale(AspectCollator(LikeTimm(), 2)) is not None


@pytest.mark.parametrize("changes", [{}, {"crop_mode": "squash"}, {"interpolation": "bicubic", "crop_pct": 1.0}])
def test_a_timm_folder_needs_no_timm_for_its_images(tmp_path, changes):
    config = {"architecture": "resnet10t", "num_classes": 3, "pretrained_cfg": TIMM | changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = load_image_processor(str(tmp_path))
    assert type(made) is CLIPImageProcessorPil and made.to_dict() == ordinary(LikeTimm(**changes)).to_dict()
    made.save_pretrained(tmp_path / "student")
    saved = AutoImageProcessor.from_pretrained(tmp_path / "student").to_dict()
    side = 24 if "crop_pct" in changes else 32
    sized = {"height": side, "width": side} if "crop_mode" in changes else {"shortest_edge": side}
    assert {name: value for name, value in dict(saved["size"]).items() if value} == sized
    assert (saved["crop_size"]["height"], saved["crop_size"]["width"]) == (24, 24)
    assert (list(saved["image_mean"]), list(saved["image_std"])) == (TIMM["mean"], TIMM["std"])
    assert saved["resample"] == (3 if "interpolation" in changes else 2)


@pytest.mark.parametrize("changes", [{"crop_mode": "border"}, {"input_size": [3, 24, 48]}])
def test_a_way_to_crop_that_no_ordinary_processor_has_is_refused(changes):
    with pytest.raises(ValueError, match="no ordinary image processor has: choose another backbone"):
        AspectCollator(LikeTimm(**changes), 2)


def test_a_trainer_saves_the_ordinary_processor(tmp_path):
    data = classification.rows()
    model = classification.student(tiny.resnet())
    settings = classification.arguments(tmp_path)
    run = MadkdTrainer(model, settings, train_dataset=data, eval_dataset=data, processing_class=LikeTimm())
    run.train()
    run.save_model()
    assert AutoImageProcessor.from_pretrained(tmp_path).crop_size == {"height": 24, "width": 24}
    assert run.evaluate()["eval_loss"] > 0


def test_timm_itself_where_it_loads(tmp_path):
    timm = pytest.importorskip("timm", exc_type=ImportError)
    from timm.models import _hub

    model = timm.create_model("resnet10t", num_classes=10)
    model.pretrained_cfg.update(TIMM)
    _hub.save_for_hf(model, tmp_path, safe_serialization=True)
    theirs, ours = AutoImageProcessor.from_pretrained(tmp_path), load_image_processor(str(tmp_path))
    assert ordinary(theirs).to_dict() == ours.to_dict()
    image = tiny.images(1, size=64)[0]
    torch.testing.assert_close(ours(image, return_tensors="pt")["pixel_values"], theirs(image)["pixel_values"])


# Others


class Plain(BaseImageProcessor):
    """Of somebody's own: it takes images and nothing else."""

    def __init__(self, side=16, channels=3, spoiled=False, **kwargs):
        super().__init__(**kwargs)
        self.side, self.channels, self.spoiled = side, channels, spoiled

    def preprocess(self, images, return_tensors=None):
        images = images if isinstance(images, list) else [images]
        sides = [image.size[0] // 2 if self.spoiled else self.side for image in images]
        pixels = [np.array(image.resize((side, side)))[..., : self.channels] for image, side in zip(images, sides)]
        data = {"pixel_values": [each.transpose(2, 0, 1) / 255 for each in pixels]}
        return BatchFeature(data, tensor_type=return_tensors)


@pytest.mark.parametrize("augment", [False, True])
def test_a_processor_that_takes_images_alone(augment):
    make = AspectCollator(Plain(), 4, augment=augment)
    batch = make([{"image": Image.new("RGB", (30, 20), (0, 51, 255))}])["pixel_values"]
    assert batch.shape == (1, 3, 16, 16) and batch[0, :, 0, 0].tolist() == pytest.approx([0, 0.2, 1])


@pytest.mark.parametrize(
    "processor",
    [ImageGPTImageProcessorPil(clusters=[[0, 0, 0]]), Siglip2ImageProcessorPil(), Plain(channels=1)],
    ids=["tokens", "patches", "grey"],
)
def test_a_processor_of_no_pixels_is_refused(processor):
    with pytest.raises(ValueError, match=r"makes no pixel_values \[batch, 3, height, width\] .*: pass the image proc"):
        AspectCollator(processor, 4)


def test_a_processor_that_cannot_let_crops_be_is_refused():
    with pytest.raises(ValueError, match="changes the size of 32 x 32 crops"):
        AspectCollator(Plain(spoiled=True), 4, augment=True)


def test_images_of_different_sizes_are_told_with_the_remedy():
    make = AspectCollator(TextNetImageProcessorPil(size={"shortest_edge": 64}, do_center_crop=False), 4)
    with pytest.raises(ValueError, match='different sizes, .*: give it one size for all, as size={"height"'):
        make([{"image": Image.new("RGB", (64, 64))}, {"image": Image.new("RGB", (64, 128))}])


# What a column may hold


def test_every_kind_of_picture_is_the_same_picture(tmp_path):
    image = tiny.images(1)[0]
    image.save(tmp_path / "image.png")
    pixels = np.asarray(image)
    encoded = {"bytes": (tmp_path / "image.png").read_bytes(), "path": None}
    kinds = [image, encoded, {"bytes": None, "path": str(tmp_path / "image.png")}, pixels, pixels.transpose(2, 0, 1)]
    kinds += [pixels.tolist(), torch.from_numpy(pixels.copy()), torch.from_numpy(pixels.copy()).movedim(-1, 0)]
    kinds += [pixels.astype(np.int64)]
    for kind in kinds:
        assert np.array_equal(np.asarray(load_image(kind)), pixels)
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for kind in (grey, grey[None], grey[..., None]):
        assert np.array_equal(np.asarray(load_image(kind))[..., 1], grey)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("photos/a.jpg", r"holds str in the column 'photo': .*cast_column\('photo', datasets.Image\(\)\)"),
        (None, "holds no image in the column 'photo': leave the row out"),
        ({"bytes": None, "path": None}, "holds no image in the column 'photo': leave the row out"),
        (7, "holds int in the column 'photo': expected images; name their column with image_column"),
        (np.zeros((4, 4, 3)), "holds float64 of shape .*integers from 0 to 255"),
        (np.full((4, 4, 3), 256), "holds int64 of shape .*integers from 0 to 255"),
        (np.zeros((2, 4, 4, 3), np.uint8), "holds uint8 of shape .*integers from 0 to 255"),
        ([], "holds float64 of shape .*integers from 0 to 255"),
    ],
)
def test_what_is_no_picture_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        load_image(value, "photo")


def held_otherwise(data: Dataset, how: str) -> Dataset:
    if how == "decode=False":
        return data.cast_column("image", ImageFeature(decode=False))
    if how == "paths and bytes":  # as datasets gives them to whoever transforms rows himself
        return data.cast_column("image", ImageFeature(decode=False)).with_transform(lambda batch: batch)
    if how == "arrays":
        size = data[0]["image"].size
        features = Features({**data.features, "image": Array3D((size[1], size[0], 3), "uint8")})
        return data.map(lambda row: {"image": np.asarray(row["image"])}, features=features)
    return data.with_format(how)


HOW = ["decode=False", "paths and bytes", "arrays", "torch", "numpy"]


@pytest.mark.parametrize(("store", "kinds"), [("auto", HOW), ("none", HOW[:1])])
def test_a_classifier_learns_from_images_however_they_are_held(tmp_path, store, kinds):
    def run(data):
        # crops of stored images are cut from a smaller copy: without them both are the same
        trainer = classification.trainer(tmp_path, None, data, data, image_store=store, crop_scale=1.0)
        trainer.train()
        return trainer.evaluate()["eval_loss"], trainer.predict(data).metrics["test_loss"]

    data = classification.rows(8)
    expected = run(data)
    for how in kinds:
        assert run(held_otherwise(data, how)) == pytest.approx(expected, abs=1e-4), how


@pytest.mark.parametrize("how", HOW)
def test_a_detector_sees_the_same_images_however_they_are_held(how):
    data = detection.rows(2)
    make = DetectionCollator(detection.PROCESSOR, num_aspects=3)
    other = held_otherwise(data, how)
    if how in ("torch", "numpy"):
        other = other.with_format(how, columns=["image"], output_all_columns=True)
    one, same = make(list(data)), make(list(other))
    assert torch.equal(one["pixel_values"], same["pixel_values"])
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(one["labels"], same["labels"]))


def test_a_detector_learns_from_images_however_they_are_held(tmp_path):
    pytest.importorskip("albumentations")

    def run(data):
        trainer = detection.trainer(tmp_path, train=data, evaluate=data)
        trainer.train()
        return trainer.evaluate()["eval_loss"]

    data = detection.rows(4)
    assert run(held_otherwise(data, "decode=False")) == pytest.approx(run(data), abs=1e-4)


def test_paths_as_text_are_refused_before_training(tmp_path):
    paths = ["a.jpg"] * 16
    data = classification.rows()
    data = data.remove_columns("image").add_column("image", paths)
    with pytest.raises(ValueError, match=r"'image' of the training dataset holds string: .*cast_column\('image'"):
        classification.trainer(tmp_path, None, data)
    found = detection.rows(4)
    found = found.remove_columns("image").add_column("image", paths[:4])
    with pytest.raises(ValueError, match=r"holds string: .*cast_column\('image'"):
        detection.trainer(tmp_path, train=found)
