"""Self-training: the student's own guesses about images without a class, if it is sure of them."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def self_training_loss(
    weak: torch.Tensor, strong: torch.Tensor, confidence: float, rows: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The cross-entropy of a harder view of each image with the guess about the usual one (FixMatch, Sohn et al.,
    NeurIPS 2020, equation 4).

    Args:
        weak, strong: [n, C] class logits of the student for the usual and the harder view; no gradient goes to `weak`.
        confidence: probability that a guess needs; the others are left out, and count in the mean.
        rows: what the sum is divided by: how many rows without a class a batch has.

    Returns:
        Scalars `self_loss`, and `self_sure`, the share of rows whose guess was sure enough.
    """
    probability, guess = weak.detach().float().softmax(dim=1).max(dim=1)
    sure = (probability >= confidence).float()
    values = F.cross_entropy(strong.float(), guess, reduction="none")
    return {"self_loss": (sure * values).sum() / rows, "self_sure": sure.sum() / rows}
