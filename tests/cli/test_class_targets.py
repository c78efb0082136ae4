"""`madkd label` with a class teacher, or with the posterior of the answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders.class_teachers import NAMES, rows, saved
from builders.commands import EASY_VQA, recipe, refuse
from builders.labelling_jobs import TWO
from builders.labelling_jobs import recipe as recipe_in_process
from datasets import DatasetDict, load_dataset, load_from_disk

from madkd_hf import AspectBank
from madkd_hf.data.class_targets import check_class_targets
from madkd_hf.data.target_facts import TargetFacts


MLLM = ["--bank", EASY_VQA / "aspects.json", "--teacher", EASY_VQA / "teacher"]


@pytest.fixture
def photos(tmp_path) -> Path:
    """Images with a class, but for three of the training images."""
    splits = {"train": rows(12, without_class=(2, 5, 9)), "test": rows(6, seed=1)}
    DatasetDict(splits).save_to_disk(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def larger(tmp_path) -> Path:
    return saved(tmp_path / "larger", ["cow", "cat", "dog"])


def test_a_class_teacher_alone_needs_neither_bank_nor_teacher(tmp_path, photos, larger, capsys):
    out = tmp_path / "out"
    recipe("label", "--dataset", photos, "--class_teacher", larger, "--output_dir", out)
    labelled = load_from_disk(out)
    check_class_targets(labelled["train"], NAMES)
    assert None not in labelled["train"]["class_logits"][:]
    assert labelled["test"]["class_logits"][:] == [None] * 6 and "aspect_logits" not in labelled["train"].features
    assert not (out / "aspects.json").exists()
    facts, said = TargetFacts.load(out), capsys.readouterr().out
    right = [np.argmax(row["class_logits"]) == row["label"] for row in labelled["train"] if row["label"] is not None]
    assert facts.rows == {"train": 12} and facts.tested == 9 and facts.accuracy == pytest.approx(np.mean(right))
    assert facts.teacher == labelled["train"]["class_teacher"][0] and facts.name.startswith("larger@")
    assert f"12 of train. They name the class of {facts.accuracy:.1%} of 9 images" in said
    assert "--aspect_alpha 0" in said


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_answers_and_class_targets_in_one_run_or_one_after_the_other(tmp_path, photos, larger, streaming):
    words = ["--dataset", photos, "--streaming", streaming]
    recipe("label", *words, *MLLM, "--class_teacher", larger, "--output_dir", tmp_path / "both")
    recipe("label", *words, *MLLM, "--output_dir", tmp_path / "first")
    words = ["--dataset", tmp_path / "first", "--streaming", streaming, "--class_teacher", larger]
    recipe("label", *words, "--output_dir", tmp_path / "second")
    if streaming == "true":
        both, apart = (
            load_dataset(str(tmp_path / name), cache_dir=str(tmp_path / "cache")) for name in ("both", "second")
        )
    else:
        both, apart = (load_from_disk(tmp_path / name) for name in ("both", "second"))
    for name in ("aspect_logits", "class_logits"):
        np.testing.assert_allclose(both["train"][name][:], apart["train"][name][:], atol=1e-4)
    for name in ("aspect_bank", "class_teacher"):
        assert both["train"][name][:] == apart["train"][name][:]
    bank, again = (AspectBank.load(tmp_path / name) for name in ("both", "second"))
    assert bank.fingerprint == again.fingerprint and again.provenance["model"].endswith("easy_vqa/teacher")


def test_the_answers_are_not_asked_for_again_with_another_class_teacher(tmp_path, photos, larger, capsys, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")  # empty, however often this is run
    words = ["--dataset", photos, *MLLM, "--output_dir", tmp_path / "out", "--work_dir", tmp_path / "work"]
    recipe("label", *words, "--class_teacher", larger)
    assert "questions an image" in capsys.readouterr().err
    assert (tmp_path / "work/class_targets/manifest.json").is_file()
    said = refuse("label", *words, "--class_teacher", saved(tmp_path / "other", seed=1))
    assert "its class_teacher" in said and "pass another work_dir" in said
    recipe("label", *words[:-2], "--class_teacher", saved(tmp_path / "third", seed=2))
    assert "scores of 3 classes" in capsys.readouterr().err


def test_a_broken_image_is_left_without_scores(tmp_path, larger, capsys):
    for i, row in enumerate(rows(6)):
        place = tmp_path / "folder" / NAMES[row["label"]]
        place.mkdir(parents=True, exist_ok=True)
        row["image"].save(place / f"{i}.png")
    (tmp_path / "folder" / "cat" / "0.png").write_bytes(b"no image")
    words = ["--dataset", tmp_path / "folder", "--class_teacher", larger, "--output_dir", tmp_path / "out"]
    assert "0.png" in refuse("label", *words)
    recipe("label", *words, "--on_error", "skip")
    assert "Skipped 1 images of train that cannot be read: rows 0." in capsys.readouterr().out
    train = load_from_disk(tmp_path / "out")["train"]
    assert train["class_logits"][:].count(None) == 1 and TargetFacts.load(tmp_path / "out").rows == {"train": 5}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--class_teacher", "./nowhere"], "There is no folder ./nowhere"),
        (["--class_teacher", EASY_VQA / "teacher"], "classifies no images: expected an image classifier"),
        (["--class_teacher", "larger", "--class_posterior", "true"], "both fill the column class_logits"),
        (["--class_teacher", "larger", "--boxes_column", "objects"], "class of a whole image: leave out --boxes"),
        (["--class_teacher", "larger", "--push_to_hub", "true"], "publishes a dataset with aspects"),
        (["--class_teacher", "larger", "--teacher", EASY_VQA / "teacher"], "No bank given"),
        (["--class_posterior", "true", "--streaming", "true"], "needs all answers at once"),
        (["--class_posterior", "true"], "is fitted on answers, and the dataset has none"),
        (["--class_teacher_revision", "main", *MLLM], "says nothing without --class_teacher"),
        ([*MLLM, "--class_posterior", "true", "--splits", "test"], "is for images without a class"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_image(tmp_path, photos, larger, words, said):
    words = [larger if word == "larger" else word for word in words]
    assert said in refuse("label", "--dataset", photos, *words, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_classes_are_told_before_the_first_image(tmp_path, photos, capsys):
    other = saved(tmp_path / "other", ["cat", "dog", "pig"])
    said = refuse("label", "--dataset", photos, "--class_teacher", other, "--output_dir", tmp_path / "out")
    assert "'cow'" in said and "'pig'" in said and "scores of" not in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path, photos, larger):
    words = ["--dataset", photos, "--class_teacher", larger, "--shard_size", "2"]
    for name, launch in (("one", ()), ("two", TWO)):
        places = ["--output_dir", tmp_path / name, "--work_dir", tmp_path / f"work {name}"]
        done = recipe_in_process(*words, *places, launch=launch)
        assert done.returncode == 0, done.stderr
    first, second = (load_from_disk(tmp_path / name)["train"] for name in ("one", "two"))
    assert first["class_logits"][:] == second["class_logits"][:]
    assert first["class_teacher"][:] == second["class_teacher"][:]
    manifests = [
        json.loads((tmp_path / f"work {name}/class_targets/manifest.json").read_text()) for name in ("one", "two")
    ]
    assert manifests[0] == manifests[1]
