"""A class teacher in a comparison: trained on the same images, its scores learned from, and again when it changes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import yaml
from builders.commands import command, refuse
from builders.without_class import NAMES, STUDENT, rows, saved
from datasets import load_from_disk

from madkd_hf import ClassTeacher
from madkd_hf.cli import compare
from madkd_hf.cli.comparison.conditions import of_condition, plan, points, student_argv
from madkd_hf.cli.train import parse
from madkd_hf.data.class_targets import check_class_targets, with_class_targets
from madkd_hf.report import table
from madkd_hf.report.comparison import over_controls, summarise


@pytest.fixture
def dataset(tmp_path):
    train_set = rows(24, 0)
    train_set = with_class_targets(train_set, np.ones((24, 3)), "somebody", NAMES)  # of no use in a comparison
    return saved(tmp_path / "toys", train=train_set, validation=rows(12, 1), test=rows(12, 2, answers=False))


@pytest.fixture
def words(tmp_path, dataset):
    settings = STUDENT | {"aspect_alpha": 2.0, "eval_strategy": "no", "learning_rate": 0.003}
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "larger.yaml").write_text(yaml.safe_dump(settings | {"num_train_epochs": 2}))
    words = [
        "--dataset",
        dataset,
        "--baseline",
        tmp_path / "student.yaml",
        "--class_teacher",
        tmp_path / "larger.yaml",
    ]
    words += ["--images_per_class", "4", "--seeds", "1", "--jobs", "1", "--output_dir", tmp_path / "out"]
    return [str(word) for word in words]


def started(output: str) -> list[str]:
    return re.findall(r"The student (\S+) in \S+ is trained again", output)


def test_its_scores_of_all_training_images_teach_and_a_new_one_teaches_anew(tmp_path, dataset, words):
    words += ["--rest_unlabelled", "true", "--conditions", "base", "class_teacher", "kd", "kd_aspects"]
    done = command("recipes/compare.py", *words)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    report = json.loads((out / "report.json").read_text())
    assert report["roles"] == {"base": "base", "class_teacher": "rival", "kd": "rival", "kd_aspects": "treated"}
    assert set(report["gains"]["kd_aspects"]) == {"base", "kd"} and report["unlabelled"] == 12
    text = (out / "report.md").read_text()
    for said in ("class_teacher: larger classifier", "kd: classes + its scores", "Over the same without aspects"):
        assert said in text
    assert "some also on 12 without a class" in text and (out / "figures" / "accuracies.png").is_file()
    scored = load_from_disk(out / "sets" / "class_teacher-0")
    check_class_targets(scored["train"], NAMES)
    teacher = ClassTeacher.from_pretrained(out / "cells" / "class_teacher-0")
    expected = teacher.read(scored["train"]["image"][:]).numpy()
    np.testing.assert_allclose(scored["train"]["class_logits"][:], expected, atol=1e-4)
    assert scored["test"]["class_logits"][:] == [None] * 12
    for name in ("kd", "kd_aspects"):
        history = json.loads((out / "cells" / f"{name}-0" / "trainer_state.json").read_text())["log_history"]
        assert history[0]["kd_loss"] > 0 and (history[0]["aspect_loss"] > 0) == (name == "kd_aspects")
    assert "class_logits that the dataset has are left out" in done.stdout
    assert "class_logits" not in load_from_disk(out / "labelled")["train"].features
    again = command("recipes/compare.py", *words)
    assert again.returncode == 0 and not started(again.stdout) and "training:" not in again.stderr
    results = {name: (out / "cells" / f"{name}-0" / "cell.json").read_text() for name in report["roles"]}
    changed = yaml.safe_load((tmp_path / "larger.yaml").read_text()) | {"num_train_epochs": 3}
    (tmp_path / "larger.yaml").write_text(yaml.safe_dump(changed))
    done = command("recipes/compare.py", *words)
    assert done.returncode == 0, done.stderr
    assert started(done.stdout) == ["class_teacher-0", "kd-0", "kd_aspects-0"]
    assert (out / "cells" / "base-0" / "cell.json").read_text() == results["base"]


def test_by_default_they_join_where_a_class_teacher_is_given(words):
    args = compare.parse(words)
    assert list(args.controls()) == [*("base", "madkd", "shuffled", "constant"), "class_teacher", "kd", "kd_aspects"]
    assert args.learning_unlabelled == []
    args = compare.parse([*words, "--rest_unlabelled", "true"])
    assert list(args.controls())[-4:] == ["selftrain", "class_teacher", "kd", "kd_aspects"]
    assert {"kd", "kd_aspects", "both"} < set(args.learning_unlabelled)
    assert "kd" not in compare.parse(words[:4] + words[6:]).controls()


def options(argv: list[str]) -> dict[str, str]:
    return dict(zip(argv[::2], argv[1::2]))


def test_each_student_sees_what_it_is_to_learn_from(words):
    args = compare.parse([*words, "--rest_unlabelled", "true", "--distill_unlabelled", "loose.yaml"])
    argv = {name: options(student_argv(args, name, 0, "out")) for name in args.controls()}
    assert argv["class_teacher"]["--config"].endswith("larger.yaml") and argv["kd"]["--config"] == "loose.yaml"
    assert argv["class_teacher"]["--class_alpha"] == argv["class_teacher"]["--aspect_alpha"] == "0"
    assert argv["kd"]["--aspect_alpha"] == "0" and "--aspect_alpha" not in argv["kd_aspects"]
    for name in ("kd", "kd_aspects"):
        assert argv[name]["--class_target_loss"] == "kd" and argv[name]["--class_posterior"] == "false"
        assert argv[name]["--rest_unlabelled"] == "true" and argv[name]["--self_training"] == "0"
    assert argv["class_teacher"]["--rest_unlabelled"] == "false"
    args = compare.parse(words)
    args.distill = args.distill_unlabelled = "distill.yaml"
    assert options(student_argv(args, "kd", 0, "out"))["--config"] == "distill.yaml"


def test_students_of_labelled_images_alone_see_no_others_whatever_their_yaml_says(words, tmp_path):
    settings = yaml.safe_load((tmp_path / "student.yaml").read_text()) | {"rest_unlabelled": True}
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(settings))
    args = compare.parse([*words, "--rest_unlabelled", "true"])
    args.distill = args.distill_unlabelled = args.baseline
    learned = {name: parse(student_argv(args, name, 0, "out"))[0].rest_unlabelled for name in args.controls()}
    assert {name for name, rest in learned.items() if not rest} == {
        *("base", "madkd", "shuffled", "constant", "class_teacher")
    }
    args = compare.parse(words)
    args.distill = args.distill_unlabelled = args.baseline
    assert not parse(student_argv(args, "kd", 0, "out"))[0].rest_unlabelled


@pytest.mark.parametrize(
    ("file", "setting", "said"),
    [
        ("student.yaml", {"unlabelled": "loose"}, "students of 'base' sets unlabelled: loose"),
        ("larger.yaml", {"images_per_class": 2}, "images_per_class all by 'base' and 2 by 'class_teacher'"),
        ("larger.yaml", {"labelled_fraction": 0.5}, "and those of 'class_teacher' do not"),
        ("larger.yaml", {"limit": 9}, "limit all by 'base' and 9 by '"),
        ("student.yaml", {"test_fraction": 0.5}, "test_fraction 0.5 by 'base' and none by 'class_teacher'"),
    ],
)
@pytest.mark.parametrize("asked", ["class_teacher", "kd"])  # which are taught by it in any case
def test_all_students_are_of_the_same_images(words, tmp_path, file, setting, said, asked):
    settings = yaml.safe_load((tmp_path / file).read_text()) | setting
    (tmp_path / file).write_text(yaml.safe_dump(settings))
    place = words.index("--images_per_class")
    assert said in refuse("compare", *words[:place], *words[place + 2 :], "--conditions", "base", asked)


def test_a_grid_trains_one_class_teacher_for_each_draw(words, tmp_path):
    grid = {"images_per_class": [2, 4], "aspects": [2, 4], "class_alpha": [1, 3]}
    args = compare.parse([*words, "--grid", json.dumps(grid), "--conditions", "class_teacher", "kd", "kd_aspects"])
    args.distill = args.distill_unlabelled = args.baseline
    splits = load_from_disk(args.dataset)
    from builders.without_class import BANK

    cells = [(point, plan(args, point, splits, BANK)) for point in points(args)]
    names = {cell.name for _, part in cells for cell in part.values()}
    assert {name for name in names if name.startswith("class_teacher")} == {
        "class_teacher-images_per_class_2-0",
        "class_teacher-images_per_class_4-0",
    }
    assert len([name for name in names if name.startswith("kd-")]) == 4
    assert len([name for name in names if name.startswith("kd_aspects-")]) == 8
    for point, part in cells:
        folder = options(list(part["kd_aspects", 0].argv))["--dataset"]
        assert f"images_per_class_{point['images_per_class']}" in folder
        assert folder.endswith("-2") == (point["aspects"] == 2)
        assert of_condition(args, point, "class_teacher") == {"images_per_class": point["images_per_class"]}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--conditions", "base", "madkd"], "None of the conditions base, madkd needs a class teacher"),
        (["--class_teacher", "nowhere.yaml"], "There is no file nowhere.yaml: pass --class_teacher"),
        (["--class_teacher", "", "--conditions", "base", "kd"], "The condition 'kd' needs a class teacher"),
        (["--conditions", "kd", "--unlabelled_images", "3"], "leave --unlabelled_images out"),
        (["--grid", '{"class_alpha": [0]}'], "With class_alpha 0, 'kd' is nothing new"),
    ],
)
def test_what_cannot_be_compared_is_refused(words, more, said):
    assert said in refuse("compare", *words, *more)


def test_detectors_and_tuning_say_that_they_have_none(words, tmp_path):
    said = refuse("compare", "--task", "detection", "--class_teacher", "x.yaml", "--output_dir", tmp_path / "d")
    assert "class_teacher is for task: classification" in said
    assert "tune those of posterior" in refuse("tune", *words, "--conditions", "kd")


def test_reports_tell_what_aspects_add():
    scores = {"base": [50, 52], "class_teacher": [70, 71], "kd": [55, 56], "kd_aspects": [60, 60]}
    cells = [
        {"condition": name, "seed": seed, "accuracy": value}
        for name, run in scores.items()
        for seed, value in enumerate(run)
    ]
    report = summarise(cells)
    assert report["controls"].keys() == {"class_teacher", "kd"} and report["gains"].keys() == {"kd_aspects"}
    assert "Over the same without aspects, in points [95% interval]: `kd_aspects` +4.50" in over_controls(report)
    assert "+19.50" in table(report)
