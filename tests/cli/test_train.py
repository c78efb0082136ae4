"""`madkd train` of classifiers: what it leaves behind, and what it says when something is wrong."""

from __future__ import annotations

import importlib
import json

import pytest
import yaml
from builders.coco import coco_rows
from builders.commands import EASY_VQA, ROOT, command, recipe, refuse
from builders.easy_vqa import load_from_easy_vqa
from datasets import Dataset, DatasetDict, Image, load_from_disk
from transformers import AutoModelForImageClassification, pipeline

from madkd_hf import AspectBank


QUICK = ["--max_steps", "2", "--images_per_class", "2", "--eval_steps", "1", "--logging_steps", "1"]
QUICK += ["--limit", "130"]  # the first rows of a split that show each class at least twice


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
        rows, bank, _ = training.prepare(*given, ready)
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


def test_distill_labels_its_own_images_and_leaves_a_student_that_pipeline_loads(tmp_path, capsys):
    recipe("train_student", "--config", EASY_VQA / "distill.yaml", "--output_dir", tmp_path, *QUICK)
    assert f'pipeline("aspect-classification", "{tmp_path}", trust_remote_code=True)' in capsys.readouterr().out
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert {"eval_accuracy", "test_accuracy", "train_loss"} <= set(results)
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert model.config.num_labels == 24 and model.config.num_aspects == 11
    scores = pipeline("image-classification", str(tmp_path))(load_from_easy_vqa())
    assert scores[0]["label"] in model.config.id2label.values()


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
