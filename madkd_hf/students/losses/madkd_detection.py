"""The loss of a detector with aspects: its own, and that of the answers about its objects or about the image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import reduce
from transformers.loss import loss_for_object_detection

from .base import Loss, answer_cross_entropy


OF_LAST_LAYER = re.compile(r"loss_[a-z]+")  # loss_ce_0, loss_bbox_aux_1, loss_vfl_dn_0 ... are of other layers


class MadkdDetectionLoss(Loss):
    """The detector's own loss plus the weighted aspect loss.

    Args:
        alpha: weight of the aspect loss.
        level: what the answers are about, "object" or "image".
    """

    parts = ("detector_loss", "aspect_loss")

    def __init__(self, alpha: float, level: str):
        self.alpha, self.level = alpha, level

    def __call__(
        self, outputs: Any, batch: dict[str, Any], rows: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            outputs: of `MadkdForObjectDetection`, given the labels.
            batch: with `labels`, see `aspect_loss`; with `repeated`, the detector's loss is left out: all its images
                are there for other processes' sake.
            rows: see `Loss`; under `aspect_logits`, the number of answered objects, or images.

        Returns:
            Scalars `loss`, `detector_loss`, where the student has aspects `aspect_loss` (without alpha), and the parts
            of the detector's loss in its last layer, with or without their weights, as the detector tells them.
        """
        share = 0.0 if batch.get("repeated") else 1.0
        losses = {"loss": share * outputs.loss, "detector_loss": share * outputs.loss}
        if outputs.aspect_logits.shape[-1]:
            losses["aspect_loss"] = aspect_loss(outputs, batch["labels"], self.level, rows and rows["aspect_logits"])
            losses["loss"] = losses["loss"] + self.alpha * losses["aspect_loss"]
        parts = {name: share * value for name, value in (outputs.loss_dict or {}).items()}
        return losses | {name: value for name, value in parts.items() if OF_LAST_LAYER.fullmatch(name)}


def aspect_loss(
    outputs: Any, labels: list[dict[str, Any]], level: str, rows: torch.Tensor | float | None = None
) -> torch.Tensor:
    """Binary cross-entropy between the student's answers and the teacher's, sigmoid(aspect_logits) of the labels.

    The mean over aspects and rows, where a row is an object with the query that the detector's matcher gave it (level
    "object"), or an image (level "image"). An object with several queries, as detectors with groups of them give it in
    training, counts as one row, the mean over them. Rows of which the teacher said nothing (NaN, or no `aspect_logits`
    among the labels) are left out; where none remains the loss is 0, still with a gradient.

    Args:
        outputs: of `MadkdForObjectDetection`; about objects, with their `matches`.
        labels: of each image the dictionary that the model was given, with `aspect_logits`, the teacher's log-odds:
            [n, Q] for its n objects, or [Q] for the image.
        level: "object" or "image".
        rows: what to divide the sum over the rows by; by default their number. With that of a whole batch, accumulated
            micro-batches add up to the batch.

    Raises:
        ValueError: the level is another, there are no matches, or answers of another shape than the model's.
    """
    scores, targets, weights = _pairs(outputs, labels, level)
    values, answered = answer_cross_entropy(scores, targets)
    if rows is None:
        rows = (weights * answered.any(dim=1)).sum().clamp(min=1)
    return (weights * values.sum(dim=1)).sum() / (rows * max(scores.shape[1], 1))


def _pairs(outputs: Any, labels: list[dict[str, Any]], level: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[rows, Q] of the student, [rows, Q] of the teacher, NaN where it said nothing, and [rows] what each weighs."""
    scores = outputs.aspect_logits
    if level == "image":
        answers = [_answers(label, (scores.shape[1],), scores.device) for label in labels]
        return scores, torch.stack(answers), torch.ones(len(answers), device=scores.device)
    if level != "object":
        raise ValueError(f'level is "object" or "image"; received {level!r}.')
    if outputs.matches is None:
        raise ValueError("The aspect loss of objects needs to know their queries: give the model its labels.")
    places, answers, weights = [], [], []
    for i, ((queries, objects), label) in enumerate(zip(outputs.matches, labels, strict=True)):
        weights.append((1 / objects.bincount()[objects]).to(scores.device))
        queries, objects = queries.to(scores.device), objects.to(scores.device)
        places.append(scores[i, queries])
        answers.append(_answers(label, (len(label["boxes"]), scores.shape[2]), scores.device)[objects])
    return torch.cat(places), torch.cat(answers), torch.cat(weights)


def _answers(label: dict[str, Any], shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    answers = label.get("aspect_logits")
    if answers is None:
        return torch.full(shape, torch.nan, device=device)
    answers = torch.as_tensor(answers, dtype=torch.float32, device=device)
    if answers.shape != shape and (answers.numel() or 0 not in shape):  # no objects may have no columns either
        raise ValueError(f"`aspect_logits` of these labels should be {list(shape)}; received {list(answers.shape)}.")
    return answers.reshape(shape)


@contextmanager
def objects_of_all_processes() -> Iterator[None]:
    """Makes transformers' losses divide by the objects of all processes divided by the number of processes.

    They divide by the number of processes what is their mean already: `accelerate.utils.reduce`, as they call it, is a
    mean, and with W processes their losses are W times as large.
    """

    def summed(tensor: torch.Tensor, reduction: str = "sum", scale: float = 1.0) -> torch.Tensor:
        return reduce(tensor, reduction, scale)

    original = getattr(loss_for_object_detection, "reduce", None)
    loss_for_object_detection.reduce = summed
    try:
        yield
    finally:
        loss_for_object_detection.reduce = original
