"""From a detector's outputs to boxes in the pixels of the original images, and what they are worth."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import BaseImageProcessor, EvalPrediction
from transformers.image_transforms import center_to_corners_format

from ...metrics import AspectAuroc, AspectBce
from ..base.models import check_has_column
from ..models.queries_of_madkd import DetectedQueries, queries_of
from .data import DetectionCollator
from .metrics import coco_ap


MOST = 100  # detections an image, as COCO counts them


class SizedCollator:
    """A collator of evaluation batches: they tell the sizes of their images, whether these have objects or not.

    Its `collator` leaves the pixel mask in; `with_labels`, images without a column of objects are refused.
    """

    def __init__(self, collator: DetectionCollator, with_labels: bool = False):
        self.collator = collator
        self.with_labels = with_labels

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """
        Returns:
            The batch, and `orig_sizes` [B, 2], height and width of the images before the image processor.
        """
        column = self.collator.boxes_column
        if self.with_labels:
            check_has_column(rows[0], "these rows", column, "boxes_column")
        has_objects = column in rows[0]
        if not has_objects:  # as images without objects: it is their labels that tell the sizes
            rows = [{**row, column: None, "aspect_logits": None} for row in rows]
        batch = self.collator(rows)
        batch["orig_sizes"] = torch.stack([label["orig_size"] for label in batch["labels"]])
        if not has_objects:
            del batch["labels"]
        return batch


class Frames(NamedTuple):
    """How the parts of an image that a detector tells become pixels of the original image."""

    sizes: torch.Tensor  # [B, 2] float64, height and width of what it sees, padding included, in original pixels
    scales: torch.Tensor  # [B] float64, how many original pixels a pixel is that it sees


def frames_of(inputs: dict[str, Any]) -> Frames:
    """The frames of a batch; ValueError where neither `orig_sizes` nor the labels tell the sizes of the images."""
    original = inputs.get("orig_sizes")
    if original is None:
        sizes = [label.get("orig_size") for label in inputs.get("labels", [])]
        if not sizes or any(size is None for size in sizes):
            raise ValueError(
                "Boxes in pixels need the sizes of the original images: let data_collator add `orig_sizes` [B, 2], "
                "height and width, to its batches."
            )
        original = torch.stack(sizes)
    original = original.double().cpu()
    input_size = torch.tensor(inputs["pixel_values"].shape[-2:], dtype=torch.float64).expand(len(original), 2)
    image_size = input_size
    if inputs.get("pixel_mask") is not None:
        mask = inputs["pixel_mask"].cpu() > 0
        image_size = torch.stack([mask.any(dim=2).sum(dim=1), mask.any(dim=1).sum(dim=1)], dim=1).double()
    return Frames(input_size * original / image_size, (original / image_size).prod(dim=1))


def detections(outputs: Any, processor: BaseImageProcessor, frames: Frames, level: str) -> list[dict[str, np.ndarray]]:
    """The best `MOST` detections of each image, best first.

    Returns:
        For each image `boxes` [m, 4] (left, top, right, bottom in pixels of the original image), `scores` [m],
        `labels` [m], and `aspect_logits`: about objects (`level`) [m, Q], those of the box's query, or [Q].
    """
    logits, boxes, aspects = (
        tensor.float().cpu() for tensor in (outputs.logits, outputs.pred_boxes, outputs.aspect_logits)
    )
    boxes_of_images = processor.post_process_object_detection(
        DetectedQueries(logits, boxes), threshold=0.0, target_sizes=frames.sizes.float()
    )
    results = []
    for i, (image, places) in enumerate(zip(boxes_of_images, queries_of(processor, logits, threshold=0.0))):
        best = image["scores"].argsort(descending=True, stable=True)[:MOST]
        queries = places[best]
        result = {name: image[name][best].numpy() for name in ("boxes", "scores", "labels")}
        results.append({**result, "aspect_logits": (aspects[i, queries] if level == "object" else aspects[i]).numpy()})
    return results


def references(labels: list[dict[str, torch.Tensor]], frames: Frames) -> list[dict[str, np.ndarray]]:
    """What is there, in pixels of the original images: `boxes` [n, 4], `labels` [n], `iscrowd` [n], 1 for crowds,
    which come last; where known `area` [n] and the teacher's `aspect_logits`, [n, Q], NaN for crowds, or [Q]."""
    results = []
    for label, (height, width), scale in zip(labels, frames.sizes, frames.scales):
        label = {name: values.cpu() for name, values in label.items()}
        boxes = center_to_corners_format(label["boxes"].double()) * torch.stack([width, height, width, height])
        crowds = label.get("crowd_boxes", boxes[:0]).double()
        classes = label["class_labels"]
        result = {
            "boxes": torch.cat([boxes, crowds]),
            "labels": torch.cat([classes, label.get("crowd_labels", classes[:0])]),
            "iscrowd": torch.cat([torch.zeros(len(boxes)), torch.ones(len(crowds))]).long(),
        }
        if "area" in label:
            of_crowds = (crowds[:, 2:] - crowds[:, :2]).prod(dim=1)
            result["area"] = torch.cat([label["area"].double() * scale, of_crowds])
        if "aspect_logits" in label:
            answers = label["aspect_logits"].float()
            result["aspect_logits"] = _beside_crowds(answers, label) if answers.ndim == 2 else answers
        results.append({name: values.numpy() for name, values in result.items()})
    return results


def matched_answers(outputs: Any, labels: list[dict[str, torch.Tensor]]) -> list[np.ndarray]:
    """The student's answers about each object, those of the query that its matcher gives to it: for each image
    [n, Q], NaN where there is none, as for the crowds, which come last."""
    results = []
    for aspects, label, (queries, objects) in zip(outputs.aspect_logits.float().cpu(), labels, outputs.matches):
        answers = torch.full((len(label["class_labels"]), aspects.shape[1]), torch.nan)
        answers[objects.cpu()] = aspects[queries.cpu()]
        results.append(_beside_crowds(answers, label).numpy())
    return results


def _beside_crowds(answers: torch.Tensor, label: dict[str, torch.Tensor]) -> torch.Tensor:
    crowds = len(label.get("crowd_labels", ()))
    return torch.cat([answers, answers.new_full((crowds, answers.shape[1]), torch.nan)])


def detection_metrics(prediction: EvalPrediction) -> dict[str, float | list[float]]:
    """`coco_ap`, and where the teacher has answered AUROC and BCE of the aspects, over matched objects or over images.

    Args:
        prediction: predictions are a list of what `detections` returns, about objects with `matched_answers` under
            `matched_aspect_logits`; label_ids are a list of `references`.

    Returns:
        Floats by name, and `per_aspect`: the Q AUROCs behind `aspect_auroc`, where there are targets.
    """
    predicted, truths = prediction.predictions, prediction.label_ids
    results = coco_ap(predicted, truths)
    results.pop("per_class")
    pairs = [
        (np.atleast_2d(image.get("matched_aspect_logits", image["aspect_logits"])), np.atleast_2d(target))
        for image, truth in zip(predicted, truths)
        if (target := truth.get("aspect_logits")) is not None
    ]
    pairs = [(answers, targets) for answers, targets in pairs if targets.size]
    if not pairs:
        return results
    answers, targets = (np.concatenate(part) for part in zip(*pairs))
    counted = np.isfinite(answers).all(axis=1) & np.isfinite(targets).all(axis=1)
    if counted.any():
        arrays = {"predictions": answers[counted], "references": targets[counted]}
        ranked = AspectAuroc(keep_in_memory=True).compute(**arrays)
        bce = AspectBce(keep_in_memory=True).compute(**arrays)
        results |= {**ranked, **bce, "per_aspect": ranked["per_aspect"]}
    return results
