"""Detectors compared: the conditions, the report in AP, and the page of scenes."""

import importlib
import json

import numpy as np
import pytest
import yaml
from PIL import Image
from test_recipes import EASY_VQA, command, refuse
from test_report import assert_picture
from test_train_detector import make_scenes
from transformers import AutoModelForObjectDetection

from madkd_hf import AspectBank, report
from madkd_hf.report import figures
from madkd_hf.report.scenes import matched, overlaps, plot_scenes


CONDITIONS = ["base", "image", "object", "shuffled", "constant"]
AP = {"base": [10.0, 12.0], "image": [11.0, 12.0], "object": [15.0, 17.5], "shuffled": [9.0, 12.0]}
CELLS = [
    {"condition": name, "seed": seed, "map": value, "curve": [[1, 1.0], [2, value]]}
    for name, values in AP.items()
    for seed, value in enumerate(values)
]


def test_compare_reports_detectors_and_keeps_those_that_are_finished(tmp_path):
    make_scenes().save_to_disk(tmp_path / "scenes")
    quick = {"max_steps": 2, "eval_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 3}
    config = yaml.safe_load((EASY_VQA / "detect_compare.yaml").read_text()) | {
        "dataset": str(tmp_path / "scenes"),
        "output_dir": str(tmp_path / "run"),
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
    assert set(found["controls"]) == {"image", "shuffled", "constant"} and len(found["gain"]["ci95"]) == 2
    assert found["scenes"] == 6 and found["classes"] == 3
    assert set(found["aspects_learnt"]) == set(CONDITIONS) - {"base"}
    page = (run / "report.md").read_text()
    assert "| object: boxes + aspects of each object" in page and "AP, points" in page and "6 labelled images" in page
    assert "ccurac" not in page.split("## Time")[0]
    for name in ("ap.png", "learning_curves.png", "questions.png", "scenes.png", "teacher.png"):
        assert f"(figures/{name})" in page
        assert_picture(run / "figures" / name)
    assert AutoModelForObjectDetection.from_pretrained(run / "student").config.aspect_level == "object"
    levels = [json.loads((run / "cells" / f"{name}-1" / "config.json").read_text()) for name in CONDITIONS]
    assert [(each["aspect_level"], len(each["aspect_ids"])) for each in levels] == [
        ("object", 0),
        ("image", 11),
        *[("object", 11)] * 3,
    ]
    kept = {path: path.stat().st_mtime_ns for path in run.glob("cells/*/cell.json")}
    done = command("recipes/compare.py", "--config", tmp_path / "compare.yaml")
    assert done.returncode == 0, done.stderr
    assert len(kept) == 10 and {path: path.stat().st_mtime_ns for path in run.glob("cells/*/cell.json")} == kept
    assert json.loads((run / "report.json").read_text())["map"] == found["map"]


def test_each_student_has_the_answers_of_its_level(tmp_path):
    conditions = importlib.import_module("conditions")
    args = conditions.CompareArguments(output_dir=str(tmp_path), baseline="a.yaml", distill="b.yaml", seeds=1)
    args.objects = conditions.TaskArguments(task="detection", scenes=7, box_format="yolo", category_field="label")
    bank = AspectBank.load(EASY_VQA / "aspects.json")
    cells = {name: cell for (name, _), cell in conditions.plan(args, {}, None, bank).items()}
    assert list(cells) == CONDITIONS
    assert {(cell.script, cell.metric, cell.score) for cell in cells.values()} == {
        ("train_detector", "test_map", "map")
    }
    words = {name: " ".join(cell.words) for name, cell in cells.items()}
    assert "--config a.yaml" in words["base"] and "--aspect_alpha 0" in words["base"]
    assert "labelled_images --bank" in words["image"] and "--aspect_level image" in words["image"]
    assert "labelled_images" not in words["object"] and "--aspect_level object" in words["object"]
    assert "--aspect_control shuffled" in words["shuffled"] and "--aspect_control constant" in words["constant"]
    for line in words.values():
        assert "--scenes 7" in line and "--box_format yolo" in line and "--boxes_column objects" in line
        assert "--category_field category" in line  # as the labelled dataset has it
        assert "label_column" not in line and "images_per_class" not in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--images_per_class", "5"], "images_per_class is for task: classification, and this is detection"),
        (["--label_column", "category"], "label_column is for task: classification"),
        (["--grid", '{"scenes": [5, 10]}'], "grid is for task: classification"),
        (["--push_to_hub"], "publish one with this comparison in its card by train_detector.py --push_to_hub"),
        (["--task", "classification"], "box_margin is for task: detection, and this is classification"),
        (["--task", "detecting"], "invalid choice: 'detecting'"),
        (["--conditions", "base", "madkd"], "Unknown condition 'madkd': expected some of ['base', 'image'"),
        (["--boxes_colum", "objects"], "did you mean 'boxes_column'?"),
    ],
)
def test_a_setting_that_says_nothing_about_the_task_is_refused(tmp_path, words, expected):
    make_scenes().save_to_disk(tmp_path / "scenes")
    base = ["--config", EASY_VQA / "detect_compare.yaml", "--dataset", tmp_path / "scenes"]
    said = refuse("compare", *base, "--output_dir", tmp_path / "run", *words)
    assert said.startswith("error: ") and expected in said and "\n" not in said
    assert not (tmp_path / "run").exists()


# ---- the report


def test_the_report_speaks_of_ap_and_the_gain_is_that_of_aspects_of_objects(tmp_path):
    summary = report.summarise(CELLS, "detection")
    assert summary["map"] == AP and summary["gain"] == report.paired_gain(AP["object"], AP["base"])
    assert list(summary["controls"]) == ["image", "shuffled"]
    text = report.table(summary)
    assert " AP, points |" in text and "+5.25 [" in text and "| image: boxes + aspects of the image" in text
    page = report.write_report({**summary, "dataset": "shapes", "scenes": 50}, tmp_path).read_text()
    assert "points of AP (95% interval" in page or "of the aspects: +5.25 points" in page
    assert "on shapes with 50 labelled images each. AP (COCO: mean over IoU 0.5 to 0.95) is on the test images" in page
    with pytest.raises(ValueError, match="Unknown condition 'object': expected one of base, madkd"):
        report.summarise([cell for cell in CELLS if cell["condition"] == "object"])


def test_pictures_of_detectors(tmp_path):
    assert_picture(figures.plot_accuracies(report.summarise(CELLS, "detection"), tmp_path / "ap.png"))
    assert_picture(figures.plot_learning_curves(CELLS, tmp_path / "curves.png", "detection"))


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
