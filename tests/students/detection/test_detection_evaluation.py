"""What is measured of a detector."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import tiny
from builders.detector_training import (
    CLASSES,
    HEIGHT,
    PROCESSOR,
    WIDTH,
    detector,
    rows,
    tell_the_truth,
    trainer,
)
from builders.detectors import ARCHITECTURES
from builders.measured_detectors import AP, ASPECT_METRICS, SOFTMAX, still, truth
from datasets import Dataset, Features, List, Value
from transformers import (
    YolosImageProcessorPil,
)

from madkd_hf import MadkdForObjectDetection
from madkd_hf.students.detection.metrics import coco_ap
from madkd_hf.students.losses.madkd_detection import aspect_loss


# What is measured


def by_hand(model: MadkdForObjectDetection, data: Dataset) -> list[dict]:
    """Image by image, as anybody would do it."""
    results = []
    for row in data:
        pixels = PROCESSOR(row["image"], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            outputs = model.eval()(pixels)
        (found,) = PROCESSOR.post_process_object_detection(outputs, 0.0, [row["image"].size[::-1]])
        best = found["scores"].argsort(descending=True)[:100]
        found = {name: values[best] for name, values in found.items()}
        (boxes,) = outputs.pred_boxes
        low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
        pixels = torch.cat([low, high], dim=1) * torch.tensor(row["image"].size).tile(2)
        query = torch.cdist(found["boxes"], pixels).argmin(dim=1)
        results.append({**found, "aspect_logits": outputs.aspect_logits[0, query]})
    return results


def test_predictions_are_what_the_image_processor_makes_image_by_image(tmp_path):
    data, model = rows(7), detector()
    tiny.widen(model.aspect_head)
    output = trainer(tmp_path, model, per_device_eval_batch_size=4).predict(data)
    expected = by_hand(model, data)
    assert len(output.predictions) == 7
    for found, other in zip(output.predictions, expected):
        assert set(found) == {"boxes", "scores", "labels", "aspect_logits"}
        assert found["boxes"].shape == (6, 4) and found["aspect_logits"].shape == (6, 3)
        for name, values in found.items():
            assert isinstance(values, np.ndarray)
            np.testing.assert_allclose(values, other[name], atol=1e-4)
    assert np.std(output.predictions[0]["aspect_logits"]) > 1e-4
    for known, other in zip(output.label_ids, truth(data)):
        np.testing.assert_allclose(known["boxes"], other["boxes"], atol=1e-4)
        assert known["labels"].tolist() == other["labels"]
    scores = coco_ap(expected, truth(data))
    for name in AP:
        value = output.metrics[name.replace("eval", "test")]
        assert value == pytest.approx(scores[name.removeprefix("eval_")], nan_ok=True, abs=1e-6), name


@pytest.mark.parametrize("level", ["object", "image"])
def test_evaluation_is_the_same_for_any_batch_size(tmp_path, level):
    data, results = rows(11, level, unlabelled=(2, 10)), []
    for size in (11, 4):
        model = detector(level=level)
        results.append(trainer(tmp_path, model, rows(level=level), data, per_device_eval_batch_size=size).evaluate())
    for result in results:
        assert AP | ASPECT_METRICS | {"eval_loss"} <= set(result)
        assert not [name for name in result if "per_" in name and "second" not in name]
        for name in AP | ASPECT_METRICS:
            assert result[name] == pytest.approx(results[0][name], nan_ok=True, abs=1e-5), name


@pytest.mark.parametrize("level", ["object", "image"])
def test_aspect_metrics_are_those_of_matched_objects_or_of_images(tmp_path, level):
    """In one batch, the cross-entropy of the aspects is their loss."""
    data, model = rows(8, level, unlabelled=(2,)), detector(level=level)
    result = trainer(tmp_path, model, rows(level=level), data, aspect_alpha=0.0).evaluate()
    batch = still(model)([data[i] for i in range(8)])
    with torch.no_grad():
        outputs = model.eval()(batch["pixel_values"], labels=batch["labels"])
    assert result["eval_aspect_bce"] == pytest.approx(float(aspect_loss(outputs, batch["labels"], level)), abs=1e-5)
    assert result["eval_loss"] == pytest.approx(float(outputs.loss), abs=1e-4)


@pytest.mark.parametrize("name", ["detr", "yolos"])
def test_boxes_are_in_pixels_of_the_original_image_however_much_is_padded(tmp_path, name):
    data = rows(6, objects=(2, 1, 3))
    wide = rows(6, objects=(2, 1, 3), size=(40, 100))
    data = Dataset.from_list([each[i] for i in range(6) for each in (data, wide)], features=data.features)
    processor = YolosImageProcessorPil(size=dict(SOFTMAX.size)) if name == "yolos" else SOFTMAX
    run = trainer(tmp_path, detector(ARCHITECTURES[name]()), processor=processor, per_device_eval_batch_size=4)
    seen = tell_the_truth(run.model)
    output = run.predict(data)
    assert seen == [name == "detr"] * 3
    assert output.metrics["test_map"] == pytest.approx(1.0)
    for found, known, other in zip(output.predictions, output.label_ids, truth(data)):
        n = len(other["boxes"])
        np.testing.assert_allclose(known["boxes"], other["boxes"], atol=1e-3)
        areas = (other["boxes"][:, 2:] - other["boxes"][:, :2]).prod(axis=1)
        np.testing.assert_allclose(known["area"], areas, rtol=0.1)  # sides of resized images are whole pixels
        distances = np.abs(found["boxes"][:n, None] - other["boxes"][None]).max(axis=2)
        assert (distances.min(axis=0) < 1e-3).all()


def crowded(count: int = 6) -> Dataset:
    """The last object of every second image is a crowd, twice as wide."""

    def mark(row, i):
        objects = row["objects"]
        crowds = [int(i % 2 == 0 and place == len(objects["bbox"]) - 1) for place in range(len(objects["bbox"]))]
        boxes = [[x, y, (1 + crowd) * w, h] for (x, y, w, h), crowd in zip(objects["bbox"], crowds)]
        boxes = [[x, y, min(w, WIDTH - x), h] for x, y, w, h in boxes]
        return {"objects": {**objects, "bbox": boxes, "iscrowd": crowds}}

    data = rows(count, objects=(2, 1, 3))
    features = Features({**data.features, "objects": {**data.features["objects"], "iscrowd": List(Value("int64"))}})
    return data.map(mark, with_indices=True, features=features)


def by_pycocotools(predictions: list[dict], data: Dataset, with_crowds: bool = True) -> list[float]:
    """The annotations as COCO's files have them, the detections as its server wants them."""
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    truth = coco.COCO()
    annotations = [
        {"image_id": i, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        for i, row in enumerate(data["objects"])
        for box, category, crowd in zip(row["bbox"], row["category"], row["iscrowd"])
        if with_crowds or not crowd
    ]
    truth.dataset = {
        "images": [{"id": i} for i in range(len(data))],
        "categories": [{"id": i} for i in CLASSES],
        "annotations": [{**each, "id": 1 + i} for i, each in enumerate(annotations)],
    }
    truth.createIndex()
    found = [
        {"image_id": i, "category_id": int(label), "bbox": [x, y, right - x, low - y], "score": float(score)}
        for i, each in enumerate(predictions)
        for (x, y, right, low), label, score in zip(each["boxes"].tolist(), each["labels"], each["scores"])
    ]
    run = cocoeval.COCOeval(truth, truth.loadRes(found), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    return [np.nan if value < 0 else value for value in run.stats]


def test_ap_is_that_of_pycocotools_where_there_are_crowds(tmp_path):
    """Right boxes, and before them others that lie on the crowds."""
    data = crowded()
    run = trainer(tmp_path, per_device_eval_batch_size=4)
    tell_the_truth(run.model)
    forward = run.model.forward

    def beside(pixel_values, labels=None, **inputs):
        outputs = forward(pixel_values, labels=labels, **inputs)
        for i, label in enumerate(labels):
            for place, (box, category) in enumerate(zip(label.get("crowd_boxes", ()), label.get("crowd_labels", ()))):
                left, top, right, bottom = (box / torch.tensor([WIDTH, HEIGHT] * 2)).tolist()
                for query, share in ((-1 - 2 * place, 0.25), (-2 - 2 * place, 0.75)):
                    middle = left + share * (right - left)
                    outputs.pred_boxes[i, query] = torch.tensor(
                        [middle, (top + bottom) / 2, (right - left) / 2, bottom - top]
                    )
                    outputs.logits[i, query, category] = 25.0
        return outputs

    run.model.forward = beside
    output = run.predict(data)
    expected, without = (by_pycocotools(output.predictions, data, crowds) for crowds in (True, False))
    assert expected[0] == pytest.approx(1) and without[0] < 0.9
    names = {"map": 0, "map_50": 1, "map_75": 2, "map_small": 3, "map_medium": 4, "map_large": 5, "mar_100": 8}
    for name, place in names.items():
        assert output.metrics[f"test_{name}"] == pytest.approx(expected[place], nan_ok=True, abs=1e-6), name
    for known, row in zip(output.label_ids, data):
        assert known["iscrowd"].tolist() == sorted(row["objects"]["iscrowd"])  # crowds are the last ones there, too
        np.testing.assert_allclose(known["boxes"][:, :2], np.array(row["objects"]["bbox"])[:, :2], atol=1e-4)
        assert np.isnan(known["aspect_logits"]).all(axis=1).tolist() == [bool(each) for each in known["iscrowd"]]


def test_crowds_are_no_targets_and_are_not_asked_about(tmp_path):
    data, model = crowded(4), detector()
    result = trainer(tmp_path, model, data, data, aspect_alpha=0.0).evaluate()
    batch = still(model)([data[i] for i in range(4)])
    assert sum(len(label["boxes"]) for label in batch["labels"]) == 6 < sum(map(len, data["aspect_logits"]))
    with torch.no_grad():
        outputs = model.eval()(batch["pixel_values"], labels=batch["labels"])
    assert result["eval_loss"] == pytest.approx(float(outputs.loss), abs=1e-4)
    assert result["eval_aspect_bce"] == pytest.approx(float(aspect_loss(outputs, batch["labels"], "object")), abs=1e-5)


def test_rows_without_objects_are_predicted_and_not_measured(tmp_path):
    data = rows(5)
    run = trainer(tmp_path, per_device_eval_batch_size=4)
    labelled, plain = run.predict(data), run.predict(data.remove_columns(["objects"]))
    assert plain.label_ids is None and not {"test_map", "test_loss"} & set(plain.metrics)
    for found, other in zip(plain.predictions, labelled.predictions, strict=True):
        assert set(found) == {"boxes", "scores", "labels", "aspect_logits"}
        for name in found:
            np.testing.assert_allclose(found[name], other[name], atol=1e-5)
    assert run.predict(rows(4, objects=(0,))).metrics["test_loss"] > 0


def test_aspects_of_the_image_come_once_an_image(tmp_path):
    run = trainer(tmp_path, detector(level="image"), rows(level="image"))
    assert [each["aspect_logits"].shape for each in run.predict(rows(3, "image")).predictions] == [(3,)] * 3


def test_a_metric_of_your_own_takes_the_place_of_ours(tmp_path):
    def mine(prediction):
        assert len(prediction.predictions) == len(prediction.label_ids) == 5
        assert {"boxes", "scores", "labels"} <= set(prediction.predictions[0])
        assert {"boxes", "labels", "area"} <= set(prediction.label_ids[0])
        return {"mine": np.float64(0.5)}

    result = trainer(tmp_path, evaluate=rows(5), metrics=mine, per_device_eval_batch_size=4).evaluate()
    assert result["eval_mine"] == 0.5 and "eval_map" not in result and "eval_loss" in result
