"""Images without a class that are training images, too, count once; what they lack is told with its number."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import yaml
from builders.commands import command
from builders.without_class import NAMES, STUDENT, hidden, refused, rows, saved, trained
from datasets import Dataset, concatenate_datasets

from madkd_hf.data.class_targets import with_class_targets


@pytest.fixture
def dataset(tmp_path):
    return saved(tmp_path / "toys", train=rows(24, 0), validation=rows(12, 1), test=rows(12, 2, answers=False))


def answers(data: Dataset, *missing: int, silent: bool = False) -> Dataset:
    """The rows without answers in some places; those of a `silent` teacher are all NaN."""
    given = [[math.nan] * 4] * len(data) if silent else data["aspect_logits"]
    logits = [None if row in missing else values for row, values in enumerate(given)]
    feature = data.features["aspect_logits"]
    banks = [None if row in missing else bank for row, bank in enumerate(data["aspect_bank"])]
    data = data.remove_columns(["aspect_logits", "aspect_bank", "aspect_mass"])
    return data.add_column("aspect_logits", logits, feature=feature).add_column("aspect_bank", banks)


def pixels(data: Dataset) -> list[bytes]:
    return [image.tobytes() for image in data["image"]]


def test_training_images_among_them_are_left_out_and_counted(tmp_path, dataset, caplog):
    loose = concatenate_datasets([rows(24, 0).select([0, 5, 9]), rows(6, 7), rows(6, 7).select([2])])
    folder = saved(tmp_path / "loose", train=loose)
    run = trained(tmp_path, "--dataset", dataset, "--unlabelled", folder, aspect_alpha=2.0)
    seen = run.train_dataset
    assert len(seen) == 24 + 6 == len(set(pixels(seen))) and seen["label"][:].count(None) == 6
    assert "4 of the 10 images without a class are left out" in caplog.text
    assert None not in seen["label"][:24]  # the rows that have a class stay


def test_of_what_was_not_drawn_with_its_class_nothing_is_lost(tmp_path, dataset):
    folder = saved(tmp_path / "loose", train=rows(24, 0))  # the training images, once more
    options = ["--dataset", dataset, "--unlabelled", folder, "--images_per_class", "2"]
    seen = trained(tmp_path, *options, aspect_alpha=2.0).train_dataset
    assert len(seen) == len(set(pixels(seen))) == 24 and seen["label"][:].count(None) == 18
    seen = trained(tmp_path, *options, "--rest_unlabelled", "true", aspect_alpha=2.0).train_dataset
    assert len(seen) == len(set(pixels(seen))) == 24 and seen["label"][:].count(None) == 18


def test_a_training_image_whose_class_is_hidden_counts_once(tmp_path):
    train_set = hidden(rows(12, 0), 3, 4)
    dataset = saved(tmp_path / "toys", train=train_set, validation=rows(12, 1), test=rows(12, 2))
    folder = saved(tmp_path / "loose", train=concatenate_datasets([rows(12, 0).select([3]), rows(3, 7)]))
    seen = trained(tmp_path, "--dataset", dataset, "--unlabelled", folder, aspect_alpha=2.0).train_dataset
    assert len(seen) == len(set(pixels(seen))) == 12 + 3 and seen["label"][:].count(None) == 2 + 3


def test_the_only_answers_about_an_image_are_kept(tmp_path):
    train_set = answers(rows(12, 0), 5)
    dataset = saved(tmp_path / "toys", train=train_set, validation=rows(12, 1), test=rows(12, 2))
    folder = saved(tmp_path / "loose", train=answers(concatenate_datasets([rows(12, 0).select([4, 5])])))
    seen = trained(tmp_path, "--dataset", dataset, "--unlabelled", folder, aspect_alpha=2.0).train_dataset
    shown = pixels(seen)
    assert len(seen) == 13 and shown.count(pixels(train_set)[5]) == 2 and shown.count(pixels(train_set)[4]) == 1
    twice = [row for row in seen if row["image"].tobytes() == pixels(train_set)[5]]
    assert [row["label"] is None for row in twice] == [row["aspect_logits"] is not None for row in twice]


def test_nothing_but_training_images_is_refused(tmp_path, dataset):
    folder = saved(tmp_path / "loose", train=rows(24, 0).select([1, 2]))
    said = refused(tmp_path, "--dataset", dataset, "--unlabelled", folder, aspect_alpha=2.0)
    assert "All 2 images without a class are training images, too" in said and "leave --unlabelled out" in said


def test_fewer_are_drawn_from_what_is_left(tmp_path, dataset):
    folder = saved(tmp_path / "loose", train=concatenate_datasets([rows(24, 0).select([1, 2]), rows(4, 7)]))
    options = ["--dataset", dataset, "--unlabelled", folder, "--unlabelled_images"]
    assert len(trained(tmp_path, *options, "4", aspect_alpha=2.0).train_dataset) == 28
    assert "4 images without a class" in refused(tmp_path, *options, "5", aspect_alpha=2.0)


def test_images_without_answers_are_told_with_their_number(tmp_path, dataset, caplog):
    part = answers(rows(9, 7), 2, 3)
    folder = saved(tmp_path / "loose", train=part)
    for settings in ({}, {"class_posterior": True}):
        said = refused(tmp_path, "--dataset", dataset, "--unlabelled", folder, aspect_alpha=2.0, **settings)
        assert "2 of the 9 images without a class have nothing that the student learns from" in said
    folder = saved(tmp_path / "nan", train=answers(rows(9, 7), 2, 3, silent=True))
    said = refused(tmp_path, "--dataset", dataset, "--unlabelled", folder, aspect_alpha=2.0)
    assert "9 of the 9 images without a class have nothing that the student learns from" in said
    scores = np.zeros((9, 3))
    folder = saved(tmp_path / "scored", train=with_class_targets(part, scores, "larger", NAMES))
    run = trained(tmp_path, "--dataset", dataset, "--unlabelled", folder, aspect_alpha=2.0)
    assert "2 of the 9 images without a class have no answers, and teach no aspects" in caplog.text
    assert run.train_dataset["aspect_logits"][:].count(None) == 2
    assert run.train_dataset["class_logits"][:].count(None) == 24
    trained(tmp_path, "--dataset", dataset, "--unlabelled", saved(tmp_path / "b", train=part), self_training=0.9)


def test_images_with_class_targets_alone_teach_beside_others_with_aspects(tmp_path, dataset):
    scored = with_class_targets(rows(9, 7, answers=False), np.zeros((9, 3)), "larger", NAMES)
    folder = saved(tmp_path / "loose", train=scored)
    run = trained(tmp_path, "--dataset", dataset, "--unlabelled", folder, aspect_alpha=2.0)
    logs = run.state.log_history[0]
    assert run.train_dataset["aspect_logits"][:].count(None) == 9 and {"aspect_loss", "soft_loss"} <= set(logs)


def test_a_comparison_counts_what_is_left(tmp_path, dataset):
    loose = concatenate_datasets([rows(24, 0).select([1, 2]), rows(6, 7)])
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(STUDENT | {"aspect_alpha": 2.0, "eval_strategy": "no"}))
    words = ["--dataset", dataset, "--baseline", tmp_path / "student.yaml", "--seeds", "1", "--jobs", "1"]
    words += ["--unlabelled", saved(tmp_path / "loose", train=loose), "--conditions", "base", "unlabelled"]
    done = command("recipes/compare.py", *words, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "2 of the 8 images without a class are left out" in done.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["unlabelled"] == 6


def test_copies_among_the_training_images_that_were_not_drawn_count_once(tmp_path, caplog):
    train_set = concatenate_datasets([rows(12, 0), rows(12, 0)])
    dataset = saved(tmp_path / "toys", train=train_set, validation=rows(12, 1), test=rows(12, 2))
    options = ["--dataset", dataset, "--images_per_class", "2", "--rest_unlabelled", "true"]
    seen = trained(tmp_path, *options, aspect_alpha=2.0).train_dataset
    shown, labels = pixels(seen), seen["label"][:]
    drawn = {image for image, label in zip(shown, labels) if label is not None}
    others = [image for image, label in zip(shown, labels) if label is None]
    assert len(others) == len(set(others)) == 12 - len(drawn) and not drawn & set(others)
    assert f"{18 - len(others)} of the 18 images without a class are left out" in caplog.text


def test_training_images_left_over_are_none_of_the_test(tmp_path):
    splits = {"train": rows(24, 0), "validation": rows(12, 1), "test": rows(24, 0).select([0, 5])}
    dataset = saved(tmp_path / "toys", **splits)
    options = ["--dataset", dataset, "--images_per_class", "2", "--rest_unlabelled", "true"]
    said = refused(tmp_path, *options, aspect_alpha=2.0)
    assert "24 training images" in said and "2 are also in the split 'test'" in said and "byte for byte" in said


def test_as_many_as_asked_for_are_there_with_every_seed(tmp_path, dataset):
    loose = concatenate_datasets([rows(24, 0).select(range(12)), rows(2, 7)])  # copies of what may be drawn
    words = ["--dataset", dataset, "--unlabelled", saved(tmp_path / "loose", train=loose)]
    words += ["--images_per_class", "4", "--unlabelled_images", "8", "--seed", "2"]
    said = refused(tmp_path, *words, aspect_alpha=2.0)
    assert "--unlabelled_images 8 is to draw from 6 images" in said
