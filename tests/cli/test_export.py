"""`madkd export`: what it prints, leaves and publishes, and what it refuses before anything is written."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from builders import classifiers
from builders.commands import EASY_VQA, recipe, refuse
from builders.labelled_birds import save_labelled
from huggingface_hub import ModelCard

from madkd_hf import AspectBank, MadkdForImageClassification
from madkd_hf.exporting.formats import can_export


pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("onnxscript") and can_export()), reason="the extra onnx is not installed"
)
PLAIN = {"README.md", "config.json", "model.safetensors", ".gitattributes", "preprocessor_config.json"}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("student")
    bank, names = AspectBank(["Is it red?", "Does it fly?"]), {0: "finch", 1: "heron"}
    made = MadkdForImageClassification.from_backbone(classifiers.config("resnet"), names, bank, pretrained=False)
    made.save_pretrained(folder)
    classifiers.processor("resnet").save_pretrained(folder)
    return folder


def test_the_first_word_is_the_student_and_the_difference_is_printed(student, tmp_path, capsys):
    recipe("export", student, "--format", "onnx", "--output_dir", tmp_path / "out")
    said = capsys.readouterr().out
    assert "model.onnx: on 32 images the largest difference from PyTorch is " in said and "made-up images" in said
    assert "[torch.onnx]" not in said and (tmp_path / "out/onnx/model.onnx").exists()


def test_the_images_of_a_dataset_are_compared_on_and_eight_bits_measured(student, tmp_path, capsys):
    save_labelled(tmp_path / "birds")
    argv = ["--student", student, "--dataset", tmp_path / "birds", "--aspects", "true", "--int8", "true"]
    recipe("export", *argv, "--images", "16", "--output_dir", tmp_path / "out")
    said = capsys.readouterr().out
    assert "model.onnx: on 8 images" in said and "model_quantized.onnx: on 8 images" in said
    assert "% of the answers are the same." in said and "made-up" not in said


def test_push_to_hub_puts_it_beside_the_weights_in_one_commit(student, tmp_path, hub, capsys):
    argv = [student, "--output_dir", tmp_path / "out", "--aspects", "true", "--push_to_hub", "true"]
    argv += ["--hub_model_id", "birds-onnx", "--hub_license", "mit"]
    recipe("export", *argv)
    name = next(name for kind, name in hub.repos() if name.endswith("/birds-onnx"))
    assert f"Published: {hub.url}/{name}" in capsys.readouterr().out
    files = hub.files(name)
    assert set(files) == PLAIN | {"onnx/model.onnx", "because.json"} and len(hub.commits(name)) == 2
    assert files["onnx/model.onnx"] == (tmp_path / "out/onnx/model.onnx").read_bytes()
    assert files["model.safetensors"] == (tmp_path / "out/model.safetensors").read_bytes()
    assert json.loads(files["config.json"])["aspect_questions"] == ["Is it red?", "Does it fly?"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit" and "onnx" in card.data.tags and "AutoModel.from_pretrained" in card.text
    recipe("export", *argv)  # the same again: nothing new
    assert len(hub.commits(name)) == 2
    recipe("export", *argv[:3], *argv[5:])  # without aspects: what belongs to them goes
    assert set(hub.files(name)) == PLAIN | {"onnx/model.onnx"} and len(hub.commits(name)) == 3


def test_a_plain_model_is_exported_and_not_published(student, tmp_path, hub):
    plain = MadkdForImageClassification.from_pretrained(student).to_plain()
    plain.save_pretrained(tmp_path / "plain")
    classifiers.processor("resnet").save_pretrained(tmp_path / "plain")
    argv = [tmp_path / "plain", "--output_dir", tmp_path / "out"]
    said = refuse("export", *argv, "--push_to_hub", "true", "--hub_model_id", "plain")
    assert "is a plain model, and only students are published from here" in said and not hub.repos()
    said = refuse("export", *argv, "--aspects", "true")
    assert "has no aspects: leave out --aspects" in said and not (tmp_path / "out").exists()
    recipe("export", *argv)
    assert (tmp_path / "out/onnx/model.onnx").exists()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "No student given: pass its folder or its Hub id"),
        (["nowhere/student"], "nowhere/student is no student"),
        (["--student", "nowhere/at/all"], "There is no folder nowhere/at/all here"),
        ([str(EASY_VQA / "detector")], "only image classifiers are exported so far, no detectors"),
        (["{student}", "--int8", "true"], "pass --dataset with some, or leave out --int8"),
        (["{student}", "--split", "train"], "pass --dataset"),
        (["{student}", "--format", "tflite"], "invalid choice: 'tflite'"),
        (["{student}", "--dataset", "{birds}", "--split", "final"], "There is no split 'final'"),
        (["{student}", "--dataset", "{birds}", "--images", "1"], "expected 2 or more"),
        (["{student}", "--push_to_hub", "true"], "pass --hub_model_id owner/name"),
        (["{student}", "--push_to_hub", "true", "--hub_model_id", "you/x"], "HF_HUB_OFFLINE=1 is set"),
        (["{student}", "--output_dir", "{student}/onnx"], "lies in"),
        (["{student}", "--formt", "onnx"], "did you mean 'format'?"),
    ],
)
def test_what_cannot_be_exported_is_told_in_a_sentence_and_nothing_is_written(argv, expected, student, tmp_path):
    save_labelled(tmp_path / "birds")
    argv = [word.replace("{student}", str(student)).replace("{birds}", str(tmp_path / "birds")) for word in argv]
    output = [] if "--output_dir" in argv else ["--output_dir", tmp_path / "out"]
    said = refuse("export", *argv, *output)
    assert said.startswith("error: ") and any(part in said for part in expected.split("|")) and "\n" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["birds"]
