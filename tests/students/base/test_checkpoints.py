"""Checkpoints are whole or not there: killed while saving, damaged, on a full disk; the last whole one is taken."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from builders import tiny
from builders.children import START, be_quiet
from builders.classifier_training import StopAfter, assert_same_weights, logged, rows, student, trainer, vit
from transformers import TrainerCallback

from madkd_hf import MadkdForImageClassification
from madkd_hf.files import read_record, write_record
from madkd_hf.students.base.checkpoints import RECORD, checkpoint_fault, find_checkpoint, last_whole, rotate
from madkd_hf.students.base.resuming import find_start


EVERY = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2, "image_store": "none"}
PARTIAL = ".checkpoint@*.partial"
LOSSES = ("loss", "class_loss", "aspect_loss")


def made(folder: Path, **settings):
    dropout = vit()
    dropout.hidden_dropout_prob = 0.2  # chance takes part, so that its state counts
    return trainer(folder, student(dropout), **{**EVERY, **settings})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = made(tmp_path_factory.mktemp("undisturbed"))
    run.train()
    return run


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory) -> Path:
    """The output folder of a training that ended at step 4 of 8."""
    folder = tmp_path_factory.mktemp("broken off")
    run = made(folder)
    run.add_callback(StopAfter(4))
    run.train()
    return folder


@pytest.fixture
def copy(broken_off, tmp_path) -> Path:
    return shutil.copytree(broken_off, tmp_path / "run")


def assert_same_run(resumed, undisturbed) -> None:
    for name in LOSSES:
        assert logged(resumed, name) == pytest.approx(logged(undisturbed, name), abs=1e-5), name
    assert_same_weights(resumed.model, undisturbed.model, atol=1e-6)


# Damaged


def damage(path: Path, kind: str, dice: random.Random) -> None:
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(content[: dice.randrange(1, max(2, len(content)))])
    else:
        place = dice.randrange(len(content))
        flipped = bytes([content[place] ^ 1 << dice.randrange(8)])
        path.write_bytes(content[:place] + flipped + content[place + 1 :])


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]


def damage_trials(folder: Path, source: Path, undisturbed, trials: int, seed: int) -> Counter:
    """Each damages one file of the last checkpoint, or of the last two, or of all four."""
    dice, counts = random.Random(seed), Counter()
    for trial in range(trials):
        place = shutil.copytree(source, folder / str(trial))
        kind, last = dice.choice(["missing", "empty", "truncated", "flipped"]), dice.choice([4, 4, 3, 1])
        for step in range(last, 5):
            damage(dice.choice(files(place / f"checkpoint-{step}")), kind, dice)
        run = made(place)
        try:
            run.train(resume_from_checkpoint=True)
        except ValueError as error:
            assert last == 1 and len(str(error).splitlines()) == 1 and "is whole" in str(error), error
            counts[f"{kind}: refused"] += 1
        else:
            assert_same_run(run, undisturbed)
            counts[f"{kind}: resumed"] += 1
        shutil.rmtree(place)
    print(f"{trials} damaged checkpoints: {dict(counts)}")
    return counts


def test_a_damaged_checkpoint_is_passed_over(tmp_path, broken_off, undisturbed):
    assert sum(damage_trials(tmp_path, broken_off, undisturbed, trials=3, seed=1).values()) == 3


@pytest.mark.slow
def test_many_damaged_checkpoints(tmp_path, broken_off, undisturbed):
    assert sum(damage_trials(tmp_path, broken_off, undisturbed, trials=60, seed=2).values()) == 60


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json", RECORD])
def test_one_flipped_bit_in_any_file_is_noticed(copy, name, caplog):
    damage(copy / "checkpoint-4" / name, "flipped", random.Random(3))
    found, passed = find_checkpoint(True, copy)
    assert found == copy / "checkpoint-3"
    (sentence,) = passed
    assert "checkpoint-4 is passed over" in sentence and name in sentence


def test_what_is_passed_over_and_what_is_taken_is_said(copy, undisturbed, caplog):
    (copy / "checkpoint-4" / "optimizer.pt").unlink()
    run = made(copy)
    run.train(resume_from_checkpoint=True)
    assert "checkpoint-4 is passed over: optimizer.pt is missing." in caplog.text
    assert f"The training goes on from {copy / 'checkpoint-3'}." in caplog.text
    assert_same_run(run, undisturbed)


def test_a_damaged_checkpoint_that_is_named_is_refused(copy):
    (copy / "checkpoint-4" / "scheduler.pt").unlink()
    for asked in (copy / "checkpoint-4", "checkpoint-4"):
        with pytest.raises(ValueError, match=r"scheduler.pt is missing; the last whole one is .*checkpoint-3"):
            find_checkpoint(asked, copy)
    assert find_checkpoint("checkpoint-3", copy)[0] == copy / "checkpoint-3"
    assert find_checkpoint("false", copy)[0] is None


def test_one_without_optimizer_is_never_gone_on_from(tmp_path):
    run = made(tmp_path, save_only_model=True)
    run.add_callback(StopAfter(2))
    run.train()
    with pytest.raises(ValueError, match="No checkpoint in .* is whole .*save_only_model"):
        made(tmp_path).train(resume_from_checkpoint=True)


def test_a_checkpoint_without_its_record_is_not_gone_on_from(copy, undisturbed):
    """One of a plain `Trainer`, or one whose record was lost: nobody knows whether its files are whole."""
    (copy / "checkpoint-4" / RECORD).unlink()
    found, passed = find_checkpoint(True, copy)
    assert found == copy / "checkpoint-3" and f"{RECORD} is missing" in passed[0]
    with pytest.raises(ValueError, match=f"{RECORD} is missing; the last whole one is .*checkpoint-3"):
        find_checkpoint(copy / "checkpoint-4", copy)


def test_the_best_checkpoint_that_is_lost_is_said_and_another_becomes_the_best(tmp_path, caplog):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    settings = {"evaluate": rows(8), "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.1, **best}
    run = made(tmp_path, **settings)
    run.add_callback(StopAfter(4))
    run.train()
    lost = Path(run.state.best_model_checkpoint)
    damage(lost / "model.safetensors", "flipped", random.Random(4))
    resumed = made(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert "is lost: model.safetensors is damaged" in caplog.text
    assert resumed.state.best_global_step not in (None, int(lost.name.split("-")[1]))
    assert checkpoint_fault(Path(resumed.state.best_model_checkpoint)) is None


def test_the_best_checkpoint_is_found_beside_the_one_that_is_gone_on_from(tmp_path, monkeypatch, caplog):
    """In a folder that was moved, and in one that is seen from another folder."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    settings = {"evaluate": rows(8), "eval_strategy": "steps", "eval_steps": 1, **best}
    alone = made(tmp_path / "alone", **settings)
    alone.train()
    assert alone.state.best_global_step < 6
    monkeypatch.chdir(tmp_path)
    run = made(Path("run"), **settings)
    run.add_callback(StopAfter(6))
    run.train()
    shutil.copytree("run", "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for place in (tmp_path / "run", (tmp_path / "moved").rename(tmp_path / "moved away")):
        resumed = made(place, **settings)
        resumed.train(resume_from_checkpoint=True)
        assert "is lost" not in caplog.text
        assert Path(resumed.state.best_model_checkpoint) == place / Path(alone.state.best_model_checkpoint).name
        assert_same_weights(resumed.model, alone.model, atol=1e-6)


# Killed while saving


def die_in_save(after: int | None, size: int | None) -> None:
    """Kill this process at its n-th call inside `_save_checkpoint`, or where a file grows beyond so many bytes."""
    if size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return
    from madkd_hf import MadkdTrainer

    save, calls = MadkdTrainer._save_checkpoint, iter(range(after))

    def count(frame, event, argument):
        if event in ("call", "c_call") and next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, *args):
        sys.setprofile(count)
        try:
            save(self, *args)
        finally:
            sys.setprofile(None)

    MadkdTrainer._save_checkpoint = counted


def child(folder: Path, after: int | None, size: int | None) -> None:
    be_quiet()
    run = made(folder)
    die_in_save(after, size)
    run.train(resume_from_checkpoint=bool(last_whole(folder, quick=True)[0]))


def calls_of_one_save(folder: Path) -> int:
    count = Counter()
    run = made(folder, max_steps=1)

    def counted(frame, event, argument):
        count[event] += 1

    save = type(run)._save_checkpoint

    class Counting(type(run)):
        def _save_checkpoint(self, *args):
            sys.setprofile(counted)
            save(self, *args)
            sys.setprofile(None)

    run.__class__ = Counting
    run.train()
    return count["call"] + count["c_call"]


def kill_trials(folder: Path, undisturbed, trials: int, seed: int) -> None:
    """Each training is killed while it saves, mostly at some call of Python, sometimes in the midst of a file."""
    dice, killed, partial = random.Random(seed), 0, 0
    calls = calls_of_one_save(folder / "counted")
    largest = max(path.stat().st_size for path in (folder / "counted" / "checkpoint-1").iterdir())
    for trial in range(trials):
        place = folder / str(trial)
        size = dice.randrange(largest) if dice.random() < 0.2 else None
        process = START.Process(target=child, args=(place, dice.randrange(1, 8 * calls), size))
        process.start()
        process.join(120)
        assert process.exitcode in (-signal.SIGKILL, -signal.SIGXFSZ), process.exitcode
        killed += 1
        partial += bool(list(place.glob(PARTIAL)))
        run = made(place)
        whole, passed = last_whole(place)
        assert not passed, passed
        run.train(resume_from_checkpoint=whole is not None)
        assert_same_run(run, undisturbed)
        assert not list(place.glob(PARTIAL))
        assert len(last_whole(place)[1]) == 0 and len(list(place.glob("checkpoint-*"))) == 8
        shutil.rmtree(place)
    print(f"{killed} trainings killed while saving, {partial} of them within a checkpoint: all the same curve")
    assert partial


def test_a_training_killed_while_it_saves_goes_on(tmp_path, undisturbed):
    kill_trials(tmp_path, undisturbed, trials=1, seed=1)


@pytest.mark.slow
def test_many_trainings_killed_while_they_save(tmp_path, undisturbed):
    kill_trials(tmp_path, undisturbed, trials=60, seed=2)


# What is removed


def test_folders_of_a_user_s_own_are_no_checkpoints(tmp_path):
    for name in ("checkpoint-best", "checkpoint-1000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1}
    made(tmp_path, evaluate=rows(8), save_total_limit=1, **best).train()
    assert {path.name for path in tmp_path.glob("checkpoint-*/notes.txt")} == {"notes.txt"}
    assert len(list(tmp_path.glob("checkpoint-*/notes.txt"))) == 2
    assert len(list(tmp_path.glob(f"checkpoint-*/{RECORD}"))) == 1


def test_a_checkpoint_does_not_replace_what_no_training_wrote(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "notes.txt").write_text("mine")
    with pytest.raises(OSError, match=r"'notes.txt', which no training wrote.*checkpoint-2 is whole"):
        made(tmp_path).train()
    assert (tmp_path / "checkpoint-3" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("unreadable", [RECORD, "model.safetensors"])
def test_what_cannot_be_read_now_is_not_removed_as_damaged(copy, monkeypatch, unreadable):
    """A network drive may be back the next moment."""
    name, method = ("read_text", Path.read_text) if unreadable == RECORD else ("stat", Path.stat)

    def stale(self, *args, **kwargs):
        if self.name == unreadable:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return method(self, *args, **kwargs)

    monkeypatch.setattr(Path, name, stale)
    with pytest.raises(OSError, match="Stale file handle"):
        rotate(copy, 1, {copy / "checkpoint-4", copy / "checkpoint-2"})
    monkeypatch.undo()
    assert len(list(copy.glob("checkpoint-*"))) == 4


def test_the_best_one_is_kept_even_if_it_is_damaged(copy):
    damage(copy / "checkpoint-2" / "model.safetensors", "empty", random.Random(5))
    damage(copy / "checkpoint-1" / "model.safetensors", "empty", random.Random(5))
    rotate(copy, 2, {copy / "checkpoint-4", copy / "checkpoint-2"})
    assert {path.name for path in copy.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}


def test_a_record_of_another_version_is_no_traceback(copy, caplog):
    """Without `run` and `processes` it is gone on from; without the list of files nobody knows what is whole."""
    for folder in copy.glob("checkpoint-*"):
        record = read_record(folder / RECORD, "record", "")
        lacking = {"files"} if folder.name == "checkpoint-4" else {"run", "processes"}
        write_record(folder / RECORD, {name: value for name, value in record.items() if name not in lacking})
    checkpoint, _ = find_start(made(copy).args, "true")
    assert checkpoint == str(copy / "checkpoint-3") and f"{RECORD} is damaged" in caplog.text
    assert "processes" not in caplog.text


def test_as_many_are_kept_as_the_limit_says_and_damaged_ones_do_not_count(copy, undisturbed):
    damage(copy / "checkpoint-4" / "model.safetensors", "empty", random.Random(5))
    run = made(copy, save_total_limit=2)
    run.add_callback(StopAfter(4))
    run.train(resume_from_checkpoint=True)
    assert {path.name for path in copy.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
    run = made(copy, save_total_limit=2)
    run.train(resume_from_checkpoint=True)
    assert {path.name for path in copy.glob("checkpoint-*")} == {"checkpoint-7", "checkpoint-8"}
    assert_same_run(run, undisturbed)


# Full disks and interruptions


def on_a_full_disk(folder: Path, size: int, steps: int, resume: bool, said) -> None:
    """A child whose files cannot grow larger than so many bytes; what it says goes into a pipe."""
    be_quiet()
    run = made(folder, save_steps=2)
    run.add_callback(StopAfter(steps))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        run.train(resume_from_checkpoint=resume)
        run.save_model()
        said.send("saved")
    except OSError as error:
        said.send(str(error))


def test_a_full_disk_keeps_the_student_and_the_checkpoints_that_are_there(tmp_path):
    before = made(tmp_path)
    before.add_callback(StopAfter(1))
    before.train()
    before.save_model()
    for steps, resume, what in ((8, True, "Cannot save checkpoint-2 in"), (1, False, "Cannot save the student in")):
        ours, theirs = START.Pipe()
        process = START.Process(target=on_a_full_disk, args=(tmp_path, 3000, steps, resume, theirs))
        process.start()
        said = ours.recv()
        process.join()
        assert what in said and len(said.splitlines()) == 1, said
        assert "run the same command again" in said
        assert ("--resume_from_checkpoint true: checkpoint-1 is whole" in said) == resume, said  # else another run's
        assert {path.name for path in tmp_path.glob("*checkpoint*")} == {"checkpoint-1"}
        assert checkpoint_fault(tmp_path / "checkpoint-1") is None
        assert not list(tmp_path.glob(".*"))
        assert_same_weights(MadkdForImageClassification.from_pretrained(tmp_path), before.model, atol=0)


class Interrupt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupted(folder: Path, step: int, **settings) -> str:
    run = made(folder, **settings)
    run.add_callback(Interrupt(step))
    with pytest.raises(KeyboardInterrupt) as stopped:
        run.train()
    return str(stopped.value)


def test_an_interrupted_training_says_what_is_kept(tmp_path):
    said = interrupted(tmp_path, 3, save_steps=2)
    assert "checkpoint-2 is kept; " in said and "--resume_from_checkpoint true" in said
    assert find_checkpoint("true", tmp_path)[0].name == "checkpoint-2"


def test_a_second_run_in_one_folder_goes_on_from_its_own_checkpoint(tmp_path, caplog):
    folder, second = tmp_path / "both", {"save_steps": 2, "max_steps": 6, "learning_rate": 1e-4}
    alone = made(tmp_path / "alone", **second)
    alone.train()
    made(folder, save_steps=2, max_steps=6).train()
    assert "resume_from_checkpoint" not in interrupted(folder, 1, **second)  # to the first one's checkpoint-6
    assert f"{folder / 'checkpoint-2'} is kept; " in interrupted(folder, 3, **second)
    resumed = made(folder, **second)
    resumed.train(resume_from_checkpoint=True)
    assert f"The training goes on from {folder / 'checkpoint-2'}." in caplog.text
    assert "checkpoint-6 is passed over: it is not of the last run" in caplog.text
    assert_same_weights(resumed.model, alone.model, atol=1e-6)
    assert find_checkpoint(True, folder) == (folder / "checkpoint-6", [])


# Students over students


def test_weights_in_more_files_do_not_stay_beside_those_that_replace_them(tmp_path):
    model = student(tiny.resnet())
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    assert len(list(tmp_path.glob("model-*"))) > 1
    run = trainer(tmp_path, student())
    run.save_model()
    assert not list(tmp_path.glob("model-*")) and not list(tmp_path.glob("*.index.json"))
    assert_same_weights(MadkdForImageClassification.from_pretrained(tmp_path), run.model, atol=0)


@pytest.mark.parametrize("call", [0, 3, 6])
def test_a_student_that_is_killed_while_it_is_put_in_place_is_the_old_one_or_the_new_one(tmp_path, monkeypatch, call):
    old = trainer(tmp_path, student())
    old.save_model()
    new = trainer(tmp_path, student())
    with torch.no_grad():
        for parameter in new.model.parameters():
            parameter.add_(1.0)
    replace, calls = os.replace, iter(range(call))

    def deadly(*args):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        replace(*args)

    monkeypatch.setattr(os, "replace", deadly)
    try:
        new.save_model()
    except KeyboardInterrupt:
        pass
    found = MadkdForImageClassification.from_pretrained(tmp_path).state_dict()
    for run in (old, new):
        if all(torch.equal(value, found[name]) for name, value in run.model.state_dict().items()):
            return
    raise AssertionError("neither the old student nor the new one")


def test_the_record_names_every_file(broken_off):
    folder = broken_off / "checkpoint-4"
    record = json.loads((folder / RECORD).read_text())
    assert set(record["files"]) | {RECORD} == {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= set(record["files"])
    assert record["processes"] == 1
