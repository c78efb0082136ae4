"""Detectors compared: the conditions, the report in AP, and the page of scenes."""

import importlib
import json
import re

import numpy as np
import pytest
import yaml
from builders.commands import EASY_VQA, command, refuse
from builders.figures import assert_picture
from builders.scenes import make_scenes
from PIL import Image
from transformers import AutoModelForObjectDetection

from madkd_hf import AspectBank, report
from madkd_hf.data.boxes import corners
from madkd_hf.report import figures
from madkd_hf.report.classes import summarise_detected_classes, write_classes
from madkd_hf.report.comparison import over_controls, real_gain
from madkd_hf.report.scenes import matched, overlaps, plot_scenes


CONDITIONS = ["base", "image", "image_shuffled", "object", "shuffled", "constant"]
TREATED = {"image": "image_shuffled", "object": "shuffled"}  # each with its own control
AP = {"base": [10.0, 12.0], "image": [11.0, 12.0], "object": [15.0, 17.5], "shuffled": [9.0, 12.0]}
CELLS = [
    {"condition": name, "seed": seed, "map": value, "curve": [[1, 1.0], [2, value]]}
    for name, values in AP.items()
    for seed, value in enumerate(values)
]


def test_compare_reports_detectors_keeps_those_that_are_finished_and_publishes(hub, tmp_path):
    make_scenes().save_to_disk(tmp_path / "scenes")
    quick = {"max_steps": 2, "eval_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 3}
    config = yaml.safe_load((EASY_VQA / "detect_compare.yaml").read_text()) | {
        "dataset": str(tmp_path / "scenes"),
        "output_dir": str(tmp_path / "run"),
        "conditions": CONDITIONS,
        "seeds": 2,
        "scenes": 6,
        "jobs": 1,
    }
    for name in ("baseline", "distill"):
        settings = yaml.safe_load((EASY_VQA.parents[1] / config[name]).read_text()) | quick
        config[name] = str(tmp_path / f"{name}.yaml")
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(config))
    done = command("recipes/compare.py", "--config", tmp_path / "compare.yaml")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    found = json.loads((run / "report.json").read_text())
    assert found["task"] == "detection" and "accuracy" not in found
    assert {name: len(values) for name, values in found["map"].items()} == dict.fromkeys(CONDITIONS, 2)
    assert list(found["controls"]) == ["image_shuffled", "shuffled", "constant"] and len(found["gain"]["ci95"]) == 2
    assert {name: list(gains) for name, gains in found["gains"].items()} == {
        name: ["base", control] for name, control in TREATED.items()
    }
    assert found["scenes"] == 6 and found["classes"] == 3
    assert set(found["aspects_learnt"]) == set(CONDITIONS) - {"base"}
    page = (run / "report.md").read_text()
    assert "| object: boxes + aspects of each object" in page and "AP, points" in page and "6 labelled images" in page
    assert "ccurac" not in page.split("## Time")[0]
    assert (
        "Over its own shuffled control, in points [95% interval]: `image` " in page and "none of the controls" in page
    )
    learnt = [value for value in found["aspect_auroc"].values() if value is not None]
    measured = json.loads((run / "cells" / "object-0" / "all_results.json").read_text())["eval_aspect_auroc"]
    assert len(found["aspect_auroc"]) == 11 and np.mean(learnt) == pytest.approx(measured)
    assert "| Class | Objects | Base, AP | Distilled, AP |" in re.sub(" +", " ", (run / "classes.md").read_text())
    pictures = ["ap", "aspect_learning", "classes", "learning_curves", "questions", "scenes", "teacher"]
    for name in (f"{each}.png" for each in pictures):
        assert f"(figures/{name})" in page
        assert_picture(run / "figures" / name)
    assert AutoModelForObjectDetection.from_pretrained(run / "student").config.aspect_level == "object"
    levels = [json.loads((run / "cells" / f"{name}-1" / "config.json").read_text()) for name in CONDITIONS]
    assert [(each["aspect_level"], len(each["aspect_ids"])) for each in levels] == [
        ("object", 0),
        *[("image", 11)] * 2,
        *[("object", 11)] * 3,
    ]
    kept = {path: path.stat().st_mtime_ns for path in run.glob("cells/*/cell.json")}
    to = ["--push_to_hub", "--hub_model_id", "you/finder", "--hub_license", "mit"]
    done = command("recipes/compare.py", "--config", tmp_path / "compare.yaml", *to, hub=hub)
    assert done.returncode == 0, done.stderr
    assert len(kept) == 12 and {path: path.stat().st_mtime_ns for path in run.glob("cells/*/cell.json")} == kept
    assert json.loads((run / "report.json").read_text())["map"] == found["map"]

    assert f"Published: {hub.url}/you/finder\n" in done.stdout
    files = hub.files("you/finder")
    assert files["model.safetensors"] == (run / "student" / "model.safetensors").read_bytes()
    assert {name for name in files if name.startswith("figures/")} == {
        f"figures/{name}.png" for name in ("ap", "aspect_learning", "learning_curves")
    }
    card = files["README.md"].decode()
    rows = [line for line in page.splitlines() if line.startswith(tuple(f"| {name}: " for name in CONDITIONS))]
    assert len(rows) == 6 and all(row in card for row in rows)
    assert "12 students were trained" in card and "the student in this repo is one of them" in card
    assert "pipeline_tag: object-detection" in card and "| Validation (5 images) | Test (6 images) |" in card
    assert "| AUROC |" in card and "| `zoom` " in card and "mixup_alpha" not in card
    assert hub.token.encode() not in hub.received and str(tmp_path).encode() not in b"".join(files.values())


def test_each_student_has_the_answers_of_its_level(tmp_path):
    names = ("comparison.conditions", "compare")
    conditions, compare = (importlib.import_module(f"madkd_hf.cli.{name}") for name in names)
    args = conditions.CompareArguments(output_dir=str(tmp_path), baseline="a.yaml", distill="b.yaml", seeds=1)
    args.objects = compare.TaskArguments(task="detection", scenes=7, box_format="yolo", category_field="label")
    bank = AspectBank.load(EASY_VQA / "aspects.json")
    cells = {name: cell for (name, _), cell in conditions.plan(args, {}, None, bank).items()}
    assert list(cells) == CONDITIONS
    assert {(*cell.argv[:2], cell.metric, cell.score) for cell in cells.values()} == {
        ("--task", "detection", "test_map", "map")
    }
    argv = {name: " ".join(cell.argv) for name, cell in cells.items()}
    assert "--config a.yaml" in argv["base"] and "--aspect_alpha 0" in argv["base"]
    for name in TREATED.values():
        assert "--aspect_control shuffled" in argv[name]
    for name in ("image", "image_shuffled"):
        assert "labelled_images --bank" in argv[name] and "--aspect_level image" in argv[name]
    assert "labelled_images" not in argv["object"] and "--aspect_level object" in argv["object"]
    assert "--aspect_control none" in argv["image"] and "--aspect_control constant" in argv["constant"]
    for line in argv.values():
        assert "--scenes 7" in line and "--box_format yolo" in line and "--boxes_column objects" in line
        assert "--category_field category" in line  # as the labelled dataset has it
        assert "label_column" not in line and "images_per_class" not in line


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--images_per_class", "5"], "images_per_class is for task: classification, and this is detection"),
        (["--label_column", "category"], "label_column is for task: classification"),
        (["--grid", '{"scenes": [5, 10]}'], "grid is for task: classification"),
        (["--smoothing", "0.2"], "smoothing is for task: classification"),
        (["--conditions", "base", "smoothing"], "Unknown condition 'smoothing': expected some of ['base', 'image'"),
        (["--push_to_hub", "--conditions", "base", "image"], "in ['base', 'image']: add object to --conditions"),
        (["--task", "classification"], "box_margin is for task: detection, and this is classification"),
        (["--task", "detecting"], "invalid choice: 'detecting'"),
        (["--conditions", "base", "madkd"], "Unknown condition 'madkd': expected some of ['base', 'image'"),
        (["--boxes_colum", "objects"], "did you mean 'boxes_column'?"),
    ],
)
def test_a_setting_that_says_nothing_about_the_task_is_refused(tmp_path, argv, expected):
    make_scenes().save_to_disk(tmp_path / "scenes")
    base = ["--config", EASY_VQA / "detect_compare.yaml", "--dataset", tmp_path / "scenes", "--scenes", "6"]
    said = refuse("compare", *base, "--output_dir", tmp_path / "run", *argv)
    assert said.startswith("error: ") and expected in said and "\n" not in said
    assert not (tmp_path / "run").exists()


# ---- the report


def test_the_report_speaks_of_ap_and_the_gain_is_that_of_aspects_of_objects(tmp_path):
    summary = report.summarise(CELLS, "detection")
    assert summary["map"] == AP and summary["gain"] == report.paired_gain(AP["object"], AP["base"])
    assert list(summary["controls"]) == ["shuffled"]
    assert summary["roles"] == {"base": "base", "image": "treated", "object": "treated", "shuffled": "control"}
    assert summary["gains"] == {
        "image": {"base": report.paired_gain(AP["image"], AP["base"])},
        "object": {name: report.paired_gain(AP["object"], AP[name]) for name in ("base", "shuffled")},
    }
    text = report.table(summary)
    assert " AP, points |" in text and "+5.25 [" in text and "| image: boxes + aspects of the image" in text
    page = report.write_report({**summary, "dataset": "shapes", "scenes": 50}, tmp_path).read_text()
    assert "points of AP (95% interval" in page or "of the aspects: +5.25 points" in page
    assert "on shapes with 50 labelled images each. AP (COCO: mean over IoU 0.5 to 0.95) is on the test images" in page


def test_a_report_that_filed_a_treatment_under_controls_makes_the_same_table():
    summary = report.summarise(CELLS, "detection")
    old = {name: value for name, value in summary.items() if name not in ("roles", "gains")}
    old["controls"] = {"image": summary["gains"]["image"]["base"], **summary["controls"]}
    assert report.table(old) == report.table(summary) and over_controls(old) == ""


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["base", "object", "shuffled"], "A real gain lifts `object`, and not the control"),
        (["base", "object", "shuffled", "constant"], "A real gain lifts `object`, and neither control"),
        (CONDITIONS, "A real gain lifts `image` or `object`, and none of the controls"),
        (["base", "object"], ""),
        (["base", "image", "image_shuffled"], ""),
    ],
)
def test_what_a_real_gain_is(names, expected):
    cells = [{"condition": name, "seed": seed, "map": 10.0 + seed} for name in names for seed in (0, 1)]
    assert real_gain(report.summarise(cells, "detection")) == expected


def test_the_names_of_six_conditions_do_not_touch(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    values = [5.0, 35.0, 40.0]  # intervals as wide as any
    cells = [{"condition": name, "seed": seed, "map": values[seed - i % 3]} for i, name in enumerate(CONDITIONS)
             for seed in range(3)]  # fmt: skip
    figures.plot_accuracies(report.summarise(cells, "detection"), tmp_path / "ap.png")
    drawn[0].savefig(tmp_path / "ap.png")
    places = [label.get_window_extent() for label in drawn[0].axes[0].get_xticklabels()]
    assert len(places) == 6 and all(one.x1 + 5 < other.x0 for one, other in zip(places, places[1:]))


def test_pictures_of_detectors(tmp_path):
    assert_picture(figures.plot_accuracies(report.summarise(CELLS, "detection"), tmp_path / "ap.png"))
    assert_picture(figures.plot_learning_curves(CELLS, tmp_path / "curves.png", "detection"))


# ---- classes


def test_ap_of_each_class_is_that_of_the_evaluation(tmp_path):
    names = ("comparison.pictures", "comparison.conditions", "compare")
    pictures, conditions, compare = (importlib.import_module(f"madkd_hf.cli.{name}") for name in names)
    args = conditions.CompareArguments(output_dir=str(tmp_path))
    args.objects = compare.TaskArguments(task="detection")
    rows = make_scenes()["test"]
    there = pictures.objects_in(args, rows, EASY_VQA / "detector")
    for each, row in zip(there, rows, strict=True):
        np.testing.assert_allclose(each["boxes"], corners(row["objects"]["bbox"], "coco", (96, 96)), atol=1e-4)
        assert each["labels"].tolist() == row["objects"]["category"]
    found = [{**each, "scores": np.ones(len(each["labels"]))} for each in there]
    first = there[0]["labels"][0]
    found[0] = {name: values[1:] for name, values in found[0].items() if name != "area"}  # one object is missed
    ap = pictures.class_ap(found, there, 4)
    others = {label for each in there for label in each["labels"].tolist()} - {first}
    assert 0 < ap[first] < 100 and [ap[label] for label in others] == pytest.approx([100] * len(others))
    assert np.isnan(ap[3])


def test_the_page_of_detected_classes(tmp_path):
    ap = {"base": np.array([[10.0, 50.0, np.nan], [20.0, 50.0, np.nan]]), "object": np.full((2, 3), 30.0)}
    found = summarise_detected_classes(ap, [7, 8, 0], ["cat", "dog", "cow"])
    cat, dog = found["classes"]
    assert (cat["name"], cat["objects"], cat["base"], cat["object"], cat["gain"]["mean"]) == ("cat", 7, 15, 30, 15)
    assert dog["gain"] == {"mean": -20, "ci95": [-20, -20]}
    page = write_classes(found, tmp_path).read_text()
    assert "AP of each class on the test images" in page and "| cat " in page and "cow" not in page
    assert "Confusions" not in page and "Calibration" not in page
    assert_picture(tmp_path / "figures" / "classes.png")
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["classes.png"]


# ---- scenes


def test_overlaps_by_hand():
    boxes = np.array([[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 6.0, 6.0]])
    np.testing.assert_allclose(overlaps(boxes, np.array([[1.0, 0.0, 3.0, 2.0]])), [[1 / 3], [0]])


def test_a_box_is_right_once_and_with_its_class():
    truth = {"boxes": [[0, 0, 10, 10], [20, 20, 30, 30]], "labels": [0, 1]}
    found = {"boxes": [[0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30], [20, 20, 30, 24]], "labels": [0, 0, 2, 1]}
    assert matched(found, truth) == [True, False, False, False]
    assert matched({"boxes": [], "labels": []}, truth) == []
    assert matched(found, {"boxes": [], "labels": []}) == [False] * 4


@pytest.mark.parametrize("count", [1, 3])
def test_a_page_of_scenes_of_many_sizes(tmp_path, count):
    draw = np.random.default_rng(0)
    sizes = [(96, 96), (900, 300), (60, 200)][:count]
    images = [Image.fromarray(draw.integers(256, size=(h, w, 3), dtype=np.uint8)) for w, h in sizes]
    truths = [{"boxes": [[5, 5, 40, 50]], "labels": [1]}, {"boxes": np.empty((0, 4)), "labels": []}]
    truths += [{"boxes": [[5, 5, 40, 50]] * 7, "labels": [0] * 7}]
    predictions = [
        {
            "boxes": np.tile([5.0, 5.0, 40.0, 50.0], (n, 1)),
            "scores": np.linspace(0.9, 0.1, n),
            "labels": np.ones(n, dtype=int),
            "aspect_logits": draw.normal(size=(n, 4)),
        }
        for n in (3, 0, 30)
    ]
    names = ["cat", "a dog whose name does not fit any line of this page at all $x"]
    aspects = ["red", "blue", "a very long aspect with $ signs", "d"]
    page = plot_scenes(images, truths[:count], predictions[:count], names, aspects, tmp_path / "scenes.png")
    assert_picture(page)
