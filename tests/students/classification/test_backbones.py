"""Backbones as users name them: what cannot become a student is said in one sentence, and no foreign code is run."""

import json
import shutil
import subprocess
import time

import pytest
import torch
from builders import tiny
from builders.quick_python import quick_python
from transformers import AutoModelForImageClassification, ViTConfig, ViTImageProcessorPil

from madkd_hf import MadkdForImageClassification
from madkd_hf.data.image_processors import load_image_processor
from madkd_hf.students.base.models import check_model


CLASSES = {0: "cat", 1: "dog"}
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
VIT |= {"image_size": 32, "patch_size": 8}


@pytest.fixture
def folder(tmp_path):
    """A whole backbone."""
    AutoModelForImageClassification.from_config(ViTConfig(**VIT)).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def change(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def refused(name, *args, **kwargs) -> str:
    with pytest.raises((ValueError, ImportError)) as error:
        check_model(MadkdForImageClassification, str(name), *args, **kwargs)
    assert "\n" not in str(error.value) and len(str(error.value).split()) < 60
    return str(error.value)


def test_a_whole_backbone_passes(folder):
    check_model(MadkdForImageClassification, str(folder))
    MadkdForImageClassification.from_backbone(str(folder), CLASSES, tiny.bank(1)).save_pretrained(folder / "student")
    load_image_processor(str(folder)).save_pretrained(folder / "student")
    check_model(MadkdForImageClassification, str(folder / "student"))


def test_without_weights_the_remedy_is_to_train_from_scratch(folder):
    (folder / "model.safetensors").unlink()
    assert "no weights" in refused(folder) and "--pretrained false" in refused(folder)
    check_model(MadkdForImageClassification, str(folder), pretrained=False)


def test_pickled_weights_are_read_as_transformers_reads_them(folder):
    weights = AutoModelForImageClassification.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    check_model(MadkdForImageClassification, str(folder))
    student = MadkdForImageClassification.from_backbone(str(folder), CLASSES)
    name = "vit.layers.0.mlp.fc1.weight"
    assert torch.equal(student.backbone.state_dict()[name], weights[name])


@pytest.mark.parametrize("damage", ["cut", "empty", "shards"])
def test_weights_that_are_not_whole_are_told_apart(folder, damage):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "shards": content}[damage])
    if damage == "shards":
        file.rename(folder / "model-00001-of-00002.safetensors")
        shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert "are not whole" in refused(folder) and "--pretrained false" in refused(folder)


def test_an_image_processor_is_asked_for(folder):
    (folder / "preprocessor_config.json").unlink()
    assert "no image processor" in refused(folder) and "save one there" in refused(folder)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"model_type": "nothing"}', "{}", '{"model_type": "vit", "hidden_size": "x"}']
)
def test_a_configuration_that_is_none(folder, content):
    (folder / "config.json").write_text(content)
    assert str(folder) in refused(folder)


def test_what_is_no_classifier(folder):
    change(folder, model_type="detr")
    assert "Expected an image classifier" in refused(folder) and "microsoft/resnet-18" in refused(folder)
    (folder / "config.json").unlink()
    assert "no config.json" in refused(folder)


@pytest.mark.parametrize("name", ["models/resnet", "./models/resnet", "a/b/c", "models/resnet/", "no such folder"])
def test_a_mistyped_folder_is_told_at_once(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    assert "folder" in refused(name)
    assert time.monotonic() - started < 5


# Code that comes with a model


def with_code(folder, model_type, **files):
    """The folder would run code that writes the file "ran" beside it, if it was let."""
    code = f"open({str(folder / 'ran')!r}, 'w').close()\n"
    code += "from transformers import ViTConfig as Config, ViTForImageClassification as Model\n"
    (folder / "evil.py").write_text(code)
    auto = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    change(folder, model_type=model_type, auto_map=auto)
    if files:
        (folder / "preprocessor_config.json").write_text(json.dumps(files["processor"]))


STUDENT = """
import sys
from madkd_hf import MadkdForImageClassification
from madkd_hf.students.base.models import check_model
from madkd_hf.data.image_processors import load_image_processor
check = lambda name: check_model(MadkdForImageClassification, name)
build = lambda name: MadkdForImageClassification.from_backbone(name, {0: "a"})
for folder in sys.argv[1:]:
    for call in (check, build, load_image_processor):
        try:
            call(folder)
            print("fine")
        except ValueError as error:
            print("refused:", error)
"""


@pytest.mark.parametrize("stdin", ["y\n" * 9, pytest.param(None, marks=pytest.mark.slow)], ids=["yes", "closed"])
def test_code_of_a_backbone_is_never_run_and_never_asked_about(folder, stdin):
    """Of a model of its own, of one that transformers has, and of an image processor."""
    folders = [shutil.copytree(folder, folder.with_name(name)) for name in ("own", "known", "processor")]
    processor = {"auto_map": {"AutoImageProcessor": "evil.Processor"}, "image_processor_type": "Processor"}
    with_code(folders[0], "own")
    with_code(folders[1], "vit")
    with_code(folders[2], "vit", processor=processor)
    done = subprocess.run(
        [quick_python(), "-c", STUDENT, *folders],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not list(folder.parent.glob("*/ran")) and "[y/N]" not in done.stdout + done.stderr
    said = done.stdout.splitlines()
    assert "".join(line[0] for line in said) == "rrf" + "fff" + "rfr", done
    assert all("trust_remote_code" in line for line in said if line.startswith("refused"))
