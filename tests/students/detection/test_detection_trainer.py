"""Training detectors: what is logged, what it equals, what is measured, what it survives, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders.classifier_training import (
    StopAfter,
    arguments,
    assert_same_weights,
    logged,
    with_broken_images,
)
from builders.detector_training import (
    PROCESSOR,
    conditional,
    detector,
    rows,
    trainer,
)
from builders.detectors import ARCHITECTURES, DETR, backbone, grouped
from builders.measured_detectors import AP, ASPECT_METRICS, SOFTMAX, still, truth
from datasets import Dataset, Features, IterableDataset, List, Value
from torch.nn import functional as F
from transformers import (
    ConditionalDetrConfig,
    EarlyStoppingCallback,
)

from madkd_hf import MadkdDetectionTrainer, MadkdForObjectDetection
from madkd_hf.students.losses.madkd_detection import aspect_loss


PARTS = ("detector_loss", "aspect_loss", "loss_ce", "loss_bbox", "loss_giou")


def slowly(*names: str) -> list:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


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
