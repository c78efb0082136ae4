"""The loss of multi-aspect distillation, component by component."""

from __future__ import annotations

import torch
from torch.nn import functional as F


UNCOUNTED = -100  # the label of a row that is no part of the loss


def madkd_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    aspect_logits: torch.Tensor,
    aspect_targets: torch.Tensor | None,
    alpha: float,
    label_smoothing: float = 0.0,
    rows: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Class loss plus weighted aspect loss (paper section 3.3, its total loss).

        loss = CE(logits, labels) + alpha * BCE(sigmoid(aspect_logits), sigmoid(aspect_targets))

    Both are means over the batch's rows. A row without targets (all NaN) adds nothing to the aspect loss and still
    counts as a row, so that every labelled row weighs the same whatever batch it falls into, and accumulated
    micro-batches add up to the batch.

    Args:
        logits: [B, C] class scores.
        labels: [B] class indices; `UNCOUNTED` leaves a row out of all.
        aspect_logits: [B, Q] the student's aspect scores.
        aspect_targets: [B, Q] the teacher's log-odds, NaN where a row has none; None where no row has any.
        alpha: weight of the aspect loss.
        label_smoothing: of the class loss, 0..1.
        rows: what to divide the sums over the rows by; by default the number of rows that count.

    Returns:
        Scalars `loss`, `class_loss` and, with targets, `aspect_loss` (without alpha).
    """
    counted = labels != UNCOUNTED
    rows = counted.sum().clamp(min=1) if rows is None else rows
    class_loss = F.cross_entropy(
        logits, labels, label_smoothing=label_smoothing, ignore_index=UNCOUNTED, reduction="sum"
    )
    class_loss = class_loss / rows
    if aspect_targets is None:
        return {"loss": class_loss, "class_loss": class_loss}
    known = torch.isfinite(aspect_targets) & counted[:, None]
    targets = torch.where(known, aspect_targets, 0.0).sigmoid()
    each = F.binary_cross_entropy_with_logits(aspect_logits.float(), targets, reduction="none")
    aspect_loss = torch.where(known, each, 0.0).mean(dim=1).sum() / rows
    return {"loss": class_loss + alpha * aspect_loss, "class_loss": class_loss, "aspect_loss": aspect_loss}
