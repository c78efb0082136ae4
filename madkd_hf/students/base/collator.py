"""What all collators of ours have, and who tells them the epoch."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import BaseImageProcessor, TrainerCallback

from ...data.images import load_image
from ...text import terminal
from .models import check_has_column


class Collator:
    """Turns rows into batches. What is random follows from the seed, the epoch and the image alone, so that a resumed
    run, more workers, more processes or other batches see the same images.

    Args:
        image_processor: of the model.
        image_column: where the rows keep their image.
        seed: of all that is random.

    Attributes:
        sources: column of targets -> the column that says whose they are, and what stands there; or what it ends with,
            where that begins with ":". In a stream nobody has looked before.
    """

    def __init__(self, image_processor: BaseImageProcessor, image_column: str, seed: int):
        self.image_processor, self.image_column, self.seed = image_processor, image_column, seed
        self.sources: dict[str, tuple[str, str]] = {}
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see it change

    def set_epoch(self, epoch: int) -> None:
        """Every epoch draws anew."""
        self.epoch.fill_(epoch)

    def images(self, rows: list[dict[str, Any]]) -> list[Image.Image]:
        """The rows' images in RGB; ValueError where they have no such column, or targets of another source."""
        check_has_column(rows[0], "these rows", self.image_column, "image_column")
        for targets, (name, expected) in self.sources.items():
            own = (str(row[name]) for row in rows if row.get(name) and row.get(targets) is not None)
            same = str.endswith if expected.startswith(":") else str.__eq__
            if (other := next((found for found in own if not same(found, expected)), None)) is not None:
                raise ValueError(
                    f"A row has {targets} of the {name} {terminal(other, 80)!r}, and the student knows those of "
                    f"{expected!r}: its questions, or its classes, are others or in another order."
                )
        return [load_image(row[self.image_column], self.image_column) for row in rows]


class TellEpoch(TrainerCallback):
    """Tells collators and samplers which epoch begins, or goes on after a checkpoint."""

    def __init__(self):
        self.listeners: list[Any] = []  # what draws anew in each epoch

    def on_epoch_begin(self, args, state, control, **kwargs):
        for listener in self.listeners:
            listener.set_epoch(int(state.epoch or 0))
