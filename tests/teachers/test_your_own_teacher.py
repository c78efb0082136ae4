"""docs/your_own_teacher.md, done: a teacher of twenty lines labels, trains and publishes."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import tiny
from builders.commands import ROOT, recipe, refuse
from builders.student_files import student_files
from datasets import Dataset, load_from_disk
from PIL import Image

from madkd_hf import AspectBank, MadkdForImageClassification, attach_aspects
from madkd_hf.teachers import Reading, Teacher, base, load_teacher


DOCUMENT = (ROOT / "docs" / "your_own_teacher.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+) ?(\w*)\n(.*?)^```$", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
((FILE, LINE), (BANK,), (COMMANDS,), (SCRIPT,)) = (
    [code for kind, mark, code in BLOCKS if test(kind, mark)]
    for test in (
        lambda kind, mark: mark in ("file", "line"),
        lambda kind, mark: kind == "json",
        lambda kind, mark: kind == "bash",
        lambda kind, mark: kind == "python" and not mark,
    )
)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """What the document presupposes: the file and the line, the questions, and photographs of two classes."""
    source = tmp_path / "mean_colour.py"
    source.write_text(FILE)
    spec = importlib.util.spec_from_file_location("madkd_hf.teachers.mean_colour", source)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    for kind, place in eval(f"{{{LINE}}}").items():
        monkeypatch.setitem(base.TEACHERS, kind, place)
    (tmp_path / "aspects.json").write_text(BANK)
    draw = np.random.default_rng(0)
    for i in range(24):
        name = ["cherry", "lime"][i % 2]
        pixels = draw.integers(0, 60, (32, 32, 3), dtype=np.uint8) + np.array([[180, 0, 0], [0, 180, 0]][i % 2])
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    monkeypatch.setattr("builders.commands.ROOT", tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def type_in(line: str, *more: str) -> None:
    program, verb, *words = shlex.split(line)
    assert program == "madkd"
    recipe(verb, *words, *more)


def test_it_labels_trains_and_publishes(place, hub, capsys):
    hub.add_repo("microsoft/resnet-18", student_files(place))
    label, train = COMMANDS.strip().splitlines()
    type_in(label)
    assert "cannot be read" not in capsys.readouterr().out
    rows = load_from_disk(place / "runs" / "labelled")["train"]
    red, green, blue = np.array(rows["aspect_logits"][:]).T
    cherry = np.array(rows["label"][:]) == 0
    assert (red[cherry] > 3).all() and (red[~cherry] < -3).all() and (green[~cherry] > 3).all() and (blue < 0).all()
    assert set(rows["aspect_mass"][0]) == {1.0}
    assert AspectBank.load(place / "runs" / "labelled").provenance["model"] == "mean colour"
    assert "mean colour" in hub.files("you/colours", "dataset")["README.md"].decode()
    type_in(train, "--use_cpu", "--report_to", "none", "--disable_tqdm", "true")
    assert MadkdForImageClassification.from_pretrained(place / "runs" / "student").config.aspect_ids[0] == "red"
    assert "mean colour" in hub.files("you/colour-student")["config.json"].decode()


def test_a_student_labels_with_it_and_python_needs_no_line(place, capsys):
    words = ["--dataset", "photos", "--bank", "aspects.json", "--teacher", "mean_colour:10", "--pretrained", "false"]
    words += ["--backbone", str(student_files(place)), "--output_dir", "runs/student", "--max_steps", "1", "--use_cpu"]
    words += ["--report_to", "none", "--disable_tqdm", "true"]
    recipe("train", *words)
    student = MadkdForImageClassification.from_pretrained(place / "runs" / "student")
    assert student.config.aspect_bank == AspectBank.load("aspects.json").fingerprint
    said = refuse("train", *words, "--teacher_options", '{"dtype": "float32"}', "--output_dir", "runs/other")
    assert "mean_colour:10" in said and "'dtype'" in said
    capsys.readouterr()
    exec(SCRIPT, {})
    assert len(json.loads(capsys.readouterr().out)) == 3


class Wrong(Teacher):
    """Gives as many numbers as it is told."""

    identity = {"model": "wrong"}

    def __init__(self, shape: tuple[int, int], value: float = 0.0):
        self.answer = np.full(shape, value)

    def read(self, images, bank):
        return Reading(self.answer, self.answer)


@pytest.mark.parametrize("teacher", [Wrong((2, 2)), Wrong((1, 3)), Wrong((2, 3), float("nan"))])
def test_numbers_that_are_no_answers_are_refused(tmp_path, teacher):
    rows = Dataset.from_dict({"image": tiny.images(2, 16)})
    with pytest.raises(ValueError, match=r"expected finite numbers of shape \(2, 3\)"):
        attach_aspects(rows, tiny.bank(3), teacher, work_dir=tmp_path)


def test_a_name_without_a_kind_is_a_model(tmp_path):
    with pytest.raises(OSError, match="There is no folder .*nowhere"):
        load_teacher(str(tmp_path / "nowhere"))
