"""Students with adapters."""

from __future__ import annotations

import numpy as np
import torch
from builders import tiny
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from peft import LoraConfig
from transformers import (
    PretrainedConfig,
    ViTConfig,
    ViTImageProcessorPil,
)

from madkd_hf import AspectBank, MadkdForImageClassification, MadkdTrainer, MadkdTrainingArguments


BANK = tiny.bank(3)


CLASSES = dict(enumerate(["cat", "dog", "cow", "hen"]))


PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16})


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}


VIT = ViTConfig(intermediate_size=32, **SIZES)


def student(config: PretrainedConfig = VIT, bank: AspectBank | None = BANK, seed: int = 0):
    torch.manual_seed(seed)
    return MadkdForImageClassification.from_backbone(config, CLASSES, bank)


def rows(count: int = 16, bank: AspectBank = BANK) -> Dataset:
    features = {"image": Image(), "label": ClassLabel(names=list(CLASSES.values()))}
    features |= {"aspect_logits": List(Value("float32"), length=len(bank)), "aspect_bank": Value("string")}
    columns = {"image": tiny.images(count, 16), "label": [i % 4 for i in range(count)]}
    columns["aspect_logits"] = np.random.default_rng(1).normal(size=(count, len(bank))) * 3
    columns["aspect_bank"] = [bank.fingerprint] * count
    return Dataset.from_dict(columns, features=Features(features))


def trainer(folder, model=None, lora=None, processor=PROCESSOR, bank=BANK, **settings) -> MadkdTrainer:
    defaults = {"per_device_train_batch_size": 4, "learning_rate": 3e-2, "logging_steps": 1, "max_steps": 4}
    defaults |= {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "image_store": "none"}
    return MadkdTrainer(
        student() if model is None else model,
        MadkdTrainingArguments(output_dir=str(folder), **{**defaults, **settings}),
        train_dataset=rows(bank=bank),
        eval_dataset=rows(bank=bank),
        processing_class=processor,
        peft_config=lora,
    )


def lora(**settings) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, **settings})
