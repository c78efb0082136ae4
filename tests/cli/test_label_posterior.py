"""`madkd label --class_posterior true`: images without a class get what their answers speak for, once and for all."""

from __future__ import annotations

import numpy as np
import pytest
from builders.commands import EASY_VQA, recipe, refuse
from builders.without_class import BANK, NAMES, hidden, refused, rows, saved, trained
from datasets import DatasetDict, load_from_disk

from madkd_hf import AspectBank
from madkd_hf.data.class_targets import check_class_targets
from madkd_hf.data.limits import note_drawn
from madkd_hf.data.target_facts import TargetFacts


HIDDEN = (0, 4, 7, 20)


@pytest.fixture
def answered(tmp_path):
    """Answered images, four of which have no class, and another split of loose ones; a test split without answers."""
    loose = hidden(rows(6, 5), *range(6))
    splits = {"train": hidden(rows(24, 0), *HIDDEN), "more": loose, "validation": rows(12, 1)}
    return saved(tmp_path / "toys", **splits, test=rows(12, 2))


def test_rows_without_a_class_get_the_posterior_and_the_others_none(tmp_path, answered, capsys):
    out = tmp_path / "out"
    words = ["--class_posterior", "true", "--splits", "train", "more", "--output_dir", out]
    recipe("label", "--dataset", answered, *words)
    splits, facts, said = load_from_disk(out), TargetFacts.load(out), capsys.readouterr().out
    train = splits["train"]
    assert [row for row, scores in enumerate(train["class_logits"][:]) if scores is not None] == list(HIDDEN)
    assert [row for row, name in enumerate(train["class_teacher"][:]) if name is not None] == list(HIDDEN)
    for row in HIDDEN:
        assert np.argmax(train["class_logits"][row]) == row % 3
    assert None not in splits["more"]["class_logits"][:] and set(splits["test"]["class_logits"][:]) == {None}
    for rows_of_split in splits.values():
        check_class_targets(rows_of_split, NAMES)
    assert facts.rows == {"train": 4, "more": 6, "validation": 0, "test": 0} and facts.fitted == facts.tested == 20
    assert facts.kind == "posterior" and 0 <= facts.calibration_error < 0.5 and facts.accuracy > 0.8
    assert "4 of train, 6 of more; fitted on 20 images" in said
    assert f"names the class of {facts.accuracy:.1%} of 20 images with a class" in said
    assert AspectBank.load(out).fingerprint == BANK.fingerprint


def test_training_on_it_needs_no_option_and_counts_each_row_once(tmp_path, answered):
    recipe("label", "--dataset", answered, "--class_posterior", "true", "--output_dir", tmp_path / "out")
    run = trained(tmp_path, "--dataset", tmp_path / "out", aspect_alpha=2.0)
    seen = run.train_dataset
    assert len(seen) == 24 and seen["label"][:].count(None) == 4
    has_class = [label is not None for label in seen["label"]]
    assert [scores is None for scores in seen["class_logits"]] == has_class
    assert {"class_loss", "aspect_loss", "soft_loss"} <= set(run.state.log_history[0])
    run = trained(tmp_path, "--dataset", tmp_path / "out", aspect_alpha=0.0)
    assert "soft_loss" in run.state.log_history[0] and run.model.config.num_aspects == 0


def test_answers_and_their_posterior_in_one_run(tmp_path, capsys):
    data = hidden(rows(12, 0, answers=False), 3, 5)
    DatasetDict(train=data).save_to_disk(tmp_path / "photos")
    words = ["--bank", EASY_VQA / "aspects.json", "--teacher", EASY_VQA / "teacher", "--class_posterior", "true"]
    recipe("label", "--dataset", tmp_path / "photos", *words, "--output_dir", tmp_path / "out")
    train = load_from_disk(tmp_path / "out")["train"]
    assert [scores is not None for scores in train["class_logits"]] == [row in (3, 5) for row in range(12)]
    assert None not in train["aspect_logits"][:] and "fitted on 10 images" in capsys.readouterr().out


def test_images_are_not_scored_by_targets_that_know_their_classes(tmp_path, caplog):
    folder = saved(tmp_path / "all", train=hidden(rows(60, 0), *range(30, 60)))
    recipe("label", "--dataset", folder, "--class_posterior", "true", "--output_dir", tmp_path / "out")
    words = ["--dataset", tmp_path / "out", "--test_fraction", "0.3", "--do_predict", "true"]
    said = refused(tmp_path, *words)
    assert "fitted on images of which some are now kept for the test" in said and "--class_posterior true" in said
    trained(tmp_path, "--dataset", tmp_path / "out")
    assert "some are now kept for validation" in caplog.text
    caplog.clear()
    trained(tmp_path, *words, "--class_posterior", "true")
    test = rows(12, 2)
    note_drawn(test, "a random fifth of train, drawn with seed 0")  # when the dataset was made
    splits = {"train": hidden(rows(60, 0), *range(30, 60)), "validation": rows(12, 1), "test": test}
    own = saved(tmp_path / "own", **splits)
    recipe("label", "--dataset", own, "--class_posterior", "true", "--output_dir", tmp_path / "second")
    trained(tmp_path, "--dataset", tmp_path / "second", "--do_predict", "true")
    assert "some are now kept for" not in caplog.text


def test_words_are_classes_too(tmp_path):
    data = rows(12, 0).remove_columns("label")
    words = [None if row in (1, 2) else ["dog", "cat", "ant"][row % 3] for row in range(12)]
    folder = saved(tmp_path / "words", train=data.add_column("label", words))
    recipe("label", "--dataset", folder, "--class_posterior", "true", "--output_dir", tmp_path / "out")
    train = load_from_disk(tmp_path / "out")["train"]
    check_class_targets(train, ["ant", "cat", "dog"])
    assert [np.argmax(train["class_logits"][row]) for row in (1, 2)] == [1, 0]


def test_what_cannot_be_fitted_is_refused_before_the_first_image(tmp_path, answered):
    words = ["--class_posterior", "true", "--output_dir", tmp_path / "out"]
    said = refuse("label", "--dataset", answered, *words, "--splits", "more", "train")
    assert "shows 'cat', 'dog', 'cow'" in said
    one = saved(tmp_path / "one", train=hidden(rows(12, 0), *[row for row in range(12) if row % 3 == 2]))
    assert "No training image with a class shows 'cow'" in refuse("label", "--dataset", one, *words)
    loose = saved(tmp_path / "loose", train=rows(12, 0).remove_columns("label"))
    assert "the split 'train' names 0 in the column 'label'" in refuse("label", "--dataset", loose, *words)
    recipe("label", "--dataset", answered, *words)
    again = ["--class_posterior", "true", "--output_dir", tmp_path / "again"]
    assert "has class targets already" in refuse("label", "--dataset", tmp_path / "out", *again)
    assert "leave out --streaming" in refuse("label", "--dataset", answered, *again, "--streaming", "true")
