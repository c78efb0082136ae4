"""Class targets of other classes, and what is kept of them, are looked at before anybody is asked or trained."""

from __future__ import annotations

import numpy as np
import pytest
from builders.commands import EASY_VQA, recipe, refuse
from builders.without_class import NAMES, hidden, refused, rows, saved, trained
from datasets import Dataset, DatasetDict, List, Value, load_from_disk

from madkd_hf.data.class_targets import with_class_targets
from madkd_hf.data.target_facts import TARGETS_FILE, TargetFacts


FOUR = [*NAMES, "pig"]
MLLM = ["--bank", EASY_VQA / "aspects.json", "--teacher", EASY_VQA / "teacher"]


def scored(data: Dataset, classes: list[str] = NAMES) -> Dataset:
    return with_class_targets(data, np.zeros((len(data), len(classes))), "larger", classes)


def listed(data: Dataset, *scores: list) -> Dataset:
    """The rows with scores in lists of no fixed length, the last of them these."""
    columns = [[0.0, 1.0, 2.0]] * (len(data) - len(scores)) + list(scores)
    return data.add_column("class_logits", columns, feature=List(Value("float32")))


@pytest.mark.parametrize(
    ("score", "said"),
    [
        ([0.0, 1.0, 2.0, 3.0], "holds scores of 4 classes"),
        ([], "holds scores of 0 classes"),
        ([0.0, None, 2.0], "NaN, infinite or missing scores"),
    ],
)
def test_each_row_has_a_score_of_each_class(tmp_path, score, said):
    train_set = listed(rows(12, 0, answers=False), score)
    dataset = saved(tmp_path / "toys", train=train_set, validation=rows(12, 1, answers=False))
    assert said in refused(tmp_path, "--dataset", dataset, aspect_alpha=0.0)


@pytest.mark.parametrize("place", ["train", "validation", "unlabelled"])
def test_other_classes_are_told_before_anybody_is_asked(tmp_path, place, capsys):
    splits = {"train": rows(12, 0, False), "validation": rows(12, 1, False), "unlabelled": rows(6, 7, False)}
    DatasetDict(splits | {place: scored(splits[place], FOUR)}).save_to_disk(tmp_path / "toys")
    words = ["--dataset", tmp_path / "toys", "--unlabelled", "unlabelled", *MLLM]
    said = refused(tmp_path, *words, aspect_alpha=1.0)
    assert "holds scores of 4 classes" in said and "questions an image" not in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--class_posterior", "true"], ["--class_alpha", "0"]])
def test_class_targets_that_nobody_looks_at_may_be_of_other_classes(tmp_path, words):
    splits = {"train": scored(rows(12, 0)), "validation": scored(rows(12, 1), FOUR)}
    dataset = saved(tmp_path / "toys", **splits, unlabelled=scored(rows(6, 7), FOUR))
    run = trained(tmp_path, "--dataset", dataset, "--unlabelled", "unlabelled", *words, aspect_alpha=1.0)
    there = [scores is not None for scores in run.train_dataset["class_logits"]] if "posterior" in words[0] else []
    assert there == [label is None for label in run.train_dataset["label"]][: len(there)]
    assert ("soft_loss" in run.state.log_history[0]) == bool(there)


def test_hidden_training_images_and_others_with_other_columns_are_told_in_a_sentence(tmp_path):
    dataset = saved(tmp_path / "toys", train=scored(hidden(rows(12, 0), 3)), validation=rows(12, 1))
    folder = saved(tmp_path / "loose", train=scored(rows(6, 7), FOUR))
    said = refused(tmp_path, "--dataset", dataset, "--unlabelled", folder, aspect_alpha=1.0)
    assert "other columns 'class_logits'" in said and "length=4" in said and "give both the same" in said


def test_answers_need_not_say_of_which_bank_they_are(tmp_path):
    train_set = hidden(rows(12, 0), 3).remove_columns("aspect_bank")
    dataset = saved(tmp_path / "toys", train=train_set, validation=rows(12, 1))
    assert len(trained(tmp_path, "--dataset", dataset, aspect_alpha=1.0).train_dataset) == 12


def test_a_damaged_note_is_told_before_anybody_is_asked(tmp_path, capsys):
    DatasetDict(train=scored(rows(12, 0, False))).save_to_disk(tmp_path / "toys")
    (tmp_path / "toys" / TARGETS_FILE).write_text("[]")
    said = refuse("label", "--dataset", tmp_path / "toys", *MLLM, "--output_dir", tmp_path / "out")
    assert "does not say whose the class targets are" in said
    loose = saved(tmp_path / "loose", train=scored(rows(6, 7, False)))
    (loose / TARGETS_FILE).write_text("[]")
    DatasetDict(train=rows(12, 0, False), validation=rows(12, 1, False)).save_to_disk(tmp_path / "plain")
    words = ["--dataset", tmp_path / "plain", "--unlabelled", loose, *MLLM]
    assert "does not say whose" in refused(tmp_path, *words, aspect_alpha=1.0)
    assert "questions an image" not in capsys.readouterr().err


def test_a_note_of_other_class_targets_does_not_travel_on(tmp_path):
    DatasetDict(train=scored(rows(12, 0, False))).save_to_disk(tmp_path / "toys")
    TargetFacts("posterior@1:2", "posterior", {"train": 4}, 20, 20, 5, 0.85, 0.1).save(tmp_path / "toys")
    recipe("label", "--dataset", tmp_path / "toys", *MLLM, "--output_dir", tmp_path / "out")
    facts = TargetFacts.load(tmp_path / "out")
    assert facts.teacher == load_from_disk(tmp_path / "out")["train"]["class_teacher"][0]
    assert facts.kind == "other" and facts.rows == {"train": 12} and facts.accuracy is None


def test_guesses_without_weight_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"self_training=0\.9 with class_alpha=0.* raise class_alpha"):
        trained(tmp_path, "--dataset", "nowhere", self_training=0.9, class_alpha=0.0)
