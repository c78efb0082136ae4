"""A training that diverges stops in one sentence, and nothing of it is saved over a good student."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import detector_training as detection
from builders import lora as test_lora
from builders import tiny
from builders.classifier_training import assert_same_weights, logged, rows, student, trainer
from builders.quick_python import quick_python

from madkd_hf import MadkdForImageClassification
from madkd_hf.students.base.checkpoints import last_whole
from madkd_hf.students.base.finite import TrainingDivergedError, Watch
from madkd_hf.students.losses import MadkdLoss


ROOT = Path(__file__).parents[3]
TOO_HIGH = {"learning_rate": 1e25, "save_strategy": "steps", "save_steps": 1}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bf16": True},
        {"gradient_accumulation_steps": 2},
        {"max_grad_norm": 0.0},
        {"logging_nan_inf_filter": False},
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
    last = detection.trainer(tmp_path, evaluate=detection.rows(4), **once)
    with pytest.raises(TrainingDivergedError, match="at step 1: the student's outputs are not finite"):
        last.train()
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


# Two processes. This file is also what they run.


def two(folder: Path) -> None:
    """One of them has answers that are no numbers: neither waits for the other."""
    run = trainer(
        folder, **{**TOO_HIGH, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "logging_steps": 500}
    )
    whole, spoils = run.compute_loss, not run.is_world_process_zero()

    def spoiled(model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = whole(model, inputs, num_items_in_batch=num_items_in_batch)
        return loss * float("nan") if spoils and run.state.global_step == 2 else loss

    run.compute_loss = spoiled
    try:
        run.train()
        said = "nothing"
    except TrainingDivergedError as error:
        said = str(error)
    (folder / f"said-{run.args.process_index}.json").write_text(json.dumps(said))


def test_two_processes_stop_at_the_same_step_and_keep_what_was_whole(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    launch = ["accelerate.commands.launch", "--config_file", ROOT / "recipes" / "accelerate" / "cpu_2proc.yaml"]
    done = subprocess.run(
        [quick_python(), "-m", *launch, __file__, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"said-{i}.json").read_text()) for i in range(2))
    assert first == second and "at step 3: loss is not finite" in first
    whole, passed = last_whole(tmp_path)
    assert whole == tmp_path / "checkpoint-2" and not passed
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in whole.iterdir()}


@pytest.mark.parametrize("script", ["train_student", "train_detector"])
def test_a_command_ends_with_1_and_keeps_the_earlier_student(tmp_path, script):
    """What a user sees; and the student from before still loads."""
    pytest.importorskip("albumentations")
    backbone = tmp_path / "backbone"
    if script == "train_student":
        rows(40).save_to_disk(tmp_path / "data" / "train")
        tiny_student = student(tiny.resnet(), None).to_plain()
        tiny_student.save_pretrained(backbone)
        test_lora.PROCESSOR.save_pretrained(backbone)
        words = ["--backbone", backbone, "--pretrained", "false"]
    else:
        detection.rows(16).save_to_disk(tmp_path / "data" / "train")
        detection.detector(bank=None).to_plain().save_pretrained(backbone)
        detection.PROCESSOR.save_pretrained(backbone)
        words = ["--detector", backbone]
    (tmp_path / "data" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    words += ["--dataset", tmp_path / "data", "--aspect_alpha", "0", "--output_dir", tmp_path / "out"]
    words += ["--per_device_train_batch_size", "4", "--use_cpu", "true", "--num_train_epochs", "2"]
    command = [quick_python(), ROOT / "recipes" / f"{script}.py", *words, "--save_strategy", "no"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(*more):
        return subprocess.run(
            list(map(str, [*command, *more])), cwd=ROOT, env=environment, capture_output=True, text=True
        )

    good = run("--learning_rate", "1e-4")
    assert good.returncode == 0, good.stderr
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    bad = run("--learning_rate", "1e25")
    assert bad.returncode == 1
    (said,) = [line for line in bad.stderr.splitlines() if line.startswith("error: ")]
    assert said.startswith("error: The training diverged at step 2: ")
    assert "Traceback" not in bad.stderr
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert after == before


if __name__ == "__main__":
    two(Path(sys.argv[1]))
