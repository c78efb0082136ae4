"""What all losses are, and the cross-entropy between the answers of a student and of a teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F


UNCOUNTED = -100  # the label of a row that is no part of the loss


class Loss:
    """A loss with named parts; its weights are arguments of its constructor. Give one to a trainer as `loss=`.

    Attributes:
        parts: the names of its parts that are logged in any case, as 0 where a batch has none of them.
    """

    parts: tuple[str, ...] = ()

    def __call__(
        self, outputs: Any, batch: dict[str, Any], rows: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            outputs: of the student.
            batch: what the student was given, and its targets.
            rows: what sums over rows are divided by: how many rows count in a batch, on average over the accumulated
                batches and all processes, so that they add up to one batch; by default how many count in this one.

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
