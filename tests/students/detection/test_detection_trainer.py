"""Training detectors: what is logged, what it equals, what is measured, what it survives, what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import tiny
from builders.classifier_training import (
    OTHER,
    StopAfter,
    arguments,
    assert_same_weights,
    logged,
    student,
    with_broken_images,
)
from builders.detector_training import (
    BANK,
    CLASSES,
    HEIGHT,
    PROCESSOR,
    WIDTH,
    conditional,
    detector,
    flat,
    rows,
    tell_the_truth,
    trainer,
)
from builders.detectors import ARCHITECTURES, DETR, backbone, grouped
from datasets import ClassLabel, Dataset, Features, IterableDataset, List, Value
from torch.nn import functional as F
from transformers import (
    ConditionalDetrConfig,
    DetrImageProcessorPil,
    EarlyStoppingCallback,
    TrainingArguments,
    YolosImageProcessorPil,
)

from madkd_hf import MadkdDetectionTrainer, MadkdForObjectDetection, MadkdTrainer
from madkd_hf.students.detection.data import DetectionCollator
from madkd_hf.students.detection.metrics import coco_ap
from madkd_hf.students.losses.madkd_detection import aspect_loss


ROOT = Path(__file__).parents[3]
SOFTMAX = DetrImageProcessorPil(size={"shortest_edge": 40, "longest_edge": 64})
PARTS = ("detector_loss", "aspect_loss", "loss_ce", "loss_bbox", "loss_giou")
AP = {f"eval_{name}" for name in ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100")}
ASPECT_METRICS = {"eval_aspect_auroc", "eval_aspect_bce"}


def slowly(*names: str) -> list:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def still(model: MadkdForObjectDetection, processor=PROCESSOR) -> DetectionCollator:
    """No augmentation."""
    return DetectionCollator(
        processor,
        num_aspects=3,
        aspects_per_object=model.config.aspect_level == "object",
        pixel_mask=model.takes_mask,
    )


# What is logged


@pytest.mark.parametrize(("level", "alpha"), [("object", 4.0), ("image", 0.0)])
def test_each_part_of_the_loss_is_logged_and_they_add_up(tmp_path, level, alpha):
    run = trainer(tmp_path, detector(level=level), rows(level=level), aspect_alpha=alpha)
    run.train()
    loss, detector_loss, aspect = (np.array(logged(run, name)) for name in ("loss", "detector_loss", "aspect_loss"))
    assert len(loss) == len(detector_loss) == len(aspect) == 2
    assert (detector_loss > 0.5).all() and (aspect > 0.1).all()
    np.testing.assert_allclose(loss, detector_loss + alpha * aspect, atol=1e-4)
    weights = run.model.detector.config
    weighted = [2 * np.array(logged(run, "loss_ce"))]  # as transformers has it for conditional DETR
    weighted += [weights.bbox_loss_coefficient * np.array(logged(run, "loss_bbox"))]
    weighted += [weights.giou_loss_coefficient * np.array(logged(run, "loss_giou"))]
    assert all((part > 0).all() for part in weighted)
    assert {name for entry in run.state.log_history for name in entry if name.startswith("loss_")} == set(PARTS[2:])


def test_the_first_logged_losses_are_those_computed_by_hand(tmp_path):
    model, data = detector(), rows(4, unlabelled=(1,))
    collator = still(model)
    batch = collator([data[i] for i in range(4)])
    with torch.no_grad():
        outputs = model.train()(batch["pixel_values"], labels=batch["labels"])
    aspects = aspect_loss(outputs, batch["labels"], "object")
    run = trainer(tmp_path, model, data, collator=collator, aspect_alpha=2.0)
    run.train()
    assert logged(run, "detector_loss") == pytest.approx([float(outputs.loss)], abs=1e-4)
    assert logged(run, "aspect_loss") == pytest.approx([float(aspects)], abs=1e-4)
    assert logged(run, "loss") == pytest.approx([float(outputs.loss + 2 * aspects)], abs=1e-4)
    for name in PARTS[2:]:
        assert logged(run, name) == pytest.approx([float(outputs.loss_dict[name])], abs=1e-4), name


@pytest.mark.parametrize("name", ["rt_detr", *slowly("d_fine", "deformable_detr, two stages")])
def test_detectors_whose_losses_have_more_parts_log_those_of_the_last_layer(tmp_path, name):
    run = trainer(tmp_path, detector(ARCHITECTURES[name]()), rows(4))
    run.train()
    parts = {each for entry in run.state.log_history for each in entry if each.startswith("loss_")}
    assert {"loss_bbox", "loss_giou"} < parts and len(parts) <= 5
    assert logged(run, "loss") == pytest.approx(
        [logged(run, "detector_loss")[0] + 4 * logged(run, "aspect_loss")[0]], abs=1e-3
    )


def test_training_learns_boxes_and_aspects(tmp_path):
    data = rows(4)
    run = trainer(
        tmp_path, detector(ARCHITECTURES["yolos"]()), data, data, num_train_epochs=40, learning_rate=1e-2,
        lr_scheduler_type="constant", crop_scale=1.0, horizontal_flip=0.0, processor=SOFTMAX,
    )  # fmt: skip
    before = run.evaluate()
    run.train()
    after = run.evaluate()
    targets = torch.tensor([each for row in data["aspect_logits"] for each in row]).sigmoid()
    floor = float(F.binary_cross_entropy(targets, targets))
    assert after["eval_loss"] < 0.6 * before["eval_loss"]
    assert after["eval_aspect_bce"] - floor < 0.7 * (before["eval_aspect_bce"] - floor)


def test_a_detector_with_groups_of_queries_logs_and_measures_each_object_once(tmp_path):
    model, data = detector(grouped()), rows(4, unlabelled=(1,))
    collator = still(model)
    batch = collator([data[i] for i in range(4)])
    run = trainer(tmp_path, model, data, data, collator=collator)
    with torch.no_grad():
        in_training, in_evaluation = (
            float(aspect_loss(model.train(training)(**batch), batch["labels"], "object")) for training in (True, False)
        )
    assert run.evaluate()["eval_aspect_bce"] == pytest.approx(in_evaluation, abs=1e-5)
    run.train()
    assert logged(run, "aspect_loss") == pytest.approx([in_training], abs=1e-4)


# What it equals


@pytest.mark.parametrize(("name", "level"), [("conditional_detr", "object"), ("yolos", "image")])
def test_micro_batches_of_as_many_objects_are_one_batch(tmp_path, name, level):
    config = conditional() if name == "conditional_detr" else ARCHITECTURES[name]()
    data = rows(16, level, unlabelled=(1, 2, 9), objects=(2,))
    runs = [
        trainer(
            tmp_path, detector(config, level), data, per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size, num_train_epochs=2, learning_rate=1e-4,
        )
        for size in (8, 2)
    ]  # fmt: skip
    for run in runs:
        run.train()
    whole, parts = runs
    assert len(logged(whole, "loss")) == 4
    for each in ("loss", *PARTS, "grad_norm"):
        assert logged(parts, each) == pytest.approx(logged(whole, each), rel=1e-3, abs=1e-4), each
    assert_same_weights(parts.model, whole.model, atol=2e-4)


def test_every_object_s_answers_weigh_the_same_whatever_micro_batch_they_are_in(tmp_path):
    data = rows(8, unlabelled=(3,))
    found = []
    for size in (8, 1):
        run = trainer(tmp_path, train=data, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size)
        run.train()
        found.append(logged(run, "aspect_loss"))
    assert len(found[0]) == 1 and found[0] == pytest.approx(found[1], abs=1e-5)


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


def truth(data: Dataset) -> list[dict]:
    boxes = [np.reshape(row["bbox"], (-1, 4)) for row in data["objects"]]
    boxes = [np.concatenate([each[:, :2], each[:, :2] + each[:, 2:]], axis=1) for each in boxes]
    return [{"boxes": each, "labels": row["category"]} for each, row in zip(boxes, data["objects"])]


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


# What it takes


@pytest.mark.parametrize("kind", ["no columns", "no answers", "no bank"])
def test_what_has_no_answers_trains_and_evaluates_on_its_objects(tmp_path, kind):
    data = rows(level=None) if kind == "no columns" else rows(unlabelled=tuple(range(8)) if "answers" in kind else ())
    run = trainer(tmp_path, detector(bank=None) if kind == "no bank" else None, data, data)
    run.train()
    result = run.evaluate()
    assert AP | {"eval_loss"} <= set(result) and not ASPECT_METRICS & set(result)
    assert logged(run, "loss") == pytest.approx(logged(run, "detector_loss"), abs=1e-4)


def test_rows_whose_image_the_labelling_could_not_read_are_left_out(tmp_path, caplog):
    data = with_broken_images(rows(9), 2, 7, 8)
    run = trainer(tmp_path, train=data, evaluate=data)
    assert "Left out 3 of the 9 rows of the training dataset" in caplog.text
    run.train()
    assert len(run.train_dataset) == 6 and AP <= set(run.evaluate()) and len(run.predict(data).predictions) == 6


def test_several_evaluation_datasets(tmp_path):
    result = trainer(tmp_path, evaluate={"seen": rows(), "new": rows(4, None)}).evaluate()
    assert {"eval_seen_map", "eval_seen_aspect_bce", "eval_new_map", "eval_new_loss"} <= set(result)
    assert "eval_new_aspect_bce" not in result


def test_other_columns_lists_of_objects_and_formats(tmp_path):
    def corners(row):
        pairs = zip(row["objects"]["bbox"], row["objects"]["category"])
        found = [{"bbox": [x, y, x + w, y + h], "category": c} for (x, y, w, h), c in pairs]
        return {"things": found}

    of_each = {"bbox": List(Value("float32"), length=4), "category": Value("int64")}
    data = rows().rename_column("image", "photo")
    data = data.map(corners, features=Features({**data.features, "things": List(of_each)}), remove_columns="objects")
    run = MadkdDetectionTrainer(
        detector(), arguments(tmp_path), train_dataset=data, eval_dataset=data, processing_class=PROCESSOR,
        image_column="photo", boxes_column="things", box_format="pascal_voc",
    )  # fmt: skip
    run.train()
    assert run.evaluate()["eval_map_large"] != 0 and len(logged(run, "loss")) == 2
    for known, other in zip(run.predict(data).label_ids, truth(rows())):
        np.testing.assert_allclose(known["boxes"], other["boxes"], atol=1e-4)


def test_bf16_computes_in_fewer_bits_and_keeps_whole_weights(tmp_path):
    whole, half = (trainer(tmp_path, evaluate=rows(4), bf16=bf16, num_train_epochs=2) for bf16 in (False, True))
    for run in whole, half:
        run.train()
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
    for name in ("loss", "detector_loss", "aspect_loss"):
        assert logged(half, name) == pytest.approx(logged(whole, name), rel=0.05), name
    assert logged(half, "loss") != logged(whole, "loss") and AP <= set(half.evaluate())


def test_flips_and_zooms_are_as_the_arguments_say(tmp_path):
    run = trainer(tmp_path, horizontal_flip=0.25, crop_scale=1.0)
    assert [change.p for change in run.train_collator.changes.transforms[:2]] == [0.25, 0.0]
    assert [change.p for change in trainer(tmp_path).train_collator.changes.transforms[:2]] == [0.5, 1.0]


def test_channels_last_changes_nothing_else(tmp_path):
    runs = [trainer(tmp_path, train=rows(4), evaluate=rows(4), channels_last=last) for last in (False, True)]
    for run in runs:
        run.train()
    assert logged(runs[0], "loss") == pytest.approx(logged(runs[1], "loss"), abs=1e-4)
    assert runs[0].evaluate()["eval_loss"] == pytest.approx(runs[1].evaluate()["eval_loss"], abs=1e-3)


def streamed(data: Dataset, with_features: bool) -> IterableDataset:
    if with_features:
        return data.to_iterable_dataset()
    return IterableDataset.from_generator(lambda: iter(data))


@pytest.mark.parametrize("with_features", [True, False])
def test_streams_are_trained_and_measured_on_like_other_datasets(tmp_path, with_features):
    run = trainer(
        tmp_path, train=streamed(rows(8), with_features), evaluate=streamed(rows(5), with_features), max_steps=2
    )
    assert (run.train_dataset.features is None) != with_features
    run.train()
    same = trainer(tmp_path, run.model, evaluate=rows(5)).evaluate()
    measured = run.evaluate()
    for name in AP | ASPECT_METRICS | {"eval_loss"}:
        assert measured[name] == pytest.approx(same[name], nan_ok=True, abs=1e-5), name


@pytest.mark.parametrize(("place", "with_features"), [("train", True), ("evaluate", False), ("evaluate later", True)])
def test_a_stream_without_the_column_of_objects_is_refused(tmp_path, place, with_features):
    data = streamed(rows(4).remove_columns("objects"), with_features)
    with pytest.raises(ValueError, match=r"no column 'objects'.* \[.*'image'.*\]: name the objects with boxes_column"):
        if place == "train":
            trainer(tmp_path, train=data, max_steps=1).train()
        elif place == "evaluate":
            trainer(tmp_path, evaluate=data).evaluate()
        else:
            trainer(tmp_path).evaluate(data)
    assert len(trainer(tmp_path).predict(data).predictions) == 4


def test_a_stream_to_evaluate_on_is_checked_before_the_first_epoch(tmp_path):
    for lacking in ("objects", "image"):
        with pytest.raises(ValueError, match=f"no column '{lacking}' in the evaluation dataset"):
            trainer(tmp_path, train=rows(4), evaluate=streamed(rows(4).remove_columns(lacking), True))


def test_batches_without_labels_are_refused_where_they_are_to_be_learnt_from(tmp_path):
    def pictures(rows):
        return {"pixel_values": torch.zeros(len(rows), 3, 64, 64)}

    with pytest.raises(ValueError, match="has no `labels`, only .'pixel_values'.: let data_collator add them"):
        trainer(tmp_path, collator=pictures).train()


# What it survives


@pytest.mark.parametrize("name", ["conditional_detr", *slowly("rt_detr")])
def test_a_resumed_run_continues_the_same_curve(tmp_path, name):
    def make(folder):
        config = ConditionalDetrConfig(**DETR | {"dropout": 0.1}, **backbone(3), use_timm_backbone=False)
        model = detector(config if name == "conditional_detr" else ARCHITECTURES[name]())
        settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1}
        return trainer(tmp_path / folder, model, **settings)

    undisturbed = make("whole")
    undisturbed.train()
    broken = make("broken")
    broken.add_callback(StopAfter(3))
    broken.train()
    assert (undisturbed.state.global_step, broken.state.global_step) == (4, 3)
    resumed = make("broken")
    resumed.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-3"))
    for each in ("loss", "detector_loss", "aspect_loss"):
        assert logged(resumed, each) == pytest.approx(logged(undisturbed, each), abs=1e-4), each
    assert_same_weights(resumed.model, undisturbed.model, atol=1e-5)


def test_the_best_checkpoint_by_map_is_loaded_and_training_stops_early(tmp_path):
    found = iter([0.1, 0.3, 0.2, 0.1, 0.4])
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    run = trainer(
        tmp_path, evaluate=rows(4), metrics=lambda _: {"map": next(found)}, num_train_epochs=5, **every,
        load_best_model_at_end=True, metric_for_best_model="map",
    )  # fmt: skip
    run.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    run.train()
    assert (run.state.global_step, run.state.best_global_step, run.state.best_metric) == (4, 2, 0.3)
    losses = logged(run, "eval_loss")
    run.compute_metrics = lambda _: {}
    assert run.evaluate()["eval_loss"] == pytest.approx(losses[1], abs=1e-5) != pytest.approx(losses[3], abs=1e-5)


def test_ours_is_a_metric_for_the_best_model(tmp_path):
    every = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    run = trainer(tmp_path, evaluate=rows(4), num_train_epochs=2, metric_for_best_model="map", **every)
    run.train()
    assert run.state.best_metric == max(logged(run, "eval_map"))


def test_a_checkpoint_of_another_level_is_refused(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    run = trainer(tmp_path, detector(level="image"), rows(level="image"))
    with pytest.raises(ValueError, match="has aspect_level='object' and the model 'image': build it with the same"):
        run.train(resume_from_checkpoint=True)


def test_a_saved_detector_carries_its_processor_and_code(tmp_path):
    run = trainer(tmp_path)
    run.train()
    run.save_model()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"preprocessor_config.json", "modeling_madkd_detection.py", "configuration_madkd_detection.py"} <= names
    assert_same_weights(MadkdForObjectDetection.from_pretrained(tmp_path), run.model, atol=0)


# What is refused


OTHER_CLASSES = {**rows(4).features, "objects": {**rows(4).features["objects"], "category": List(Value("int64"))}}
FIVE = Features({**OTHER_CLASSES, "objects": {**OTHER_CLASSES["objects"], "category": List(ClassLabel(5))}})


def beyond(row: dict) -> dict:
    return {"objects": {**row["objects"], "category": [each + 2 for each in row["objects"]["category"]]}}


def without(row: dict) -> dict:
    return {"objects": {**row["objects"], "category": [None for _ in row["objects"]["category"]]}}


REFUSED = {
    "no category": (rows(8, objects=(0, 2)).map(without), "object in row 1 has no category: give it one"),
    "length": (rows(4, bank=tiny.bank(2)), "answers 2 questions and the model has 3 aspects: use the bank .*aspects"),
    "fingerprint": (rows(4, bank=OTHER), f"bank {OTHER.fingerprint} and the model was built for {BANK.fingerprint}"),
    "level": (
        rows(4, "image"),
        "answers about whole images and the model about each object: label it with boxes_column, or train a "
        'MadkdForObjectDetection with aspect_level="image"',
    ),
    "classes": (rows(4).cast(FIVE), "has 5 classes and the model 3: build the"),
    "category": (
        rows(4).cast(Features(OTHER_CLASSES)).map(beyond),
        r"An object of the \w+ dataset( 'bad')? has the category [34], which is none of the 3 classes: expected an "
        "integer from 0 to 2",
    ),
    "fields": (
        rows(4).map(lambda row: {"objects": {"box": row["objects"]["bbox"]}}, features=Features(
            {**rows(4).features, "objects": {"box": List(List(Value("float32")))}})),
        "expected objects with the fields 'bbox' and 'category'; rename",
    ),
}  # fmt: skip
MISSING = {
    "area": (
        rows(8, objects=(0, 2)).map(flat),
        "An object in row 1 of .* has the box .*, 0.0., which has no area: expected coco boxes, .*; correct the box",
    ),
    "column": (rows(4).remove_columns("objects"), "no column 'objects' in the .*, only .*name the objects with"),
    "objects": (rows(4, objects=(0,)), "None of the 4 images of the .* has an object in the column 'objects': there"),
}


@pytest.mark.parametrize("name", [*REFUSED, *MISSING])
def test_a_dataset_that_does_not_fit_the_model_is_refused(tmp_path, name):
    data, message = (REFUSED | MISSING)[name]
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, train=data)


@pytest.mark.parametrize("place", ["evaluate", "evaluate dict", "evaluate later", "predict later"])
@pytest.mark.parametrize("name", ["level", "column"])
def test_so_is_one_to_evaluate_or_to_predict(tmp_path, place, name):
    if place == "predict later" and name in MISSING:
        return
    data, message = (REFUSED | MISSING)[name]
    with pytest.raises(ValueError, match=message):
        if place == "evaluate":
            trainer(tmp_path, evaluate=data)
        elif place == "evaluate dict":
            trainer(tmp_path, evaluate={"good": rows(4), "bad": data})
        elif place == "evaluate later":
            trainer(tmp_path).evaluate(data)
        else:
            trainer(tmp_path).predict(data)


def test_answers_about_objects_are_refused_by_what_asks_about_images(tmp_path):
    message = "answers about each object and the model about whole images: label it without boxes_column, or train a"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, detector(level="image"))
    data = rows(4).add_column("label", [0, 1, 2, 3])
    with pytest.raises(ValueError, match=message):
        MadkdTrainer(student(), arguments(tmp_path), train_dataset=data, processing_class=PROCESSOR)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_store": "disk"}, "An image store keeps images of one size, .*received image_store='disk': leave it"),
        ({"mixup_alpha": 0.2}, "loss has no mixup_alpha; received 0.2: leave it at 0"),
        ({"label_smoothing_factor": 0.1}, "loss has no label_smoothing_factor; received 0.1: leave it at 0"),
    ],
)
def test_arguments_for_what_detectors_do_not_have_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **settings)


def test_a_model_a_processor_and_arguments_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="needs a MadkdForObjectDetection; received .*MadkdForImage.*from_detector"):
        trainer(tmp_path, student())
    with pytest.raises(ValueError, match="MadkdDetectionTrainer needs MadkdTrainingArguments .for aspect_alpha"):
        MadkdDetectionTrainer(detector(), TrainingArguments(str(tmp_path), use_cpu=True), processing_class=PROCESSOR)
    with pytest.raises(ValueError, match="Pass the student's image processor as processing_class"):
        trainer(tmp_path, processor=None)
    with pytest.raises(ValueError, match="Evaluation needs the detector's image processor, .*received .*NoneType"):
        trainer(tmp_path, evaluate=rows(4), collator=still(detector()), processor=None).evaluate()
