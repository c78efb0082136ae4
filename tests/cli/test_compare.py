"""`madkd compare`: what it plans, trains, keeps, reports and publishes."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from builders.commands import EASY_VQA, ROOT, command
from datasets import Dataset, DatasetDict
from transformers import AutoModelForImageClassification

from madkd_hf import AspectBank


def quick_comparison(tmp_path: Path) -> None:
    """Write the YAML of one that takes seconds."""
    config = yaml.safe_load((EASY_VQA / "compare.yaml").read_text()) | {
        "seeds": 2,
        "limit": 90,  # the first that show each class
        "images_per_class": 1,
        "grid": {"max_steps": [2]},  # in place of the recipe's
        "output_dir": str(tmp_path / "run"),
    }
    for name in ("baseline", "distill"):
        quick = yaml.safe_load((EASY_VQA / f"{name}.yaml").read_text())
        quick |= {"max_steps": 2 if name == "distill" else 3, "eval_steps": 1, "logging_steps": 1}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(quick))
        config[name] = str(tmp_path / f"{name}.yaml")
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(config))


def test_compare_reports_every_condition_keeps_finished_students_and_publishes(hub, tmp_path):
    quick_comparison(tmp_path)
    done = command("recipes/compare.py", "--config", tmp_path / "compare.yaml")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    report = json.loads((run / "report.json").read_text())
    assert {name: len(values) for name, values in report["accuracy"].items()} == dict.fromkeys(
        ("base", "madkd", "shuffled", "constant"), 2
    )
    low, high = report["gain"]["ci95"]
    assert low <= report["gain"]["mean"] <= high
    assert set(report["seconds"]) == {"label", "train", "report"}
    assert report["teacher"]["model"] == "recipes/easy_vqa/teacher"
    assert report["answers_alone"]["fitted"] == [24, 24]  # one image of each class
    for text in (done.stdout, (run / "report.md").read_text()):
        assert "% on 156 other answered images (validation images and training images that were not drawn)" in text
    assert "with max_steps 2 (each that knows the option)" in (run / "report.md").read_text()
    assert "| madkd: classes + aspects" in done.stdout and (run / "report.md").is_file()
    assert len(list((run / "figures").glob("*.png"))) == 8
    page = (run / "classes.md").read_text()
    assert "| red circle" in page and "Expected calibration error" in page and "Expected calibration" in done.stdout
    AutoModelForImageClassification.from_pretrained(run / "student")

    kept = (run / "cells" / "base-0" / "cell.json").stat().st_mtime_ns
    argv = [
        "recipes/compare.py",
        "--config",
        tmp_path / "compare.yaml",
        "--push_to_hub",
        "--hub_model_id",
        "you/shapes",
    ]
    done = command(*argv, hub=hub)
    assert done.returncode == 0, done.stderr
    assert f"Published: {hub.url}/you/shapes\n" in done.stdout
    assert (run / "cells" / "base-0" / "cell.json").stat().st_mtime_ns == kept
    assert json.loads((run / "report.json").read_text())["accuracy"] == report["accuracy"]

    files = hub.files("you/shapes")
    assert files["model.safetensors"] == (run / "student" / "model.safetensors").read_bytes()
    assert {name for name in files if name.startswith("figures/")} == {
        "figures/accuracies.png",
        "figures/aspect_learning.png",
        "figures/learning_curves.png",
    }
    card = files["README.md"].decode()
    rows = [
        line
        for line in (run / "report.md").read_text().splitlines()
        if re.match(r"\| (base|madkd|shuffled|const)", line)
    ]
    assert len(rows) == 4 and all(row in card for row in rows)
    assert hub.token.encode() not in hub.received + (run / "report.json").read_bytes()


@pytest.mark.slow
def test_compare_reports_a_grid(tmp_path):
    quick_comparison(tmp_path)
    grid = ["--grid", '{"aspects": [2, 11]}', "--conditions", "base", "madkd", "--seeds", "1"]
    done = command("recipes/compare.py", "--config", tmp_path / "compare.yaml", *grid)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    points = json.loads((run / "report.json").read_text())["points"]
    assert [each["point"] for each in points] == [{"aspects": 2}, {"aspects": 11}]
    assert points[0]["accuracy"]["base"] == points[1]["accuracy"]["base"]
    alone = [each["answers_alone"] for each in points]
    assert [each["fitted"] for each in alone] == [[24], [24]] and alone[0]["accuracy"] < alone[1]["accuracy"]
    assert (run / "figures" / "against_aspects.png").is_file() and " 2 | madkd" in (run / "report.md").read_text()


def planned(folder, **settings) -> dict[str, str]:
    """The command line of each student, by its name."""
    conditions = importlib.import_module("madkd_hf.cli.comparison.conditions")
    args = conditions.CompareArguments(output_dir=str(folder), baseline="a.yaml", distill="b.yaml", **settings)
    bank = AspectBank.load(EASY_VQA / "aspects.json")
    columns = {"label": [0], "aspect_logits": [[0.0] * len(bank)], "aspect_mass": [[1.0] * len(bank)]}
    labelled = DatasetDict({"train": Dataset.from_dict({**columns, "aspect_bank": [bank.fingerprint]})})
    cells = [
        plan for point in conditions.points(args) for plan in conditions.plan(args, point, labelled, bank).values()
    ]
    return {cell.name: " ".join(cell.argv) for cell in cells}


def test_base_is_plain_and_tested_whatever_its_yaml_says(tmp_path):
    argv = planned(tmp_path)
    assert len(argv) == 20
    assert "--config a.yaml" in argv["base-0"] and "--aspect_alpha 0" in argv["base-0"]
    assert "--config b.yaml" in argv["madkd-0"] and "--aspect_alpha" not in argv["madkd-0"]
    assert all("--do_predict true" in line for line in argv.values())


def test_options_with_one_value_hold_for_all_students_that_know_them(tmp_path):
    plain = planned(tmp_path, seeds=1)
    argv = planned(tmp_path, seeds=1, grid='{"max_steps": [5], "aspect_alpha": [3]}')
    assert argv.keys() == plain.keys()
    for name, line in argv.items():
        more = "--max_steps=5" if name == "base-0" else "--max_steps=5 --aspect_alpha=3"
        assert line == f"{plain[name]} {more}"


@pytest.mark.parametrize("option", ["images_per_class", "aspects", "unlabelled_images"])
def test_an_option_that_decides_what_students_see_remains_a_grid(tmp_path, option):
    argv = planned(tmp_path, seeds=1, conditions=["madkd"], grid=f'{{"{option}": [3], "max_steps": [5]}}')
    (name,) = argv
    assert name.endswith("-max_steps_5-0")


def test_students_with_smoothed_labels_are_the_base_ones_but_for_the_labels(tmp_path):
    assert not any("smoothing" in line for line in planned(tmp_path).values())  # only on request
    argv = planned(tmp_path, conditions=["base", "smoothing"], seeds=1, smoothing=0.2)
    expected = argv["base-0"].replace("/base-0", "/smoothing-0").split()
    smoothed = argv["smoothing-0"].split()
    place = smoothed.index("--label_smoothing_factor")
    assert smoothed[place + 1] == "0.2" and smoothed[:place] + smoothed[place + 2 :] == expected
    grid = json.dumps({"aspect_alpha": [1, 40], "aspects": [3, 11], "label_smoothing_factor": [0, 0.5]})
    argv = planned(tmp_path, grid=grid, seeds=1, conditions=["base", "smoothing"])
    assert set(argv) == {"base-label_smoothing_factor_0-0", "base-label_smoothing_factor_0.5-0", "smoothing-0"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"smoothing": 0.0}, "--smoothing must be above 0 and at most 1, mostly 0.1; received 0"),
        ({"smoothing": 1.5}, "received 1.5"),
        ({"smoothing": 0.3}, "base students have label_smoothing_factor 0.3 already"),
        ({"smoothing": 0.1, "grid": '{"label_smoothing_factor": [0, 0.1]}'}, "label_smoothing_factor 0.1 already"),
    ],
)
def test_smoothing_that_is_no_control_is_refused(tmp_path, settings, expected):
    conditions = importlib.import_module("madkd_hf.cli.comparison.conditions")
    (tmp_path / "base.yaml").write_text(f"backbone: {EASY_VQA}/student\nlabel_smoothing_factor: 0.3\nreport_to: none")
    named = {"output_dir": str(tmp_path / "out"), "baseline": str(tmp_path / "base.yaml")}
    args = conditions.CompareArguments(**named, conditions=["base", "smoothing"], dataset="photos", **settings)
    with pytest.raises(ValueError, match=expected):
        conditions.check(args)


@pytest.mark.slow
def test_compare_reports_smoothed_labels_as_a_further_control(tmp_path):
    quick_comparison(tmp_path)
    argv = ["--conditions", "base", "madkd", "shuffled", "smoothing", "--smoothing", "0.2"]
    done = command("recipes/compare.py", "--config", tmp_path / "compare.yaml", *argv)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    report, page = json.loads((run / "report.json").read_text()), (run / "report.md").read_text()
    assert len(report["accuracy"]["smoothing"]) == 2 and report["roles"]["smoothing"] == "control"
    assert report["smoothing"] == 0.2 and "the labels of `smoothing` smoothed by 0.2" in page
    assert "| smoothing: classes only, labels smoothed" in done.stdout and "Over label smoothing, in" in done.stdout
    assert "A real gain lifts `madkd`, and neither control." in page and "Over label smoothing, in points" in page


def test_a_grid_trains_every_condition_at_every_point_and_a_plain_student_once(tmp_path):
    grid = json.dumps({"images_per_class": [5, 10], "aspect_alpha": [1, 40], "aspects": [3, 11]})
    argv = planned(tmp_path, grid=grid, seeds=2, conditions=["base", "madkd"], images_per_class=7)
    assert len(argv) == 2 * 2 + 2 * 8
    base = argv["base-images_per_class_5-1"]
    assert base.endswith("--images_per_class=5") and "--aspect_alpha=" not in base and "/sets/" not in base
    few = argv["madkd-images_per_class_10-aspect_alpha_40-aspects_3-0"]
    assert few.endswith("--images_per_class=10 --aspect_alpha=40")
    (place,) = {few.split(option)[-1].split()[0] for option in ("--dataset ", "--bank ")}
    assert AspectBank.load(place).ids == AspectBank.load(EASY_VQA / "aspects.json").ids[:3]
    assert "/sets/" not in argv["madkd-images_per_class_10-aspect_alpha_40-aspects_11-0"]


@pytest.mark.parametrize("values", ["5", "[]"])
def test_a_grid_needs_values(tmp_path, values):
    with pytest.raises(ValueError, match="option 'aspects' of grid needs a list of numbers or words; got"):
        planned(tmp_path, grid=f'{{"aspects": {values}}}')


def test_a_failed_student_leaves_its_reason_in_its_log(tmp_path):
    cells = importlib.import_module("madkd_hf.cli.comparison.cells")
    argv = ("--config", str(EASY_VQA / "baseline.yaml"), "--dataset", str(tmp_path / "nowhere"))
    argv += ("--output_dir", str(tmp_path / "one"))
    with pytest.raises(ValueError, match="nowhere"):
        cells.train_cell(cells.Cell("one", argv, str(tmp_path / "one")))
    assert "Traceback" in (tmp_path / "one" / "log.txt").read_text()


def test_a_cell_is_another_one_when_its_backbone_changes(tmp_path):
    cells = importlib.import_module("madkd_hf.cli.comparison.cells")
    shutil.copytree(EASY_VQA / "student", tmp_path / "student")
    argv = ("--config", str(EASY_VQA / "baseline.yaml"), "--backbone", str(tmp_path / "student"))
    cell = cells.Cell("one", argv, str(tmp_path))
    before = cell.decides
    assert before == cell.decides
    config = tmp_path / "student" / "preprocessor_config.json"
    config.write_text(config.read_text().replace("48", "32"))
    assert before != cell.decides


@pytest.mark.slow
def test_interrupting_stops_all_workers_and_says_so(tmp_path):
    argv = ["recipes/compare.py", "--config", EASY_VQA / "compare.yaml", "--output_dir", tmp_path, "--limit", "130"]
    with subprocess.Popen(
        [sys.executable, *map(str, argv), "--images_per_class", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by what a shell runs with "&"
    ) as process:
        for _ in range(2400):
            if any(tmp_path.glob("cells/*/log.txt")) or process.poll() is not None:
                break
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "\ninterrupted" in said and "Traceback" not in said, said[-2000:]
    assert not list(tmp_path.glob("cells/*/cell.json"))
