"""`madkd label`: what it leaves behind, and what it says when something is wrong."""

from __future__ import annotations

import importlib
import os

import numpy as np
import pytest
import yaml
from builders.coco import coco_rows
from builders.commands import EASY_VQA, recipe, refuse
from builders.easy_vqa import load_from_easy_vqa
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from madkd_hf import AspectBank


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


def test_many_skipped_boxes_ask_whether_their_format_is_right(tmp_path, capsys):
    DatasetDict(train=coco_rows(4)).save_to_disk(tmp_path / "coco")
    argv = ["--config", EASY_VQA / "attach.yaml", "--dataset", tmp_path / "coco", "--output_dir", tmp_path / "out"]
    recipe("attach_aspects", *argv, "--boxes_column", "objects", "--on_error", "skip", "--box_format", "coco")
    assert "a box in them: rows 0, 1, 2, 3. So many: is --box_format coco right?" in capsys.readouterr().out


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
    refuse("attach_aspects", *argv, "--images_kwargs", '{"max_patches": 1}')
    assert taken["images_kwargs"] == {"max_patches": 1}
    refuse("attach_aspects", *argv, "--device_map", '{"": "cpu"}', "--quantization_config", '{"load_in_8bit": true}')
    assert taken["device_map"] == {"": "cpu"} and taken["quantization_config"] == {"load_in_8bit": True}
    assert "is no JSON" in refuse("attach_aspects", *argv, "--quantization_config", "4bit")
    assert "expected a mapping" in refuse("attach_aspects", *argv, "--quantization_config", "4")
