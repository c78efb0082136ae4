"""Small class teachers, and rows that they score."""

from __future__ import annotations

from pathlib import Path

import torch
from builders import tiny
from datasets import ClassLabel, Dataset, Features, Image
from transformers import ResNetForImageClassification, ViTImageProcessorPil

from madkd_hf import ClassTeacher


NAMES = ["cat", "dog", "cow"]


def processor(side: int = 16) -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": side, "width": side})


def model(names: list[str] = NAMES, seed: int = 0, **config) -> ResNetForImageClassification:
    torch.manual_seed(seed)
    settings = tiny.resnet()
    settings.id2label, settings.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    for name, value in config.items():
        setattr(settings, name, value)
    made = ResNetForImageClassification(settings)
    tiny.widen(made, seed)
    return made.eval()


def saved(folder: Path, names: list[str] = NAMES, seed: int = 0, **config) -> Path:
    model(names, seed, **config).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def class_teacher(names: list[str] = NAMES, seed: int = 0, kind: type = ClassTeacher) -> ClassTeacher:
    return kind(model(names, seed), processor(), "larger")


def rows(count: int = 7, seed: int = 0, without_class: tuple[int, ...] = ()) -> Dataset:
    """Images, of which some have no class."""
    labels = [None if i in without_class else i % len(NAMES) for i in range(count)]
    columns = {"image": tiny.images(count, 20, seed), "label": labels}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "label": ClassLabel(names=NAMES)}))


class Counting(ClassTeacher):
    """Counts the images that it scores."""

    count = 0

    def read(self, images):
        self.count += len(images)
        return super().read(images)


class Killed(Counting):
    """Is stopped after the first call."""

    def read(self, images):
        if self.count:
            raise KeyboardInterrupt
        return super().read(images)
