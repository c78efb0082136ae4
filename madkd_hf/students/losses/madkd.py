"""The loss of multi-aspect distillation, component by component."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from .base import UNCOUNTED, Loss, answer_cross_entropy, count_rows, rows_with
from .targets import TargetLoss


class MadkdLoss(Loss):
    """Class loss plus weighted aspect loss (paper section 3.3, its total loss), plus weighted loss of class targets.

        loss = CE(logits, labels) + alpha * BCE(sigmoid(aspect_logits), sigmoid(targets))
             + class_alpha * target_loss(logits, class_logits of a teacher)

    Each is a mean over the rows that have such a target: a class, answers, class logits. So a row whose class nobody
    knows adds nothing to the class loss, and counts for nothing in it.

    Args:
        alpha: weight of the aspect loss.
        label_smoothing: of the class loss, 0..1.
        target_loss: compares the student with a teacher's class logits; without one they are not looked at.
        class_alpha: its weight.
        by_mass: whether each answer weighs as much as the probability that the teacher put on yes and no together.
    """

    parts = ("class_loss", "aspect_loss")

    def __init__(
        self,
        alpha: float,
        label_smoothing: float = 0.0,
        target_loss: TargetLoss | None = None,
        class_alpha: float = 1.0,
        by_mass: bool = False,
    ):
        self.alpha, self.label_smoothing = alpha, label_smoothing
        self.target_loss, self.class_alpha, self.by_mass = target_loss, class_alpha, by_mass

    def __call__(
        self, outputs: Any, batch: dict[str, torch.Tensor], rows: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            outputs: with `logits` [B, C] and `aspect_logits` [B, Q].
            batch: with `labels` [B], class indices, `NO_CLASS` where it is not known, and `UNCOUNTED` for a row that
                is left out of all; and, each missing where no row has any, `aspect_logits` [B, Q], the teacher's
                log-odds, `class_logits` [B, C], a teacher's scores of the classes, and `aspect_mass` [B, Q], 0..1;
                NaN where a row has none.
            rows: see `Loss`.

        Returns:
            Scalars `loss`, `class_loss`, with answers `aspect_loss`, and with class logits the parts of `target_loss`;
            all but `loss` without their weights.
        """
        rows = count_rows(batch) if rows is None else rows
        labels = torch.where(batch["labels"] < 0, UNCOUNTED, batch["labels"])
        settings = {"label_smoothing": self.label_smoothing, "ignore_index": UNCOUNTED}
        losses = {"class_loss": F.cross_entropy(outputs.logits, labels, reduction="sum", **settings) / rows["labels"]}
        loss = losses["class_loss"]
        if "aspect_logits" in batch and outputs.aspect_logits.shape[-1]:
            losses["aspect_loss"] = self._aspect_loss(outputs.aspect_logits, batch) / rows["aspect_logits"]
            loss = loss + self.alpha * losses["aspect_loss"]
        if "class_logits" in batch and self.target_loss is not None:
            has_target = rows_with(batch, "class_logits")
            values = self.target_loss(
                outputs.logits[has_target], batch["class_logits"][has_target], labels[has_target]
            )
            losses |= {name: value.sum() / rows["class_logits"] for name, value in values.items()}
            loss = loss + self.class_alpha * losses[self.target_loss.name]
        return {"loss": loss, **losses}

    def _aspect_loss(self, aspect_logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The sum over rows of the mean over questions."""
        targets = torch.where(rows_with(batch, "aspect_logits")[:, None], batch["aspect_logits"], torch.nan)
        values, _ = answer_cross_entropy(aspect_logits, targets)
        if self.by_mass and "aspect_mass" in batch:
            values = values * batch["aspect_mass"].nan_to_num(1.0)  # of recorded answers it is often not known
        return values.mean(dim=1).sum()
