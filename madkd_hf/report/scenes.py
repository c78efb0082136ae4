"""A page of scenes: what is in them, beside what a student detected and says of it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from .figures import GREY, RIGHT, TEACHER, WRONG, _pixels, new_figure, save, short


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

OVERLAP = 0.5  # IoU from which a box is on its object
SAME = 0.7  # IoU from which two boxes are the same place, seen as two classes
LINE = 0.18  # inches


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [m, 4] and [n, 4], left, top, right, bottom: [m, n]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second)]
    return common / (areas[0][:, None] + areas[1][None] - common)


def matched(found: Mapping[str, Any], truth: Mapping[str, Any]) -> list[bool]:
    """Whether each box is on an object of its class that no box before it is on; the surest first.

    Args:
        found: `boxes` [m, 4], `labels` [m], in the order of their scores; truth: `boxes` [n, 4], `labels` [n].
    """
    shared = overlaps(_boxes(found), _boxes(truth))
    free = np.ones(len(truth["labels"]), dtype=bool)
    right = []
    for label, row in zip(found["labels"], shared):
        fits = np.where(free & (np.asarray(truth["labels"]) == label), row, 0)
        right.append(bool(fits.size and fits.max() >= OVERLAP))
        if right[-1]:
            free[fits.argmax()] = False
    return right


def plot_scenes(
    images: Sequence[Image.Image],
    truths: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    aspect_ids: Sequence[str],
    path: str | os.PathLike,
    least_score: float = 0.3,
    most_boxes: int = 8,
) -> Path:
    """Each scene with its objects, with the boxes that were found, and what is said of these.

    Args:
        images: n pictures, as many as are to be shown (6 fit well).
        truths: for each `boxes` [m, 4] (left, top, right, bottom in pixels) and `labels` [m].
        predictions: for each the same, `scores` [m], and `aspect_logits` [m, Q] where boxes have aspects.
        class_names, aspect_ids: C and Q names.
        least_score: boxes with a lower one are not shown; most_boxes: nor are more than so many in a scene. Of boxes
            in the same place only the surest is: most detectors name several classes for what they doubt.
    """
    shown = [_surest(each, least_score, most_boxes) for each in predictions]
    hits = [matched(found, truth) for found, truth in zip(shown, truths)]
    right, boxes, objects = sum(map(sum, hits)), sum(map(len, hits)), sum(len(truth["labels"]) for truth in truths)
    title = (
        f"{objects} objects in {len(images)} scenes, {boxes} boxes with a score from {least_score:g} on, {right} of "
        f"them right (class, and IoU from {OVERLAP:g} on)"
    )
    columns = min(2, len(images))
    rows = math.ceil(len(images) / columns)
    lines = 3 + max(len(found["labels"]) + len(truth["labels"]) for found, truth in zip(shown, truths))
    figure = new_figure(8.8 * columns, rows * max(2.4, 0.5 + LINE * lines) + 0.7, title)
    cells = figure.subfigures(rows, columns, squeeze=False).ravel()
    for k, image in enumerate(images):
        axes = cells[k].subplots(1, 3, width_ratios=[1, 1, 1.9])
        truth, found = truths[k], shown[k]
        names = [class_names[label] for label in truth["labels"]]
        _draw(axes[0], image, "truth", _boxes(truth), [TEACHER] * len(names))
        colours = [RIGHT if hit else WRONG for hit in hits[k]]
        _draw(axes[1], image, "found", _boxes(found), colours)
        texts = [_sentence(found, i, class_names, aspect_ids) for i in range(len(found["labels"]))]
        entries = [("truth", GREY), *((f"{i + 1}  {short(name, 24)}", TEACHER) for i, name in enumerate(names))]
        entries += [("", GREY), ("found, score: what is surest of it", GREY), *zip(texts, colours)]
        _write(axes[2], entries)
    return save(figure, path)


def _boxes(objects: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(objects["boxes"], dtype=np.float64).reshape(-1, 4)


def _surest(found: Mapping[str, Any], least_score: float, most: int) -> dict[str, np.ndarray]:
    scores = np.asarray(found["scores"])
    shared, kept = overlaps(_boxes(found), _boxes(found)), []
    for i in np.argsort(-scores, kind="stable"):
        if scores[i] >= least_score and len(kept) < most and not (shared[i, kept] >= SAME).any():
            kept.append(i)
    of_boxes = {name: np.asarray(values) for name, values in found.items() if len(values) == len(scores)}
    return {name: values[kept] for name, values in of_boxes.items()}


def _draw(ax: Axes, image: Image.Image, title: str, boxes: np.ndarray, colours: Sequence[str]) -> None:
    """An image with numbered boxes."""
    from matplotlib.patches import Rectangle

    pixels = _pixels(image)
    scale = pixels.shape[1] / image.width  # large images are shown smaller
    ax.imshow(pixels)
    ax.set_anchor("NW")
    ax.set_title(title, loc="left", fontsize=9, color=GREY)
    ax.axis("off")
    for i, ((left, top, right, bottom), colour) in enumerate(zip(boxes * scale, colours), start=1):
        size = (right - left, bottom - top)
        ax.add_patch(Rectangle((left, top), *size, fill=False, edgecolor="white", linewidth=3, alpha=0.6))
        ax.add_patch(Rectangle((left, top), *size, fill=False, edgecolor=colour, linewidth=1.6))
        box = {"facecolor": colour, "edgecolor": "none", "pad": 1}
        ax.text(left, top, str(i), fontsize=7, color="white", va="bottom", bbox=box).set_in_layout(False)


def _sentence(found: Mapping[str, np.ndarray], i: int, class_names: Sequence[str], aspect_ids: Sequence[str]) -> str:
    """Class and score of a box, and the three aspects to which the student says yes most surely."""
    text = f"{i + 1}  {short(class_names[found['labels'][i]], 20)} {found['scores'][i]:.2f}"
    if "aspect_logits" not in found:
        return text
    yes = special.expit(found["aspect_logits"][i].astype(np.float64))
    surest = np.argsort(-yes, kind="stable")[:3]
    return f"{text}: " + ", ".join(f"{short(aspect_ids[q], 12)} {yes[q]:.2f}".replace(" 0.", " .") for q in surest)


def _write(ax: Axes, entries: Sequence[tuple[str, str]]) -> None:
    """Lines of text in their colours, from the top."""
    ax.axis("off")
    for k, (text, colour) in enumerate(entries):
        where = {"xy": (0, 1), "xycoords": "axes fraction", "xytext": (0, -72 * LINE * k)}
        style = {"va": "top", "fontsize": 8, "color": colour, "parse_math": False}
        ax.annotate(text, **where, textcoords="offset points", **style).set_in_layout(False)
