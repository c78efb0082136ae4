"""The commands a user types: their help, their options, and what they say when something is wrong."""

from __future__ import annotations

import importlib
import re

import numpy as np
import pytest
from builders.commands import EASY_VQA, ROOT, command, refuse
from datasets import Dataset, DatasetDict, Features, List, Value
from scipy.special import expit

from madkd_hf.cli import arguments as common
from madkd_hf.data.variants import control_answers


@pytest.mark.parametrize(
    "name",
    [
        "attach_aspects",
        "train_student",
        "train_detector",
        "compare",
        "tune",
        "generate_questions",
        "select_questions",
        "questions_curve",
        "view",
    ],
)
def test_help_teaches(name, capsys):
    assert refuse(name, "--help") == "0"
    said = capsys.readouterr().out
    assert "--config FILE.yaml" in said and ("    madkd " in said or "    python recipes/" in said)


@pytest.mark.parametrize(
    ("name", "argv", "expected"),
    [
        (
            "train_student",
            ["--aspect_alpha", "-1"],
            "aspect_alpha must be a finite number",
        ),
        ("train_student", ["--aspect_alhpa", "2"], "did you mean 'aspect_alpha'?"),
        ("train_student", ["--config", "nowhere.yaml"], "There is no config file nowhere.yaml"),
        ("train_student", ["--dataset", ""], "No dataset given"),
        ("train_student", ["--dataset", "recipes.easy_vqa.data:load_nothing"], "expected module:function"),
        ("train_student", ["--label_column", "species"], "There is no column 'species'"),
        ("train_student", ["--train_split", "training"], "There is no split 'training'"),
        ("train_student", ["--images_per_class", "51"], "has 50 images and --images_per_class asks for 51"),
        (
            "train_student",
            ["--bank", "recipes/easy_vqa/aspects.json", "--aspect_alpha", "4"],
            "pass --bank and --teacher",
        ),
        ("train_student", ["--aspect_control", "shuffled"], "needs a dataset with aspect columns"),
        ("train_student", ["--resume_from_checkpoint", "true"], "There is no checkpoint in"),
        ("train_student", ["--resume_from_checkpoint", "nowhere"], "There is no checkpoint nowhere to resume from"),
        ("train_student", ["--aspect_alpha", "4"], "has no aspect columns and aspect_alpha is 4"),
        ("train_student", ["--test_split", "final"], "There is no split 'final' to predict"),
        ("train_student", ["--image_column", "photo"], "There is no column 'photo'"),
        ("train_student", ["--learning_rate", "fast"], "invalid float value: 'fast'"),
        ("attach_aspects", ["--dtype", "flat32"], "Unknown dtype 'flat32'"),
        ("attach_aspects", ["--bank", "nobody/nothing"], "There is no bank at nobody/nothing"),
        ("attach_aspects", ["--bank", "README.md"], "is no aspect bank"),
        ("attach_aspects", ["--bank", "nowhere/aspects.json"], "There is no bank at"),
        ("attach_aspects", ["--splits", "training"], "There is no split 'training'"),
        ("attach_aspects", ["--image_column", "photo"], "There is no column 'photo'"),
        ("attach_aspects", ["--image_column", "label"], "not images"),
        ("attach_aspects", ["--answer_tokens", "Perhaps", "No"], "'Perhaps' is no single token"),
        ("attach_aspects", ["--prompt", "Yes or no?"], "no place for the question"),
        ("attach_aspects", ["--teacher", "recipes/easy_vqa/student"], "expected an image-text-to-text model"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_and_nothing_is_written(name, argv, expected, tmp_path):
    config = {"train_student": "baseline.yaml", "attach_aspects": "attach.yaml"}[name]
    output = tmp_path / "output"
    base = [] if "--config" in argv else ["--config", EASY_VQA / config]
    said = refuse(name, *base, "--output_dir", output, *argv)
    assert said.startswith("error: ") and expected in said and "\n" not in said
    assert not output.exists()


def test_a_mistake_ends_the_process_with_a_code_and_no_traceback():
    done = command("recipes/train_student.py", "--config", EASY_VQA / "baseline.yaml", "--aspect_alpha", "-1")
    assert done.returncode == 1
    assert "error: aspect_alpha" in done.stderr and "Traceback" not in done.stderr


def test_labels_of_every_kind_become_classes():
    with_class_labels = importlib.import_module("madkd_hf.data.labels").with_class_labels
    for values, kind in (["cat", "dog"], "large_string"), ([3, 7], "uint8"):
        rows = Dataset.from_dict({"label": values}, features=Features({"label": Value(kind)}))
        splits = with_class_labels(
            DatasetDict(train=rows, test=rows, bare=Dataset.from_dict({"a": [1]})), "label", "train"
        )
        assert splits["test"].features["label"].names == sorted(map(str, values))
        assert sorted(splits["test"]["label"]) == [0, 1]
    for split, strange, said in (
        ("test", "fox", "split 'test' has the label 'fox'"),
        ("train", None, "1 of the 2 rows of split 'train' have no class"),
    ):
        splits = {"train": ["cat", "dog"], "test": ["cat", "dog"]} | {split: ["cat", strange]}
        splits = DatasetDict({name: Dataset.from_dict({"label": labels}) for name, labels in splits.items()})
        with pytest.raises(ValueError, match=said):
            with_class_labels(splits, "label", "train")


@pytest.mark.parametrize("control", ["shuffled", "constant"])
def test_controls_keep_the_answers_marginals_and_leave_unlabelled_rows_alone(control):
    answers = [None, *np.random.default_rng(0).normal(scale=30, size=(40, 2)).tolist()]
    answers[1][0] = answers[2][0] = 500.0
    features = Features({"label": Value("int64"), "aspect_logits": List(Value("float32"), length=2)})
    rows = Dataset.from_dict({"label": range(len(answers)), "aspect_logits": answers}, features=features)
    controlled = control_answers(rows, control, seed=0)["aspect_logits"][:]
    assert controlled[0] is None
    before, after = expit(np.array(answers[1:])), expit(np.array(controlled[1:]))
    np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), atol=1e-5)
    assert np.isfinite(controlled[1:]).all()
    if control == "shuffled":
        assert not np.allclose(after, before)
        np.testing.assert_allclose(np.sort(after[:, 1]), np.sort(before[:, 1]), atol=1e-5)
    else:
        assert len(np.unique(after, axis=0)) == 1


def test_a_control_of_other_images_answers_has_their_masses_and_of_a_refused_answer_none():
    values = np.random.default_rng(0).normal(size=(8, 2)).round(3)
    values[3, 1] = np.nan
    features = Features({name: List(Value("float32"), length=2) for name in ("aspect_logits", "aspect_mass")})
    rows = Dataset.from_dict({"aspect_logits": values.tolist(), "aspect_mass": values.tolist()}, features=features)
    shuffled = control_answers(rows, "shuffled", seed=0)
    np.testing.assert_array_equal(shuffled["aspect_mass"][:], np.array(shuffled["aspect_logits"][:]))
    assert not np.array_equal(shuffled["aspect_mass"][:], values.astype("float32"), equal_nan=True)
    constant = np.array(control_answers(rows, "constant", seed=0)["aspect_logits"][:])
    assert np.argwhere(np.isnan(constant)).tolist() == [[3, 1]]
    np.testing.assert_allclose(expit(constant[0, 1]), np.nanmean(expit(values[:, 1])), atol=1e-6)


def test_a_typo_in_yaml_is_refused_with_a_suggestion(tmp_path):
    (tmp_path / "typo.yaml").write_text("aspect_alhpa: 4\n")
    said = refuse("train_student", "--config", tmp_path / "typo.yaml")
    assert "Unknown key 'aspect_alhpa'" in said and "did you mean 'aspect_alpha'?" in said


def test_every_yaml_under_recipes_names_known_options_only():
    train, label, choose, compare, tune = (
        importlib.import_module(f"madkd_hf.cli.{name}") for name in ("train", "label", "choose", "compare", "tune")
    )
    questions_curve = importlib.import_module("recipes.easy_vqa.questions_curve")
    arguments = {"attach": [label.LabelArguments], "compare": [compare.CompareArguments]}
    files = sorted(set(ROOT.glob("recipes/*/*.yaml")) - set(ROOT.glob("recipes/accelerate/*")))
    for path in files:
        name = re.search("compare|tune", path.stem)
        if name:
            arguments[path.stem] = [{"compare": compare.CompareArguments, "tune": tune.TuneArguments}[name[0]]]
    arguments["labels"] = [compare.CompareArguments]
    arguments |= {"detect_compare": [compare.CompareArguments, compare.TaskArguments]}
    arguments |= {"questions_curve": [questions_curve.CurveArguments], "tune": [tune.TuneArguments]}
    arguments |= {"select": [choose.ChooseArguments]}
    assert files
    for path in files:
        argv = ["--config", str(path), "--output_dir", "unused"]
        if types := arguments.get(path.stem):
            common.CommandParser(*types, description="").parse(argv)
        else:
            train.parse(argv)
