"""Saved students work where madkd_hf cannot be imported: their code travels with them."""

from __future__ import annotations

import os
import subprocess

import pytest
import torch
from builders import detectors, tiny
from builders.quick_python import quick_python
from transformers import ViTConfig, ViTImageProcessorPil, pipeline

from madkd_hf import MadkdForImageClassification


CLASSES = {0: "cat", 1: "dog", 2: "cow", 3: "hen"}
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
ELSEWHERE = """
import sys
sys.modules["madkd_hf"] = None  # whoever imports it fails
import torch
from transformers import AutoModelForImageClassification, AutoModelForObjectDetection, pipeline
try:
    import madkd_hf
except ImportError:
    print("the package is not there")
inputs, image, result, *folders = sys.argv[1:]
found, pixels = [], torch.load(inputs)
for folder, auto in zip(folders, (AutoModelForImageClassification, AutoModelForObjectDetection)):
    model = auto.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        outputs = dict(model(pixels))
    look = pipeline(model=folder, trust_remote_code=True)
    usual = "image-classification" if len(found) == 0 else "object-detection"
    options = {"top_k": 9} if len(found) == 0 else {"threshold": 0.0}
    seen = look(image, **options)
    answers = pipeline(usual, model=folder, trust_remote_code=True)(image, **options)
    found.append({"outputs": outputs, "class": str(type(model)), "task": look.task, "seen": dict(seen)})
    found[-1] |= {"text": str(seen), "answers": answers}
torch.save(found, result)
"""


@pytest.fixture(scope="module")
def students(tmp_path_factory) -> dict:
    """Folder -> what is in it: a classifier and a detector."""
    torch.manual_seed(0)
    vit = ViTConfig(**VIT, intermediate_size=32)
    classifier = MadkdForImageClassification.from_backbone(vit, CLASSES, tiny.bank(3))
    tiny.widen(classifier)
    models = {}
    for model, processor in (
        (classifier, ViTImageProcessorPil(size={"height": 64, "width": 64})),
        (detectors.detector("detr"), detectors.processor()),
    ):
        folder = tmp_path_factory.mktemp(model.config.model_type)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        models[folder] = model
    return models


def test_saved_students_give_the_same_where_the_package_is_not(students, tmp_path):
    inputs, image, result = (tmp_path / name for name in ("inputs.pt", "image.png", "result.pt"))
    torch.save(detectors.pixels(), inputs)
    tiny.images(1, size=48)[0].save(image)
    done = subprocess.run(
        [quick_python(), "-c", ELSEWHERE, inputs, image, result, *students],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "the package is not there" in done.stdout and result.exists(), done.stderr
    assert "is not supported" not in done.stdout + done.stderr
    for (folder, model), there in zip(students.items(), torch.load(result)):
        assert "transformers_modules" in there["class"]
        with torch.no_grad():
            expected = model.eval()(detectors.pixels())
        for key in ("logits", "aspect_logits", *(["pred_boxes"] if "pred_boxes" in expected else [])):
            torch.testing.assert_close(there["outputs"][key], expected[key], atol=1e-5, rtol=1e-5)
        detects = "objects" in there["seen"]
        options = {"threshold": 0.0} if detects else {"top_k": 9}
        task = "object-detection" if detects else "image-classification"
        here = pipeline(task, model=str(folder))(str(image), **options)
        assert [answer["label"] for answer in there["answers"]] == [answer["label"] for answer in here]
        assert [answer["score"] for answer in there["answers"]] == pytest.approx([answer["score"] for answer in here])
        assert there["task"] == ("aspect-detection" if detects else "aspect-classification")
        assert there["text"].count("aspect-0: 0.") == (len(here) if detects else 1)
        if detects:
            seen = pipeline("aspect-detection", model=str(folder), trust_remote_code=True)(str(image), threshold=0.0)
            assert [found["box"] for found in there["seen"]["objects"]] == [found["box"] for found in seen["objects"]]
