"""The answers alone, beside a comparison: which images they are fitted and tested on."""

from __future__ import annotations

import numpy as np
import pytest
from builders import tiny
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, concatenate_datasets

from madkd_hf import Aspect, AspectBank
from madkd_hf.cli.comparison.answers import AnswersAlone
from madkd_hf.cli.comparison.conditions import CompareArguments, plan
from madkd_hf.data.columns import aspect_features


BANK = AspectBank([Aspect(name, f"Is it {name}?") for name in "abc"])
LABEL = ClassLabel(names=["cat", "dog", "cow"])
FEATURES = Features({"label": LABEL, **aspect_features(BANK)})


def rows(per_class: int, seed: int, labelled: bool = True, right: bool = True) -> Dataset:
    """The answer to question k is yes for class k, and no for the others; where not `right`, for the class before."""
    labels = np.tile(np.arange(3), per_class)
    logits = 8 * np.eye(3)[labels if right else (labels + 2) % 3] - 4
    logits = logits + np.random.default_rng(seed).normal(size=logits.shape) / 2
    answers = [row.tolist() if labelled else None for row in logits]
    mass = [[1.0] * 3 if labelled else None for _ in labels]
    bank = [BANK.fingerprint if labelled else None] * len(labels)
    columns = {"label": labels, "aspect_logits": answers, "aspect_mass": mass, "aspect_bank": bank}
    return Dataset.from_dict(columns, FEATURES)


def measured(tmp_path, splits: dict[str, Dataset], count: int | None = None, **settings) -> dict:
    (tmp_path / "student.yaml").write_text("learning_rate: 0.1\n")
    settings = {"images_per_class": 4, "seeds": 2, **settings}
    args = CompareArguments(
        dataset="toys", baseline=str(tmp_path / "student.yaml"), output_dir=str(tmp_path / "out"), **settings
    )
    args.distill = args.baseline
    splits = DatasetDict(splits)
    return AnswersAlone(args, splits, BANK).measure(plan(args, {}, splits, BANK), count)


def test_they_are_tested_on_validation_images_and_training_images_that_were_not_drawn(tmp_path):
    splits = {"train": rows(6, 0), "validation": rows(5, 1, right=False), "test": rows(5, 2, labelled=False)}
    found = measured(tmp_path, splits)
    assert found.pop("accuracy") == pytest.approx([100 * 6 / 21] * 2)
    assert found == {"fitted": [12, 12], "images": [21, 21], "of": ["validation", "train"]}


def test_a_copy_of_a_drawn_image_is_no_image_that_was_not_drawn(tmp_path):
    images = Dataset.from_dict({"image": tiny.images(18)}, Features({"image": Image()}))
    train = concatenate_datasets([rows(6, 0), images], axis=1)
    splits = {"train": train, "test": rows(5, 2, labelled=False)}
    assert measured(tmp_path, splits)["images"] == [6, 6]
    splits["train"] = concatenate_datasets([train, train])
    assert all(count < 24 and count % 2 == 0 for count in measured(tmp_path, splits)["images"])


def test_they_are_tested_on_test_images_that_all_have_answers(tmp_path):
    splits = {"train": rows(6, 0), "validation": rows(5, 1, right=False), "test": rows(7, 2)}
    assert measured(tmp_path, splits, seeds=1) == {"accuracy": [100.0], "fitted": [12], "images": [21], "of": ["test"]}


def test_all_training_images_leave_the_validation_images(tmp_path):
    splits = {"train": rows(6, 0), "validation": rows(5, 1), "test": rows(5, 2, labelled=False)}
    found = measured(tmp_path, splits, images_per_class=None)
    assert (found["fitted"], found["images"], found["of"]) == ([18, 18], [15, 15], ["validation"])


def test_fewer_questions_tell_less(tmp_path):
    splits = {"train": rows(6, 0), "validation": rows(30, 1), "test": rows(5, 2, labelled=False)}
    one, all_of_them = measured(tmp_path, splits, 1, seeds=1), measured(tmp_path, splits, seeds=1)
    assert one["accuracy"][0] < 75 and all_of_them["accuracy"] == [100.0]


@pytest.mark.parametrize("missing", ["others", "class"])
def test_why_there_is_no_number_is_said(tmp_path, missing):
    train, nobody = rows(4, 0), rows(5, 2, labelled=False)
    if missing == "others":
        expected = "No image has answers but the training images; label the validation images"
    else:
        answers = [None if label == 1 else row for label, row in zip(train["label"], train["aspect_logits"])]
        feature = train.features["aspect_logits"]
        train = train.remove_columns("aspect_logits").add_column("aspect_logits", answers, feature=feature)
        expected = "No row with answers shows 1 of the 3 classes (1)"
    splits = {"train": train, "validation": nobody if missing == "others" else rows(5, 1), "test": nobody}
    found = measured(tmp_path, splits)
    assert list(found) == ["unknown"] and expected in found["unknown"]
