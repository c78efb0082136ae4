"""Which images serve what: splits that are joined, and validation images that are kept, or not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from builders import tiny
from builders.commands import EASY_VQA, command, recipe, refuse
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_from_disk

from madkd_hf.cli.arguments import SplitArguments
from madkd_hf.cli.preflight import rows_of
from madkd_hf.cli.splits import load_joined
from madkd_hf.cli.tasks.classification import COMMAND, StudentArguments
from madkd_hf.data.columns import aspect_features
from madkd_hf.data.limits import how_drawn
from madkd_hf.data.problems import Problems


BANK = tiny.bank(3)
CLASSES = ["cat", "dog"]
ALL = ["--train_split", "train+validation", "--validation_fraction", "0"]


def rows(of_each: int, first: int = 0, answered: bool = True) -> Dataset:
    """So many images of each of two classes, labelled; `number` tells them apart."""
    count = len(CLASSES) * of_each
    features = Features({"image": Image(), "label": ClassLabel(names=CLASSES), "number": Value("int64")})
    features = Features({**features, **aspect_features(BANK)})
    answers = np.random.default_rng(first).normal(size=(count, len(BANK))).tolist()
    columns = {"image": tiny.images(count, 20), "label": [i % 2 for i in range(count)]}
    columns |= {"number": list(range(first, first + count))}
    columns["aspect_logits"] = answers if answered else [None] * count
    columns["aspect_mass"] = [[1.0] * len(BANK) if answered else None] * count
    columns["aspect_bank"] = [BANK.fingerprint if answered else None] * count
    return Dataset.from_dict(columns, features=features)


def labelled(folder: Path, train: int = 3, validation: int = 3, test: int = 4, **options) -> Path:
    """A labelled dataset with so many images of each class; 0 leaves a split out."""
    parts = {"train": rows(train), "validation": rows(validation, 100, **options), "test": rows(test, 200, False)}
    kept = {split: part for split, part in parts.items() if len(part)}
    DatasetDict(kept).save_to_disk(folder)
    BANK.save(folder)
    return folder


def numbers(splits: DatasetDict) -> dict[str, list[int]]:
    return {split: sorted(part["number"][:]) for split, part in splits.items()}


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> dict[str, str]:
    """YAML of students that are trained for two steps, and evaluated after each."""
    folder, made = tmp_path_factory.mktemp("quick"), {}
    for name in ("baseline", "distill"):
        config = yaml.safe_load((EASY_VQA / f"{name}.yaml").read_text())
        config = {key: value for key, value in config.items() if key not in ("dataset", "bank", "teacher")}
        config |= {
            "max_steps": 2,
            "eval_steps": 1,
            "logging_steps": 1,
            "images_per_class": None,
            "image_store": "none",
        }
        made[name] = str(folder / f"{name}.yaml")
        Path(made[name]).write_text(yaml.safe_dump(config))
    return made


def words_of(name: str, quick: dict[str, str], dataset: Path, output: Path) -> list[str | Path]:
    argv = ["--dataset", dataset, "--output_dir", output]
    if name == "train_student":
        return ["--config", quick["distill"], *argv]
    return [*argv, "--seeds", "1", *(word for key, file in quick.items() for word in (f"--{key}", file))]


# Splits that are joined


def test_joined_splits_take_the_place_of_their_parts(tmp_path):
    folder = str(labelled(tmp_path / "data"))
    joined = load_joined(SplitArguments(dataset=folder, train_split="train+validation"))
    assert numbers(joined) == {"test": [*range(200, 208)], "train+validation": [*range(6), *range(100, 106)]}
    assert set(joined["train+validation"].features) == set(joined["test"].features)
    joined.save_to_disk(tmp_path / "saved")  # as a comparison does: that split has this name for its students
    again = load_joined(SplitArguments(dataset=str(tmp_path / "saved"), train_split="train+validation"))
    assert numbers(again) == numbers(joined)
    joined = load_joined(SplitArguments(dataset=folder, eval_split="validation+test", test_split="test"))
    assert numbers(joined)["validation+test"] == [*range(100, 106), *range(200, 208)] and "test" in joined
    joined = load_joined(SplitArguments(dataset=folder, train_split="train+test", eval_split="test+validation"))
    assert set(joined) == {"validation", "train+test"}  # no evaluation on images that are trained on


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--train_split", "train+val"], "There is no split 'val' in train+val: the dataset has ['train',"),
        (["--train_split", "train+test"], "The images of --test_split test would be trained on, with --train_split"),
        ([*ALL, "--load_best_model_at_end", "--save_strategy", "steps", "--save_steps", "1"],
         "load_best_model_at_end needs validation images, and none are kept"),
        ([*ALL, "--images_per_class", "7"], "has 6 images and --images_per_class asks for 7"),
        (["--train_split", "train+validation", "--validation_fraction", "0.34", "--images_per_class", "5"],
         "leave those classes out. The images kept for validation are not counted."),
    ],
)  # fmt: skip
def test_splits_that_cannot_be_joined_are_refused(quick, tmp_path, argv, expected):
    argv = [*words_of("train_student", quick, labelled(tmp_path / "data"), tmp_path / "out"), *argv]
    said = refuse("train_student", *argv)
    assert expected in said and not (tmp_path / "out").exists()


def test_splits_of_other_columns_are_not_joined(quick, tmp_path):
    names = {"train": CLASSES, "validation": ["cow", *CLASSES]}
    parts = {name: rows(2).cast_column("label", ClassLabel(names=classes)) for name, classes in names.items()}
    DatasetDict(parts).save_to_disk(tmp_path / "data")
    said = refuse("train_student", *words_of("train_student", quick, tmp_path / "data", tmp_path / "out"), *ALL)
    assert "Cannot join the splits train+validation (" in said and "label" in said and "\n" not in said


def test_a_student_of_all_labelled_images_is_not_evaluated_while_it_learns(quick, tmp_path, caplog):
    argv = words_of("train_student", quick, labelled(tmp_path / "data"), tmp_path / "out")
    recipe("train_student", *argv, *ALL, "--images_per_class", "6", "--num_train_epochs", "1", "--max_steps", "-1")
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["epoch"] == 1 and "test_accuracy" in results and "eval_accuracy" not in results
    assert "No images are kept for validation" in caplog.text and "have no answers" not in caplog.text


def test_validation_images_are_drawn_of_the_joined_ones(quick, tmp_path, caplog):
    argv = words_of("train_student", quick, labelled(tmp_path / "data", answered=False), tmp_path / "out")
    recipe("train_student", *argv, "--train_split", "train+validation", "--validation_fraction", "0.34")
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert "eval_accuracy" in results and len(np.load(tmp_path / "out" / "test_predictions.npz")["labels"]) == 8
    assert "of the 7 training images have no answers" in caplog.text and "--splits train+validation" in caplog.text


def test_label_takes_several_splits_by_the_same_sign(tmp_path):
    argv = ["--config", EASY_VQA / "attach.yaml", "--output_dir", tmp_path / "out", "--limit", "4"]
    recipe("attach_aspects", *argv, "--splits", "train+validation")
    splits = load_from_disk(tmp_path / "out")
    nulls = {split: sum(row is None for row in rows["aspect_logits"]) for split, rows in splits.items()}
    assert nulls == {"train": 0, "validation": 0, "test": 4}


# Comparisons without validation images


def test_a_comparison_on_all_labelled_images_says_what_it_cannot_show(quick, hub, tmp_path):
    argv = [*words_of("compare", quick, labelled(tmp_path / "data"), tmp_path / "run"), *ALL, "--seeds", "2"]
    argv += ["--conditions", "base", "madkd", "--images_per_class", "6", "--push_to_hub", "--hub_model_id", "you/pets"]
    done = command("recipes/compare.py", *argv, hub=hub)
    assert done.returncode == 0, done.stderr
    splits = load_from_disk(tmp_path / "run" / "labelled")
    assert numbers(splits) == {"train+validation": [*range(6), *range(100, 106)], "test": [*range(200, 208)]}
    report, page = (tmp_path / "run" / f"report.{kind}" for kind in ("json", "md"))
    report, page = json.loads(report.read_text()), page.read_text()
    assert report["validated"] is False and report["drawn"] == {} and report["train_split"] == "train+validation"
    assert not {"learning_curves.png", "aspect_learning.png"} & set(report["figures"])
    assert "(train+validation) with 6 images per class" in page and "no learning curves" in page
    card = hub.files("you/pets")["README.md"].decode()
    assert "(2 classes; train+validation), 6 images per class" in card and "no learning curves" in card
    assert "| Test (8 images) |" in card and "Validation (" not in card


def test_a_grid_without_validation_images_chooses_no_point(quick, tmp_path):
    argv = [*words_of("compare", quick, labelled(tmp_path / "data"), tmp_path / "run"), *ALL]
    argv += ["--conditions", "base", "madkd", "--grid", '{"images_per_class": [5, 6]}']
    done = command("recipes/compare.py", *argv)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "run" / "report.md").read_text()
    assert "Without validation images no point is chosen." in page and "no learning curves" in page
    assert "Without validation images" in done.stdout


def test_what_is_chosen_on_validation_images_needs_some(quick, tmp_path):
    argv = words_of("tune", quick, labelled(tmp_path / "data"), tmp_path / "run")
    said = refuse("tune", *argv, *ALL)
    assert "Validation images give the score here, and none are kept: raise --validation_fraction." in said


# Test images that are drawn


def drawn(folder: Path, seed: int, test: str = "predicted", **options) -> DatasetDict:
    """What a training works with."""
    args = StudentArguments(dataset=str(folder), **options)
    problems = Problems()
    ready = rows_of(problems, COMMAND, args, seed, test)
    problems.raise_all()
    return ready.splits


def test_test_images_are_the_same_for_all_seeds_and_serve_nothing_else(tmp_path):
    folder = labelled(tmp_path / "data", train=10, validation=0, test=0)
    options = {"test_fraction": 0.2, "validation_fraction": 0.25}
    parts = [drawn(folder, 0, **options), drawn(folder, 1, **options), drawn(folder, 0, "unused", **options)]
    for splits in parts:
        assert sorted(splits["test"]["label"][:]) == [0, 0, 1, 1] and sorted(splits["validation"]["label"]) == [
            0,
            0,
            1,
            1,
        ]
        assert sorted(number for of_split in numbers(splits).values() for number in of_split) == [*range(20)]
    first, second, tuning = (numbers(splits) for splits in parts)
    assert first["test"] == second["test"] and first["validation"] != second["validation"] and first == tuning
    assert how_drawn(parts[1]["test"]) == "a random fifth of train, drawn with seed 0"
    assert how_drawn(parts[1]["validation"]) == "a random quarter of the rest of train, drawn with seed 1"


def test_a_test_split_that_is_there_is_the_test(tmp_path, caplog):
    folder = labelled(tmp_path / "data")
    assert numbers(drawn(folder, 0, test_fraction=0.5))["test"] == [*range(200, 208)]
    assert "--test_fraction is not used: the dataset has a split 'test'." in caplog.text
    joined = drawn(folder, 0, test_fraction=0.5, train_split="train+test")  # of the images that are trained on
    assert len(joined["test"]) == len(joined["train+test"]) == 7
    assert how_drawn(joined["test"]) == "a random half of train+test, drawn with seed 0"


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (
            None,
            "There is no split 'test' to predict: the dataset has ['train']. Pass another --test_split, or --test_",
        ),
        (1.5, "Cannot keep 150% of 8 training images for the test, some of each of 2 classes ("),
        (0.1, "pass --test_split, or another --test_fraction, such as 0.25"),
    ],
)
def test_a_test_that_cannot_be_drawn_is_refused(tmp_path, fraction, expected):
    folder = labelled(tmp_path / "data", train=4, validation=0, test=0)
    with pytest.raises(ValueError) as refused:
        drawn(folder, 0, test_fraction=fraction)
    assert expected in str(refused.value)


@pytest.mark.parametrize("command", ["train_student", "compare", "tune"])
@pytest.mark.parametrize(
    ("options", "of_train", "kept"),
    [
        ([], 10, ""),
        (["--train_split", "train+validation"], 18, " The images kept for validation are not counted."),
        (["--train_split", "train+validation", "--test_split", "final", "--test_fraction", "0.2"], 14,
         " The images kept for validation and test are not counted."),
        (["--train_split", "train+validation", "--validation_fraction", "0.5"], 10, " The images kept for validation"),
    ],
    ids=["as it is", "validation drawn", "test drawn", "half drawn"],
)  # fmt: skip
def test_a_class_with_too_few_images_is_told_before_anything(command, options, of_train, kept, quick, tmp_path):
    folder = labelled(tmp_path / "data", train=10, validation=10)
    argv = [*words_of(command, quick, folder, tmp_path / "run"), *options]
    asked = ["--images_per_class", of_train + 1]
    said = refuse(command, *argv, *map(str, asked))
    expected = f"The class 'cat' has {of_train} images and --images_per_class asks for {of_train + 1}"
    assert expected in said and kept in said and not (tmp_path / "run").exists()
    if command != "train_student":
        said = refuse(command, *argv, "--grid", json.dumps({"images_per_class": [of_train, of_train + 1, 0]}))
        assert expected in said and "--images_per_class is 0: expected 1 or more" in said
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("answered", [True, False], ids=["labelled already", "labelled for it"])
def test_a_comparison_draws_its_test_once_and_says_so(quick, hub, tmp_path, answered):
    folder = labelled(tmp_path / "data", train=10, validation=0, test=0)
    if not answered:
        splits = load_from_disk(folder).remove_columns(["aspect_logits", "aspect_mass", "aspect_bank"])
        folder = tmp_path / "unlabelled"
        splits.save_to_disk(folder)
    argv = [*words_of("compare", quick, folder, tmp_path / "run"), "--seeds", "2", "--conditions", "madkd"]
    argv += [] if answered else ["--teacher", EASY_VQA / "teacher", "--bank", EASY_VQA / "aspects.json"]
    argv += ["--test_fraction", "0.2", "--push_to_hub", "--hub_model_id", "you/pets"]
    done = command("recipes/compare.py", *argv, hub=hub)
    assert done.returncode == 0, done.stderr
    splits, expected = load_from_disk(tmp_path / "run" / "labelled"), drawn(folder, 0, test_fraction=0.2)
    assert numbers(splits) == numbers(expected)
    assert {answers is None for answers in splits["test"]["aspect_logits"]} == {not answered}
    assert not any(answers is None for answers in splits["train"]["aspect_logits"])
    page, card = (tmp_path / "run" / "report.md").read_text(), hub.files("you/pets")["README.md"].decode()
    said = "The test images are a random fifth of train, drawn with seed 0."
    assert said in page and said in card and "a random tenth of the rest of train, drawn with seed 0" in page
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["drawn"]["test"] == "a random fifth of train, drawn with seed 0"
    assert "Test (a random fifth of train, drawn with seed 0; 4 images)" in card
    for seed in range(2):
        labels = np.load(tmp_path / "run" / "cells" / f"madkd-{seed}" / "test_predictions.npz")["labels"]
        assert labels.tolist() == expected["test"]["label"][:]
