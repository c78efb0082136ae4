"""The loss of multi-aspect distillation, component by component."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from .base import UNCOUNTED, Loss, answer_cross_entropy


class MadkdLoss(Loss):
    """Class loss plus weighted aspect loss (paper section 3.3, its total loss).

        loss = CE(logits, labels) + alpha * BCE(sigmoid(aspect_logits), sigmoid(targets))

    Both are means over the batch's rows. A row without targets (all NaN) adds nothing to the aspect loss and still
    counts as a row, so that every labelled row weighs the same whatever batch it falls into, and accumulated
    micro-batches add up to the batch.

    Args:
        alpha: weight of the aspect loss.
        label_smoothing: of the class loss, 0..1.
    """

    parts = ("class_loss", "aspect_loss")

    def __init__(self, alpha: float, label_smoothing: float = 0.0):
        self.alpha, self.label_smoothing = alpha, label_smoothing

    def __call__(
        self, outputs: Any, batch: dict[str, torch.Tensor], rows: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            outputs: with `logits` [B, C] and `aspect_logits` [B, Q].
            batch: with `labels` [B], class indices, of which `UNCOUNTED` leaves a row out of all; and `aspect_logits`
                [B, Q], the teacher's log-odds, NaN where a row has none, missing where no row has any.
            rows: see `Loss`.

        Returns:
            Scalars `loss`, `class_loss` and, with targets, `aspect_loss` (without alpha).
        """
        labels, targets = batch["labels"], batch.get("aspect_logits")
        counted = labels != UNCOUNTED
        rows = counted.sum().clamp(min=1) if rows is None else rows
        settings = {"label_smoothing": self.label_smoothing, "ignore_index": UNCOUNTED}
        class_loss = F.cross_entropy(outputs.logits, labels, reduction="sum", **settings) / rows
        if targets is None or not outputs.aspect_logits.shape[-1]:
            return {"loss": class_loss, "class_loss": class_loss}
        targets = torch.where(counted[:, None], targets, torch.nan)
        values, _ = answer_cross_entropy(outputs.aspect_logits, targets)
        aspect_loss = values.mean(dim=1).sum() / rows
        return {"loss": class_loss + self.alpha * aspect_loss, "class_loss": class_loss, "aspect_loss": aspect_loss}
