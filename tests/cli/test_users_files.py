"""What a user has on the disk is there after every command, byte by byte, or the command says what is in its way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders.commands import EASY_VQA, ROOT, recipe, refuse
from builders.files import tree
from builders.quick_python import warm_python
from builders.scenes import make_scenes
from datasets import DatasetDict, IterableDatasetDict, load_from_disk

from madkd_hf import AspectBank, attach_aspects, files


TEACHER = EASY_VQA / "teacher"
COMPARE = ["--baseline", EASY_VQA / "baseline.yaml", "--distill", EASY_VQA / "distill.yaml"]
COMMANDS = {
    "attach_aspects": ["--teacher", TEACHER, "--bank", EASY_VQA / "aspects.json"],
    "train_student": ["--backbone", EASY_VQA / "student", "--pretrained", "false"],
    "train_detector": [],
    "compare": [*COMPARE, "--teacher", TEACHER, "--bank", EASY_VQA / "aspects.json"],
    "tune": [*COMPARE, "--teacher", TEACHER, "--bank", EASY_VQA / "aspects.json"],
    "questions_curve": [*COMPARE, "--teacher", TEACHER, "--bank", EASY_VQA / "aspects.json"],
    "select_questions": ["--keep", "2"],
    "generate_questions": ["--llm", "some/model", "--dry_run"],
}
# What else a job needs whose options are right.
MAKES_A_JOB = {
    "generate_questions": ["--base_url", "http://127.0.0.1:9/v1"],
    "train_student": ["--aspect_alpha", "0"],
    "train_detector": ["--config", EASY_VQA / "detect_baseline.yaml"],
    "questions_curve": ["--counts", "2"],
}
OURS = (files.MARK_FILE, files.LOCK_FILE)
DATA = "recipes.easy_vqa.data:load_easy_vqa"


@pytest.fixture
def birds(tmp_path) -> Path:
    """A user's photographs, a split that is a link, and a note beside them."""
    folder = tmp_path / "birds"
    for name in ("train/a/0.jpg", "train/a/notes.txt", "train/notes.jpg", ".hidden", "test/b/1.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")
    (tmp_path / "link").symlink_to(folder)
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    return small_of(tmp_path_factory.mktemp("few"), "train", "validation", "test")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_folder_that_overlaps_with_the_dataset_is_refused_before_anything_is_read(
    command, tmp_path, birds, monkeypatch
):
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    cases = [(birds / "train", birds), (birds, birds), (birds, birds / "out"), (tmp_path / "link", birds / "out")]
    cases += [(birds / "train", tmp_path / "link"), (birds, tmp_path), (birds / "train" / "..", birds / "test" / "x")]
    cases += [(os.path.relpath(birds, ROOT), birds), (birds, os.path.relpath(birds, ROOT))]
    for source, out in cases:
        said = refuse(command, *COMMANDS[command], "--dataset", source, "--output_dir", out)
        assert "which is read: pass an output folder elsewhere" in said, (source, out)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", ["attach_aspects", "train_student", "compare", "tune", "select_questions"])
def test_a_work_dir_that_overlaps_with_the_dataset_is_refused(command, tmp_path, birds):
    before = tree(tmp_path)
    for work in (birds, birds / "work", tmp_path):
        argv = ["--dataset", birds, "--work_dir", work, "--output_dir", tmp_path / "out"]
        assert "pass a work folder elsewhere" in refuse(command, *COMMANDS[command], *argv)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("command", "option"),
    [("attach_aspects", "--teacher"), ("train_student", "--backbone"), ("train_student", "--comparison")]
    + [("train_detector", "--detector"), ("compare", "--teacher"), ("select_questions", "--teacher")],
)
def test_so_is_one_that_overlaps_with_a_model_that_is_read(command, option, tmp_path, birds):
    before = tree(tmp_path)
    argv = [*COMMANDS[command], "--dataset", DATA, option, birds]
    for out in (birds, birds / "train" / "new", tmp_path):
        assert "pass an output folder elsewhere" in refuse(command, *argv, "--output_dir", out)
    assert tree(tmp_path) == before


def test_a_bank_is_not_written_over_by_what_it_is_read_for(tmp_path):
    bank = tmp_path / "bank" / "aspects.json"
    bank.parent.mkdir()
    bank.write_bytes((EASY_VQA / "aspects.json").read_bytes())
    before = tree(tmp_path)
    for asked in (bank, bank.parent):
        argv = ["--dataset", DATA, "--teacher", TEACHER, "--bank", asked, "--output_dir", bank.parent]
        assert "aspects.json, which is read" in refuse("attach_aspects", *argv)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(("attach_aspects", name) for name in ("train", "aspects.json", "dataset_dict.json", "questions.md")),
        *(("attach_aspects", name) for name in ("questions.json", "figures/teacher.png", "figures")),
        *(("train_student", name) for name in ("config.json", "model.safetensors", "adapter", "checkpoint-5")),
        *(("train_student", name) for name in ("all_results.json", "test_predictions.npz", "trainer_state.json")),
        ("train_detector", "model.safetensors"),
        *(("compare", name) for name in ("student", "cells", "sets", "labelled", "report.md", "figures/scenes.png")),
        *(("tune", name) for name in ("tune.md", "cells", "labelled")),
        *(("questions_curve", name) for name in ("questions_curve.md", "cells")),
        *(("select_questions", name) for name in ("aspects.json", "selection.md", "figures/selection.png")),
        *(("generate_questions", name) for name in ("aspects.json", "aspects_all.json", "candidates.jsonl")),
    ],
)
@pytest.mark.parametrize("kind", ["file", "folder", "link", "broken link"])
def test_what_a_user_has_under_a_name_that_is_written_is_refused_by_name(command, name, kind, tmp_path, birds, few):
    if name == "figures" and kind == "folder":
        return  # it has room for ours
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    if kind == "folder":
        (out / name).mkdir()
        (out / name / "mine.txt").write_text("mine")
    elif kind == "file":
        (out / name).write_text("mine")
    else:
        (out / name).symlink_to(birds if kind == "link" else tmp_path / "nowhere")
    before = tree(tmp_path)
    argv = ["--class_names", "a", "b"] if command == "generate_questions" else ["--dataset", few]
    said = refuse(command, *COMMANDS[command], *argv, "--output_dir", out)
    assert str(out / name) in said, said
    assert "move it away" in said or "link" in said or command == "generate_questions", said
    assert tree(tmp_path) == before


def small(*splits: str) -> DatasetDict:
    """A few images of easy-VQA under other names of splits."""
    from recipes.easy_vqa.data import load_easy_vqa

    rows = load_easy_vqa()["train"].select(range(4))
    return DatasetDict(dict.fromkeys(splits, rows))


def small_of(folder: Path, *splits: str) -> Path:
    small(*splits).save_to_disk(folder)
    return folder


def label(source: Path, out: Path, *more: str | Path) -> list[str | Path]:
    argv = ["--dataset", source, "--output_dir", out, "--dtype", "float32", *more]
    return [*COMMANDS["attach_aspects"], *argv]


def test_labelling_again_keeps_a_users_files_and_removes_what_it_wrote_itself(tmp_path):
    out, source = tmp_path / "out", tmp_path / "source"
    small_of(source, "train", "val")
    (out / "holiday").mkdir(parents=True)
    for name in (".partial", "holiday/0.jpg", "README.md", "train.txt"):
        (out / name).write_text("mine")
    mine = tree(out)
    recipe("attach_aspects", *label(source, out))
    recipe("attach_aspects", *label(source, out, "--limit", "2"))
    assert {split: len(rows) for split, rows in load_from_disk(out).items()} == {"train": 2, "val": 2}
    assert {name: text for name, text in tree(out).items() if name in mine} == mine
    assert not [name for name in os.listdir(out) if name.startswith(".") and name not in (".partial", *OURS)]
    recipe("attach_aspects", *label(small_of(tmp_path / "less", "train"), out))
    assert list(load_from_disk(out)) == ["train"] and not (out / "val").exists()
    assert {name: text for name, text in tree(out).items() if name in mine} == mine
    (out / "train" / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    said = refuse("attach_aspects", *label(source, out))
    assert f"{out / 'train' / 'notes.txt'} was not written by this command" in said
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["..", "../..", "a/b", "/tmp/x", "..\\x", ".hidden", "a\x1b[2J", "x" * 300, ""])
def test_a_downloaded_dataset_whose_split_is_no_file_name_is_refused(name, tmp_path):
    source, out = tmp_path / "source" / "inner" / "most", tmp_path / "parent" / "of" / "out"
    small("train", "zz").save_to_disk(source)
    place = Path(os.path.normpath(source / name))
    if 0 < len(name) < 100 and tmp_path in place.parents:  # so that load_from_disk finds it
        place.mkdir(parents=True, exist_ok=True)
        for file in (source / "zz").iterdir():
            file.rename(place / file.name)
    (source / "dataset_dict.json").write_text(json.dumps({"splits": ["train", name]}))
    out.parent.mkdir(parents=True)
    (out.parent / "mine.txt").write_text("mine")
    before = tree(tmp_path)
    for command in COMMANDS if name == ".." else ["attach_aspects"]:
        said = refuse(command, *COMMANDS[command], "--dataset", source, "--output_dir", out)
        assert said.startswith("error: ") and "\x1b" not in said, said
        if name in ("..", "../..", "..\\x", ".hidden") and command != "train_detector":
            assert "The split" in said and "rename it" in said, said
        assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["..", "a/b", "a b", "x" * 300, "..\\x", ".a"])
@pytest.mark.parametrize("streams", [False, True])
def test_names_of_splits_obey_one_rule_for_rows_and_streams(name, streams, tmp_path):
    rows = small("train")["train"]
    splits = IterableDatasetDict({name: rows.to_iterable_dataset()}) if streams else DatasetDict({name: rows})
    if name == "a b" and not streams:
        return  # which is a folder's name
    with pytest.raises(ValueError, match="split"):
        attach_aspects(splits, AspectBank.load(EASY_VQA / "aspects.json"), None, work_dir=tmp_path / "work")
    assert tree(tmp_path) == {}


# Two jobs, and jobs that are stopped


def _not_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # by what a shell runs with "&"


def start(*argv: str | Path, python: str = sys.executable, **environment: str) -> subprocess.Popen:
    argv = [python, *map(str, argv)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(argv, cwd=ROOT, env=environment, start_new_session=True, preexec_fn=_not_ignored, **pipes)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_second_job_on_a_folder_is_refused_in_a_sentence(command, tmp_path):
    argv = ["--class_names", "a", "b"] if command == "generate_questions" else ["--dataset", DATA]
    options = [word for word in COMMANDS[command] if word != "--dry_run"] + MAKES_A_JOB.get(command, [])
    if command == "train_detector":
        make_scenes().save_to_disk(tmp_path / "scenes")
        argv = ["--dataset", tmp_path / "scenes", "--scenes", "6"]
    code = "import sys, time; sys.path.insert(0, sys.argv[2]); from madkd_hf import files\n"
    code += "with files.locked(sys.argv[1]): print('held', flush=True); time.sleep(600)"
    argv = [*options, *argv, "--output_dir", tmp_path / "out"]
    with start("-c", code, tmp_path / "out", Path(files.__file__).parents[2]) as first:
        assert first.stdout.readline() == "held\n"
        said = refuse(command, *argv)
        first.kill()
    assert f"Another run is at work in {tmp_path / 'out'}" in said


@pytest.mark.parametrize(("sent", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "stopped")])
def test_a_stopped_labelling_says_what_is_kept_and_exits_as_shells_expect(sent, code, word, tmp_path):
    argv = ["--config", EASY_VQA / "attach.yaml", "--work_dir", tmp_path / "work", "--shard_size", "4"]
    with start("recipes/attach_aspects.py", *argv, "--output_dir", tmp_path / "out", python=warm_python()) as job:
        while not list(tmp_path.glob("work/shards/*.arrow")) and job.poll() is None:
            time.sleep(0.1)
        os.kill(job.pid, signal.Signals[sent])
        said = job.stdout.read()
        job.wait(60)
    assert job.returncode == code, said[-3000:]
    assert f"\n{word}" in said and "are complete and kept" in said and "same command" in said, said[-3000:]
    assert "Traceback" not in said


@pytest.mark.parametrize(("command", "sent", "code"), [("compare", "SIGINT", 130), ("train_student", "SIGTERM", 143)])
def test_a_command_that_is_stopped_while_it_loads_says_so(command, sent, code, tmp_path):
    config = EASY_VQA / ("compare.yaml" if command == "compare" else "baseline.yaml")
    with start(f"recipes/{command}.py", "--config", config, "--output_dir", tmp_path / "out") as job:
        time.sleep(1.0)
        os.kill(job.pid, signal.Signals[sent])
        said = job.stdout.read()
        job.wait(60)
    assert job.returncode == code and "Traceback" not in said, said[-3000:]
    assert os.listdir(tmp_path) == []
