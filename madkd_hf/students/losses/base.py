"""What all losses are, and the cross-entropy between the answers of a student and of a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F


UNCOUNTED = -100  # the label of a row that is no part of the loss
NO_CLASS = -1  # the label of a row whose class nobody knows, as datasets hide it
TARGETS = ("labels", "aspect_logits", "class_logits")  # entries of a batch that a loss compares the student with
COUNTED = (*TARGETS, "no_class")  # and the rows without a class


def rows_with(batch: Mapping[str, Any], name: str) -> torch.Tensor:
    """[B] which rows have that target: a class, a teacher's answer to some question, a teacher's class logits; or, of
    "no_class", have no class."""
    labels = batch["labels"]
    if name in ("labels", "no_class"):
        return labels >= 0 if name == "labels" else labels == NO_CLASS
    if name not in batch:
        return torch.zeros_like(labels, dtype=torch.bool)
    return batch[name].isfinite().any(dim=1) & (labels != UNCOUNTED)


def count_rows(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Name of a target -> how many rows of the batch have it, but at least 1: what a mean over them is divided by."""
    return {name: rows_with(batch, name).sum().clamp(min=1) for name in COUNTED}


class Loss:
    """A loss with named parts; its weights are arguments of its constructor. Give one to a trainer as `loss=`.

    Attributes:
        parts: the names of its parts that are logged in any case, as 0 where a batch has none of them.
    """

    parts: tuple[str, ...] = ()

    def __call__(
        self, outputs: Any, batch: dict[str, Any], rows: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            outputs: of the student.
            batch: what the student was given, and its targets.
            rows: name of a target -> what a sum over its rows is divided by: how many rows of a batch have it, on
                average over the accumulated batches and all processes, so that they add up to one batch; by default
                how many of this one, see `count_rows`.

        Returns:
            Name -> scalar: `loss`, which is minimised, and its parts without their weights, which are logged.
        """
        raise NotImplementedError


def answer_cross_entropy(aspect_logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The binary cross-entropy between sigmoid(aspect_logits) and the teacher's sigmoid(targets), answer by answer.

    Args:
        aspect_logits: [n, Q] of the student.
        targets: [n, Q] log-odds of the teacher, NaN where it said nothing.

    Returns:
        [n, Q], 0 where the teacher said nothing; and [n, Q] where it said something.
    """
    answered = torch.isfinite(targets)
    probabilities = torch.where(answered, targets, 0.0).sigmoid()
    values = F.binary_cross_entropy_with_logits(aspect_logits.float(), probabilities, reduction="none")
    return torch.where(answered, values, 0.0), answered
