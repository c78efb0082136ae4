"""Training arguments that cannot be: one sentence each, before anything is loaded."""

from __future__ import annotations

import numpy as np
import pytest
from builders import detector_training as detection
from builders import tiny
from builders.classifier_training import StopAfter, arguments, logged, rows, student, trainer
from datasets import DatasetDict, load_from_disk
from huggingface_hub import ModelCard

from madkd_hf.metrics import compute_metrics
from madkd_hf.students.base.settings import REPORTERS, check_extras, check_metric


BEST = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"}
BEST |= {"save_steps": 1, "metric_for_best_model": "loss"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": float("nan")}, "learning_rate must be .*; received nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be .*; received inf"),
        ({"learning_rate": -1.0}, "learning_rate must be .*; received -1"),
        ({"aspect_alpha": float("inf")}, "aspect_alpha must be a finite number.*; received inf"),
        ({"label_smoothing_factor": 1.5}, "label_smoothing_factor must be 0 to 1.*; received 1.5"),
        ({"num_train_epochs": 0}, "num_train_epochs must be a number above 0; received 0"),
        ({"num_train_epochs": float("inf")}, "num_train_epochs must be a number above 0; received inf"),
        ({"max_steps": 0}, "max_steps must be above 0, or -1 .*; received 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1; received 0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1; received 0"),
        ({"seed": -1}, "seed must be 0 to 4,294,967,295; received -1"),
        ({"weight_decay": float("nan")}, "weight_decay must be"),
        ({"seed": -1, "max_steps": 0}, "max_steps must be .* seed must be"),
        ({"early_stopping_patience": 0}, "early_stopping_patience must be at least 1"),
        ({"early_stopping_patience": 2}, "pass eval_strategy=epoch .* and load_best_model_at_end=true"),
        ({"early_stopping_threshold": 0.1}, "pass early_stopping_patience, too"),
        ({"early_stopping_patience": 2, **BEST, "early_stopping_threshold": -1.0}, "early_stopping_threshold must be"),
        ({"report_to": "tensorbord"}, "report_to cannot be 'tensorbord': did you mean 'tensorboard'"),
    ],
    ids=str,
)
def test_what_no_training_can_be_done_with_is_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message) as refused:
        arguments(tmp_path, **settings)
    assert len(str(refused.value).splitlines()) == 1


def test_what_is_not_installed_is_said_with_how_to_install_it(tmp_path, monkeypatch):
    for name in REPORTERS:
        monkeypatch.setattr(f"transformers.integrations.integration_utils.{is_available(name)}", lambda: False)
        with pytest.raises(ImportError, match=f"report_to={name} needs .*: pip install {REPORTERS[name]}, or leave"):
            arguments(tmp_path, report_to=name)
    with pytest.raises(
        ImportError, match="report_to=tensorboard and report_to=wandb need .*install tensorboard wandb,"
    ):
        arguments(tmp_path, report_to=["tensorboard", "wandb"])
    arguments(tmp_path, report_to="all")
    args = arguments(tmp_path)
    args.optim = "paged_adamw_8bit"
    with pytest.raises(ImportError, match="optim=paged_adamw_8bit needs .*: pip install bitsandbytes"):
        check_extras(args)


def is_available(name: str) -> str:
    return f"is_{ {'azure_ml': 'azureml', 'comet_ml': 'comet', 'flyte': 'flytekit'}.get(name, name) }_available"


def test_a_mistyped_metric_is_told_before_training(tmp_path):
    settings = {**BEST, "metric_for_best_model": "acuracy"}
    with pytest.raises(ValueError, match="'acuracy' is nothing .*: did you mean 'accuracy'"):
        trainer(tmp_path, evaluate=rows(4), **settings)
    with pytest.raises(ValueError, match="'eval_top5_accuracy' is nothing"):  # of four classes
        trainer(tmp_path, evaluate=rows(4), **{**settings, "metric_for_best_model": "eval_top5_accuracy"})
    with pytest.raises(ValueError, match="'aspect_bce' is nothing"):
        trainer(tmp_path, evaluate=rows(4, aspects=False), **{**settings, "metric_for_best_model": "aspect_bce"})
    with pytest.raises(ValueError, match="'map50' is nothing .*: did you mean 'map_50'"):
        detection.trainer(tmp_path, evaluate=detection.rows(4), **{**settings, "metric_for_best_model": "map50"})
    two = {"near": rows(4), "far": rows(4)}
    with pytest.raises(ValueError, match="'accuracy' is nothing .*near_accuracy"):
        trainer(tmp_path, evaluate=two, **{**settings, "metric_for_best_model": "accuracy"})
    trainer(tmp_path, evaluate=two, **{**settings, "metric_for_best_model": "far_accuracy"})


@pytest.mark.parametrize(("module", "evaluate"), [("test_trainer", rows), ("test_detection_trainer", detection.rows)])
def test_every_name_that_is_known_is_one_that_an_evaluation_gives(tmp_path, module, evaluate):
    run = {"test_trainer": trainer, "test_detection_trainer": detection.trainer}[module](
        tmp_path, evaluate=evaluate(8)
    )
    assert {f"eval_{name}" for name in run.metric_names(run.eval_dataset)} <= set(run.evaluate())


def test_of_five_classes_or_fewer_the_five_best_say_nothing():
    draw = np.random.default_rng(0)
    for classes, there in ((4, False), (5, False), (6, True)):
        scores = draw.normal(size=(12, classes)).astype("float32")
        prediction = type("Prediction", (), {"predictions": scores, "label_ids": np.arange(12) % classes})
        assert ("top5_accuracy" in compute_metrics(prediction)) is there


def test_early_stopping_counts_on_where_it_was_interrupted(tmp_path):
    """Nothing is learnt, so the first evaluation stays the best, and the fourth is the third that is no better."""
    settings = {**BEST, "early_stopping_patience": 3, "num_train_epochs": 4, "learning_rate": 0.0}
    run = trainer(tmp_path / "whole", evaluate=rows(4), **settings)
    run.train()
    assert run.state.global_step == 4 and len(logged(run, "eval_loss")) == 4

    run = trainer(tmp_path / "interrupted", evaluate=rows(4), **settings)
    run.add_callback(StopAfter(3))
    run.train()
    run = trainer(tmp_path / "interrupted", evaluate=rows(4), **settings)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 4


def test_early_stopping_may_begin_with_a_training_that_goes_on(tmp_path):
    run = trainer(tmp_path, evaluate=rows(4), **BEST)
    run.add_callback(StopAfter(2))
    run.train()
    run = trainer(tmp_path, evaluate=rows(4), early_stopping_patience=9, **BEST)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 4


def test_a_detector_stops_early_too(tmp_path):
    still = {"learning_rate": 0.0, "early_stopping_patience": 1, "num_train_epochs": 5, "greater_is_better": False}
    run = detection.trainer(tmp_path, evaluate=detection.rows(4), **{**BEST, **still, "metric_for_best_model": "loss"})
    run.train()
    assert run.state.global_step < 10


def test_datasets_that_no_training_can_be_done_with(tmp_path):
    empty = rows(4).select(range(0))
    with pytest.raises(ValueError, match="There are no rows in the training dataset"):
        trainer(tmp_path, train=empty)
    with pytest.raises(ValueError, match="There are no rows in the evaluation dataset"):
        trainer(tmp_path, evaluate=empty)
    with pytest.raises(ValueError, match="has 3 rows, and dataloader_drop_last leaves .*, of 4"):
        trainer(tmp_path, train=rows(3), dataloader_drop_last=True)


def test_one_row_trains_or_says_why_not(tmp_path):
    trainer(tmp_path, train=rows(1)).train()
    small = tiny.resnet()
    small.downsample_in_first_stage, small.depths = True, [1, 1]
    run = trainer(tmp_path, student(small), rows(1))
    layer = run.model.backbone.resnet.pooler
    layer.register_forward_hook(lambda module, inputs, output: batch_norm(output))
    with pytest.raises(ValueError, match="batch of one image .* dataloader_drop_last"):
        run.train()


def batch_norm(output):
    import torch

    return torch.nn.functional.batch_norm(output, None, None, training=True)


def test_a_warm_up_longer_than_the_training_is_said(tmp_path, caplog):
    trainer(tmp_path, warmup_steps=500).train()
    assert "still warms up when the training ends (500 of 4 steps)" in caplog.text


def test_a_metric_with_its_prefix_and_one_of_the_run_are_known(tmp_path):
    for name in ("loss", "eval_loss", "accuracy", "eval_accuracy", "runtime"):
        check_metric(arguments(tmp_path, metric_for_best_model=name), ["accuracy"])


# What a card says of validation images that were drawn


def test_a_drawn_validation_part_is_told_as_what_it_is(tmp_path):
    from madkd_hf.cli.arguments import SplitArguments
    from madkd_hf.cli.splits import with_validation

    drawn = with_validation(DatasetDict({"train": rows(40)}), SplitArguments(dataset="birds"), 0, "label")
    drawn.save_to_disk(tmp_path / "labelled")
    drawn = load_from_disk(tmp_path / "labelled")
    run = trainer(tmp_path / "out", train=drawn["train"], evaluate=drawn["validation"])
    run.evaluate()
    run.create_model_card()
    card = ModelCard.load(tmp_path / "out" / "README.md")
    how = "a random tenth of train, drawn with seed 0"
    assert {result.dataset_split for result in card.data.eval_results} == {how}
    assert f"| Validation ({how}; 4 images) |" in card.text
    assert f"The validation images are {how}." in card.text


def test_a_split_that_is_one_keeps_its_name(tmp_path):
    from madkd_hf.cli.arguments import SplitArguments
    from madkd_hf.cli.splits import with_validation

    both = DatasetDict({"train": rows(16), "validation": rows(8)})
    both.save_to_disk(tmp_path / "labelled")
    both = with_validation(load_from_disk(tmp_path / "labelled"), SplitArguments(dataset="birds"), 0, "label")
    run = trainer(tmp_path / "out", train=both["train"], evaluate=both["validation"])
    run.evaluate()
    run.create_model_card()
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert {result.dataset_split for result in card.data.eval_results} == {"validation"}
    assert "| Validation (8 images) |" in card.text and "drawn" not in card.text
