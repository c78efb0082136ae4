"""A few birds with answers that somebody gave elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from builders import tiny
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from madkd_hf import AspectBank
from madkd_hf.labelling.answer_files import RecordedAnswers
from madkd_hf.labelling.recorded import attach_recorded_answers


def birds(seed: int = 0) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=["finch", "heron"])})
    images = tiny.images(24, seed=seed)
    return Dataset.from_list([{"image": image, "label": i % 2} for i, image in enumerate(images)], features)


def save_labelled(folder: Path, seed: int = 0) -> None:
    """Three splits of birds, no image in two of them; those of train and validation have answers."""
    answers = RecordedAnswers(np.random.default_rng(0).normal(size=(24, 3)), None, AspectBank.of_ids(["a", "b", "c"]))
    rows = {split: birds(3 * seed + place) for place, split in enumerate(("train", "validation", "test"))}
    splits = DatasetDict(rows)
    for split in ("train", "validation"):
        splits[split] = attach_recorded_answers(rows[split], answers)
    splits.save_to_disk(folder)
    answers.bank.save(folder)
