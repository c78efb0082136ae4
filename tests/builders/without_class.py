"""Images of which some have a class, answers about them, and students that learn from both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from builders.commands import refuse
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from madkd_hf import Aspect, AspectBank
from madkd_hf.cli import student, train
from madkd_hf.data.columns import aspect_features


NAMES = ["cat", "dog", "cow"]
BANK = AspectBank([Aspect(name, f"Is it {name}?") for name in "abcd"])
STUDENT = {
    "backbone": "recipes/easy_vqa/student",
    "pretrained": False,
    "num_train_epochs": 1,
    "logging_steps": 1,
    "per_device_train_batch_size": 8,
    "report_to": "none",
    "save_strategy": "no",
    "eval_strategy": "epoch",
    "dataloader_pin_memory": False,
}


def rows(count: int, seed: int, answers: bool = True) -> Dataset:
    """Images of a colour for each class; the answer to question k is yes for class k."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % len(NAMES)
    pixels = generator.integers(0, 100, size=(count, 16, 16, 3), dtype=np.uint8)
    pixels[np.arange(count), :, :, labels] += 120
    columns = {"image": list(pixels), "label": labels.tolist()}
    features = {"image": Image(), "label": ClassLabel(names=NAMES)}
    if answers:
        logits = 6 * np.eye(4)[labels] - 3 + generator.normal(size=(count, 4))
        columns |= {"aspect_logits": logits.tolist(), "aspect_mass": [[1.0] * 4] * count}
        columns |= {"aspect_bank": [BANK.fingerprint] * count}
        features |= aspect_features(BANK)
    return Dataset.from_dict(columns, features=Features(features))


def hidden(data: Dataset, *places: int) -> Dataset:
    labels = [None if place in places else label for place, label in enumerate(data["label"])]
    return data.remove_columns("label").add_column("label", labels, feature=data.features["label"])


def saved(folder: Path, **splits: Dataset) -> Path:
    DatasetDict(splits).save_to_disk(folder)
    BANK.save(folder)
    return folder


def trained(tmp_path: Path, *argv: str | Path, **settings):
    """The trainer of a student, through the command's own functions."""
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(STUDENT | settings))
    words = ["--config", tmp_path / "student.yaml", "--output_dir", tmp_path / "student", *argv]
    return student.train(*train.parse([str(word) for word in words]))


def refused(tmp_path: Path, *argv: str | Path, **settings) -> str:
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(STUDENT | settings))
    return refuse("train_student", "--config", tmp_path / "student.yaml", "--output_dir", tmp_path / "out", *argv)
