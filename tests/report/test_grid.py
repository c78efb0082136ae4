"""Reports beyond one number: a grid of comparisons, and class by class."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from madkd_hf.cli.comparison.conditions import CompareArguments, check, read_grid
from madkd_hf.report import summarise
from madkd_hf.report.classes import summarise_classes, write_classes
from madkd_hf.report.grid import grid_table, grid_verdict, same_everywhere, write_grid


ROOT = Path(__file__).parents[2]


def point(gain: float, validation: float, **options) -> dict:
    """Three seeds of base and madkd at a point; the base students reach 50, 52 and 54%."""
    accuracy = {"base": [50.0, 52.0, 54.0], "madkd": [50 + gain, 53 + gain, 54 + gain]}
    cells = [
        {"condition": name, "seed": seed, "accuracy": value}
        for name, values in accuracy.items()
        for seed, value in enumerate(values)
    ]
    return {"point": options, **summarise(cells), "validation": {"base": [50.0] * 3, "madkd": [validation] * 3}}


POINTS = [
    point(20, 70, images_per_class=5, aspect_alpha=1),
    point(9, 75, images_per_class=50, aspect_alpha=1),
    point(-1, 60, images_per_class=5, aspect_alpha=40),
    point(0, 61, images_per_class=50, aspect_alpha=40),
]


def test_the_grid_s_table_has_a_line_for_each_point_and_condition():
    lines = grid_table(POINTS).splitlines()
    assert len(lines) == 2 + 2 * len(POINTS)
    cells = [text.strip() for text in lines[3].split("|")[1:-1]]
    assert cells == ["5", "1", "madkd", "70.0 ± 0.0", "72.3 ± 2.1", "+20.33 [+18.90, +21.77]"]


def test_the_grid_shows_the_answers_alone_once_a_point(tmp_path):
    found = {"accuracy": [70.0, 72.0], "fitted": [10, 10], "images": [90, 90], "of": ["validation", "train"]}
    points = [{**POINTS[0], "answers_alone": found}, {**POINTS[1], "answers_alone": {"unknown": "no answers."}}]
    cells = [[text.strip() for text in line.split("|")[1:-1]] for line in grid_table(points).splitlines()]
    assert cells[0][-1] == "The answers alone, %"
    assert [row[-1] for row in cells[2:]] == ["71.0 ± 1.4", "", "", ""]
    summary = {"points": points, "dataset": "toys", "teacher": {"model": "m"}, "command": "c"}
    assert "per cent of 90 other answered images (validation images and" in write_grid(summary, tmp_path).read_text()


def test_the_verdict_chooses_on_validation_images():
    text = grid_verdict(POINTS)
    assert "ahead of the base ones on average at 3 of 4 points, and clearly, with an interval above 0, at 2." in text
    assert "best with images_per_class 50, aspect_alpha 1 (75.0%); on test images these reach 61.3%" in text


def test_the_verdict_is_about_the_condition_that_counts():
    points = []
    for k, gain in ((1, 4), (5, 9)):
        accuracy = {"base": 30, "madkd": 25, "both": 30 + gain}
        cells = [
            {"condition": name, "seed": seed, "accuracy": value + seed}
            for name, value in accuracy.items()
            for seed in range(2)
        ]
        points.append({"point": {"images_per_class": k}, **summarise(cells), "validation": {}})
    assert "Students of `both` are ahead of the base ones on average at 2 of 2 points" in grid_verdict(points)
    points = [{**point, "validation": {"both": [40.0 + point["point"]["images_per_class"]]}} for point in points]
    text = grid_verdict(points)
    assert "best with images_per_class 5 (45.0%)" in text and "these reach 39.5%, +9.00 [+9.00, +9.00]" in text


def test_an_option_with_one_value_is_said_once_and_has_no_column():
    points = [{**point, "point": {**point["point"], "bf16": True}} for point in POINTS]
    assert grid_table(points) == grid_table(POINTS)
    assert same_everywhere(points) == "All students: bf16 True." and same_everywhere(POINTS) == ""


def test_a_grid_s_report_has_a_picture_for_each_option_that_varies(tmp_path):
    summary = {"points": POINTS, "dataset": "toys", "teacher": {"model": "m"}, "command": "python compare.py"}
    page = write_grid(summary, tmp_path).read_text()
    for option in ("images_per_class", "aspect_alpha"):
        assert f"(figures/against_{option}.png)" in page
        with Image.open(tmp_path / "figures" / f"against_{option}.png") as picture:
            assert picture.width > 900
    assert len(json.loads((tmp_path / "report.json").read_text())["points"]) == 4
    one = write_grid({**summary, "points": POINTS[:1], "images_per_class": 20}, tmp_path / "one").read_text()
    assert "1 point, 3 seeds, 20 images per class; the teacher" in one
    one = write_grid({**summary, "points": POINTS[:2]}, tmp_path / "one").read_text()
    assert "against_images_per_class.png" in one and "against_aspect_alpha.png" not in one


# Class by class


def sure_of(classes: list[int], confidence: float = 0.8, count: int = 3) -> np.ndarray:
    """Logits that give the classes this probability."""
    p = np.full((len(classes), count), (1 - confidence) / (count - 1))
    p[np.arange(len(classes)), classes] = confidence
    return np.log(p)


LABELS = np.array([0, 0, 1, 1])  # no image shows the third class
BASE = [sure_of([1, 1, 1, 1]), sure_of([0, 1, 1, 1])]
MADKD = [sure_of([0, 0, 1, 0]), sure_of([0, 0, 1, 0])]


@pytest.fixture
def found() -> dict:
    return summarise_classes({"base": BASE, "madkd": MADKD}, LABELS, ["cat", "dog", "cow"])


def test_gains_are_recalls_paired_by_seed(found):
    cat, dog = found["classes"]
    assert (cat["name"], cat["images"], cat["base"], cat["madkd"]) == ("cat", 2, 25.0, 100.0)
    assert cat["gain"]["mean"] == 75 and cat["gain"]["ci95"][0] < 75
    assert (dog["name"], dog["base"], dog["madkd"], dog["gain"]["mean"]) == ("dog", 100, 50, -50)


def test_confusions_are_shares_of_the_class_shown(found):
    assert found["confusions"] == [
        {"shown": "cat", "taken_for": "dog", "base": 75.0, "madkd": 0.0},
        {"shown": "dog", "taken_for": "cat", "base": 0.0, "madkd": 50.0},
    ]


def test_calibration_is_the_distance_of_confidence_from_accuracy(found):
    plain, distilled = found["calibration"]["base"], found["calibration"]["madkd"]
    assert plain["error"] == pytest.approx((0.3 + 0.05) / 2)  # right on 50% and 75%, sure by 80%
    assert plain["deviation"] == pytest.approx(np.std([0.3, 0.05], ddof=1))
    assert distilled["error"] == pytest.approx(0.05)
    assert [k for k, value in enumerate(plain["accuracy"]) if value is not None] == [12]
    assert plain["accuracy"][12] == 5 / 8 and plain["confidence"][12] == pytest.approx(0.8)


@pytest.mark.parametrize("classes", [3, 100])
def test_the_page_of_classes_and_its_pictures(tmp_path, classes):
    draw = np.random.default_rng(0)
    logits = {name: [draw.normal(size=(300, classes)) for _ in range(3)] for name in ("base", "madkd")}
    names = [f"class | {i}" for i in range(classes)]
    labels = np.arange(300) % classes
    page = write_classes(summarise_classes(logits, labels, names), tmp_path).read_text()
    assert page.split("## Confusions")[0].count("\n| class \\| ") == classes
    for name in ("classes", "calibration"):
        with Image.open(tmp_path / "figures" / f"{name}.png") as picture:
            assert picture.width > 700 and picture.height < 2600


def test_students_that_agree_confuse_nothing_differently(tmp_path):
    same = summarise_classes({"base": BASE, "madkd": BASE}, LABELS, ["cat", "dog", "cow"])
    assert same["confusions"] == [] and "None." in write_classes(same, tmp_path).read_text()


# What is compared


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": "[1]"}, "grid is option -> values, as in .*; received '\\[1\\]'"),
        ({"grid": "{bad"}, "received '{bad'"),
        ({"grid": '{"seed": [1]}'}, "'seed' of grid is the comparison's own business"),
        ({"grid": '{"aspect_control": ["shuffled"]}'}, "'aspect_control' of grid is the comparison's own"),
        ({"grid": '{"learning_rate": 0.01}'}, "'learning_rate' of grid needs a list of numbers or words; got 0.01"),
        ({"grid": '{"images_per_class": [null]}'}, r"needs a list of numbers or words; got \[None\]"),
        ({"grid": '{"images_per_class": ["few"]}'}, "invalid int value: 'few'"),
        ({"grid": '{"learning_rat": [1]}'}, "did you mean 'learning_rate'"),
        ({"seeds": 0}, "At least one seed and one job are needed; received seeds=0"),
        ({"jobs": -1}, "received seeds=5, jobs=-1"),
        ({"output_dir": ""}, "No output_dir given"),
        ({"conditions": ["bse"]}, "Unknown condition 'bse'"),
        ({"distill": "missing.yaml"}, "missing.yaml"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused_before_the_teacher_works(tmp_path, settings, message):
    yaml = ROOT / "recipes/easy_vqa"
    given = {
        "baseline": str(yaml / "baseline.yaml"),
        "distill": str(yaml / "distill.yaml"),
        "output_dir": str(tmp_path),
    }
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check(CompareArguments(**{"dataset": "toys", **given, **settings}))


def test_numbers_that_yaml_takes_for_words_are_numbers():
    assert read_grid('{"learning_rate": [0.003, "1e-2"], "images_per_class": ["5"], "optim": ["sgd"]}') == {
        "learning_rate": [0.003, 0.01],
        "images_per_class": [5],
        "optim": ["sgd"],
    }


def test_words_are_drawn_in_the_order_of_the_grid(tmp_path):
    points = [point(20, 70, optim="sgd"), point(9, 75, optim="adamw_torch")]
    write_grid({"points": points, "dataset": "toys", "teacher": {"model": "m"}, "command": "c"}, tmp_path)
    assert (tmp_path / "figures/against_optim.png").is_file()


@pytest.mark.parametrize("about", [{"teacher": {}}, {"teacher": {"mean_mass": 0.9}}, {}])
def test_a_grid_with_answers_of_somebody_unknown_names_no_teacher(tmp_path, about):
    points = [
        point(20, 70, weight_decay=0.0001, pretrained=False),
        point(9, 75, weight_decay=0.0005, pretrained=False),
    ]
    page = write_grid({"points": points, "dataset": "toys", "command": "c", **about}, tmp_path).read_text()
    assert "2 points, 3 seeds. Mean" in page and "teacher" not in page
    assert "All students: pretrained False." in page and "against_pretrained" not in page
