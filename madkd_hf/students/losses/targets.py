"""Losses between the class logits of a student and those of a teacher: soft cross-entropy, KD, DKD, MLKD.

All take logits [n, C] and return a value for each row, so that whoever sums them decides what to divide by.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional as F


ABSENT = -1e4  # the logit of a class that is left out; of -inf, gradients would be NaN


class TargetLoss:
    """A loss between the class logits of a student and those of a teacher.

    Args:
        temperature: both are divided by it.
        standardize: bring the logits of each row to mean 0 and standard deviation 1 first, on both sides (Sun et al.,
            "Logit Standardization in Knowledge Distillation", CVPR 2024, equation 8), so that the student learns how
            the teacher's logits relate to each other, not how large they are.
        confidence: a row without a class of its own is left out (a value of 0) where the teacher's largest
            probability is below this.
        unlabelled_weight: by which the values of rows without a class of their own are multiplied.

    Attributes:
        name: of the loss, under which it is logged.
        temperature: where nothing else is said.
    """

    name: str
    default_temperature = 1.0

    def __init__(
        self,
        temperature: float | None = None,
        standardize: bool = False,
        confidence: float = 0.0,
        unlabelled_weight: float = 1.0,
    ):
        self.temperature = self.default_temperature if temperature is None else temperature
        self.standardize, self.confidence, self.unlabelled_weight = standardize, confidence, unlabelled_weight

    def __call__(
        self, logits: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor
    ) -> Mapping[str, torch.Tensor]:
        """
        Args:
            logits: [n, C] of the student.
            targets: [n, C] of the teacher, finite.
            labels: [n] class indices, negative where a row has none: the teacher's most probable class is taken.

        Returns:
            Name -> [n]: under `name` what is minimised, and its parts.
        """
        logits, targets = logits.float(), targets.float()
        weights = torch.ones_like(labels, dtype=logits.dtype)
        if self.confidence or self.unlabelled_weight != 1:
            confident = targets.softmax(dim=1).amax(dim=1) >= self.confidence
            weights = torch.where(labels < 0, confident * self.unlabelled_weight, weights)
        classes = torch.where(labels < 0, targets.argmax(dim=1), labels)
        if self.standardize:
            logits, targets = standardized(logits), standardized(targets)
        values = self.values(logits / self.temperature, targets / self.temperature, classes)
        return {name: weights * value for name, value in values.items()}

    def values(self, logits: torch.Tensor, targets: torch.Tensor, classes: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The values of rows whose logits are divided by the temperature and whose classes [n] are all known."""
        raise NotImplementedError


def standardized(logits: torch.Tensor) -> torch.Tensor:
    """(z - mean) / (1e-7 + std) of each row [n, C], the standard deviation that of a sample, as its authors' code."""
    return (logits - logits.mean(dim=1, keepdim=True)) / (1e-7 + logits.std(dim=1, keepdim=True))


def divergence(targets: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """[n] Kullback-Leibler divergence of softmax(logits) from softmax(targets), both [n, C]."""
    log_p, log_q = targets.log_softmax(dim=1), logits.log_softmax(dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


class SoftCrossEntropy(TargetLoss):
    """-sum_c softmax(targets)_c log softmax(logits)_c: the cross-entropy, with the teacher's classes for the label."""

    name = "soft_loss"

    def values(self, logits, targets, classes):
        return {self.name: -(targets.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1)}


class KDLoss(TargetLoss):
    """T^2 KL(softmax(targets / T) || softmax(logits / T)) (Hinton et al., "Distilling the Knowledge in a Neural
    Network", 2015, section 2)."""

    name = "kd_loss"
    default_temperature = 4.0

    def values(self, logits, targets, classes):
        return {self.name: self.temperature**2 * divergence(targets, logits)}


class DKDLoss(TargetLoss):
    """T^2 (alpha TCKD + beta NCKD): decoupled distillation (Zhao et al., CVPR 2022, equation 7).

    TCKD is the divergence between the two-way distributions "this class or any other", NCKD that among the other
    classes, without this one. Its paper's settings: T = 4, alpha = 1, beta = 2 for most pairs of networks.
    """

    name = "dkd_loss"
    default_temperature = 4.0
    alpha, beta = 1.0, 2.0

    def values(self, logits, targets, classes):
        own = torch.zeros_like(logits, dtype=torch.bool).scatter(1, classes[:, None], True)
        two_way = [_this_or_other(scores, own) for scores in (targets, logits)]
        others = [scores.log_softmax(dim=1).masked_fill(own, ABSENT) for scores in (targets, logits)]
        tckd, nckd = self.temperature**2 * divergence(*two_way), self.temperature**2 * divergence(*others)
        return {self.name: self.alpha * tckd + self.beta * nckd, "tckd_loss": tckd, "nckd_loss": nckd}


def _this_or_other(scores: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """[n, 2] logits of "this class" and "any other", from [n, C]."""
    return torch.stack([scores[own], scores[~own].reshape(len(scores), scores.shape[1] - 1).logsumexp(dim=1)], dim=1)


class MLKDLoss(TargetLoss):
    """Multi-level logit distillation (Jin et al., CVPR 2023, equations 2 to 8), on one view of each image.

    The divergence of each row, averaged over temperatures around T; the squared difference of the similarities
    between the rows of a batch, and that between the classes. The last two compare rows with each other: accumulated
    micro-batches are not one batch for them.
    """

    name = "mlkd_loss"
    default_temperature = 4.0
    factors = (0.5, 0.75, 1.0, 1.25, 1.5)  # its 2, 3, 4, 5, 6 of T = 4

    def values(self, logits, targets, classes):
        instance = batch = of_classes = torch.zeros_like(logits[:, 0])
        for factor in self.factors:
            student, teacher = (logits / factor).softmax(dim=1), (targets / factor).softmax(dim=1)
            squared = (factor * self.temperature) ** 2
            instance = instance + squared * divergence(targets / factor, logits / factor)
            # row by row, so that the sums over rows are those of the equations
            batch = batch + (student @ student.T - teacher @ teacher.T).square().sum(dim=1)
            difference = (student.T @ student - teacher.T @ teacher).square().sum() / logits.shape[1]
            of_classes = of_classes + difference.expand(len(logits))
        parts = {"instance_loss": instance, "batch_loss": batch, "relation_loss": of_classes}
        parts = {name: value / len(self.factors) for name, value in parts.items()}
        return {self.name: sum(parts.values()), **parts}


TARGET_LOSSES: dict[str, type[TargetLoss]] = {
    "soft": SoftCrossEntropy,
    "kd": KDLoss,
    "dkd": DKDLoss,
    "mlkd": MLKDLoss,
}
