"""COCO AP against cases counted by hand."""

import math
import sys

import numpy as np
import pytest
import torch


pytest.importorskip("pycocotools")

from madkd_hf.students.detection.metrics import coco_ap  # noqa: E402


BOX = [10.0, 10.0, 50.0, 50.0]  # 1,600 pixels: medium
FAR = [60.0, 60.0, 90.0, 90.0]  # 900 pixels: small


def found(*boxes, scores=None, labels=None):
    scores = scores or [0.9 - 0.1 * i for i in range(len(boxes))]
    return {"boxes": list(boxes), "scores": scores, "labels": labels or [0] * len(boxes)}


def true(*boxes, labels=None, **more):
    return {"boxes": list(boxes), "labels": labels or [0] * len(boxes), **more}


def ap(predictions, references, **settings):
    return coco_ap(predictions, references, **settings)


def test_the_right_box_with_the_right_class_counts_fully():
    results = ap([found(BOX)], [true(BOX)])
    everything = {"map", "map_50", "map_75", "map_medium", "mar_100"}
    assert {name for name, value in results.items() if value == pytest.approx(1)} == everything
    assert results["per_class"] == [pytest.approx(1)]
    assert math.isnan(results["map_small"]) and math.isnan(results["map_large"])


def test_a_box_counts_up_to_its_overlap():
    """IoU 0.64 passes the thresholds 0.5, 0.55 and 0.6 of ten."""
    wide = [10.0, 10.0, 50.0, 10.0 + 40 / 0.64]
    results = ap([found(wide)], [true(BOX)])
    assert results["map"] == pytest.approx(0.3)
    assert results["map_50"] == pytest.approx(1) and results["map_75"] == 0
    assert results["mar_100"] == pytest.approx(0.3)


def test_a_wrong_box_before_the_right_one_halves_precision():
    results = ap([found(FAR, BOX)], [true(BOX)])
    assert results["map"] == pytest.approx(0.5) and results["mar_100"] == pytest.approx(1)
    assert ap([found(BOX, FAR)], [true(BOX)])["map"] == pytest.approx(1)


def test_a_missed_object_costs_recall():
    """Precision is 1 at the 51 of 101 recall levels up to 0.5."""
    results = ap([found(BOX)], [true(BOX, FAR)])
    assert results["map"] == pytest.approx(51 / 101) and results["mar_100"] == pytest.approx(0.5)
    assert results["map_small"] == 0 and results["map_medium"] == pytest.approx(1)


def test_a_second_box_on_one_object_is_wrong():
    results = ap([found(BOX, BOX, FAR)], [true(BOX, FAR)])
    assert results["map"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_classes_are_averaged_over_those_that_occur():
    results = ap([found(BOX, FAR, labels=[0, 3])], [true(BOX, FAR, labels=[0, 1])], num_classes=5)
    assert results["map"] == pytest.approx(0.5)
    assert results["per_class"][:2] == [pytest.approx(1), 0]
    assert [math.isnan(value) for value in results["per_class"]] == [False, False, True, True, True]


def test_images_without_predictions_or_objects():
    predictions = [found(BOX), found(), found(), found(FAR, scores=[0.95])]
    references = [true(BOX), true(), true(BOX), true()]
    assert ap(predictions, references)["map"] == pytest.approx(51 * 0.5 / 101)
    assert ap([found()], [true(BOX)])["map"] == 0
    assert math.isnan(ap([found(BOX)], [true()])["map"])
    nothing = ap([found()], [true()])
    assert math.isnan(nothing["map"]) and nothing["per_class"] == []


def test_what_lies_on_a_crowd_is_neither_right_nor_wrong():
    crowd = true(BOX, FAR, iscrowd=[0, 1])
    assert ap([found(FAR, BOX)], [crowd])["map"] == pytest.approx(1)
    assert ap([found(FAR, BOX)], [crowd])["mar_100"] == pytest.approx(1)


def test_the_size_of_an_object_is_its_area_where_that_is_known():
    results = ap([found(BOX)], [true(BOX, area=[500.0])])
    assert results["map_small"] == pytest.approx(1) and math.isnan(results["map_medium"])


def test_arrays_and_tensors_are_taken_too():
    prediction = {name: torch.tensor(values) for name, values in found(BOX).items()}
    references = [
        {name: np.array(values) for name, values in true(BOX).items()},
        true(BOX, area=[1600.0], iscrowd=[0]),
    ]
    assert ap([prediction, found()], references)["map"] == pytest.approx(51 / 101)


def test_nothing_is_printed(capfd):
    ap([found(BOX)], [true(BOX)])
    assert capfd.readouterr().out == ""


def test_lists_of_different_lengths_and_missing_ones_raise():
    with pytest.raises(ValueError, match="Image 0 has 1 boxes, but 2 scores"):
        ap([found(BOX, scores=[0.5, 0.4])], [true(BOX)])
    with pytest.raises(ValueError, match="no scores"):
        ap([true(BOX)], [true(BOX)])


def test_without_pycocotools_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(ImportError, match=r'pip install "madkd_hf\[detection\]"'):
        ap([found(BOX)], [true(BOX)])
