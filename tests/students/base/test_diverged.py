"""A training that diverges stops in one sentence, and nothing of it is saved over a good student."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from builders import detector_training as detection
from builders import lora as test_lora
from builders import tiny
from builders.classifier_training import assert_same_weights, logged, rows, student, trainer
from builders.quick_python import warm_python

from madkd_hf import MadkdForImageClassification
from madkd_hf.cli.outputs import STUDENT
from madkd_hf.files import own_folder
from madkd_hf.students.base.finite import TrainingDivergedError, Watch
from madkd_hf.students.losses import MadkdLoss


ROOT = Path(__file__).parents[3]
TOO_HIGH = {"learning_rate": 1e25, "save_strategy": "steps", "save_steps": 1}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 2, "bf16": True},
        {"logging_nan_inf_filter": False, "max_grad_norm": 0.0},
    ],
    ids=str,
)
def test_it_stops_at_the_first_step_whose_loss_is_not_finite(tmp_path, settings):
    run = trainer(tmp_path, **{**TOO_HIGH, "save_strategy": "no", "num_train_epochs": 3, **settings})
    with pytest.raises(
        TrainingDivergedError, match=r"at step 2: class_loss and aspect_loss are .*learning_rate=1e\+25"
    ):
        run.train()
    assert run.state.global_step <= 2
    assert all(torch.isfinite(torch.tensor(loss)) for loss in logged(run, "loss"))
    assert not list(tmp_path.iterdir())


def test_with_few_logs_the_first_step_is_named_all_the_same(tmp_path):
    settings = {"logging_nan_inf_filter": False, "logging_steps": 9, "num_train_epochs": 3}
    run = trainer(tmp_path, **{**TOO_HIGH, "save_strategy": "no", **settings})
    with pytest.raises(TrainingDivergedError, match="at step 2: class_loss"):
        run.train()
    assert run.state.global_step == 9


def test_the_part_of_the_loss_is_named(tmp_path):
    run = trainer(tmp_path)

    class Spoilt(MadkdLoss):
        def __call__(self, *args):
            losses = super().__call__(*args)
            return losses | ({"aspect_loss": losses["loss"] * torch.nan} if run.state.global_step == 2 else {})

    run.loss = Spoilt(alpha=1.0)
    with pytest.raises(TrainingDivergedError, match="at step 3: aspect_loss is not finite"):
        run.train()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_steps": 1}, "at step 1: the loss is not finite after the last step"),
        ({"max_steps": 1, "learning_rate": 1e38}, "at step 1: .* weight tensors are not finite"),
        (
            {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1},
            "at step 1: the student's outputs are not finite",
        ),
    ],
    ids=["loss", "weights", "evaluation"],
)
def test_what_the_last_step_spoils_is_noticed(tmp_path, settings, said):
    run = trainer(tmp_path, evaluate=rows(8), **{**TOO_HIGH, "save_strategy": "no", **settings})
    with pytest.raises(TrainingDivergedError, match=said):
        run.train()


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    good = trainer(tmp_path)
    good.train()
    good.save_model()
    bad = trainer(tmp_path, student(), **TOO_HIGH)
    next(bad.model.parameters()).data.fill_(float("inf"))
    with pytest.raises(TrainingDivergedError, match="1 of its .* weight tensors are not finite"):
        bad.save_model()
    bad = trainer(tmp_path, student(), **{**TOO_HIGH, "learning_rate": 1e38})
    with pytest.raises(TrainingDivergedError):
        bad.train()
    assert not list(tmp_path.glob("checkpoint-*")) and not list(tmp_path.glob(".*"))
    assert_same_weights(MadkdForImageClassification.from_pretrained(tmp_path), good.model, atol=0)


def test_a_student_that_says_no_numbers_is_not_measured(tmp_path):
    run = trainer(tmp_path)
    next(run.model.parameters()).data.fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match="cannot be used: the student's outputs are not finite"):
        run.evaluate(rows(8))


def test_a_detector_says_so_too(tmp_path):
    """Its matcher would complain of boxes that are none."""
    run = detection.trainer(tmp_path, evaluate=detection.rows(4), **TOO_HIGH)
    with pytest.raises(
        TrainingDivergedError, match="at step 2: the student's outputs are not finite, with learning_rate="
    ):
        run.train()
    once = {**TOO_HIGH, "max_steps": 1, "save_strategy": "no"}
    run = detection.trainer(tmp_path, evaluate=detection.rows(4), **once, eval_strategy="steps", eval_steps=1)
    with pytest.raises(TrainingDivergedError, match="at step 1: the student's outputs are not finite"):
        run.train()


def test_an_adapted_student_says_so_too(tmp_path):
    run = test_lora.trainer(tmp_path, lora=test_lora.lora(), **{**TOO_HIGH, "save_strategy": "no"})
    with pytest.raises(TrainingDivergedError, match="at step 2: class_loss and aspect_loss are not finite"):
        run.train()


def test_other_errors_stay_what_they_are(tmp_path):
    run = trainer(tmp_path)
    run.compute_loss = lambda *args, **kwargs: (_ for _ in ()).throw(ValueError("something else"))
    with pytest.raises(ValueError, match="something else"):
        run.train()


def test_a_gradient_scaler_may_leave_steps_out():
    """It halves its scale at each step that it leaves out; after 32 of them nothing is left of it."""
    good, bad, watch = torch.tensor(1.0), torch.tensor(float("inf")), Watch(patience=32)
    for step in range(1, 40):
        watch.note(step, {"loss": bad if step % 20 else good})
        assert not watch.read(step), step
    for step in range(41, 73):
        watch.note(step, {"loss": bad, "part": good})
    assert watch.read(72) == {"loss": 41}


@pytest.mark.parametrize("script", ["train_student", pytest.param("train_detector", marks=pytest.mark.slow)])
def test_a_command_ends_with_1_and_keeps_the_earlier_student(tmp_path, script):
    """What a user sees; and the student from before still loads."""
    pytest.importorskip("albumentations")
    backbone = tmp_path / "backbone"
    own_folder(tmp_path / "out", "student", STUDENT)  # as the command marks it
    if script == "train_student":
        rows(40).save_to_disk(tmp_path / "data" / "train")
        student(tiny.resnet(), None).to_plain().save_pretrained(backbone)
        test_lora.PROCESSOR.save_pretrained(backbone)
        trainer(tmp_path / "out", student(tiny.resnet(), None)).save_model()
        words = ["--backbone", backbone, "--pretrained", "false"]
    else:
        detection.rows(16).save_to_disk(tmp_path / "data" / "train")
        detection.detector(bank=None).to_plain().save_pretrained(backbone)
        detection.PROCESSOR.save_pretrained(backbone)
        detection.trainer(tmp_path / "out", detection.detector(bank=None)).save_model()
        words = ["--detector", backbone]
    (tmp_path / "data" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    words += ["--dataset", tmp_path / "data", "--aspect_alpha", "0", "--output_dir", tmp_path / "out"]
    words += ["--per_device_train_batch_size", "4", "--use_cpu", "true", "--num_train_epochs", "2"]
    words += ["--learning_rate", "1e25"]
    command = [warm_python(), ROOT / "recipes" / f"{script}.py", *words, "--save_strategy", "no"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    bad = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert bad.returncode == 1
    (said,) = [line for line in bad.stderr.splitlines() if line.startswith("error: ")]
    assert said.startswith("error: The training diverged at step 2: ")
    assert "Traceback" not in bad.stderr
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert {name: after[name] for name in before} == before and set(after) <= {*before, ".madkd.lock"}
