"""Images without a class, by the commands: a few images of each class have one, an MLLM has seen them all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from builders.commands import command, refuse
from builders.without_class import STUDENT, hidden, refused, rows, saved, trained
from datasets import Dataset, concatenate_datasets, load_from_disk

from madkd_hf import Aspect, AspectBank
from madkd_hf.cli import compare, student, train, tune
from madkd_hf.cli.arguments import CommandParser
from madkd_hf.cli.comparison.cells import Cell
from madkd_hf.cli.comparison.conditions import check, load_checked, of_condition
from madkd_hf.cli.comparison.run import checked
from madkd_hf.data.columns import aspect_features
from madkd_hf.data.problems import Problems


@pytest.fixture
def dataset(tmp_path) -> Path:
    return saved(tmp_path / "toys", train=rows(24, 0), validation=rows(12, 1), test=rows(12, 2, answers=False))


def test_the_rest_of_the_training_images_has_what_their_answers_speak_for(tmp_path, dataset, capsys):
    options = ["--dataset", dataset, "--images_per_class", "4", "--rest_unlabelled", "true"]
    run = trained(tmp_path, *options, "--class_posterior", "true", aspect_alpha=2.0)
    seen = run.train_dataset
    labelled = [label is not None for label in seen["label"]]
    assert sum(labelled) == 12 and len(seen) == 24
    assert [scores is None for scores in seen["class_logits"]] == labelled
    answers, scores = np.array(seen["aspect_logits"][:]), seen["class_logits"][:]
    for place in np.flatnonzero(~np.array(labelled)):
        assert np.argmax(scores[place]) == np.argmax(answers[place, :3])
    assert {"class_loss", "aspect_loss", "soft_loss"} <= set(run.state.log_history[0])
    assert "names the class of" in capsys.readouterr().out


def test_the_posterior_alone_needs_no_aspects_in_the_student(tmp_path, dataset):
    options = ["--dataset", dataset, "--images_per_class", "2", "--rest_unlabelled", "true"]
    run = trained(tmp_path, *options, "--class_posterior", "true", aspect_alpha=0.0)
    assert run.model.config.num_aspects == 0 and "soft_loss" in run.state.log_history[0]


def test_images_of_another_dataset_and_training_images_without_a_class_are_learned_from(tmp_path):
    loose = rows(9, 5).remove_columns("label")
    folder = saved(tmp_path / "loose", train=loose)
    splits = {"train": hidden(rows(24, 0), 3, 4, 7), "validation": rows(12, 1), "test": rows(12, 2)}
    dataset = saved(tmp_path / "toys", **splits)
    run = trained(tmp_path, "--dataset", dataset, "--unlabelled", folder, aspect_alpha=2.0, labelled_fraction=0.5)
    labels = run.train_dataset["label"][:]
    assert len(labels) == 24 + 9 and labels.count(None) == 9 + 3
    answers = run.train_dataset["aspect_logits"][:]
    assert sorted(answers) == sorted([*splits["train"]["aspect_logits"][:], *loose["aspect_logits"][:]])


def test_numbers_hide_a_class_behind_minus_one_unless_it_is_one_of_two_classes(tmp_path):
    numbers = {"train": [0, 1, 2, -1] * 6, "validation": [0, 1, 2] * 4, "test": [0, 1, 2] * 4}
    splits = {name: rows(len(values), len(values)).remove_columns("label") for name, values in numbers.items()}
    splits["test"] = rows(12, 3).remove_columns("label")
    splits = {name: splits[name].add_column("label", values) for name, values in numbers.items()}
    run = trained(tmp_path, "--dataset", saved(tmp_path / "toys", **splits), aspect_alpha=1.0)
    assert run.model.config.num_labels == 3 and run.train_dataset["label"][:].count(None) == 6
    signs = {name: rows(12, 3).remove_columns("label").add_column("label", [-1, 1] * 6) for name in splits}
    run = trained(tmp_path, "--dataset", saved(tmp_path / "signs", **signs), aspect_alpha=1.0)
    assert sorted(run.model.config.id2label.values()) == ["-1", "1"] and None not in run.train_dataset["label"][:]


def test_other_questions_about_images_without_a_class_are_refused(tmp_path, dataset):
    other = AspectBank([Aspect(name, f"Is it {name}?") for name in "abcde"])
    loose = rows(6, 5, answers=False)
    columns = {"aspect_logits": [[0.5] * 5] * 6, "aspect_mass": [[1.0] * 5] * 6}
    answers = Dataset.from_dict(columns | {"aspect_bank": [other.fingerprint] * 6}, aspect_features(other))
    folder = saved(tmp_path / "loose", train=concatenate_datasets([loose, answers], axis=1))
    said = refused(tmp_path, "--dataset", dataset, "--unlabelled", folder, aspect_alpha=1.0)
    assert "answers to other questions" in said and other.fingerprint in said


def test_a_split_of_the_dataset_can_be_learned_from_without_its_classes(tmp_path):
    splits = {"train": rows(12, 0), "more": rows(6, 3), "validation": rows(12, 1), "test": rows(12, 2)}
    dataset = saved(tmp_path / "toys", **splits)
    assert "called 'unlabelled' is for images" in refused(tmp_path, "--dataset", dataset, "--eval_split", "unlabelled")
    run = trained(tmp_path, "--dataset", dataset, "--unlabelled", "more", aspect_alpha=1.0)
    assert run.train_dataset["label"][:] == [*splits["train"]["label"], *[None] * 6]


def test_the_controls_of_a_posterior_come_from_the_answers_of_other_images(tmp_path, dataset):
    options = ["--dataset", dataset, "--images_per_class", "4", "--rest_unlabelled", "true"]
    options += ["--class_posterior", "true", "--aspect_control", "shuffled"]
    run = trained(tmp_path, *options, aspect_alpha=2.0)
    own = {row["image"].tobytes(): row["aspect_logits"] for row in load_from_disk(dataset)["train"]}
    shuffled = [row["aspect_logits"] != own[row["image"].tobytes()] for row in run.train_dataset]
    assert sum(shuffled) > 15


def test_test_images_are_not_learned_from(tmp_path):
    test = rows(12, 2)
    dataset = saved(tmp_path / "toys", train=rows(12, 0), validation=rows(12, 1), test=test)
    folder = saved(tmp_path / "loose", train=concatenate_datasets([rows(5, 7), test.select([0, 3])]))
    said = refused(tmp_path, "--dataset", dataset, "--unlabelled", folder, aspect_alpha=1.0, do_predict=True)
    assert "Of 7 images without a class, 2 are" in said and "'test'" in said and "byte for byte" in said
    said = refused(tmp_path, "--dataset", dataset, "--unlabelled", "test", aspect_alpha=1.0)
    assert "--unlabelled test" in said and "serves something else" in said


@pytest.mark.parametrize(
    ("settings", "argv", "words"),
    [
        ({"aspect_alpha": 0.0}, [], ("9 training images", "classes alone", "--class_posterior")),
        ({"aspect_alpha": 1.0, "labelled_fraction": 1.2}, [], ("labelled_fraction must be", "received 1.2")),
        ({"aspect_alpha": 1.0}, ["--rest_unlabelled", "true"], ("--rest_unlabelled", "--images_per_class")),
        ({"aspect_alpha": 1.0, "self_training": 0.9, "mixup_alpha": 0.1}, [], ("self_training and mixup_alpha",)),
    ],
    ids=["no aspects", "fraction", "no rest", "mixup"],
)
def test_what_nothing_can_be_learned_from_is_refused(tmp_path, dataset, settings, argv, words):
    folder = saved(tmp_path / "loose", train=rows(9, 5))
    said = refused(tmp_path, "--dataset", dataset, "--unlabelled", folder, *argv, **settings)
    assert all(word in said for word in words), said


def test_images_that_nobody_asked_about_are_refused(tmp_path, dataset):
    folder = saved(tmp_path / "loose", train=rows(9, 5, answers=False))
    said = refused(tmp_path, "--dataset", dataset, "--unlabelled", folder, aspect_alpha=1.0)
    assert "images without a class have no answers" in said and "madkd label" in said


def test_a_posterior_needs_answers_about_all_images_with_a_class(tmp_path):
    train_set = concatenate_datasets([rows(12, 0), rows(12, 3, answers=False)])
    dataset = saved(tmp_path / "toys", train=train_set, validation=rows(12, 1), test=rows(12, 2))
    options = ["--images_per_class", "4", "--rest_unlabelled", "true", "--class_posterior", "true"]
    said = refused(tmp_path, "--dataset", dataset, *options, aspect_alpha=1.0)
    assert "12 of the 24 images" in said and "madkd label --splits train" in said


def test_training_images_without_any_class_are_refused(tmp_path):
    train_set = hidden(rows(12, 0), *range(12))
    dataset = saved(tmp_path / "toys", train=train_set, validation=rows(12, 1), test=rows(12, 2))
    assert "12" in (said := refused(tmp_path, "--dataset", dataset, aspect_alpha=1.0)) and "class" in said


def test_a_comparison_has_rivals_and_controls_of_images_without_a_class(tmp_path, dataset):
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(STUDENT | {"aspect_alpha": 2.0, "eval_strategy": "no"}))
    argv = [
        "recipes/compare.py",
        "--dataset",
        dataset,
        "--baseline",
        tmp_path / "student.yaml",
        "--images_per_class",
        "4",
    ]
    argv += ["--rest_unlabelled", "true", "--seeds", "1", "--output_dir", tmp_path / "out", "--jobs", "1"]
    done = command(*argv, "--conditions", "base", "madkd", "posterior", "both", "both_shuffled", "selftrain")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["roles"] == {
        **{"base": "base", "madkd": "treated", "posterior": "treated", "both": "treated"},
        **{"both_shuffled": "control", "selftrain": "rival"},
    }
    assert report["treated"] == "both" and report["unlabelled"] == 12
    text = (tmp_path / "out" / "report.md").read_text()
    assert "some also on 12 without a class" in text and "posterior of unlabelled" in text
    assert (tmp_path / "out" / "student" / "config.json").is_file() and "answers alone" in text
    said = refuse("compare", *argv[1:5], "--conditions", "both",
                  "--output_dir", tmp_path / "other")  # fmt: skip
    assert "'both'" in said and "--rest_unlabelled" in said


def test_images_without_a_class_that_nobody_would_learn_from_are_refused(tmp_path, dataset):
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(STUDENT | {"aspect_alpha": 2.0}))
    argv = ["--dataset", dataset, "--baseline", tmp_path / "student.yaml", "--output_dir", tmp_path / "out"]
    argv += ["--images_per_class", "4", "--rest_unlabelled", "true"]
    said = refuse("compare", *argv, "--conditions", "base", "madkd")
    assert "base, madkd learns from images without a class" in said and "--rest_unlabelled out" in said
    more = ["--conditions", "base", "--unlabelled_images", "3"]
    assert "--rest_unlabelled and --unlabelled_images out" in refuse("compare", *argv, *more)
    assert "leave --rest_unlabelled out" in refuse("tune", *argv)


def test_fewer_of_the_images_without_a_class_are_drawn_among_the_more(tmp_path, dataset):
    options = ["--dataset", dataset, "--images_per_class", "4", "--rest_unlabelled", "true"]
    seen = []
    for count in (3, 7):
        run = trained(tmp_path, *options, "--unlabelled_images", str(count), "--seed", "5", aspect_alpha=2.0)
        rows = run.train_dataset.filter(lambda label: label is None, input_columns="label")
        assert len(run.train_dataset) == 12 + count == 12 + len(rows)
        seen.append({tuple(answers) for answers in rows["aspect_logits"]})
    assert seen[0] < seen[1]
    said = refused(tmp_path, *options, "--unlabelled_images", "13", aspect_alpha=2.0)
    assert "13" in said and "12 images without a class" in said


def test_settings_of_students_of_images_without_a_class_are_chosen_too(tmp_path, dataset):
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(STUDENT | {"aspect_alpha": 2.0}))
    argv = ["recipes/tune.py", "--dataset", dataset, "--baseline", tmp_path / "student.yaml", "--seeds", "1"]
    argv += ["--images_per_class", "4", "--rest_unlabelled", "true", "--conditions", "base", "both", "--jobs", "1"]
    grid = {"learning_rate": [1e-3, 1e-2], "class_target_loss": ["soft", "kd"]}
    done = command(*argv, "--grid", json.dumps(grid), "--output_dir", tmp_path / "tuned")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "tuned" / "tune.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:8]] == ["base"] * 2 + ["both"] * 4  # it has no such loss
    assert any(line.startswith("Best both: learning_rate") for line in lines)


def test_students_that_see_no_image_without_a_class_stay_when_these_change(tmp_path):
    splits = {"train": rows(12, 0), "validation": rows(12, 1), "test": rows(12, 2)}
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(STUDENT))
    decides = []
    for seed in (3, 4):
        dataset = saved(tmp_path / "toys", **splits, unlabelled=rows(12, seed))
        argv = ["--config", tmp_path / "student.yaml", "--dataset", dataset, "--output_dir", tmp_path / "student"]
        both = [*argv, "--unlabelled", "unlabelled", "--aspect_alpha", "1"]
        decides.append([Cell("one", tuple(map(str, words)), str(tmp_path)).decides for words in (argv, both)])
    assert decides[0][0] == decides[1][0] and decides[0][1] != decides[1][1]


def test_detectors_say_that_they_do_not_learn_from_them(tmp_path):
    said = refuse("compare", "--task", "detection", "--unlabelled", "more", "--output_dir", tmp_path)
    assert "unlabelled is for task: classification" in said


def test_an_image_of_which_some_answers_are_missing_has_no_posterior(tmp_path, caplog):
    loose = rows(9, 5)
    answers = loose["aspect_logits"][:]
    answers[2][1] = answers[4][0] = float("nan")
    feature = loose.features["aspect_logits"]
    loose = loose.remove_columns("aspect_logits").add_column("aspect_logits", answers, feature=feature)
    dataset = saved(tmp_path / "toys", train=rows(12, 0), validation=rows(12, 1), loose=loose)
    words = ["--dataset", dataset, "--unlabelled", "loose", "--class_posterior", "true"]
    seen = trained(tmp_path, *words, aspect_alpha=0.0).train_dataset
    assert len(seen) == 12 + 7 and seen["class_logits"][12:].count(None) == 0
    assert "2 of the 9 images without a class are left out" in caplog.text
    seen = trained(tmp_path, *words, aspect_alpha=2.0).train_dataset  # its other answers teach
    assert len(seen) == 12 + 9 and seen["class_logits"][12:].count(None) == 2


def test_what_a_draw_leaves_over_is_something(tmp_path, dataset):
    words = ["--dataset", dataset, "--images_per_class", "8", "--rest_unlabelled", "true"]
    said = refused(tmp_path, *words, aspect_alpha=2.0)
    assert "finds no image that images_per_class=8 leaves over" in said
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(STUDENT | {"aspect_alpha": 2.0}))
    argv = ["--baseline", tmp_path / "student.yaml", "--conditions", "base", "both", "--output_dir", tmp_path / "out"]
    assert said.split(": ")[-1] in refuse("compare", *words, *argv, "--unlabelled_images", "3")
    fraction = ["--images_per_class", "7", "--grid", '{"labelled_fraction": [0.1, 0.5]}', *argv[:2]]
    said = refuse("compare", *words, *fraction, "--conditions", "both", "--output_dir", tmp_path / "out")
    assert "labelled_fraction=0.1 no image of an epoch has a class" in said and "pass 0.25 or more" in said


def test_training_images_without_a_class_are_compared_as_they_are(tmp_path):
    """However many of each class have one: neither --unlabelled nor --rest_unlabelled is needed."""
    train_set = hidden(rows(24, 0), *range(4, 24))
    dataset = saved(tmp_path / "few", train=train_set, validation=rows(12, 1), test=rows(12, 2))
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(STUDENT | {"aspect_alpha": 2.0, "eval_strategy": "no"}))
    argv = ["--dataset", dataset, "--baseline", tmp_path / "student.yaml", "--seeds", "1", "--jobs", "1"]
    argv += ["--output_dir", tmp_path / "out", "--conditions", "base"]
    done = command("recipes/compare.py", *argv, "both")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["unlabelled"] == 20 and set(report["accuracy"]) == {"base", "both"}
    whole = saved(tmp_path / "whole", train=rows(24, 0), test=rows(12, 2))
    said = refuse("compare", *argv, "both", "--dataset", whole)
    assert "'both' learns" in said and "all training images have one" in said and "leave it out" not in said
    said = refuse("compare", *argv, "madkd")
    assert "20 training images without a class" in said and "among --conditions" in said
    said = refuse("compare", *argv, "both", "--unlabelled", "train")
    assert "a split that serves something else" in said and "teacher" not in said
    assert "--class_posterior is what the conditions" in refuse("compare", *argv, "both", "--class_posterior", "true")


def test_a_comparison_counts_the_images_that_its_students_leave_over(tmp_path, dataset):
    settings = STUDENT | {"aspect_alpha": 2.0, "images_per_class": 2}
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(settings))
    args = compare.parse(["--dataset", str(dataset), "--baseline", str(tmp_path / "student.yaml"),
                          "--rest_unlabelled", "true", "--output_dir", str(tmp_path / "out")])  # fmt: skip
    checked(args)
    assert args.images_per_class == 2


def test_no_student_is_chosen_that_was_trained_on_test_images(tmp_path):
    test = rows(12, 2)
    loose = concatenate_datasets([rows(5, 7), test.select([0, 3])])
    dataset = saved(tmp_path / "toys", train=rows(24, 0), validation=rows(12, 1), test=test, loose=loose)
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(STUDENT | {"aspect_alpha": 2.0}))
    argv = ["--dataset", dataset, "--baseline", tmp_path / "student.yaml", "--output_dir", tmp_path / "out"]
    said = refuse("tune", *argv, "--unlabelled", "loose", "--conditions", "both")
    assert "Of 7 images without a class, 2 are also in the split 'test'" in said


def test_copies_of_images_that_were_drawn_for_validation_are_left_out(tmp_path, caplog):
    dataset = saved(tmp_path / "toys", train=rows(60, 0), loose=concatenate_datasets([rows(60, 0), rows(6, 7)]))
    run = trained(tmp_path, "--dataset", dataset, "--unlabelled", "loose", aspect_alpha=2.0)
    seen = {image.tobytes() for image in run.train_dataset["image"]}
    assert len(run.train_dataset) == len(seen) == 54 + 6
    assert not seen & {image.tobytes() for image in run.eval_dataset["image"]}
    assert "6 of the 66 images without a class are left out" in caplog.text  # those of validation
    assert "54 of the 60 images without a class are left out" in caplog.text  # those with a class
    kept = saved(tmp_path / "kept", train=run.eval_dataset.select_columns(["image"]))
    said = refused(tmp_path, "--dataset", dataset, "--unlabelled", kept, aspect_alpha=2.0)
    assert "All 6 images without a class are also kept for validation" in said


def test_copies_of_images_that_were_drawn_for_the_test_are_left_out(tmp_path):
    """Whether or not these have answers, and where nobody will look at the test."""
    loose = concatenate_datasets([rows(60, 0), rows(6, 7)])
    dataset = saved(tmp_path / "toys", train=rows(60, 0), validation=rows(12, 1), loose=loose)
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(STUDENT | {"aspect_alpha": 2.0}))
    options = ["--dataset", dataset, "--unlabelled", "loose", "--test_fraction", "0.2", "--output_dir", tmp_path / "o"]
    options = list(map(str, options))
    words = [*options, "--config", str(tmp_path / "student.yaml"), "--do_predict", "true"]
    trained_on = student.check(*train.parse(words)).splits
    words = [*options, "--baseline", str(tmp_path / "student.yaml"), "--conditions", "base", "both"]
    (args,) = CommandParser(tune.TuneArguments, description="").parse(words)
    chosen_on = load_checked(args, Problems(), check(args), "unused").splits
    test = {image.tobytes() for image in trained_on["test"]["image"]}
    assert len(test) == 12 and "test" not in chosen_on
    for splits in (trained_on, chosen_on):
        without = {image.tobytes() for image in splits["unlabelled"]["image"]}
        assert len(without) == 54 and not without & test


def test_self_training_in_a_grid_is_that_of_the_students_of_self_training(tmp_path, dataset):
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(STUDENT | {"aspect_alpha": 2.0}))
    args = compare.parse(["--baseline", str(tmp_path / "student.yaml"), "--rest_unlabelled", "true",
                          "--images_per_class", "2", "--dataset", str(dataset), "--output_dir", str(tmp_path / "out"),
                          "--grid", '{"self_training": [0.8, 0.9]}'])  # fmt: skip
    told = {name: "self_training" in of_condition(args, {"self_training": 0.8}, name) for name in args.controls()}
    assert [name for name, has_it in told.items() if has_it] == ["selftrain"]


def test_null_within_the_answers_is_a_missing_answer(tmp_path):
    loose = rows(9, 5).remove_columns(["label", "aspect_logits", "aspect_mass", "aspect_bank"])
    loose = loose.add_column("aspect_logits", [[1.0, None, -2.0, 0.5]] * 9)
    train_set = rows(12, 0).cast_column("aspect_logits", loose.features["aspect_logits"])
    dataset = saved(tmp_path / "toys", train=train_set, validation=rows(12, 1), loose=loose)
    words = ["--dataset", dataset, "--unlabelled", "loose"]
    run = trained(tmp_path, *words, aspect_alpha=2.0)
    assert len(run.train_dataset) == 21 and run.state.log_history[0]["aspect_loss"] > 0
    with pytest.raises(ValueError, match="Each of the 9 images without a class lacks an answer"):
        trained(tmp_path, *words, "--class_posterior", "true")
