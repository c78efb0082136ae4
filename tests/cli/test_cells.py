"""Students trained side by side."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import save_file

from madkd_hf import Aspect, AspectBank
from madkd_hf.cli.comparison import cells
from madkd_hf.labelling.manifest import difference_of


EASY_VQA = Path(__file__).parents[2] / "recipes" / "easy_vqa"


def _gpu_of_worker(turns, visible, found):
    cells._begin_worker(turns, visible)
    found.put(os.environ.get("CUDA_VISIBLE_DEVICES"))


def _gpus_of_workers(count: int) -> list:
    fork = multiprocessing.get_context("fork")
    turns, found = fork.SimpleQueue(), fork.Queue()
    for turn in range(count):
        turns.put(turn)
    workers = [fork.Process(target=_gpu_of_worker, args=(turns, cells.devices(), found)) for _ in range(count)]
    for worker in workers:
        worker.start()
    return sorted((found.get(timeout=60) for _ in workers), key=str)


def test_each_worker_has_one_gpu_and_they_take_turns(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert _gpus_of_workers(3) == ["4", "4", "7"]


def test_no_gpu_no_choice(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert cells.devices() == [] and _gpus_of_workers(1) == [None]


def test_as_many_students_as_gpus(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,GPU-3")
    assert cells._jobs() == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cells._jobs() == 1


# What makes a student another one


def options(folder: Path, *more: object) -> tuple[str, ...]:
    argv = ["--config", folder / "student.yaml", "--backbone", folder / "backbone", "--dataset", folder / "data"]
    return tuple(map(str, [*argv, "--bank", folder / "data", "--output_dir", folder / "out", *more]))


def make(folder: Path, label: int = 0, question: str = "is it red ?", weight: float = 0.0) -> Path:
    """A YAML, a backbone with weights, and a labelled dataset."""
    shutil.copytree(EASY_VQA / "student", folder / "backbone")
    save_file({"weight": torch.tensor([weight])}, folder / "backbone" / "model.safetensors")
    columns = {"image": [0, 1], "label": [0, label]}
    DatasetDict(train=Dataset.from_dict(columns), test=Dataset.from_dict({"image": [2]})).save_to_disk(folder / "data")
    AspectBank([Aspect("red", question)]).save(folder / "data")
    (folder / "student.yaml").write_text("learning_rate: 1.0e-2\nteacher: a/teacher\n")
    return folder


def cell(folder: Path, *more: object) -> cells.Cell:
    return cells.Cell("one", options(folder, *more), str(folder / "out"))


def test_where_things_are_and_how_they_are_said_makes_no_other_student(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: True)
    folder = make(tmp_path / "a")
    before = cell(folder).decides
    (folder / "student.yaml").write_text(
        "# Rather fast.\nteacher: another/teacher  # not asked\nlearning_rate: 0.01\n"
    )
    assert cell(folder).decides == before
    shutil.copytree(folder, tmp_path / "clone", copy_function=shutil.copy)  # as git would: with times of its own
    assert cell(tmp_path / "clone").decides == before
    argv = ["--disable_tqdm", "true", "--report_to", "tensorboard", "--hub_model_id", "you/it", "--run_name", "first"]
    argv += ["--dataloader_num_workers", "2", "--output_dir", tmp_path / "elsewhere", "--learning_rate", "1e-2"]
    assert cell(folder, *argv).decides == before


@pytest.mark.parametrize(
    "argv", [("--learning_rate", 0.02), ("--seed", 1), ("--lora_rank", 4), ("--crop_scale", 0.9), ("--limit", 3)]
)
def test_another_option_makes_another_student(tmp_path, argv):
    folder = make(tmp_path / "a")
    assert cell(folder).decides != cell(folder, *argv).decides


@pytest.mark.parametrize("change", [{"label": 1}, {"question": "is it blue ?"}, {"weight": 1.0}])
def test_other_rows_questions_and_weights_make_another_student(tmp_path, change):
    keys = [
        cell(make(tmp_path / name, **settings)).decides for name, settings in (("a", {}), ("b", {}), ("c", change))
    ]
    assert keys[0] == keys[1] != keys[2]


def test_weights_that_change_in_place_are_seen(tmp_path):
    one = cell(make(tmp_path / "a"))
    before, weights = one.decides, tmp_path / "a" / "backbone" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"\1")
    os.utime(weights, ns=(1, 1))
    assert one.decides != before
    weights.write_bytes(content)
    assert one.decides == before


# What run_cells says, of students that are trained in no time


def _train(args, training_args):
    if training_args.learning_rate == 0.5:
        os.kill(os.getpid(), signal.SIGKILL)
    results = {"test_accuracy": training_args.learning_rate}
    Path(training_args.output_dir, "all_results.json").write_text(json.dumps(results))
    for name in ("model.safetensors", "test_predictions.npz"):
        Path(training_args.output_dir, name).write_bytes(b"as it was")
    return SimpleNamespace(state=SimpleNamespace(log_history=[]))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("madkd_hf.cli.student.train", _train)
    fork = multiprocessing.get_context("fork")  # a worker that is spawned imports torch for a minute
    monkeypatch.setattr("madkd_hf.cli.comparison.cells.multiprocessing.get_context", lambda kind: fork)


def test_a_student_that_is_trained_again_is_named_with_the_reason(tmp_path, quick, capsys):
    folder = make(tmp_path / "a")

    def ask(*more):
        one = cells.Cell("one", options(folder, *more), str(folder / "out"))
        return cells.run_cells([one], 1)["one"]["accuracy"], capsys.readouterr().out

    assert ask() == (1.0, "") and ask("--disable_tqdm", "true") == (1.0, "")
    begin = f"The student one in {folder / 'out'} is trained again: "
    assert ask("--learning_rate", 0.02) == (2.0, f"{begin}its learning_rate is 0.01, here 0.02.\n")


def test_a_worker_that_is_killed_is_told_with_the_remedy(tmp_path, quick):
    folder = make(tmp_path / "a")
    good, bad = (
        cells.Cell(name, options(folder, "--learning_rate", rate, "--output_dir", folder / name), str(folder / name))
        for name, rate in (("good", 0.1), ("bad", 0.5))
    )  # fmt: skip
    cells.run_cells([good], 1)
    begin = "killed from outside, most likely because memory ran out: run the same command again, with "
    with pytest.raises(ValueError, match=f"{begin}a lower per_device_train_batch_size; of 2 students 1 are"):
        cells.run_cells([good, bad], 1)
    others = [cells.Cell(name, bad.argv, str(folder / name)) for name in ("bad", "worse")]
    with pytest.raises(ValueError, match=rf"{begin}--jobs 1 \(here it was 2\); of 2 students 0 are"):
        cells.run_cells(others, 2)


# Damage


def _flip(content: bytes, digit: bytes = b"0.01") -> bytes:
    """Other numbers that are JSON still."""
    assert digit in content
    return content.replace(digit, b"0.99")


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda content, n=n: content[: len(content) * n // 7] for n in range(7)),
        _flip,
        lambda content: content.replace(b'"result"', b'"resalt"'),
        lambda content: content.replace(b'"checksum"', b'"checksam"'),
        lambda content: content.replace(b'"decides"', b'"desides"'),
        lambda content: bytes(len(content)),
        lambda content: b"\xff" + content,
        lambda content: b"[" * 100_000,
        lambda content: b"[]",
        lambda content: b"NaN",
    ],
)
def test_a_student_with_a_damaged_result_is_trained_again(tmp_path, quick, capsys, damage):
    folder = make(tmp_path / "a")
    one = cells.Cell("one", options(folder), str(folder / "out"))
    first, path = cells.run_cells([one], 1), folder / "out" / "cell.json"
    assert "trained again" not in capsys.readouterr().out
    path.write_bytes(damage(path.read_bytes()))
    again = cells.run_cells([one], 1)
    said = capsys.readouterr().out
    assert again["one"]["accuracy"] == first["one"]["accuracy"]
    assert "trained again" in said and str(folder / "out") in said and len(said.splitlines()) == 1
    assert cells.run_cells([one], 1) == again and not capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.safetensors", "test_predictions.npz"])
def test_a_student_whose_files_changed_is_trained_again(tmp_path, quick, capsys, name):
    folder = make(tmp_path / "a")
    one = cells.Cell("one", options(folder), str(folder / "out"))
    cells.run_cells([one], 1)
    path = folder / "out" / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    cells.run_cells([one], 1)
    assert f"{path} is damaged or missing: its student is trained again." in capsys.readouterr().out
    path.unlink()
    cells.run_cells([one], 1)
    assert f"{path} is damaged or missing: its student is trained again." in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"_fingerprint": 7}'])
def test_a_damaged_dataset_is_named_with_the_remedy(tmp_path, content):
    folder = make(tmp_path / "a")
    path = folder / "data" / "train" / "state.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path} .*: save the dataset again"):
        _ = cell(folder).decides


@pytest.mark.parametrize("name", ["prompts", "boxes", "splits"])
def test_settings_with_any_name_are_compared_as_they_are(name):
    assert difference_of({name: {"a": 1}}, {name: {"a": 2}}, "") == f"its {name} a is 1, here 2"
    assert difference_of({name: 1}, {name: None}, "") == f"its {name} is 1, here null"
