"""The boxes of the objects in an image: from the formats that datasets have to corners in pixels, checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


BOX_FORMATS = {
    "coco": "(x, y, width, height) in pixels",
    "pascal_voc": "(left, top, right, bottom) in pixels",
    "yolo": "(centre x, centre y, width, height) as parts of the image, 0 to 1",
}
SLACK = 1.0  # pixels beyond the image that are taken for rounding
ROUNDING = 0.01  # pixels that a float32 and a division may be off


def corners(boxes: Sequence[Sequence[float]] | np.ndarray, box_format: str, size: tuple[int, int]) -> np.ndarray:
    """The boxes of one image as [n, 4] float64 left, top, right, bottom in pixels, cut off at the image's edges.

    Args:
        boxes: n boxes of 4 numbers, of a format that `BOX_FORMATS` names.
        size: width and height of the image, upright, in pixels.

    Raises:
        ValueError: an unknown format, or a box that cannot be one of it in this image; objects count from 0.
    """
    check_box_format(box_format)
    boxes = [_numbers(box, index) for index, box in enumerate(boxes)]
    if not boxes:
        return np.empty((0, 4))
    values = np.stack(boxes)
    if problem := _problem(values, box_format, size):
        index, reason = problem
        fitting = [name for name in BOX_FORMATS if name != box_format and not _problem(values, name, size)]
        remedy = f"pass box_format={' or '.join(map(repr, fitting))}, which fits all its boxes, or " if fitting else ""
        raise ValueError(
            f"object {index} has the box {values[index].tolist()}, {reason}: expected {box_format} boxes, "
            f"{BOX_FORMATS[box_format]}, in this image of {size[0]} x {size[1]} pixels; {remedy}correct the box."
        )
    return np.clip(_corners(values, box_format, size), 0, np.tile(size, 2))


def check_box_format(box_format: str) -> None:
    """Raise ValueError for a format that `BOX_FORMATS` does not name."""
    if box_format not in BOX_FORMATS:
        raise ValueError(f"Unknown box_format {box_format!r}: expected one of {list(BOX_FORMATS)}.")


def grown(boxes: np.ndarray, margin: float, size: tuple[int, int]) -> np.ndarray:
    """The pixels [n, 4] int64 that show boxes [n, 4] and `margin` times their sides around them, inside the image."""
    low, high, size = boxes[:, :2], boxes[:, 2:], np.array(size)
    around = margin * (high - low)
    first = np.clip(np.floor(low - around + ROUNDING), 0, size - 1)
    last = np.clip(np.ceil(high + around - ROUNDING), first + 1, size)
    return np.concatenate([first, last], axis=1).astype(np.int64)


def _numbers(box: Sequence[float], index: int) -> np.ndarray:
    try:
        values = np.asarray(box, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (4,):
        raise ValueError(f"object {index} has the box {box}: expected 4 numbers; correct the box.")
    return values


def _corners(values: np.ndarray, box_format: str, size: tuple[int, int]) -> np.ndarray:
    first, second = values[:, :2], values[:, 2:]
    if box_format == "coco":
        second = first + second
    elif box_format == "yolo":
        first, second = (first - second / 2) * size, (first + second / 2) * size
    return np.concatenate([first, second], axis=1)


def _problem(values: np.ndarray, box_format: str, size: tuple[int, int]) -> tuple[int, str] | None:
    """The first box that cannot be one of this format, and why."""
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        return int(np.argmin(finite)), "which is not finite"
    if box_format != "yolo" and (values >= 0).all() and (values <= 1).all() and (values % 1).any():
        return 0, "which is less than a pixel, like all boxes of this image"
    edges = _corners(values, box_format, size)
    low, high = edges[:, :2], edges[:, 2:]
    beyond = np.maximum(-low, high - size).max(axis=1)
    for index in range(len(values)):
        if (high[index] <= low[index]).any():
            return index, "which has no width or no height, or a negative one"
        if beyond[index] > SLACK + ROUNDING:
            return index, f"which reaches {beyond[index]:.4g} pixels beyond the image"
        if (high[index] <= 0).any() or (low[index] >= size).any():
            return index, "which lies outside the image"
    return None
