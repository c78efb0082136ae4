"""LoRA: what is trained, what is left behind, what it goes on from, what it refuses."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from builders import tiny
from builders.lora import BANK, CLASSES, PROCESSOR, SIZES, VIT, lora, rows, student, trainer
from datasets import DatasetDict
from huggingface_hub import ModelCard
from peft import IA3Config, PeftModel, get_peft_model
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    MobileViTConfig,
    SiglipConfig,
    SwinConfig,
    ViTImageProcessorPil,
    pipeline,
)

from madkd_hf import AspectBank, MadkdForImageClassification, MadkdTrainer
from madkd_hf.hub.student import push_student
from madkd_hf.hub.upload import HubRepo
from madkd_hf.students.classification.lora import LoraStudent, adapt, head_modules, linear_modules


BACKBONES = {
    "vit": VIT,
    "siglip": SiglipConfig(
        text_config={"hidden_size": 16, "num_hidden_layers": 1, "bos_token_id": 0, "eos_token_id": 1},
        vision_config={"intermediate_size": 32, **SIZES},
    ),
}
MOBILEVIT = MobileViTConfig(
    hidden_sizes=[8, 12, 16], neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 16], num_attention_heads=2, image_size=32
)
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors"}
TRAINED = ("lora_", "modules_to_save")


def outputs(model, size: int = 16) -> torch.Tensor:
    """Class and aspect logits of two pictures, in evaluation mode; [2, 7], of a plain model [2, 4]."""
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = model.eval()(pixel_values=pixels)
    return torch.cat([found.logits, *([found.aspect_logits] if "aspect_logits" in found else [])], -1)


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-5)


def losses(run: MadkdTrainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


# What is trained, and what is left behind


@pytest.mark.parametrize("name", BACKBONES)
def test_an_adapted_student_is_saved_merged_with_its_adapter_beside_it(tmp_path, name):
    model = student(BACKBONES[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    start = outputs(model)
    run = trainer(tmp_path, model, lora())
    assert isinstance(run.model, LoraStudent) and equal(outputs(run.model), start)  # B is zero at first
    run.train()
    found = outputs(run.model)
    assert not equal(found, start)

    trained = [name for name, parameter in run.model.named_parameters() if parameter.requires_grad]
    assert trained and all(any(part in name for part in TRAINED) for name in trained)
    assert {id(p) for group in run.optimizer.param_groups for p in group["params"]} == {
        id(parameter) for parameter in run.model.parameters() if parameter.requires_grad
    }
    for key, value in run.model.get_base_model().state_dict().items():
        if not any(part in key for part in TRAINED):
            assert torch.equal(value, before[key.replace(".base_layer", "").replace(".original_module", "")]), key

    assert equal(outputs(run.model.merged()), found) and equal(outputs(run.model), found)
    assert equal(outputs(run.model.to_plain()), found[:, :4])
    run.save_model()
    loaded = MadkdForImageClassification.from_pretrained(tmp_path)
    assert equal(outputs(loaded), found) and all(parameter.requires_grad for parameter in loaded.parameters())
    assert equal(outputs(loaded.to_plain()), found[:, :4])
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == ADAPTER_FILES
    fresh = student(BACKBONES[name], seed=0)
    torch.nn.init.zeros_(fresh.get_submodule(head_modules(fresh)[0]).weight)  # the head comes with the adapter
    assert equal(outputs(PeftModel.from_pretrained(fresh, tmp_path / "adapter")), found)


def test_a_folder_of_it_is_used_as_any_other(tmp_path):
    run = trainer(tmp_path, lora=lora())
    run.train()
    metrics = run.evaluate()
    assert {"eval_accuracy", "eval_aspect_auroc", "eval_loss"} <= set(metrics)
    run.save_model()
    run.create_model_card()
    pictures = tiny.images(2, 16)
    classify = pipeline("image-classification", str(tmp_path), trust_remote_code=True)
    pixels = PROCESSOR(pictures, return_tensors="pt")["pixel_values"]
    expected = run.model.eval()(pixel_values=pixels).logits.softmax(-1).max(-1).values.tolist()
    assert [answers[0]["score"] for answers in classify(pictures)] == pytest.approx(expected, abs=1e-5)
    card = ModelCard.load(tmp_path / "README.md").text
    assert "It was trained with LoRA" in card and re.search(r"`lora_rank` +\| `?4`?", card)
    assert "all-linear" in card and "`ViTForImageClassification`" in card


def test_the_adapter_s_files_are_the_same_every_time_and_name_no_folder(tmp_path):
    student().save_pretrained(tmp_path / "secretfolder")
    for name in ("one", "two"):
        torch.manual_seed(0)
        model = MadkdForImageClassification.from_pretrained(tmp_path / "secretfolder")
        adapt(model, lora(target_modules=["v_proj", "q_proj", "fc1"])).save_pretrained(tmp_path / name)
    for file in sorted((tmp_path / "one").rglob("*.*")):
        content = file.read_bytes()
        assert content == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes(), file
        assert b"secretfolder" not in content
    config = json.loads((tmp_path / "one/adapter/adapter_config.json").read_text())
    assert config["target_modules"] == ["fc1", "q_proj", "v_proj"] and config["r"] == 4
    assert config["modules_to_save"] == ["backbone.classifier"]


@pytest.mark.parametrize(
    ("config", "head", "count"),
    [
        (VIT, "backbone.classifier", 12),
        (BACKBONES["siglip"], "backbone.classifier", 14),  # without the out_proj that torch's attention reads itself
        (tiny.resnet(), "backbone.classifier.1", 0),
        (ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2), "backbone.classifier", 4),
        (SwinConfig(embed_dim=8, depths=[1], num_heads=[2], image_size=16, window_size=2), "backbone.classifier", 6),
        (MOBILEVIT, "backbone.classifier", None),
    ],
)
def test_the_head_is_found_and_all_other_linear_layers_are_adapted(config, head, count):
    model = student(config)
    found = linear_modules(model)
    assert head_modules(model) == [head] and head not in found
    assert count is None or len(found) == count


def test_statistics_of_the_frozen_backbone_stay(tmp_path):
    """Else the adapter alone would not be the student: batch norm learns while its weights are frozen."""
    model = student(MOBILEVIT)
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert any(name.endswith("running_mean") for name in before)
    run = trainer(tmp_path, model, lora(), ViTImageProcessorPil(size={"height": 32, "width": 32}), max_steps=2)
    run.train()
    for name, value in run.model.merged().named_buffers():
        assert torch.equal(value, before[name]), name


def test_convolutions_are_adapted_when_they_are_named(tmp_path):
    adapted = adapt(student(tiny.resnet()), lora(target_modules=["convolution"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert equal(outputs(adapted.merged(), 32), outputs(adapted, 32))


def test_less_memory_for_activations_changes_no_step(tmp_path):
    settings = {"crop_scale": 1.0, "horizontal_flip": 0.0, "max_steps": 2}
    runs = [
        trainer(tmp_path / "usual", lora=lora(lora_dropout=0.0), **settings),
        trainer(tmp_path / "less", lora=lora(lora_dropout=0.0), **{tiny.CHECKPOINTING: True}, **settings),
        trainer(
            tmp_path / "reentrant", lora=lora(lora_dropout=0.0), **settings,
            **{tiny.CHECKPOINTING: True, f"{tiny.CHECKPOINTING}_kwargs": {"use_reentrant": True}},
        ),
        trainer(
            tmp_path / "parts", lora=lora(lora_dropout=0.0), **settings,
            per_device_train_batch_size=2, gradient_accumulation_steps=2,
        ),
    ]  # fmt: skip
    for run in runs:
        run.train()
    for run in runs[1:]:
        assert losses(run) == pytest.approx(losses(runs[0]), abs=1e-4), run.args.output_dir


# Going on


def test_a_resumed_run_is_the_same_run(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 1}
    whole = trainer(tmp_path / "whole", lora=lora(), **settings)
    whole.train()
    checkpoint = tmp_path / "whole/checkpoint-2"
    assert {"model.safetensors", "adapter", "optimizer.pt"} <= {path.name for path in checkpoint.iterdir()}
    again = trainer(tmp_path / "again", lora=lora(), **settings)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert losses(again) == losses(whole)
    assert torch.equal(outputs(again.model), outputs(whole.model))


def test_the_best_checkpoint_comes_back(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    run = trainer(tmp_path, lora=lora(), **settings)
    run.train()
    assert run.state.best_global_step < 4
    best = MadkdForImageClassification.from_pretrained(run.state.best_model_checkpoint)
    assert equal(outputs(run.model), outputs(best))
    run.save_model()
    assert equal(outputs(MadkdForImageClassification.from_pretrained(tmp_path)), outputs(best))


def test_another_student_in_the_same_folder_has_no_adapter_beside_it(tmp_path):
    trainer(tmp_path, lora=lora()).save_model()
    assert (tmp_path / "adapter").is_dir()
    trainer(tmp_path).save_model()
    assert not (tmp_path / "adapter").exists()


# On the Hub


@pytest.mark.parametrize("plain", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_published_is_the_merged_student_and_its_adapter(tmp_path, hub, plain):
    run = trainer(tmp_path / "birds", lora=lora(), push_plain=plain)
    run.train()
    found = outputs(run.model)
    run.push_to_hub()
    files = hub.files("you/birds")
    assert {name for name in files if "/" in name} == {f"adapter/{name}" for name in ADAPTER_FILES}
    assert ("modeling_madkd.py" in files) == (not plain) and "adapter_config.json" not in files
    assert "It was trained with LoRA" in files["README.md"].decode()
    options = {"cache_dir": tmp_path / "cache", "trust_remote_code": not plain}
    loaded = AutoModelForImageClassification.from_pretrained("you/birds", **options)
    assert equal(outputs(loaded), found[:, :4] if plain else found)
    fetched = PeftModel.from_pretrained(student(), "you/birds", subfolder="adapter", cache_dir=tmp_path / "cache")
    assert equal(outputs(fetched), found)
    run.push_to_hub()
    assert len(hub.commits("you/birds")) == 2  # the Hub's own first one, and ours
    push_student(student(), PROCESSOR, HubRepo("you/birds", "model"))
    assert not [name for name in hub.files("you/birds") if name.startswith("adapter")]


def test_the_recipe_trains_and_publishes_with_it(tmp_path, hub):
    from madkd_hf.cli import student as training
    from madkd_hf.cli import train
    from madkd_hf.cli.tasks.classification import COMMAND

    DatasetDict(train=rows(), validation=rows()).save_to_disk(tmp_path / "data")
    BANK.save(tmp_path / "data")
    student(bank=None).to_plain().save_pretrained(tmp_path / "backbone")
    PROCESSOR.save_pretrained(tmp_path / "backbone")
    words = ["--dataset", tmp_path / "data", "--backbone", tmp_path / "backbone", "--output_dir", tmp_path / "birds"]
    words += ["--max_steps", 2, "--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--push_to_hub"]
    words += ["--lora_rank", 4, "--lora_target_modules", "q_proj", "v_proj", "--save_strategy", "no"]
    args, training_args = train.parse([*map(str, words)])
    run = training.train(args, training_args)
    assert training.publish(run, args) == f"{hub.url}/you/birds"
    assert "adapter/adapter_config.json" in hub.files("you/birds")
    assert re.search(r"`lora_target_modules` +\| `?q_proj, v_proj", hub.files("you/birds")["README.md"].decode())
    assert COMMAND.hyperparameters(args) == run.model.hyperparameters()  # compare.py has the options alone
    without, _ = train.parse([*map(str, words), "--lora_rank", "0"])
    assert without.lora.peft_config() is None and COMMAND.hyperparameters(without) == {}


# What is refused, in one sentence


def test_bad_input_is_told_in_one_sentence(tmp_path):
    cases = [
        (student(tiny.resnet()), lora(), "ResNetForImageClassification has none beside its head: name other layers"),
        (student(), lora(target_modules=["query"]), r"expected target_modules among projection, q_proj.*\['query'\]"),
        (student(), lora(target_modules=["classifier"]), r"expected target_modules among .*received \['classifier'\]"),
        (student(), lora(target_modules=["dropout"]), r"expected target_modules among .*received \['dropout'\]"),
        (student(), lora(lora_dropout=2.0), "^peft_config cannot be used, as peft says: dropout probability"),
        (student(), lora(r=-1), "^peft_config cannot be used, as peft says: `r` should be a positive integer"),
        (student(), IA3Config(), "must be a LoraConfig of peft; received IA3Config"),
        (student(), {"r": 4}, "must be a LoraConfig of peft; received dict"),
        (student().to_plain(), lora(), "adapts a MadkdForImageClassification .* received ViTForImageClassification"),
        (adapt(student(), lora()), lora(), "adapts a MadkdForImageClassification without adapters; received LoraSt"),
        (get_peft_model(student(), lora(target_modules=["q_proj"])), None, "the student itself and its LoraConfig"),
    ]
    for model, config, said in cases:
        with pytest.raises(ValueError, match=said) as told:
            trainer(tmp_path, model, config)
        assert "\n" not in str(told.value) and len(str(told.value)) < 400


def test_without_peft_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "madkd_hf.students.classification.lora")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"LoRA needs peft, .*: pip install .madkd_hf\[peft\]"):
        trainer(tmp_path, lora=lora())
    trainer(tmp_path).save_model()  # without LoRA nobody asks for it


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, config in (("adapted", lora()), ("whole", None)):
        trainer(folder / name, lora=config, save_strategy="steps", save_steps=1, max_steps=1).train()
    return folder


@pytest.mark.parametrize(
    ("name", "model", "config", "said"),
    [
        ("whole", {"bank": tiny.bank(2)}, None, "learnt the bank .* questions or their order differ; build it"),
        ("adapted", {"bank": AspectBank(BANK.aspects[::-1])}, lora(), "learnt the bank .* questions or their order"),
        ("whole", {}, lora(), "was trained without: leave peft_config out, or start anew"),
        ("adapted", {}, None, "was trained with LoRA: pass the peft_config it was trained with, or start anew"),
        ("adapted", {}, lora(r=2), "was trained with r=4 and peft_config has r=2: pass the same peft_config"),
        ("adapted", {}, lora(target_modules=["q_proj"]), "was trained with target_modules="),
        ("adapted", {"seed": 1}, lora(), "was trained on other backbone weights than the model's"),
    ],
)
def test_a_checkpoint_of_another_student_is_told_in_one_sentence(tmp_path, checkpoints, name, model, config, said):
    run = trainer(tmp_path, student(**model), config, bank=model.get("bank", BANK))
    with pytest.raises(ValueError, match=said) as told:
        run.train(resume_from_checkpoint=str(checkpoints / name / "checkpoint-1"))
    assert "\n" not in str(told.value)


def test_a_checkpoint_of_other_classes_is_told_in_one_sentence(tmp_path, checkpoints):
    run = trainer(tmp_path)
    run.model.config.id2label = {**CLASSES, 0: "owl"}
    with pytest.raises(ValueError, match="knows 4 classes .*'cat'.* and the model 4 .*'owl'"):
        run.train(resume_from_checkpoint=str(checkpoints / "whole/checkpoint-1"))
