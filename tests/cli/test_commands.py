"""The commands a user types: what they leave behind, and what they say when something is wrong."""

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

import numpy as np
import pytest
import yaml
from builders.coco import coco_rows
from builders.commands import EASY_VQA, ROOT, command, recipe, refuse
from datasets import Dataset, DatasetDict, Features, Image, List, Value, load_dataset, load_from_disk
from scipy.special import expit
from transformers import AutoModelForImageClassification, pipeline

from madkd_hf import AspectBank
from madkd_hf.cli import arguments as common
from madkd_hf.data.variants import control_answers


QUICK = ["--max_steps", "2", "--images_per_class", "2", "--eval_steps", "1", "--logging_steps", "1"]
QUICK += ["--limit", "130"]  # the first rows of a split that show each class at least twice


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    recipe("attach_aspects", "--config", EASY_VQA / "attach.yaml", "--output_dir", folder, "--limit", "30")
    return folder


def test_attach_leaves_a_dataset_that_load_from_disk_reads_and_its_bank(labelled):
    splits = load_from_disk(labelled)
    bank = AspectBank.load(labelled)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 30, "validation": 30, "test": 30}
    assert splits["train"].unique("aspect_bank") == [bank.fingerprint]
    assert splits["train"].features["aspect_logits"].length == len(bank) == 11
    assert splits["test"][0]["aspect_logits"] is None
    assert bank.provenance["model"] == "recipes/easy_vqa/teacher"


def test_attach_run_again_leaves_the_same(labelled):
    before = load_from_disk(labelled)["train"]["aspect_logits"][:]
    recipe("attach_aspects", "--config", EASY_VQA / "attach.yaml", "--output_dir", labelled, "--limit", "30")
    assert load_from_disk(labelled)["train"]["aspect_logits"][:] == before


def test_attach_as_a_stream_leaves_parquet_that_load_dataset_reads(labelled, tmp_path, capsys):
    argv = ["--output_dir", tmp_path / "out", "--limit", "30", "--shard_size", "8", "--streaming"]
    recipe("attach_aspects", "--config", EASY_VQA / "attach.yaml", *argv)
    splits = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    expected = load_from_disk(labelled)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 30, "validation": 30, "test": 30}
    for split in splits:
        assert splits[split].features == expected[split].features
        assert splits[split]["aspect_bank"][:] == expected[split]["aspect_bank"][:]
    answers = (np.array(each["train"]["aspect_logits"][:]) for each in (splits, expected))
    np.testing.assert_allclose(*answers, atol=1e-4)
    assert AspectBank.load(tmp_path / "out").provenance["model"] == "recipes/easy_vqa/teacher"
    capsys.readouterr()
    recipe("attach_aspects", "--config", EASY_VQA / "attach.yaml", *argv)
    assert "questions an image" not in capsys.readouterr().err


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_attach_skips_broken_images_and_says_which(tmp_path, capsys, streaming):
    folder = tmp_path / "images"
    for i in range(4):
        (folder / "one").mkdir(parents=True, exist_ok=True)
        load_from_easy_vqa().save(folder / "one" / f"{i}.png")
    (folder / "one" / "2.png").write_bytes(b"no image")
    argv = ["--dataset", folder, "--output_dir", tmp_path / "out", "--streaming", streaming]
    argv += ["--work_dir", tmp_path / "work"] if streaming == "false" else []
    said = refuse("attach_aspects", "--config", EASY_VQA / "attach.yaml", *argv)
    assert "one/2.png (" in said
    assert "(it is no image that Pillow can read): repair or remove them, or pass --on_error skip" in said
    recipe("attach_aspects", "--config", EASY_VQA / "attach.yaml", *argv, "--on_error", "skip")
    assert "Skipped 1 images of train that cannot be read: rows 2.\n" in capsys.readouterr().out


def test_the_recipes_for_coco_go_on_behind_boxes_without_area(tmp_path, capsys, caplog):
    DatasetDict(train=coco_rows(10, 2), val=coco_rows(3)).save_to_disk(tmp_path / "coco")
    argv = ["--teacher", EASY_VQA / "teacher", "--bank", EASY_VQA / "aspects.json"]
    attach = ["--config", ROOT / "recipes" / "coco" / "attach.yaml", "--dtype", "float32", *argv]
    attach += ["--dataset", tmp_path / "coco", "--output_dir", tmp_path / "labelled"]
    said = refuse("attach_aspects", *attach, "--on_error", "raise")
    assert "row 2 of split 'train' (object 1 has the box" in said and "pass --on_error skip" in said
    recipe("attach_aspects", *attach)
    printed = capsys.readouterr().out
    assert "Skipped 1 images of train that cannot be read, or a box in them: rows 2.\n" in printed
    assert "11 answers for each object of train" in printed
    answers = load_from_disk(tmp_path / "labelled")["train"]["aspect_logits"][:]
    assert [each and len(each) for each in answers] == [2, 2, None] + [2] * 7

    parse = importlib.import_module("madkd_hf.cli.train").parse
    training, seen = importlib.import_module("madkd_hf.cli.student"), []
    train = ["--config", ROOT / "recipes" / "coco" / "rtdetr_r18.yaml", "--detector", EASY_VQA / "detector", *argv]
    train += ["--pretrained", "false", "--output_dir", tmp_path / "out", "--validation_fraction", "0.2"]
    train += ["--max_steps", "1", "--warmup_steps", "0", "--dataloader_num_workers", "0", "--use_cpu"]
    train += ["--per_device_train_batch_size", "4"]
    for dataset, *more in ("labelled", "--bank", tmp_path / "labelled"), ("coco", "--aspect_alpha", "0"), ("coco",):
        given = parse([*map(str, [*train, "--dataset", tmp_path / dataset, *more])])
        ready = training.check(*given)
        rows, bank = training.prepare(*given, ready)
        seen.append([rows["image_id"][:], ready.splits["validation"]["image_id"][:]])
        assert (bank is None) == ("--aspect_alpha" in more)
    assert seen[0] == seen[1] == seen[2] and set(sum(seen[0], [])) == set(range(10)) - {2}
    assert "Left out 1 of the 10 images of split 'train': row 2 of split 'train' (object 1 has the box" in caplog.text
    recipe("train_detector", *train, "--dataset", tmp_path / "labelled", "--bank", tmp_path / "labelled")
    assert 0 <= json.loads((tmp_path / "out" / "all_results.json").read_text())["test_map"] <= 1
    said = refuse(
        "train_detector", *train, "--dataset", tmp_path / "coco", "--aspect_alpha", "0", "--on_error", "raise"
    )
    assert "1 of the 10 images of split 'train': row 2 of split 'train' (object 1 has the box" in said


def test_many_skipped_boxes_ask_whether_their_format_is_right(tmp_path, capsys):
    DatasetDict(train=coco_rows(4)).save_to_disk(tmp_path / "coco")
    argv = ["--config", EASY_VQA / "attach.yaml", "--dataset", tmp_path / "coco", "--output_dir", tmp_path / "out"]
    recipe("attach_aspects", *argv, "--boxes_column", "objects", "--on_error", "skip", "--box_format", "coco")
    assert "a box in them: rows 0, 1, 2, 3. So many: is --box_format coco right?" in capsys.readouterr().out


def test_broken_images_are_skipped_where_training_labels_them(tmp_path, caplog):
    splits = importlib.import_module("recipes.easy_vqa.data").load_easy_vqa()
    train = splits["train"].select(range(40)).cast_column("image", Image(decode=False)).to_list()
    train[7]["image"] = {"bytes": b"no", "path": None}
    rows = Dataset.from_list(train, features=splits["train"].features)
    DatasetDict(train=rows, validation=splits["validation"].select(range(8))).save_to_disk(tmp_path / "broken")
    argv = ["--config", EASY_VQA / "distill.yaml", "--dataset", tmp_path / "broken", "--output_dir", tmp_path / "out"]
    argv += ["--max_steps", "1", "--do_predict", "false", "--eval_steps", "1", "--warmup_steps", "0"]
    training = importlib.import_module("madkd_hf.cli.student")
    args, training_args = importlib.import_module("madkd_hf.cli.train").parse([*map(str, argv), "--on_error", "skip"])
    args.images_per_class = None
    trainer = training.train(args, training_args)
    assert len(trainer.train_dataset) == 39
    assert "Left out 1 of the 40 images of split 'train': row 7 of split 'train' (it is no image" in caplog.text
    args.on_error = "raise"
    with pytest.raises(
        ValueError, match="cannot be used: 1 of the 40 images of split 'train': row 7 of .*on_error skip"
    ):
        training.train(args, training_args)


def test_attach_keeps_one_dataset_in_one_folder(labelled, tmp_path):
    config = ["--config", EASY_VQA / "attach.yaml", "--limit", "4"]
    said = refuse("attach_aspects", *config, "--output_dir", labelled, "--streaming")
    assert "holds a dataset that was labelled without --streaming: pass another folder" in said
    recipe("attach_aspects", *config, "--output_dir", tmp_path, "--streaming")
    said = refuse("attach_aspects", *config, "--output_dir", tmp_path)
    assert "holds a dataset that was labelled with --streaming: pass another folder" in said


def test_a_save_that_is_stopped_leaves_the_old_dataset_or_none(tmp_path, monkeypatch):
    attach_aspects, replace = importlib.import_module("madkd_hf.cli.label"), os.replace
    make = lambda value: DatasetDict({name: Dataset.from_dict({"a": [value]}) for name in "xy"})  # noqa: E731
    bank = AspectBank.load(EASY_VQA / "aspects.json")
    attach_aspects.save(make(1), bank, tmp_path)
    for moves in range(7):  # of two lists of checksums, x, y and the index
        left = iter(range(moves))

        def stop(*paths, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            replace(*paths)

        monkeypatch.setattr(os, "replace", stop)
        try:
            attach_aspects.save(make(2), bank, tmp_path)
        except KeyboardInterrupt:
            complete = moves in (0, 1, 5)  # the old dataset, or all but the bank of the new one
            assert (tmp_path / "dataset_dict.json").exists() == complete
            assert not (tmp_path / "aspects.json").exists()
        monkeypatch.setattr(os, "replace", replace)
    assert [load_from_disk(tmp_path)[name]["a"][:] for name in "xy"] == [[2], [2]]
    assert not (tmp_path / ".partial").exists()
    monkeypatch.setattr(DatasetDict, "save_to_disk", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attach_aspects.save(make(3), bank, tmp_path)
    assert load_from_disk(tmp_path)["x"]["a"][:] == [2]


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_attach_without_a_single_answer_ends_normally(tmp_path, capsys, streaming):
    argv = ["--config", EASY_VQA / "attach.yaml", "--output_dir", tmp_path, "--limit", "0"]
    recipe("attach_aspects", *argv, "--streaming", streaming)
    assert "No image of train has answers, so nothing can be said" in capsys.readouterr().out
    assert AspectBank.load(tmp_path)


def test_answers_of_a_stream_are_those_of_the_split_alone(tmp_path):
    attach_aspects = importlib.import_module("madkd_hf.cli.label")
    (tmp_path / "data").mkdir()
    for value, name in enumerate(["train-00000", "train-00001", "train-extra-00000", "train2-00000"]):
        Dataset.from_dict({"aspect_bank": [str(value)]}).to_parquet(tmp_path / "data" / f"{name}.parquet")
    stream = {"train": Dataset.from_dict({"aspect_bank": ["0"]}).to_iterable_dataset()}
    args = attach_aspects.LabelArguments(output_dir=str(tmp_path))
    assert attach_aspects.answers(args, stream, "train")["aspect_bank"][:] == ["0", "1"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--output_dir", "README.md"], "README.md is a file, no folder for the output"),
        (["--output_dir", "README.md/out"], "README.md is a file, no folder for the output"),
        (["--device", "cuda:7"], "There is no device 'cuda:7' here"),
        (["--device", "nowhere"], "There is no device 'nowhere' here"),
        (["--device_map", '{"": "cuda:7"}'], "There is no device 'cuda:7' here"),
    ],
)
def test_attach_refuses_places_and_devices_before_it_reads_anything(tmp_path, argv, expected):
    argv = ["--output_dir", tmp_path / "out", *argv]
    said = refuse("attach_aspects", "--config", EASY_VQA / "attach.yaml", *argv)
    assert said.startswith("error: ") and expected in said and "\n" not in said
    assert not (tmp_path / "out").exists()


def test_a_dataset_with_a_broken_file_is_told_in_one_sentence(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.parquet").write_bytes(b"PAR1 and no more PAR1")
    argv = ["--dataset", tmp_path / "source", "--output_dir", tmp_path / "out"]
    said = refuse("attach_aspects", "--config", EASY_VQA / "attach.yaml", *argv)
    assert "Cannot read the dataset" in said and "\n" not in said


def test_loading_options_reach_the_teacher(tmp_path, monkeypatch):
    taken = {}
    stop = ValueError("enough")

    def from_pretrained(name, **options):
        taken.update(options)
        raise stop

    monkeypatch.setattr("madkd_hf.AspectTeacher.from_pretrained", from_pretrained)
    config = yaml.safe_load((EASY_VQA / "attach.yaml").read_text())
    config |= {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}, "teacher_revision": "v1"}
    (tmp_path / "attach.yaml").write_text(yaml.safe_dump(config))
    argv = ["--config", tmp_path / "attach.yaml", "--output_dir", tmp_path / "out"]
    assert "enough" in refuse("attach_aspects", *argv, "--attn_implementation", "eager", "--device_map", "auto")
    assert taken["quantization_config"] == {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert (taken["attn_implementation"], taken["device_map"], taken["revision"]) == ("eager", "auto", "v1")
    assert not taken.get("trust_remote_code")
    refuse("attach_aspects", *argv, "--device_map", '{"": "cpu"}', "--quantization_config", '{"load_in_8bit": true}')
    assert taken["device_map"] == {"": "cpu"} and taken["quantization_config"] == {"load_in_8bit": True}
    assert "is no JSON" in refuse("attach_aspects", *argv, "--quantization_config", "4bit")
    assert "expected a mapping" in refuse("attach_aspects", *argv, "--quantization_config", "4")


def test_distill_labels_its_own_images_and_leaves_a_student_that_pipeline_loads(tmp_path, capsys):
    recipe("train_student", "--config", EASY_VQA / "distill.yaml", "--output_dir", tmp_path, *QUICK)
    assert f'pipeline("aspect-classification", "{tmp_path}", trust_remote_code=True)' in capsys.readouterr().out
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert {"eval_accuracy", "test_accuracy", "train_loss"} <= set(results)
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert model.config.num_labels == 24 and model.config.num_aspects == 11
    scores = pipeline("image-classification", str(tmp_path))(load_from_easy_vqa())
    assert scores[0]["label"] in model.config.id2label.values()


def load_from_easy_vqa():
    from recipes.easy_vqa.data import load_easy_vqa

    return load_easy_vqa()["test"][0]["image"]


def test_train_takes_bank_and_answers_from_a_labelled_folder(labelled, tmp_path):
    argv = ["--dataset", labelled, "--output_dir", tmp_path, "--images_per_class", "2", "--max_steps", "1"]
    said = refuse("train_student", "--config", EASY_VQA / "baseline.yaml", "--aspect_alpha", "4", *argv)
    assert "has 1 image" in said  # 30 rows do not show all 24 classes twice
    config = yaml.safe_load((EASY_VQA / "baseline.yaml").read_text())
    del config["images_per_class"]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(config))
    argv = ["--dataset", labelled, "--output_dir", tmp_path, "--aspect_alpha", "4", "--max_steps", "1"]
    recipe("train_student", "--config", tmp_path / "all.yaml", *argv)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["aspect_bank"] == AspectBank.load(labelled).fingerprint


def test_a_run_is_resumed_from_its_last_checkpoint(tmp_path):
    argv = ["--config", EASY_VQA / "baseline.yaml", "--output_dir", tmp_path, *QUICK, "--save_strategy", "steps"]
    recipe("train_student", *argv, "--save_steps", "1")
    before = json.loads((tmp_path / "all_results.json").read_text())
    recipe("train_student", *argv, "--save_steps", "1", "--resume_from_checkpoint", tmp_path / "checkpoint-1")
    after = json.loads((tmp_path / "all_results.json").read_text())
    assert after["test_loss"] == pytest.approx(before["test_loss"], rel=1e-5)
    recipe("train_student", *argv, "--save_steps", "1", "--resume_from_checkpoint", "true")
    assert json.loads((tmp_path / "all_results.json").read_text())["test_loss"] == pytest.approx(before["test_loss"])


def test_columns_without_answers_are_no_labels(labelled, tmp_path):
    argv = [
        "--dataset",
        labelled,
        "--output_dir",
        tmp_path / "output",
        "--aspect_alpha",
        "4",
        "--train_split",
        "test",
    ]
    config = yaml.safe_load((EASY_VQA / "baseline.yaml").read_text()) | {"images_per_class": None}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(config))
    said = refuse("train_student", "--config", tmp_path / "all.yaml", *argv)
    assert "The split 'test' has aspect columns and no answers in them" in said


def test_train_runs_under_accelerate_launch(tmp_path):
    launch = ["-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/cpu_2proc.yaml"]
    launch += ["recipes/train_student.py"]
    done = command(*launch, "--config", EASY_VQA / "baseline.yaml", "--output_dir", tmp_path, *QUICK)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "all_results.json").read_text())
    assert "test_accuracy" in found
    assert found["epoch"] == 2  # 2 steps of 2 times 24 rows, of 48
    assert done.stdout.count("The student is in") == 1


def quick_comparison(tmp_path: Path) -> None:
    """Write the YAML of one that takes seconds."""
    config = yaml.safe_load((EASY_VQA / "compare.yaml").read_text()) | {
        "seeds": 2,
        "limit": 90,  # the first that show each class
        "images_per_class": 1,
        "output_dir": str(tmp_path / "run"),
    }
    for name in ("baseline", "distill"):
        quick = yaml.safe_load((EASY_VQA / f"{name}.yaml").read_text())
        quick |= {"max_steps": 2, "eval_steps": 1, "logging_steps": 1}
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
    comparisons = ("labels", "small_compare", "gpu_compare", "unlabelled_compare")
    arguments |= dict.fromkeys(comparisons, [compare.CompareArguments])
    arguments["small_tune"] = [tune.TuneArguments]
    arguments |= {"detect_compare": [compare.CompareArguments, compare.TaskArguments]}
    arguments |= {"questions_curve": [questions_curve.CurveArguments], "tune": [tune.TuneArguments]}
    arguments |= {"select": [choose.ChooseArguments]}
    files = sorted(set(ROOT.glob("recipes/*/*.yaml")) - set(ROOT.glob("recipes/accelerate/*")))
    assert files
    for path in files:
        argv = ["--config", str(path), "--output_dir", "unused"]
        if types := arguments.get(path.stem):
            common.CommandParser(*types, description="").parse(argv)
        else:
            train.parse(argv)
