"""`madkd space`: what it prints, leaves and publishes, and what it refuses before anything is written."""

from __future__ import annotations

import importlib.util
import json
from io import BytesIO

import pytest
from builders import tiny
from builders.commands import EASY_VQA, recipe, refuse
from builders.labelled_birds import save_labelled
from builders.space_students import save_student
from datasets import Dataset, Features, Image

from madkd_hf import AspectBank
from madkd_hf.exporting.formats import can_export


pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("onnxscript") and can_export()), reason="the extra onnx is not installed"
)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    bank = AspectBank(["Is it red?", "Does it fly?"])
    return save_student(tmp_path_factory.mktemp("student"), ["finch", "heron"], bank)


def test_it_leaves_a_space_with_examples_of_each_class_and_publishes_it(student, tmp_path, hub, capsys):
    save_labelled(tmp_path / "birds")
    argv = [
        student,
        "--dataset",
        tmp_path / "birds",
        "--split",
        "train",
        "--examples",
        "4",
        "--model_id",
        "you/student",
    ]
    argv += ["--output_dir", tmp_path / "space", "--title", "My birds"]
    recipe("space", *argv, "--push_to_hub", "true", "--hub_space_id", "birds-space", "--hub_license", "mit")
    said = capsys.readouterr().out
    assert (
        "the largest difference from PyTorch is " in said and f"python -m http.server --directory {tmp_path}" in said
    )
    assert f"Published: {hub.url}/spaces/you/birds-space" in said and "made-up" not in said
    data = json.loads((tmp_path / "space/space.json").read_text(encoding="utf-8"))
    assert data["title"] == "My birds" and {example["shows"] for example in data["examples"]} >= {"finch", "heron"}
    assert len(data["examples"]) == 4 and data["links"][0]["text"] == "you/student" and len(data["links"]) == 1
    assert data["against"].startswith("its average answers about ") and "made-up" not in data["against"]
    assert hub.repos()["space", "you/birds-space"].sdk == "static"
    assert hub.files("you/birds-space", "space")["space.json"] == (tmp_path / "space/space.json").read_bytes()


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"no image", "it is no image that Pillow can read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is EPS, which other programs would have to read"),
    ],
)
@pytest.mark.parametrize("command", ["space", "export"])
def test_an_image_that_cannot_be_read_is_named(command, content, reason, student, tmp_path):
    whole = BytesIO()
    tiny.images(1, 48)[0].save(whole, "PNG")
    images = [{"bytes": image, "path": None} for image in (whole.getvalue(), content, whole.getvalue())]
    Dataset.from_dict({"image": images}, features=Features({"image": Image()})).save_to_disk(tmp_path / "photos")
    told = refuse(command, student, "--dataset", tmp_path / "photos", "--output_dir", tmp_path / "out")
    assert f"row 1 of split 'train' ({reason})" in told and not (tmp_path / "out").exists()


def test_without_a_dataset_it_says_what_the_reasons_are_against(student, tmp_path, capsys):
    recipe("space", "--student", student, "--kind", "gradio", "--output_dir", tmp_path / "space")
    said = capsys.readouterr().out
    assert "made-up images: pass --dataset" in said and f"python {tmp_path}/space/app.py` runs it" in said


@pytest.mark.slow
def test_without_questions_it_says_so(tmp_path, capsys):
    plain = save_student(tmp_path / "student", ["finch", "heron"], None)
    recipe("space", plain, "--output_dir", tmp_path / "space")
    assert "This model answers no questions: the Space shows its classes, and no reasons." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "No student given: pass its folder or its Hub id"),
        (["nowhere/student"], "nowhere/student is no student"),
        (["--student", "nowhere/at/all"], "There is no folder nowhere/at/all here"),
        ([str(EASY_VQA / "detector")], "only image classifiers are exported so far, no detectors"),
        (["{student}", "--kind", "docker"], "invalid choice: 'docker'"),
        (["{student}", "--examples", "100"], "expected 0 to 24 images"),
        (["{student}", "--split", "train"], "pass --dataset"),
        (["{student}", "--dataset", "{birds}", "--split", "final"], "There is no split 'final'"),
        (["{student}", "--offline_assets", "{birds}"], "transformers.min.js is not there: run `npm pack"),
        (["{student}", "--offline_assets", "x", "--kind", "gradio"], "is for a Space in the browser"),
        (["{student}", "--model_id", "a b"], "'a b' is no Hub id to link to"),
        (["{student}", "--push_to_hub", "true"], "pass --hub_space_id owner/name"),
        (["{student}", "--push_to_hub", "true", "--hub_space_id", "you/x"], "HF_HUB_OFFLINE=1 is set"),
        (["{student}", "--output_dir", "{student}/space"], "lies in"),
        (["{student}", "--kid", "static"], "did you mean 'kind'?"),
    ],
)
def test_what_cannot_be_shown_is_told_in_a_sentence_and_nothing_is_written(argv, expected, student, tmp_path):
    save_labelled(tmp_path / "birds")
    argv = [word.replace("{student}", str(student)).replace("{birds}", str(tmp_path / "birds")) for word in argv]
    output = [] if "--output_dir" in argv else ["--output_dir", tmp_path / "out"]
    said = refuse("space", *argv, *output)
    assert said.startswith("error: ") and expected in said and "\n" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["birds"]


def test_without_the_extra_it_says_what_to_install(student, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else find(name, *rest)
    )
    said = refuse("space", student, "--output_dir", tmp_path / "out")
    assert 'onnxscript, which is not installed: pip install "madkd_hf[onnx]"' in said
