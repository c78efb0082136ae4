"""Scenes of easy-VQA shapes: boxes fit, objects stay visible, splits share no shape, and all of it is seeded."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel
from transformers import AutoImageProcessor, pipeline

from madkd_hf import MadkdForObjectDetection
from madkd_hf.students.detection.data import DetectionCollator


pytest.importorskip("easy_vqa")

from recipes.easy_vqa import data, scenes  # noqa: E402


FEW = {"train": 12, "validation": 4, "test": 4}


@pytest.fixture(scope="module")
def few():
    return scenes.load_scenes(scenes=FEW)


@pytest.fixture(scope="module")
def shapes():
    return scenes.cutouts("validation")


def test_columns_are_those_of_a_coco_like_dataset(few):
    assert {name: len(split) for name, split in few.items()} == FEW
    assert set(few["train"].features) == {"image_id", "image", "width", "height", "objects"}
    assert few["train"].features["objects"]["category"].feature == ClassLabel(names=data.CLASSES)
    ids = [i for objects in few["train"]["objects"] for i in objects["id"]]
    assert len(set(ids)) == len(ids) and 0 not in ids
    assert few["train"]["image_id"] == list(range(12))


def test_boxes_lie_inside_and_areas_inside_boxes(few):
    for split in few.values():
        for row in split:
            objects = row["objects"]
            assert row["image"].size == (row["width"], row["height"]) == (scenes.SIZE, scenes.SIZE)
            assert 1 <= len(objects["id"]) <= scenes.MOST_OBJECTS
            assert {len(values) for values in objects.values()} == {len(objects["id"])}
            for (x, y, width, height), area in zip(objects["bbox"], objects["area"]):
                assert x >= 0 and y >= 0 and x + width <= scenes.SIZE and y + height <= scenes.SIZE
                assert min(width, height) >= scenes.SMALLEST_SIDE
                assert 0.4 * width * height < area <= width * height  # a triangle covers half of its box


def test_a_box_fits_its_shape_tightly(shapes):
    """One object on a light background: the box of all pixels that differ from the background is the object's."""
    one = 0
    for seed in range(40):
        image, objects = scenes.compose(shapes, np.random.default_rng(seed))
        if len(objects) > 1 or "black" not in objects[0][0]:
            continue
        one += 1
        dark = np.asarray(image).max(axis=2) < 100
        rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
        tight = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
        assert np.abs(np.array(tight) - objects[0][1]).max() <= 1
    assert one


def test_cutouts_are_solid_shapes(shapes):
    """Within its box a rectangle covers all, a circle pi / 4 and a triangle half."""
    assert set(shapes) == set(data.CLASSES)
    for word, share in {"rectangle": 1, "circle": np.pi / 4, "triangle": 0.5}.items():
        for cutout in shapes[f"blue {word}"]:
            cover = np.asarray(cutout.cover)[1:-1, 1:-1] / 255
            assert cover.mean() == pytest.approx(share, abs=0.12)
            assert cutout.color.argmax() == 2


def test_no_object_is_hidden_by_much(shapes, monkeypatch):
    """Each object in turn is made the only one of its colour; what is seen of it is most of its area."""
    seen = []
    monkeypatch.setattr(scenes, "_background", lambda random, size: np.full((size, size, 3), 255.0))
    for seed in range(30):
        random = np.random.default_rng(seed)
        image, objects = scenes.compose({name: shapes[name] for name in shapes}, random)
        colors = [name.split()[0] for name, _, _ in objects]
        pixels = np.asarray(image).astype(int)
        for (name, _, area), color in zip(objects, colors):
            if colors.count(color) == 1:
                near = np.abs(pixels - shapes[name][0].color).max(axis=2) < 40
                seen.append(near.sum() / area)
    assert min(seen) > 0.9 * (1 - scenes.MOST_HIDDEN) - 0.1 and min(seen) < 0.95 and len(seen) > 40


def test_splits_are_cut_from_different_images(monkeypatch):
    assert not set(data.parts()["train"]) & set(data.parts()["validation"])
    used = []
    monkeypatch.setattr(scenes, "cut_out", lambda image: used.append(image.filename))
    for part in scenes.SCENES:
        scenes.cutouts.__wrapped__(part)
    assert len(set(used)) == len(used)
    teacher = {str(data._read("train")[0][i]) for i in data.parts()["teacher"]}
    assert not teacher & {str(name) for name in used}


def test_scenes_follow_from_the_seed_and_their_number_alone(few):
    again = scenes.load_scenes(scenes={"train": 3})["train"]
    assert again[:] == few["train"][:3]
    other = scenes.load_scenes(scenes={"train": 3}, seed=1)["train"]
    assert other[:]["objects"] != again[:]["objects"]


@pytest.mark.parametrize("kind", ["color", "shape"])
def test_classes_may_be_colors_or_shapes_of_the_same_scenes(few, kind):
    split = scenes.load_scenes(kind, {"train": 3})["train"]
    names = split.features["objects"]["category"].feature
    both = few["train"].features["objects"]["category"].feature
    for ours, theirs in zip(split["objects"], few["train"]["objects"]):
        assert ours["bbox"] == theirs["bbox"]
        words = [both.int2str(b).split()[kind == "shape"] for b in theirs["category"]]
        assert names.int2str(ours["category"]) == words


def test_the_pretrained_detector_saw_other_images(monkeypatch):
    monkeypatch.setattr(scenes, "SCENES", FEW)
    monkeypatch.setattr(scenes, "_split", lambda *given: given)
    splits = {}
    monkeypatch.setattr(scenes, "DatasetDict", splits.update)
    scenes.load_pretraining_scenes()
    assert [given[:4] for given in splits.values()] == [
        (part, "teacher", "color", count) for part, count in (FEW | {"train": 2000}).items()
    ]
    assert {given[-1] for given in splits.values()} == {1} != {scenes.SEED}


def test_the_shipped_detector_takes_scenes(few):
    folder = Path(scenes.__file__).parent / "detector"
    detector = MadkdForObjectDetection.from_detector(folder, dict(enumerate(data.CLASSES)))
    collator = DetectionCollator(AutoImageProcessor.from_pretrained(folder))
    with torch.no_grad():
        out = detector(**collator([few["train"][0], few["train"][1]]))
    assert torch.isfinite(out.loss) and out.logits.shape == (2, 30, 24)
    assert sum(weights.numel() for weights in detector.parameters()) < 600_000


def test_the_shipped_detector_finds_shapes_and_tells_their_colors():
    folder = Path(scenes.__file__).parent / "detector"
    find = pipeline("object-detection", str(folder), threshold=0.5)
    rows = scenes.load_scenes("color", {"test": 20})["test"]
    right = there = 0
    for row in rows:
        names = rows.features["objects"]["category"].feature.int2str(row["objects"]["category"])
        found = Counter(each["label"] for each in find(row["image"]))
        right, there = right + (found & Counter(names)).total(), there + len(names)
    assert right > 0.8 * there
