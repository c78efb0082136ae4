"""Students for Spaces: tiny ones with names of strangers, with questions and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from builders import classifiers
from builders.hostile import STRINGS

from madkd_hf import Aspect, AspectBank, MadkdForImageClassification
from madkd_hf.aspects import LONGEST
from madkd_hf.spaces.card import SpaceFacts
from madkd_hf.spaces.model import SpaceModel, prepared
from madkd_hf.spaces.space import write_space
from madkd_hf.text import hidden_character


def is_known(text: str) -> bool:
    """Whether a bank takes it as a question or an id."""
    return hidden_character(text) is None and len(text) <= LONGEST["id"]


HOSTILE = [text for text in (" ".join(text.split()) for text in STRINGS.values()) if is_known(text)]
CLASSES = [text for text in STRINGS.values() if not any("\ud800" <= c <= "\udfff" for c in text)]


def save_student(folder: Path, classes: list[str], bank: AspectBank | None, architecture: str = "resnet") -> Path:
    """A student with random weights and its image processor."""
    torch.manual_seed(0)
    model = MadkdForImageClassification.from_backbone(
        classifiers.config(architecture), dict(enumerate(classes)), bank, pretrained=False
    )
    model.save_pretrained(folder)
    classifiers.processor(architecture).save_pretrained(folder)
    return folder


def make_space(student: Path | str, folder: Path, kind: str, facts: SpaceFacts, **others: Any) -> SpaceModel:
    """A Space of a student, or of its export."""
    with prepared(str(student)) as model:
        write_space(model, folder, kind, facts, **others)
    return model


def hostile_bank() -> AspectBank:
    return AspectBank([Aspect(text, f"Is it {text}?") for text in dict.fromkeys(HOSTILE)])
