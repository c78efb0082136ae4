"""Which query of a detector belongs to which object, and to which box. This file travels with saved models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import BaseImageProcessor


class DetectedQueries(NamedTuple):
    """What `post_process_object_detection` reads of a detector's outputs."""

    logits: torch.Tensor
    pred_boxes: torch.Tensor


def queries_of(processor: BaseImageProcessor, logits: torch.Tensor, threshold: float) -> list[torch.Tensor]:
    """Which query each box is from that `post_process_object_detection` gives, in its order: [m] for each image.

    A processor does not return query numbers. So it is given boxes whose left edge is the number of their query.
    """
    numbered_boxes = logits.new_zeros(*logits.shape[:2], 4, dtype=torch.float)
    numbered_boxes[..., 0] = torch.arange(logits.shape[1])
    images = processor.post_process_object_detection(DetectedQueries(logits, numbered_boxes), threshold=threshold)
    return [image["boxes"][:, 0].round().long() for image in images]


@contextmanager
def record_first_matching(training: bool) -> Iterator[list[tuple[int, list[tuple[torch.Tensor, torch.Tensor]]]]]:
    """How many queries the first call of a matcher was about, and what it answered; nothing where none is called.

    A detector builds its matcher anew for every loss and keeps what it answers to itself. The loss matches the last
    layer first, without the queries that stand in front of the others for denoising.
    """
    calls = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if calls or not type(module).__name__.endswith("HungarianMatcher"):
            return
        predictions, targets, *groups = inputs
        if groups and not training:  # then there is one group, which the losses of LW-DETR and RF-DETR cut up again
            output = module.forward(predictions, targets, 1)
        calls.append((predictions["logits"].shape[1], output))

    handle = register_module_forward_hook(note)
    try:
        yield calls
    finally:
        handle.remove()
