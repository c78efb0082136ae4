"""Labelled objects and detectors that somebody published, and a stranger's empty machine that uses them."""

import io
import json
import re
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from builders import tiny
from builders.detectors import CLASSES, SIDE, N, detector, pixels, processor
from builders.labelled_objects import BANK, COCO, attach, in_format, pictures, rows
from builders.quick_python import online_python, quick_python
from datasets import DatasetDict, Features, Value, concatenate_datasets
from huggingface_hub import DatasetCard, ModelCard
from transformers import AutoModelForObjectDetection, RTDetrImageProcessorPil, YolosImageProcessorPil

from madkd_hf import AspectBank, AspectTeacher, MadkdConfig, MadkdDetectionConfig, push_aspect_dataset
from madkd_hf.data.objects import count_objects, object_fields
from madkd_hf.hub.cards.comparison import read_comparison
from madkd_hf.hub.cards.results import Evaluation
from madkd_hf.hub.cards.student import StudentFacts
from madkd_hf.hub.sources import DataSource
from madkd_hf.hub.student import push_student, stage_student
from madkd_hf.hub.upload import HubRepo
from madkd_hf.report import summarise


ROOT = Path(__file__).parents[2]
DATA, STUDENT = "you/scenes", "you/finder"
CODE = {
    "aspects_of_madkd.py",
    "configuration_madkd_detection.py",
    "modeling_madkd_detection.py",
    "queries_of_madkd.py",
}
LEADERBOARDS = {".eval_results/madkd.yaml"}
PLAIN_FILES = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
SQUARE = {"height": SIDE, "width": SIDE}
BACKBONE = "PekingU/rtdetr_r18vd"  # of the dataset card's snippet


@pytest.fixture(scope="module")
def bank() -> AspectBank:
    teacher = AspectTeacher(tiny.internvl(), tiny.processor(), "full")
    teacher.prepare(tiny.images(2), BANK)
    source = {"id": "museum/scenes", "config": None, "revision": None, "commit": None}
    return AspectBank(BANK.aspects, {**teacher.provenance, "box_margin": 0.1, "dataset": source})


def label(layout: str, work_dir: Path) -> DatasetDict:
    """A training split of 12 images with 18 objects, of which 3 images have none, and a test split without answers."""
    many = rows(COCO * 3, layout, pictures(12))
    splits = DatasetDict({"train": many, "test": rows(COCO[:2], layout)})
    return attach(splits, work_dir, splits=["train"])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> DatasetDict:
    return label("struct", tmp_path_factory.mktemp("work"))


def card(hub) -> DatasetCard:
    return DatasetCard(hub.files(DATA, "dataset")["README.md"].decode())


def child(hub, folder: Path, code: str, *words) -> str:
    """What a fresh Python process prints; a stranger's has not heard of our package."""
    python = quick_python() if code == STRANGER else online_python(hub)
    done = subprocess.run(
        [python, "-c", code, *map(str, words)],
        env=hub.environment(hub.home), cwd=folder, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text)


# Objects


def test_objects_of_both_layouts_are_found_and_counted():
    for layout in ("struct", "list"):
        train = rows(COCO * 3, layout, pictures(12))
        assert list(object_fields(train.features, "objects")) == ["bbox", "category"]
        assert object_fields(train.features, "image") == object_fields(train.features, "nothing") == {}
        assert count_objects(train.data["objects"]) == 18 and count_objects(train.select([]).data["objects"]) == 0


# A dataset


READ = f"""
import json
from datasets import load_dataset
from madkd_hf import AspectBank
told = {{}}
for kind, streaming in (("rows", False), ("stream", True)):
    dataset = load_dataset("{DATA}", streaming=streaming)
    told[kind] = {{
        split: [{{name: row[name] for name in row if name != "image"}} for row in rows]
        for split, rows in dataset.items()
    }}
told["size"] = next(iter(dataset["train"]))["image"].size
told["features"] = str(load_dataset("{DATA}", split="train").features)
told["bank"] = AspectBank.load("{DATA}").fingerprint
print(json.dumps(told))
"""


@pytest.mark.parametrize("layout", ["struct", "list"])
def test_objects_are_published_in_one_commit_and_read_back(hub, bank, tmp_path, layout):
    labelled = label(layout, tmp_path / "work")
    pushed = push_aspect_dataset(labelled, bank, DATA)
    assert set(hub.files(DATA, "dataset")) - {".gitattributes"} == {
        "README.md",
        "aspects.json",
        "data/train-00000-of-00001.parquet",
        "data/test-00000-of-00001.parquet",
        "figures/questions.png",
        "figures/teacher.png",
    }
    first, *before = hub.commits(DATA, "dataset")
    assert (first["oid"], len(before)) == (pushed.oid, 1)
    told = json.loads(child(hub, tmp_path, READ).splitlines()[-1])
    expected = {split: [dict(row) for row in rows.remove_columns("image")] for split, rows in labelled.items()}
    assert told["rows"] == told["stream"] == expected
    assert expected["train"][1]["aspect_logits"] == [] and expected["test"][0]["aspect_logits"] is None
    assert told["size"] == [40, 30] and told["features"] == str(labelled["train"].features)
    assert told["bank"] == bank.fingerprint
    assert push_aspect_dataset(labelled, bank, DATA).oid == pushed.oid  # nothing new


def test_the_card_is_about_objects(hub, labelled, bank, tmp_path):
    push_aspect_dataset(labelled, bank, DATA)
    found, text = card(hub), words(card(hub).text)
    assert found.data.task_categories == ["object-detection"] and "madkd" in found.data.tags
    assert {each["name"]: each["num_examples"] for each in found.data.dataset_info["splits"]} == {
        "train": 12,
        "test": 2,
    }
    assert "`museum/scenes` with 21 objects in boxes, and for each object what a multimodal LLM" in text
    assert "| Split | Images | Objects | Objects with answers |" in text
    assert "| train | 12 | 18 | 18 |" in text and "| test | 2 | 3 | 0 |" in text
    assert "`bbox` (x, y, width, height) in pixels; `category` (one of 2 classes)" in text
    assert "3 float32 for each object" in text and "empty where an image has no objects" in text
    assert "share of objects with the answer yes" in text and "undecided the teacher is about one object" in text
    assert "classifier" not in text and "Information" in text and "cut out by its box" in text
    assert "| box_margin | `0.1` |" in text
    everything = b"".join(hub.files(DATA, "dataset").values())
    for secret in (hub.token, str(tmp_path.parent), str(ROOT)):
        assert secret.encode() not in everything


def snippet(hub) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card(hub).content, flags=re.DOTALL)
    return code


def test_the_card_s_snippet_runs(hub, labelled, bank, tmp_path):
    push_aspect_dataset(labelled, bank, DATA)
    code = snippet(hub)
    assert 'aspect_level="object"' in code and "box_format" not in code
    detector("rt_detr").to_plain().save_pretrained(tmp_path / "base")
    RTDetrImageProcessorPil(size=SQUARE).save_pretrained(tmp_path / "base")
    hub.add_repo(BACKBONE, tmp_path / "base")
    printed = child(hub, tmp_path, code.replace("num_train_epochs=30", "num_train_epochs=1, use_cpu=True"))
    assert printed.startswith("{'aspect-0': ")
    assert "'train_loss'" in printed


def test_where_the_boxes_are_and_in_which_format(hub, bank, tmp_path):
    other = rows(in_format("yolo"))
    named = attach(other, tmp_path, box_format="yolo").rename_columns({"objects": "things", "image": "photo"})
    push_aspect_dataset(named, bank, DATA, image_column="photo", boxes_column="things", box_format="yolo")
    code = snippet(hub)
    for line in ('image_column="photo",', 'boxes_column="things",', 'box_format="yolo",'):
        assert line in code
    assert '.features["things"]["category"].feature.names' in code
    assert "`things`" in card(hub).text and "as parts of the image, 0 to 1" in card(hub).text


def test_answers_about_images_with_objects_in_them(hub, bank, tmp_path):
    push_aspect_dataset(attach(rows(), tmp_path, boxes_column=None), bank, DATA)
    found, text = card(hub), words(card(hub).text)
    assert found.data.task_categories == ["object-detection"]
    assert "with 6 objects in boxes, and for each image what a multimodal LLM" in text
    assert "| Split | Images | Objects | Images with answers |" in text and "| train | 4 | 6 | 4 |" in text
    assert 'aspect_level="image"' in snippet(hub) and "in pixels" not in text
    assert "share of images with the answer yes" in text and "cut out" not in text


def test_objects_without_named_classes(hub, labelled, bank):
    features = Features({**labelled["train"].features, "objects": numbered(labelled["train"].features["objects"])})
    push_aspect_dataset(labelled.cast(features), bank, DATA)
    assert "Trainer" not in snippet(hub) and "Information" in card(hub).text
    push_aspect_dataset(labelled.cast(features), bank, DATA, label_column=None)
    assert "Information" not in card(hub).text and "figures/teacher.png" not in hub.files(DATA, "dataset")


def numbered(objects):
    """The feature, with classes that have no names."""
    if isinstance(objects, dict):
        return {**objects, "category": type(objects["category"])(Value("int64"))}
    return type(objects)({**objects.feature, "category": Value("int64")})


def test_a_stream_of_objects(hub, bank, tmp_path):
    stream = attach(rows().to_iterable_dataset(), tmp_path)
    push_aspect_dataset(stream, bank, DATA)
    (content,) = (data for name, data in hub.files(DATA, "dataset").items() if name.endswith(".parquet"))
    table = pq.read_table(io.BytesIO(content))
    assert table["aspect_logits"].to_pylist() == [row["aspect_logits"] for row in stream]
    assert "| train | 4 | 6 | 6 |" in words(card(hub).text)


def test_what_cannot_be_published_is_one_sentence(hub, labelled, bank):
    def push(dataset=labelled, **options):
        push_aspect_dataset(dataset, bank, DATA, **options)

    with pytest.raises(ValueError, match="about objects, and there is no column 'things' .*pass boxes_column"):
        push(boxes_column="things")
    with pytest.raises(ValueError, match="no field 'klass' of 'objects' of classes, only .*pass label_column"):
        push(label_column="klass")
    with pytest.raises(ValueError, match="Unknown box_format 'corners'"):
        push(box_format="corners")
    with pytest.raises(ValueError, match="No object has an answer to 'aspect-0': label the dataset first"):
        push(concatenate_datasets([labelled["train"].select([1]), labelled["test"]]))
    assert ("dataset", DATA) not in hub.repos()


def test_the_recipe_publishes_objects(hub, tmp_path):
    DatasetDict({"train": rows(COCO * 3, images=pictures(12)), "test": rows()}).save_to_disk(tmp_path / "source")
    given = ["--config", "recipes/easy_vqa/attach.yaml", "--dataset", tmp_path / "source", "--splits", "train"]
    given += ["--boxes_column", "objects", "--label_column", "category", "--output_dir", tmp_path / "out"]
    given += ["--push_to_hub", "--hub_dataset_id", DATA, "--hub_license", "mit"]
    done = subprocess.run(
        [online_python(hub), "recipes/attach_aspects.py", *map(str, given)],
        env=hub.environment(hub.home), cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert f"Published: {hub.url}/datasets/{DATA}" in done.stdout, done.stdout + done.stderr
    assert "answered 11 questions about 18 objects." in (tmp_path / "out" / "questions.md").read_text()
    provenance = json.loads(hub.files(DATA, "dataset")["aspects.json"])["provenance"]
    assert provenance["box_margin"] == 0.1 and provenance["dataset"]["id"] == "source"
    assert "| train | 12 | 18 | 18 |" in words(card(hub).text) and card(hub).data.license == "mit"
    everything = b"".join(hub.files(DATA, "dataset").values())
    assert str(tmp_path).encode() not in everything and hub.token.encode() not in everything


# A detector


def image_processor(name: str):
    kinds = {"rt_detr": RTDetrImageProcessorPil, "yolos": YolosImageProcessorPil}
    return kinds[name](size=SQUARE) if name in kinds else processor()


def facts(**changed) -> StudentFacts:
    metrics = {"map": 0.412, "map_50": 0.633, "map_small": float("nan"), "per_class": [0.4, 0.5], "loss": 2.0}
    metrics |= {"aspect_auroc": 0.75, "runtime": 1.0}
    evaluations = [Evaluation("test", metrics, 8, "test", [0.5, float("nan"), 1.0])]
    settings = {"dataset": DataSource("you/scenes", "a" * 40), "evaluations": evaluations, "license": "mit"}
    return StudentFacts(**{**settings, "hyperparameters": {"learning_rate": 1e-4}, **changed})


def model_card(hub, repo: str = STUDENT) -> ModelCard:
    return ModelCard(hub.files(repo)["README.md"].decode())


STRANGER = """
import contextlib, io, re, sys
sys.modules["madkd_hf"] = None  # whoever imports it fails
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForObjectDetection, pipeline
repo, inputs, result, trusted = sys.argv[1:]
said, scopes = io.StringIO(), []
with contextlib.redirect_stdout(said):
    for block in re.findall("```python\\n(.*?)```", ModelCard.load(repo).text, re.DOTALL):
        scopes.append({})
        exec(block.replace("threshold=0.5", "threshold=0.0"), scopes[-1])
trust = {"trust_remote_code": True} if trusted == "True" else {}
model = AutoModelForObjectDetection.from_pretrained(repo, **trust).eval()
with torch.no_grad():
    output = model(torch.load(inputs))
found = {name: output.get(name) for name in ("logits", "pred_boxes", "aspect_logits")}
found |= {"class": str(type(model)), "said": said.getvalue(), "trusted": trust}
found["boxes"] = pipeline("object-detection", model=repo, **trust)("photo.jpg", threshold=0.0)
look = next((scope["look"] for scope in scopes if "look" in scope), None)
found["seen"] = look and dict(look("photo.jpg", threshold=0.0))
found["answers"], found["scores"] = scopes[-1]["output"].get("aspect_logits"), scopes[-1]["output"].logits
torch.save(found, result)
"""


def loaded_by_a_stranger(hub, folder: Path, repo: str, trusted: bool) -> dict:
    torch.save(pixels(), folder / "inputs.pt")
    tiny.images(1, 48)[0].save(folder / "photo.jpg", quality=100)
    child(hub, folder, STRANGER, repo, folder / "inputs.pt", folder / "result.pt", trusted)
    return torch.load(folder / "result.pt")


@pytest.mark.parametrize(("name", "level"), [("detr", "object"), ("rt_detr", "object"), ("yolos", "image")])
def test_a_stranger_loads_it_and_runs_what_the_card_shows(hub, tmp_path, name, level):
    model = detector(name, level)
    push_student(model, image_processor(name), HubRepo(STUDENT, "model"), facts())
    assert set(hub.files(STUDENT)) == PLAIN_FILES | LEADERBOARDS | CODE | {".gitattributes"}
    assert len(hub.commits(STUDENT)) == 2 and hub.token.encode() not in hub.received
    found = loaded_by_a_stranger(hub, tmp_path, STUDENT, True)
    assert "transformers_modules" in found["class"]
    with torch.no_grad():
        expected = model(pixels())
    for key in ("logits", "pred_boxes", "aspect_logits"):
        torch.testing.assert_close(found[key], expected[key])
    assert 0 < len(found["boxes"]) <= N and {each["label"] for each in found["boxes"]} <= set(CLASSES.values())
    assert len(re.findall(r"  aspect-0: 0\.\d\d\n", found["said"] + "\n")) == (1 if level == "image" else N)
    told = [found["seen"]] if level == "image" else found["seen"]["objects"]
    if level == "image":
        expected = found["answers"]
    elif name == "detr":  # every query is a box, in order
        expected = found["answers"][0]
    else:  # the best N of all queries and classes, as its image processor takes them
        best = found["scores"][0].sigmoid().flatten().topk(N).indices
        expected = found["answers"][0, best // len(CLASSES)]
    for each, answers in zip(told, expected, strict=True):
        scores = {aspect["label"]: aspect["score"] for aspect in each["aspects"]}
        assert [scores[f"aspect-{i}"] for i in range(3)] == pytest.approx(answers.sigmoid().tolist(), abs=1e-5)


def test_a_plain_push_needs_no_code(hub, tmp_path, name="detr"):
    model, place = detector(name), HubRepo(STUDENT, "model")
    push_student(model, image_processor(name), place, facts())
    push_student(model, image_processor(name), place, facts(), plain=True)
    assert set(hub.files(STUDENT)) == PLAIN_FILES | LEADERBOARDS | {".gitattributes"}  # the code went with the aspects
    found = loaded_by_a_stranger(hub, tmp_path, STUDENT, False)
    assert f"transformers.models.{name}" in found["class"] and "auto_map" not in str(hub.files(STUDENT)["config.json"])
    with torch.no_grad():
        expected = model(pixels())
    torch.testing.assert_close(found["logits"], expected.logits)
    torch.testing.assert_close(found["pred_boxes"], expected.pred_boxes)
    assert found["aspect_logits"] is None and found["seen"] is None
    text = words(model_card(hub).text)
    assert "no remote code" in text and "trust_remote_code" not in text and "aspect_logits" not in text
    assert (
        "the boxes and class scores are the same" in text and model_card(hub).data.pipeline_tag == "object-detection"
    )


@pytest.mark.parametrize("level", ["object", "image", "none"])
def test_the_card_says_what_it_is(hub, level):
    model = detector("detr", "object" if level == "none" else level, 0 if level == "none" else 3)
    told = facts() if level != "none" else facts(evaluations=[Evaluation("test", {"map": 0.412, "map_50": 0.633}, 8)])
    push_student(model, processor(), HubRepo(STUDENT, "model"), told)
    found, text = model_card(hub), words(model_card(hub).text)
    data = found.data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "object-detection", "mit")
    assert {"madkd", "object-detection"} <= set(data.tags) and "image-classification" not in data.tags
    told = {each.metric_type: (each.task_type, each.metric_value) for each in data.eval_results}
    auroc = {} if level == "none" else {"roc_auc": ("object-detection", 0.75)}
    assert told == {"map": ("object-detection", 0.412), "map_50": ("object-detection", 0.633)} | auroc
    assert (
        "mAP (COCO), IoU 0.50 to 0.95 | 0.412" in text
        and "classifier" not in text
        and "`DetrForObjectDetection`" in text
    )
    assert all(f"`{name}`" in text for name in CODE) and 'pipeline("object-detection", "you/finder", trust' in text
    assert ('pipeline("aspect-detection", "you/finder", trust' in text) == (level != "none")
    assert ("each with `label`, `score`, `box` and `aspects`" in text) == (level == "object")
    if level != "none":
        assert f"yes/no questions about each {level} as a multimodal LLM" in text
        assert f"rank {level}s as the teacher's answers do" in text
        for question in BANK.questions:
            assert question in text
    else:
        assert "aspect_logits" not in text and "without aspects" in text


def test_a_comparison_of_detectors_goes_into_the_card(tmp_path):
    found = {"task": "detection", "seeds": [0, 1], "map": {"base": [30.0, 31.0], "object": [33.0, 35.0]}, "scenes": 50}
    found["map"]["shuffled"] = [29.0, 30.0]
    found |= {"gain": {"mean": 3.5, "ci95": [1.0, 6.0]}, "controls": {"shuffled": {"mean": -1.0, "ci95": [-2.0, 0.5]}}}
    (tmp_path / "report.json").write_text(json.dumps(found | {"bank": BANK.fingerprint}))
    told = facts(comparison=tmp_path, compared=True)
    stage_student(tmp_path / "out", detector(), processor(), HubRepo(STUDENT, "model"), told)
    text = words((tmp_path / "out" / "README.md").read_text())
    assert "**The aspects gain 3.50 points of AP (95% interval +1.00 to +6.00).**" in text
    assert (
        "6 students were trained for the comparison, 50 labelled images each: 3 conditions with 2 seeds each" in text
    )
    assert "lifts `object`, and not the control: `shuffled` gives each object the answers of another." in text
    assert "Accurac" not in text and "| object: boxes + aspects of each object |" in text


def test_the_card_tells_treatments_from_controls(tmp_path):
    names = ["base", "image", "image_shuffled", "object", "shuffled", "constant"]
    cells = [{"condition": name, "seed": s, "map": 30.0 + i + s * i} for i, name in enumerate(names) for s in (0, 1)]
    (tmp_path / "report.json").write_text(json.dumps(summarise(cells, "detection") | {"bank": BANK.fingerprint}))
    told = facts(comparison=tmp_path, compared=True)
    stage_student(tmp_path / "out", detector(), processor(), HubRepo(STUDENT, "model"), told)
    text = words((tmp_path / "out" / "README.md").read_text())
    assert "lifts `image` or `object`, and none of the controls: `image_shuffled` gives each image the answers" in text
    assert (
        "`shuffled` gives each object the answers of another, `constant` gives all objects the same answers." in text
    )
    assert "Over its own shuffled control, in points [95% interval]: `image` -1.50 [" in text
    assert "| image_shuffled: aspects of other images |" in text and "| image: boxes + aspects of the image |" in text


def test_no_folder_of_this_machine_goes_up(tmp_path):
    AutoModelForObjectDetection.from_config(detector("yolos").config.detector_config).save_pretrained(tmp_path / "own")
    teacher = AspectBank(BANK.aspects, {"model": str(tmp_path / "teacher"), "commit": None})
    model = type(detector()).from_detector(str(tmp_path / "own"), CLASSES, teacher)
    for plain in (False, True):
        told = facts(dataset=DataSource(str(tmp_path / "scenes")), finetuned_from=str(tmp_path / "own"))
        folder = tmp_path / f"out {plain}"
        stage_student(folder, model, image_processor("yolos"), HubRepo(STUDENT, "model"), told, plain)
        files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert set(files) == PLAIN_FILES | (set() if plain else CODE)
        assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
        assert "`scenes`" in files["README.md"].decode() and "`teacher`" in files["README.md"].decode()


@pytest.mark.parametrize(("task", "of"), [("detection", "detectors"), (None, "classifiers")])
def test_a_comparison_of_another_kind_of_student_is_refused(tmp_path, task, of):
    key, names = ("map", ["base", "object"]) if task else ("accuracy", ["base", "madkd"])
    cells = [{"condition": name, "seed": seed, key: 50.0 + seed} for name in names for seed in (0, 1)]
    report = summarise(cells, task or "classification")
    assert set(report[key]) == set(names)
    (tmp_path / "report.json").write_text(json.dumps(report))
    config = MadkdConfig() if task else MadkdDetectionConfig()
    with pytest.raises(ValueError, match=f"is of {of} and this student is none: pass one of its own kind"):
        read_comparison(tmp_path, config)
