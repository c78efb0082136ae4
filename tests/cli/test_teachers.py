"""A command that labels for itself loads its teacher with the options that labelling has."""

from __future__ import annotations

import importlib
import json

import pytest
from builders.commands import EASY_VQA, refuse

from madkd_hf.cli.teachers import attach


def arguments(tmp_path, *argv):
    argv = ["--dataset", "recipes.easy_vqa.data:load_easy_vqa", "--bank", EASY_VQA / "aspects.json", *argv]
    argv += ["--teacher", EASY_VQA / "teacher", "--work_dir", tmp_path / "work", "--output_dir", tmp_path / "out"]
    return importlib.import_module("madkd_hf.cli.train").parse([*map(str, argv)])[0]


def test_a_student_asks_as_labelling_would(tmp_path):
    options = {"prompt": "Look: {question}", "dtype": "bfloat16", "strategy": "full", "batch_size": 64}
    args = arguments(tmp_path, "--teacher_options", json.dumps(options))
    train = importlib.import_module("recipes.easy_vqa.data").load_easy_vqa()["train"]
    rows, bank = attach(train.select(range(2)), args, alpha=1.0)
    manifest = json.loads((tmp_path / "work" / "manifest.json").read_text())
    assert (manifest["teacher"]["prompt"], manifest["teacher"]["dtype"]) == ("Look: {question}", "bfloat16")
    assert (manifest["plan"]["strategy"], manifest["plan"]["batch_size"]) == ("full", 64)
    assert bank.provenance["prompt"] == "Look: {question}" and len(rows["aspect_logits"][0]) == len(bank)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('{"promt": "x"}', "teacher_options: Unknown option --promt: did you mean 'prompt'?"),
        ("dtype", "teacher_options is no JSON"),
        ('{"batch_size": "many"}', "invalid int value: 'many'"),
    ],
)
def test_options_that_no_teacher_has_are_told_before_anything_begins(tmp_path, options, message):
    argv = ["--dataset", "recipes.easy_vqa.data:load_easy_vqa", "--bank", EASY_VQA / "aspects.json", "--limit", "8"]
    argv += ["--teacher", EASY_VQA / "teacher", "--teacher_options", options, "--output_dir", tmp_path / "out"]
    assert message in refuse("train", *argv)
