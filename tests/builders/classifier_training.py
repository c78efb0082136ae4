"""Small classifiers and their trainings."""

from __future__ import annotations

import numpy as np
import torch
from builders import tiny
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from transformers import (
    PretrainedConfig,
    Trainer,
    TrainerCallback,
    ViTConfig,
    ViTImageProcessorPil,
)

from madkd_hf import Aspect, AspectBank, MadkdForImageClassification, MadkdTrainer, MadkdTrainingArguments


BANK = tiny.bank(3)


CLASSES = {0: "cat", 1: "dog", 2: "cow", 3: "hen"}


PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16})


def vit() -> PretrainedConfig:
    """No batch norm and no dropout: a step depends on the sum of its gradients alone."""
    return ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )


def student(config: PretrainedConfig | None = None, bank: AspectBank | None = BANK) -> MadkdForImageClassification:
    torch.manual_seed(0)
    return MadkdForImageClassification.from_backbone(config or vit(), CLASSES, bank)


def rows(
    count: int = 16,
    aspects: bool = True,
    unlabelled: tuple[int, ...] = (),
    bank: AspectBank = BANK,
    classless: tuple[int, ...] = (),
) -> Dataset:
    """Images of 4 classes in turn; `unlabelled` rows have no answers, `classless` ones no class."""
    features = {"image": Image(), "label": ClassLabel(names=list(CLASSES.values()))}
    columns = {"image": tiny.images(count, 20), "label": [None if i in classless else i % 4 for i in range(count)]}
    if aspects:
        features |= {"aspect_logits": List(Value("float32"), length=len(bank)), "aspect_bank": Value("string")}
        answers = np.random.default_rng(1).normal(size=(count, len(bank))) * 3
        columns["aspect_logits"] = [None if i in unlabelled else answers[i] for i in range(count)]
        columns["aspect_bank"] = [None if i in unlabelled else bank.fingerprint for i in range(count)]
    return Dataset.from_dict(columns, features=Features(features))


def arguments(folder, **settings) -> MadkdTrainingArguments:
    defaults = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 8, "learning_rate": 1e-2}
    defaults |= {"logging_steps": 1, "num_train_epochs": 1, "use_cpu": True, "report_to": [], "disable_tqdm": True}
    return MadkdTrainingArguments(output_dir=str(folder), **{"save_strategy": "no", **defaults, **settings})


def trainer(folder, model=None, train=None, evaluate=None, **settings) -> MadkdTrainer:
    return MadkdTrainer(
        model=student() if model is None else model,
        args=arguments(folder, **settings),
        train_dataset=rows() if train is None else train,
        eval_dataset=evaluate,
        processing_class=PROCESSOR,
    )


def logged(run: Trainer, name: str) -> list[float]:
    return [entry[name] for entry in run.state.log_history if name in entry]


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module, atol: float) -> None:
    weights = other.state_dict()
    for key, value in one.state_dict().items():
        torch.testing.assert_close(value, weights[key], atol=atol, rtol=0, msg=lambda text, key=key: f"{key}: {text}")


STILL = {"image_store": "none", "crop_scale": 1.0, "horizontal_flip": 0.0}  # no augmentation


def with_broken_images(data: Dataset, *broken: int) -> Dataset:
    """As labelling with on_error="skip" leaves them: the bank's name and no answers."""
    encoded = data.cast_column("image", Image(decode=False))

    def skip(row, index):
        return {"image": {"bytes": b"none", "path": None}, "aspect_logits": None} if index in broken else row

    return encoded.map(skip, with_indices=True, features=encoded.features).cast_column("image", Image())


class StopAfter(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


OTHER = AspectBank([Aspect(aspect.id, aspect.question.upper()) for aspect in BANK])
