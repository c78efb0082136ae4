"""`madkd view`: what it prints and leaves, and what it refuses before anything is written."""

from __future__ import annotations

import json

import pytest
from builders.commands import EASY_VQA, recipe, refuse
from builders.labelled_birds import birds, save_labelled
from datasets import DatasetDict


def test_it_leaves_a_page_and_says_where(labelled, tmp_path, capsys):
    argv = ["--dataset", labelled, "--output_dir", tmp_path / "page"]
    recipe("view", *argv, "--splits", "train", "--thumbnail_size", "32")
    said = capsys.readouterr().out
    assert f"Open {tmp_path}/page/index.html in a browser" in said and "30 images, 30 with answers" in said
    assert len([*(tmp_path / "page").glob("thumbs/0/0/*.jpg")]) == 30
    recipe("view", labelled, *argv[2:])  # all splits now, in the same folder; the first word is the dataset
    assert "90 images, 30 with answers" in capsys.readouterr().out
    assert len([*(tmp_path / "page").glob("thumbs/*/0/*.jpg")]) == 90


def test_pictures_with_two_labels_are_printed_first(tmp_path, capsys):
    save_labelled(tmp_path / "birds")
    rows = birds().select([0, 1])
    other = rows.select([0]).remove_columns("label").add_column("label", [1], feature=rows.features["label"])
    splits = DatasetDict.load_from_disk(tmp_path / "birds")
    splits["test"] = other
    splits.save_to_disk(tmp_path / "more")
    argv = ["--dataset", tmp_path / "more", "--bank", tmp_path / "birds", "--splits", "train", "test"]
    recipe("view", *argv, "--output_dir", tmp_path / "page")
    said = capsys.readouterr().out
    assert "1 picture with two labels" in said and "same picture: finch" in said and "same picture: heron" in said
    lines = (tmp_path / "page/suspects.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["split"] for line in lines[:2]} == {"train", "test"}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--dataset", "{birds}", "--output_dir", "{birds}/page"], "lies in"),
        (["--dataset", "{birds}", "--thumbnail_size", "5000"], "expected 32 to 1024 pixels"),
        (["--dataset", "{birds}", "--splits", "training"], "There is no split 'training'"),
        (["--dataset", "{birds}", "--splits", "test"], "label the dataset first, with `madkd label`"),
        (["--dataset", "{birds}", "--image_column", "photo"], "There is no column 'photo'"),
        (["--dataset", "{birds}", "--bank", str(EASY_VQA)], "questions or their order differ"),
        (["--dataset", "recipes.easy_vqa.data:load_easy_vqa"], "has answers: label the dataset first"),
        (["nowhere/at/all"], "There is no folder nowhere/at/all here"),
        (["--dataset", "{birds}", "--label_colum", "label"], "did you mean 'label_column'?"),
    ],
)
def test_what_cannot_be_shown_is_told_in_a_sentence_and_nothing_is_written(argv, expected, tmp_path):
    save_labelled(tmp_path / "birds")
    argv = [word.replace("{birds}", str(tmp_path / "birds")) for word in argv]
    output = [] if "--output_dir" in argv else ["--output_dir", tmp_path / "page"]
    said = refuse("view", *argv, *output)
    assert said.startswith("error: ") and expected in said and "\n" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["birds"]
