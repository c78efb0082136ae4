"""What a teacher's name may stand for instead, each told in one sentence, and at once."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from builders import tiny
from builders.tiny_mllms import on_the_hub
from transformers import (
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    DetrConfig,
    DetrForObjectDetection,
    InternVLConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from madkd_hf import AspectTeacher
from madkd_hf.teachers.mllm import loading


SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}


def clip(folder: Path) -> None:
    text = {**SMALL, "vocab_size": 40, "eos_token_id": 0}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config={**SMALL, "image_size": 16, "patch_size": 8})
    ).save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessorPil(), tiny.tokenizer()).save_pretrained(folder)


def detector(folder: Path) -> None:
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1, "decoder_attention_heads": 1}
    config = DetrConfig(backbone_config=tiny.resnet(), d_model=8, num_queries=2, **layers)
    DetrForObjectDetection(config).save_pretrained(folder)


def text_only(folder: Path) -> None:
    Qwen2ForCausalLM(Qwen2Config(**SMALL, num_key_value_heads=1, vocab_size=40)).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def files(**content: str):
    def write(folder: Path) -> None:
        for name, text in content.items():
            (folder / name.replace("__", ".")).write_text(text)

    return write


def without(*names: str):
    def write(folder: Path) -> None:
        model, chat = on_the_hub("internvl")
        model.save_pretrained(folder)
        chat.save(folder)
        for name in names:
            (folder / name).unlink()

    return write


REMOTE = json.dumps({"model_type": "internvl_chat", "auto_map": {"AutoConfig": "configuration.Config"}})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (clip, "is a CLIPModel: expected an image-text-to-text model, such as"),
        (detector, "is a DetrForObjectDetection: expected an image-text-to-text model"),
        (text_only, "takes no images .*: expected an image-text-to-text model"),
        (files(model_index__json="{}"), "is a diffusers pipeline.*: expected an image-text-to-text"),
        (files(model__gguf=""), "holds GGUF files.*: pass the repo that they were made from"),
        (files(adapter_config__json="{}"), "is an adapter .*: merge it"),
        (files(), "has no config.json.*: expected an image-text-to-text"),
        (files(config__json='{"model_type": '), "config.json of .*: download or save"),
        (files(config__json="[]"), "config.json of .*holds a list.*: download or save"),
        (files(config__json="{}"), "names no model_type.*: expected an image-text-to-text"),
        (files(config__json='{"model_type": "llava_of_tomorrow"}'), "is a llava_of_tomorrow.* does not know: update"),
        (files(config__json=REMOTE), "brings code of its own: pass trust_remote_code"),
        (without("model.safetensors"), "The model of .* cannot be loaded .*: check its files"),
        (without("tokenizer.json"), "The processor of .* cannot be loaded .*: check its files"),
    ],
)
def test_what_is_no_teacher_is_told_in_one_sentence(build, message, tmp_path):
    build(tmp_path)
    with pytest.raises((ValueError, OSError), match=message) as told:
        AspectTeacher.from_pretrained(tmp_path, device="cpu")
    assert len(str(told.value).replace(str(tmp_path), "")) < 400 and "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["./teachers/internvl", "runs/teacher", "~/teacher", "/nowhere/at/all", "a/b/c", ""])
def test_a_mistyped_folder_is_not_looked_for_on_the_hub(name, tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    begun = time.monotonic()
    with pytest.raises(OSError, match=f"There is no folder {name}: pass the folder of a model, or a Hub id"):
        AspectTeacher.from_pretrained(name)
    assert time.monotonic() - begun < 5


def test_a_folder_is_found_behind_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "teacher").mkdir()
    without()(tmp_path / "teacher")
    assert AspectTeacher.from_pretrained("~/teacher", device="cpu").processor.image_seq_length == 4


def test_a_file_is_no_model(tmp_path):
    for name, message in (("model.safetensors", "is a file: pass the folder"), ("a.gguf", "is a GGUF file, whose")):
        (tmp_path / name).write_text("")
        with pytest.raises(ValueError, match=message):
            AspectTeacher.from_pretrained(tmp_path / name)


def test_an_id_that_nobody_has_on_the_hub(hub):
    with pytest.raises(OSError, match="There is no model nobody/nothing, neither a folder here nor on the Hub: check"):
        AspectTeacher.from_pretrained("nobody/nothing")


def test_offline_it_says_so():
    with pytest.raises(OSError, match="somebody/teacher cannot be had on the Hub now, and is no folder here: check"):
        AspectTeacher.from_pretrained("somebody/teacher")


def test_a_model_registered_under_another_auto_class_is_loaded(tmp_path, monkeypatch):
    without()(tmp_path)
    other = type("Other", (AutoModelForCausalLM,), {"_model_mapping": {InternVLConfig: None}})
    loaded = []

    def from_pretrained(*args, **options):
        loaded.append(args)
        return loading.AutoModelForImageTextToText.from_pretrained(*args, **options)

    other.from_pretrained = staticmethod(from_pretrained)
    monkeypatch.setattr(loading, "REGISTERED", (other,))
    AspectTeacher.from_pretrained(tmp_path, device="cpu")
    assert len(loaded) == 1
