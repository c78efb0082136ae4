"""The command that trains a detector: what it leaves behind, and what it says when something is wrong."""

import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from builders.commands import command, recipe, refuse
from builders.scenes import COLOURS, make_scenes, scene
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from scipy.special import expit
from transformers import AutoModelForObjectDetection, pipeline

from madkd_hf import AspectBank, report
from madkd_hf.cli import arguments as common
from madkd_hf.cli import preflight
from madkd_hf.cli.tasks import base as saved
from madkd_hf.data.columns import aspect_features
from madkd_hf.data.objects import as_columns
from madkd_hf.data.problems import Problems
from madkd_hf.data.variants import control_answers
from madkd_hf.report import figures


ROOT = Path(__file__).parents[2]
EASY_VQA = ROOT / "recipes" / "easy_vqa"
QUICK = ["--max_steps", "2", "--eval_steps", "1", "--logging_steps", "1", "--scenes", "6"]
QUICK += ["--per_device_train_batch_size", "3"]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    make_scenes().save_to_disk(folder)
    return folder


def labelled(folder: Path, by_object: bool) -> Path:
    """The scenes with answers that know the colour, as attach_aspects.py leaves them."""
    bank = AspectBank.load(EASY_VQA / "aspects.json")

    def answer(names: list[str]) -> list[float]:
        return [3.0 if each in names else -3.0 for each in bank.ids]

    splits = {}
    for split, rows in make_scenes().items():
        names = [[list(COLOURS)[k] for k in objects["category"]] for objects in rows["objects"]]
        answers = [[answer([name]) for name in each] if by_object else answer(each) for each in names]
        columns = {"aspect_logits": answers, "aspect_mass": answers, "aspect_bank": [bank.fingerprint] * len(rows)}
        for name, feature in aspect_features(bank, by_object).items():
            rows = rows.add_column(name, columns[name], feature=feature)
        splits[split] = rows
    DatasetDict(splits).save_to_disk(folder)
    bank.save(folder)
    return folder


def results(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


def test_a_detector_labels_its_own_objects_and_leaves_a_student_that_pipeline_loads(scenes, tmp_path, capsys):
    argv = ["--config", EASY_VQA / "detect.yaml", "--dataset", scenes, "--output_dir", tmp_path, *QUICK]
    recipe("train_detector", *argv)
    assert f'pipeline("aspect-detection", "{tmp_path}", trust_remote_code=True)' in capsys.readouterr().out
    assert {"eval_map", "test_map", "train_loss"} <= set(results(tmp_path))
    model = AutoModelForObjectDetection.from_pretrained(tmp_path)
    assert list(model.config.id2label.values()) == list(COLOURS) and model.config.num_aspects == 11
    assert model.config.aspect_level == "object"
    found = pipeline("object-detection", str(tmp_path), threshold=0.0)(scene(1)["image"])
    assert found[0]["label"] in COLOURS
    train_detector = importlib.import_module("madkd_hf.cli.tasks.detection")
    predictions = train_detector.load_predictions(tmp_path / "test_predictions.npz")
    assert len(predictions) == 6
    assert all(each["boxes"].shape == (len(each["scores"]), 4) for each in predictions)
    assert all(each["aspect_logits"].shape == (len(each["labels"]), 11) for each in predictions)


@pytest.mark.parametrize("control", ["none", "shuffled"])
def test_answers_about_images_come_with_the_dataset(tmp_path, control):
    argv = ["--dataset", labelled(tmp_path / "labelled", by_object=False), "--bank", tmp_path / "labelled"]
    argv += ["--aspect_level", "image", "--aspect_control", control, "--output_dir", tmp_path / "out", *QUICK]
    recipe("train_detector", "--config", EASY_VQA / "detect.yaml", *argv)
    assert 0 <= results(tmp_path / "out")["eval_aspect_auroc"] <= 1
    assert AutoModelForObjectDetection.from_pretrained(tmp_path / "out").config.aspect_level == "image"


def test_a_run_is_resumed_from_its_last_checkpoint(scenes, tmp_path):
    argv = ["--config", EASY_VQA / "detect_baseline.yaml", "--dataset", scenes, "--output_dir", tmp_path, *QUICK]
    argv += ["--save_strategy", "steps", "--save_steps", "1"]
    recipe("train_detector", *argv)
    before = results(tmp_path)
    recipe("train_detector", *argv, "--resume_from_checkpoint", tmp_path / "checkpoint-1")
    assert results(tmp_path)["test_loss"] == pytest.approx(before["test_loss"], rel=1e-4)


def test_a_detector_is_published_with_its_aspects(hub, tmp_path, capsys):
    argv = ["--dataset", labelled(tmp_path / "labelled", by_object=True), "--bank", tmp_path / "labelled"]
    argv += ["--config", EASY_VQA / "detect.yaml", "--output_dir", tmp_path / "out", *QUICK]
    recipe("train_detector", *argv, "--push_to_hub", "--hub_model_id", "you/finder")
    assert f"Published: {hub.url}/you/finder\n" in capsys.readouterr().out
    files = hub.files("you/finder")
    assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert "pipeline_tag: object-detection" in files["README.md"].decode()
    assert not (tmp_path / "out" / "unpublished").exists()


def test_a_published_detector_tells_the_comparison(hub, tmp_path):
    argv = ["--dataset", labelled(tmp_path / "labelled", by_object=True), "--bank", tmp_path / "labelled"]
    bank = AspectBank.load(tmp_path / "labelled").fingerprint
    names = ["base", "object", "shuffled"]
    cells = [{"condition": name, "seed": s, "map": 30.0 + i * s} for i, name in enumerate(names) for s in (0, 1)]
    summary = report.summarise(cells, "detection") | {"dataset": "scenes", "bank": bank, "scenes": 6}
    report.write_report(summary, tmp_path / "run")
    figures.plot_accuracies(summary, tmp_path / "run" / "figures" / "ap.png")
    argv += ["--config", EASY_VQA / "detect.yaml", "--output_dir", tmp_path / "out", *QUICK]
    argv += ["--push_to_hub", "--hub_model_id", "you/finder"]
    recipe("train_detector", *argv, "--comparison", tmp_path / "run")
    files = hub.files("you/finder")
    card = files["README.md"].decode()
    assert report.table(summary) in card and report.verdict(summary["gain"], "AP") in card
    assert "6 students were trained for the comparison on `scenes`, 6 labelled images each" in card
    assert "in this repo is one of them" not in card
    assert files["figures/ap.png"] == (tmp_path / "run" / "figures" / "ap.png").read_bytes()
    report.write_report(summary | {"bank": "of others"}, tmp_path / "run")
    said = refuse("train_detector", *argv, "--comparison", tmp_path / "run")
    assert "is about other questions than the student's" in said and "\n" not in said


def test_train_runs_under_accelerate_launch(scenes, tmp_path):
    launch = ["-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/cpu_2proc.yaml"]
    launch += ["recipes/train_detector.py", "--config", EASY_VQA / "detect.yaml", "--dataset", scenes]
    done = command(*launch, "--output_dir", tmp_path, *QUICK)
    assert done.returncode == 0, done.stderr
    assert "test_map" in results(tmp_path)
    assert done.stdout.count("The student is in") == 1


# ---- data


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize(
    ("field", "kind", "values"),
    [("label", Value("string"), ["cat", "dog"]), ("category_id", Value("int64"), [3, 17])],
)
def test_classes_of_every_kind_and_name_become_categories(as_list, field, kind, values):
    train_detector = importlib.import_module("madkd_hf.cli.tasks.detection")
    number = List(Value("float32"), length=4)
    of_each = {"bbox": number, field: kind, "id": Value("int64")}
    feature = List(of_each) if as_list else {name: List(each) for name, each in of_each.items()}
    objects = [{"bbox": [0, 0, 9, 9], field: value, "id": i} for i, value in enumerate(values)]
    row = objects if as_list else {name: [each[name] for each in objects] for name in of_each}
    features = Features({"image_id": Value("int64"), "things": feature})
    rows = Dataset.from_dict({"image_id": [0, 1], "things": [row, row]}, features=features)
    asked = common.ObjectArguments(boxes_column="things", category_field=field)
    splits = train_detector.with_categories(DatasetDict(train=rows, test=rows), asked, "train")
    named = train_detector.COMMAND.classes(splits["test"], SimpleNamespace(objects=asked))
    assert named.names == [str(value) for value in values]
    for stored in splits["test"]["things"]:
        assert as_columns(stored)["category"] == [0, 1]
        assert as_columns(stored)["id"] == [0, 1]
    one = objects[:1] if as_list else {name: [each[name] for each in objects[:1]] for name in of_each}
    few = DatasetDict(train=Dataset.from_dict({"image_id": [0], "things": [one]}, features=features), test=rows)
    with pytest.raises(ValueError, match="The split 'test' has the label"):
        train_detector.with_categories(few, asked, "train")


def test_a_class_label_of_another_name_is_renamed():
    train_detector = importlib.import_module("madkd_hf.cli.tasks.detection")
    label = ClassLabel(names=["cat", "dog"])
    feature = {"bbox": List(List(Value("float32"), length=4)), "label": List(label)}
    row = {"bbox": [[0, 0, 9, 9]], "label": [1]}
    features = Features({"image_id": Value("int64"), "objects": feature})
    rows = Dataset.from_dict({"image_id": [0, 1], "objects": [row, {"bbox": [], "label": []}]}, features=features)
    asked = common.ObjectArguments(category_field="label")
    found = train_detector.with_categories(DatasetDict(train=rows), asked, "train")["train"]
    assert train_detector.COMMAND.classes(found, SimpleNamespace(objects=asked)) == label
    assert found["objects"][:] == [{"bbox": [[0, 0, 9, 9]], "category": [1]}, {"bbox": [], "category": []}]


def test_scenes_are_drawn_by_seed():
    detection, rows = importlib.import_module("madkd_hf.cli.tasks.detection"), Dataset.from_dict({"a": range(20)})

    def draw(scenes, seed):
        args = detection.DetectorArguments()
        args.objects.scenes = scenes
        return detection.COMMAND.draw(rows, args, seed)["a"][:]

    first, again, other = (draw(5, seed) for seed in (0, 0, 1))
    assert first == again != other and len(set(first)) == 5
    with pytest.raises(ValueError, match="There are 20 training images and --scenes asks for 21"):
        draw(21, 0)


@pytest.mark.parametrize("control", ["shuffled", "constant"])
def test_controls_of_objects_keep_the_answers_marginals_and_the_places_of_objects(control):
    numbers = iter(np.random.default_rng(0).normal(size=(40, 2)).tolist())
    answers = [[next(numbers) for _ in range(n)] for n in (3, 0, 4, 1)]
    answers[2][1] = None
    answers.append(None)
    features = Features({"image_id": Value("int64"), "aspect_logits": List(List(Value("float32"), length=2))})
    rows = Dataset.from_dict({"image_id": range(5), "aspect_logits": answers}, features=features)
    found = control_answers(rows, control, seed=0)["aspect_logits"][:]
    assert [each if each is None else len(each) for each in found] == [3, 0, 4, 1, None] and found[2][1] is None
    before, after = (
        expit([each for row in stored if row for each in row if each is not None]) for stored in (answers, found)
    )
    np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), atol=1e-5)
    if control == "shuffled":
        np.testing.assert_allclose(np.sort(after[:, 1]), np.sort(before[:, 1]), atol=1e-5)
        assert not np.allclose(after, before)
    else:
        assert np.ptp(after, axis=0).max() < 1e-6


@pytest.mark.parametrize("by_object", [True, False])
def test_predictions_survive_the_file(tmp_path, by_object):
    train_detector, draw = importlib.import_module("madkd_hf.cli.tasks.detection"), np.random.default_rng(0)
    predictions = [
        {
            "boxes": draw.random((n, 4)).astype(np.float32),
            "scores": draw.random(n).astype(np.float32),
            "labels": draw.integers(3, size=n),
            "aspect_logits": draw.random((n, 2) if by_object else 2).astype(np.float32),
        }
        for n in (2, 0, 3)
    ]
    saved.save_arrays(tmp_path / "a.npz", train_detector.predicted_arrays(predictions))
    found = train_detector.load_predictions(tmp_path / "a.npz")
    for one, other in zip(predictions, found, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


# ---- sentences


def test_every_yaml_of_detectors_names_known_options_only():
    names = ("train", "compare", "label")
    train_detector, compare, attach = (importlib.import_module(f"madkd_hf.cli.{name}") for name in names)
    names = ["easy_vqa/detect", "easy_vqa/detect_baseline", "coco/detr_resnet50", "coco/rtdetr_r18", "coco/yolos_tiny"]
    for name in names:
        args, _ = train_detector.parse(["--config", str(ROOT / "recipes" / f"{name}.yaml"), "--output_dir", "unused"])
        assert args.aspect_level == "object"
    args = compare.parse(["--config", str(EASY_VQA / "detect_compare.yaml"), "--output_dir", "unused"])
    assert args.detects and args.seeds >= 3 and {"base", "object", "shuffled"} <= set(args.controls())
    parser = common.CommandParser(attach.LabelArguments, description="")
    (args,) = parser.parse(["--config", str(ROOT / "recipes/coco/attach.yaml"), "--output_dir", "unused"])
    assert args.box_format == "pascal_voc"


def test_the_bank_of_coco_is_sound():
    bank = AspectBank.load(ROOT / "recipes" / "coco")
    assert 18 <= len(bank) <= 25 and len(set(bank.questions)) == len(bank)
    assert {aspect.group for aspect in bank} == {"visual", "categorical", "environmental"}


def test_the_plain_detector_differs_from_the_distilled_one_in_the_aspects_alone():
    train_detector = importlib.import_module("madkd_hf.cli.train")
    plain, distilled = (
        train_detector.parse(["--config", str(EASY_VQA / f"{name}.yaml"), "--output_dir", "unused"])
        for name in ("detect_baseline", "detect")
    )
    of_aspects = {"bank", "teacher", "objects"}
    assert {k for k, v in vars(plain[0]).items() if v != vars(distilled[0])[k]} <= of_aspects
    training = [one.to_dict() for one in (plain[1], distilled[1])]
    assert {k for k, v in training[0].items() if v != training[1][k]} <= {"aspect_alpha", "logging_dir", "run_name"}


def test_help_teaches(capsys):
    assert refuse("train_detector", "--help") == "0"
    said = capsys.readouterr().out
    assert "madkd train --config" in said and "--aspect_level" in said


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--aspect_levle", "image"], "did you mean 'aspect_level'?"),
        (["--images_per_class", "5"], "Unknown option --images_per_class"),
        (["--aspect_level", "scene"], "invalid choice: 'scene'"),
        (["--boxes_column", "things"], "There is no column 'things'"),
        (["--boxes_column", "image_id"], "no boxes: expected objects with a field 'bbox'"),
        (["--category_field", "species"], "The objects have no field 'species', only ['bbox', 'category']"),
        (["--category_field", "bbox"], "not classes: expected a ClassLabel, strings or integers"),
        (["--box_format", "pascal_voc"], "expected pascal_voc boxes"),
        (["--box_format", "xyxy"], "invalid choice: 'xyxy'"),
        (["--scenes", "13"], "There are 12 training images and --scenes asks for 13"),
        (["--scenes", "0"], "--scenes asks for 0"),
        (["--image_column", "photo"], "There is no column 'photo'"),
        (["--test_split", "final"], "There is no split 'final' to predict"),
        (["--aspect_alpha", "4", "--bank", "recipes/easy_vqa/aspects.json"], "has no aspect columns"),
        (["--aspect_control", "shuffled"], "needs a dataset with aspect columns"),
        (["--resume_from_checkpoint", "true"], "There is no checkpoint in"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(scenes, tmp_path, argv, expected):
    base = ["--config", EASY_VQA / "detect_baseline.yaml", "--dataset", scenes, "--scenes", "6"]
    said = refuse("train_detector", *base, "--output_dir", tmp_path / "output", "--max_steps", "1", *argv)
    assert said.startswith("error: ") and expected in said and "\n" not in said


@pytest.mark.parametrize(("level", "by_object"), [("object", False), ("image", True)])
def test_answers_about_something_else_are_refused(tmp_path, level, by_object):
    argv = ["--dataset", labelled(tmp_path / "labelled", by_object), "--bank", tmp_path / "labelled"]
    argv += ["--config", EASY_VQA / "detect.yaml", "--aspect_level", level, "--output_dir", tmp_path / "out", *QUICK]
    said = refuse("train_detector", *argv)
    assert "The dataset answers about" in said and "\n" not in said


def test_images_with_boxes_that_cannot_be_are_left_out_of_all_splits(tmp_path, caplog):
    train_detector = importlib.import_module("madkd_hf.cli.tasks.detection")
    few = importlib.import_module("recipes.easy_vqa.scenes").load_scenes(
        scenes={"train": 4, "validation": 3, "test": 3}
    )
    bad = {"train": [90, 1, 40, 10], "validation": [float("nan"), 1, 5, 5], "test": [1, 1, 0, 5]}

    def spoilt(row, index, box):
        if index == 1:
            row["objects"]["bbox"][0] = box
        return row

    for columns in ((), ("width", "height")):  # with the sizes told, and with images to look at
        made = {split: few[split].map(spoilt, with_indices=True, fn_kwargs={"box": box}) for split, box in bad.items()}
        made = DatasetDict(made).remove_columns(list(columns))
        made.save_to_disk(tmp_path / f"{len(columns)} columns")
        args = train_detector.DetectorArguments(on_error="skip", dataset=str(tmp_path / f"{len(columns)} columns"))
        ready = preflight.rows_of(Problems(), train_detector.COMMAND, args, 0, "scored")
        assert {split: rows["image_id"][:] for split, rows in ready.splits.items()} == {
            "train": [0, 2, 3], "validation": [0, 2], "test": [0, 2]
        }  # fmt: skip
    said = "Left out 1 of the . images of split .*_scene_1.png .object 0 has the box"
    assert len(re.findall(said, caplog.text)) == 6
