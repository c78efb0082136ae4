"""Two processes train, measure and stop as one with the same global batch; one launch shows all of it.

This file is also what the launch runs: `run` in each of two processes, and in this one alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import datasets
import numpy as np
import pytest
from builders import detector_training as detectors
from builders import tiny
from builders.classifier_training import StopAfter, logged, rows, trainer
from builders.detectors import ARCHITECTURES
from builders.quick_python import warm_python

from madkd_hf import MadkdTrainingArguments
from madkd_hf.students.base.checkpoints import last_whole
from madkd_hf.students.base.finite import TrainingDivergedError


ROOT = Path(__file__).parents[2]
LOSSES = ("loss", "class_loss", "aspect_loss")
CLASSIFIER = (*LOSSES, "grad_norm", "eval_loss", "eval_accuracy", "eval_aspect_bce")
DETECTOR = ("loss", "detector_loss", "aspect_loss", "loss_ce", "loss_bbox", "loss_giou", "grad_norm")
DETECTOR += ("eval_loss", "eval_map", "eval_map_50", "eval_aspect_bce")
TIMES = ("runtime", "per_second", "preparation_time")
GAPS = (1, 2, 8, 9, 10, 11, 12, 20)  # rows without answers
CLASSLESS = (4, 5, 6, 7, 13, 18)  # rows without a class


# What a process does, with batches of as many rows whatever the number of processes


def classifier(folder: Path, processes: int, count: int, batch: int = 8, broken_off: int = 0, **settings) -> dict:
    """What a training logs; two processes end it after `broken_off` steps, and go on from there."""
    settings = {"per_device_train_batch_size": batch // processes, "num_train_epochs": 2, **settings}

    def made():
        train = rows(count, unlabelled=GAPS, classless=CLASSLESS)
        train = train.to_iterable_dataset(num_shards=1) if "max_steps" in settings else train
        return trainer(folder, train=train, evaluate=rows(13), per_device_eval_batch_size=8 // processes, **settings)

    run = made()
    if broken_off and processes > 1:
        run.add_callback(StopAfter(broken_off))
        run.train()
        run = made()
        run.train(resume_from_checkpoint=str(folder / f"checkpoint-{broken_off}"))
    else:
        run.train()
    if run.args.load_best_model_at_end:
        run.evaluate()
    return {key: logged(run, key) for key in CLASSIFIER}


def measured_classifier(folder: Path, processes: int) -> dict:
    run = trainer(folder, per_device_eval_batch_size=8 // processes)
    metrics = [run.evaluate(rows(count, unlabelled=(0, 2, 10, 12))) for count in (13, 3)]
    classes, aspects = run.predict(rows(13)).predictions
    return {"metrics": [without_times(each) for each in metrics], "predictions": [classes.tolist(), aspects.tolist()]}


def detector(
    folder: Path, processes: int, count: int, level: str = "object", objects=(2, 2, 3, 1, 4, 2, 3), **settings
) -> dict:
    settings = {"per_device_train_batch_size": 8 // processes, "eval_strategy": "epoch", **settings}
    train = detectors.rows(count, level, unlabelled=(1, 2, 8, 9, 10), objects=objects)
    settings |= {"per_device_eval_batch_size": 8 // processes}
    alike = len(objects) == 1  # batches with as many objects, which the loss of YOLOS needs
    model = detectors.detector(ARCHITECTURES["yolos"]() if alike else None, level)
    evaluate = detectors.rows(8 if alike else 9, level, objects=objects)
    run = detectors.trainer(folder, model, train, evaluate, **settings)
    run.train()
    return {key: logged(run, key) for key in DETECTOR}


def measured_detector(folder: Path, processes: int) -> dict:
    objects = (2, 2, 3, 1, 4, 2, 3)
    run = detectors.trainer(folder, per_device_eval_batch_size=8 // processes)
    metrics = [without_times(run.evaluate(detectors.rows(count, objects=objects))) for count in (9, 1)]
    found = run.predict(detectors.rows(13).remove_columns("objects")).predictions
    arrays = [np.concatenate([image["boxes"], image["aspect_logits"]], axis=1).tolist() for image in found]
    detectors.tell_the_truth(run.model, but_for=2)
    right = {name: value for name, value in run.evaluate(detectors.rows(13)).items() if "eval_ma" in name}
    # sorted, as scores are all but equal
    return {"metrics": metrics, "predictions": [sorted(image) for image in arrays], "mostly right": right}


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.endswith(TIMES)}


def spoilt(folder: Path, processes: int) -> dict:
    """One process has answers that are no numbers: neither waits for the other."""
    if processes == 1:
        return {}
    every = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 500, "learning_rate": 1e-3}
    run = trainer(folder, **every, per_device_train_batch_size=2)
    whole, spoils = run.compute_loss, not run.is_world_process_zero()

    def spoiled(model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = whole(model, inputs, num_items_in_batch=num_items_in_batch)
        return loss * float("nan") if spoils and run.state.global_step == 2 else loss

    run.compute_loss = spoiled
    try:
        run.train()
        return {"said": "nothing"}
    except TrainingDivergedError as error:
        return {"said": str(error)}


def guessing(folder: Path, processes: int) -> dict:
    """Only some batches of some processes have images without a class to guess about."""
    settings = {"self_training": 0.3, "per_device_train_batch_size": 4 // processes}
    run = trainer(folder, train=rows(16, classless=(12, 13)), **settings)
    run.train()
    return {key: logged(run, key) for key in ("loss", "self_loss", "self_sure")}


BEST = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
BEST |= {"eval_strategy": "epoch", "save_strategy": "epoch"}
TRAININGS = {  # batches of 8
    "stored, a last batch of 5, back to the best step": (classifier, {"count": 21, "image_store": "disk", **BEST}),
    "one batch of 3": (classifier, {"count": 3, "num_train_epochs": 1}),  # of which one process has none
    "a stream of one shard": (classifier, {"count": 24, "max_steps": 2}),
    "accumulated and resumed": (
        classifier,
        {"count": 21, "batch": 4, "gradient_accumulation_steps": 2, "broken_off": 2}
        | {"image_store": "disk", "save_strategy": "steps", "save_steps": 1},
    ),
    "half of each batch has a class": (classifier, {"count": 21, "labelled_fraction": 0.5}),
    "detector, a last batch of 3": (detector, {"count": 11, "num_train_epochs": 1}),
    "detector, about images": (detector, {"count": 8, "level": "image", "num_train_epochs": 1}),
}
RARER = {
    "whole batches": (classifier, {"count": 24, "image_store": "none", "eval_strategy": "epoch"}),
    "a last batch of 1": (classifier, {"count": 17}),
    "checkpointed": (classifier, {"count": 21, tiny.CHECKPOINTING: True}),
    "detector, whole batches": (detector, {"count": 16, "num_train_epochs": 2}),
    "detector, a last batch of 5": (detector, {"count": 13, "num_train_epochs": 2}),
    "yolos": (detector, {"count": 16, "objects": (2,), "num_train_epochs": 2}),
}
MEASURED = {"classifier": (measured_classifier, {}), "detector": (measured_detector, {})}
STOPPED = {"spoilt": (spoilt, {})}
GUESSING = {"guessing": (guessing, {})}
ALL = TRAININGS | RARER | MEASURED | STOPPED | GUESSING


def run(folder: Path, processes: int, names: Iterable[str]) -> dict[str, dict]:
    return {name: ALL[name][0](folder / name, processes, **ALL[name][1]) for name in names}


def launch(folder: Path, *names: str) -> list[dict]:
    """What each of two processes found."""
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    words = ["accelerate.commands.launch", "--config_file", ROOT / "recipes" / "accelerate" / "cpu_2proc.yaml"]
    done = subprocess.run(
        [warm_python(), "-m", *words, __file__, folder, *names],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"process-{i}.json").read_text()) for i in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def of_two(folder) -> list[dict]:
    return launch(folder, *TRAININGS, *MEASURED, *STOPPED, *GUESSING)


@pytest.fixture(scope="module")
def of_one(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
        return run(folder, 1, [*TRAININGS, *MEASURED])


def assert_close(one, other, tolerance: float) -> None:
    if isinstance(one, dict):
        assert set(one) == set(other)
        for key, value in one.items():
            assert_close(value, other[key], tolerance)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for value, same in zip(one, other):
            assert_close(value, same, tolerance)
    else:
        np.testing.assert_allclose(other, one, atol=tolerance, rtol=tolerance)


def assert_trained_as_one(one: dict, two: list[dict]) -> None:
    assert len(one["loss"]) == len(one["grad_norm"]) > 0 and min(one["aspect_loss"]) > 0.1
    assert_close(one, two[0], 5e-4 if "detector_loss" in one else 1e-4)
    for key in one.keys() - {"grad_norm"}:  # which may differ by rounding
        np.testing.assert_equal(two[1][key], two[0][key], key)


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_train_as_one_with_the_same_global_batch(of_one, of_two, name):
    assert_trained_as_one(of_one[name], [found[name] for found in of_two])
    if "back to the best step" in name:
        measured = of_one[name]["eval_loss"]
        assert measured[2] == pytest.approx(max(measured[:2]), abs=1e-5)


def test_accumulated_batches_are_one_batch_when_the_last_is_not_full(of_one):
    whole, parts = of_one["stored, a last batch of 5, back to the best step"], of_one["accumulated and resumed"]
    for name in (*LOSSES, "grad_norm"):
        assert len(parts[name]) == 6 and parts[name] == pytest.approx(whole[name], abs=1e-4), name


@pytest.mark.parametrize("name", MEASURED)
def test_two_processes_measure_and_predict_each_image_once_and_in_order(of_one, of_two, name):
    """No row twice, none left out: in the loss, too, which the Trainer takes over repeated rows as well."""
    assert all({"eval_loss", "eval_aspect_bce"} <= set(metrics) for metrics in of_one[name]["metrics"])
    for found in of_two:
        assert_close(of_one[name], found[name], 1e-5 if name == "classifier" else 1e-3)


def test_two_processes_measure_the_same_precision(of_one, of_two):
    right = of_one["detector"]["mostly right"]
    assert 0.2 < right["eval_map"] < 0.8
    for found in of_two:
        assert found["detector"]["mostly right"] == pytest.approx(right, abs=1e-9, nan_ok=True)


def test_two_processes_stop_at_the_same_step_and_keep_what_was_whole(folder, of_two):
    first, second = (found["spoilt"]["said"] for found in of_two)
    assert first == second and "at step 3: loss is not finite" in first
    whole, passed = last_whole(folder / "spoilt")
    assert whole == folder / "spoilt" / "checkpoint-2" and not passed
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in whole.iterdir()}


@pytest.mark.slow
def test_two_processes_train_as_one_with_rarer_batches(tmp_path):
    two, one = launch(tmp_path, *RARER), run(tmp_path / "one", 1, RARER)
    for name in RARER:
        assert_trained_as_one(one[name], [found[name] for found in two])


if __name__ == "__main__":
    datasets.config.HF_DATASETS_CACHE = Path(sys.argv[1])
    state = MadkdTrainingArguments(sys.argv[1])  # says nothing of the CPU, and both are one training all the same
    assert state.world_size == 2
    found = run(Path(sys.argv[1]), state.world_size, sys.argv[2:])
    Path(sys.argv[1], f"process-{state.process_index}.json").write_text(json.dumps(found))


def test_two_processes_log_their_guesses_whoever_has_images_to_guess_about(of_two):
    for found in of_two:
        guesses = found["guessing"]
        assert len(guesses["self_loss"]) == len(guesses["self_sure"]) == len(guesses["loss"]) == 4
        assert max(guesses["self_sure"]) > 0 and min(guesses["self_sure"]) == 0
