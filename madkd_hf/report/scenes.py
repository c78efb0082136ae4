"""Pages of test images: what is in them, beside what a student says of it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from ..data.images import to_rgb
from .figures import GREY, RIGHT, STUDENT, TEACHER, WRONG, new_figure, save, short


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

OVERLAP = 0.5  # IoU from which a box is on its object
SAME = 0.7  # IoU from which two boxes are the same place, seen as two classes
LEAST_SCORE, MOST_BOXES = 0.3, 8  # boxes with a lower score are not shown, nor are more in one scene
LINE = 0.18  # inches


def plot_examples(
    images: Sequence[Image.Image | np.ndarray],
    truths: Sequence[str],
    predictions: Sequence[str],
    teacher_probabilities: np.ndarray,
    student_probabilities: np.ndarray,
    aspect_ids: Sequence[str],
    path: str | os.PathLike,
    confidences: Sequence[float] | None = None,
) -> Path:
    """Images with what the student takes them for, and the aspects to which teacher or student say yes loudest.

    Args:
        images: n pictures, as many as are to be shown (8 fit well).
        truths, predictions: n class names.
        teacher_probabilities, student_probabilities: [n, Q] of yes; a row of NaN is not drawn.
        aspect_ids: Q names; confidences: n probabilities of the predicted class, where known.
    """
    n, columns = len(images), min(4, len(images))
    rows = math.ceil(n / columns)
    right = sum(truth == prediction for truth, prediction in zip(truths, predictions))
    title = f"The student names {right} of these {n} images right (✓; after ✗, what it says instead)"
    figure = new_figure(max(5.0, 2.9 * columns), 4.1 * rows + 0.8, title)
    cells = figure.subfigures(rows, columns, squeeze=False).ravel()
    for k in range(n):
        above, below = cells[k].subfigures(2, 1, height_ratios=[1.1, 1])
        picture, chart = above.add_subplot(anchor="S"), below.add_subplot()
        picture.imshow(_pixels(images[k]), cmap="gray")
        picture.axis("off")
        picture.set_title(f"true: {short(truths[k], 26)}", fontsize=10)
        sure = f" ({confidences[k]:.0%})" if confidences is not None else ""
        sign, colour = ("✓", RIGHT) if truths[k] == predictions[k] else ("✗", WRONG)
        below.suptitle(f"{sign} {short(predictions[k], 20)}{sure}", fontsize=10, color=colour, fontweight="bold")
        _plot_answers(chart, teacher_probabilities[k], student_probabilities[k], aspect_ids)
    figure.legend(*chart.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return save(figure, path)


def _plot_answers(ax: Axes, teacher: np.ndarray, student: np.ndarray, aspect_ids: Sequence[str]) -> None:
    """Teacher's and student's probability of yes for the six aspects where the louder of both is loudest."""
    teacher, student = (np.asarray(values, dtype=np.float64) for values in (teacher, student))
    chosen = np.argsort(-np.fmax(teacher, student), kind="stable")[:6]
    y = np.arange(len(chosen))
    ax.hlines(y, 0, 1, color="#EEEEEE", linewidth=1, zorder=0)
    ax.hlines(y, teacher[chosen], student[chosen], color="#AAAAAA", linewidth=2, zorder=1)
    ax.plot(student[chosen], y, "o", markersize=6, color=STUDENT, label="student's P(yes)")
    ax.plot(teacher[chosen], y, "D", markersize=7.5, mfc="none", mec=TEACHER, label="teacher's P(yes)")
    ax.set_yticks(y, [short(aspect_ids[q], 22) for q in chosen], fontsize=9)
    ax.set_xticks([0, 0.5, 1], ["0", "½", "1"], fontsize=8)
    ax.set(xlim=(-0.06, 1.06), ylim=(len(chosen) - 0.4, -0.6))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    if hasattr(image, "convert"):
        image = to_rgb(image).copy()
        image.thumbnail((448, 448))
    return np.asarray(image)


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [m, 4] and [n, 4], left, top, right, bottom: [m, n]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second)]
    return common / (areas[0][:, None] + areas[1][None] - common)


def matched(predicted: Mapping[str, Any], truth: Mapping[str, Any]) -> list[bool]:
    """Whether each box is on an object of its class that no box before it is on; the surest first.

    Args:
        predicted: `boxes` [m, 4], `labels` [m], in the order of their scores; truth: `boxes` [n, 4], `labels` [n].
    """
    shared = overlaps(_boxes(predicted), _boxes(truth))
    free = np.ones(len(truth["labels"]), dtype=bool)
    right = []
    for label, row in zip(predicted["labels"], shared):
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
) -> Path:
    """Each scene with its objects, with the boxes that the student found, and their classes and aspects.

    Args:
        images: n pictures, as many as are to be shown (6 fit well).
        truths: for each `boxes` [m, 4] (left, top, right, bottom in pixels) and `labels` [m].
        predictions: for each the same, `scores` [m], and `aspect_logits` [m, Q] where boxes have aspects.
        class_names, aspect_ids: C and Q names.
    """
    selected = [_surest(prediction) for prediction in predictions]
    hits = [matched(predicted, truth) for predicted, truth in zip(selected, truths)]
    right, boxes, objects = sum(map(sum, hits)), sum(map(len, hits)), sum(len(truth["labels"]) for truth in truths)
    title = (
        f"{objects} objects in {len(images)} scenes, {boxes} boxes with a score from {LEAST_SCORE:g} on, {right} of "
        f"them right (class, and IoU from {OVERLAP:g} on)"
    )
    columns = min(2, len(images))
    rows = math.ceil(len(images) / columns)
    lines = 3 + max(len(predicted["labels"]) + len(truth["labels"]) for predicted, truth in zip(selected, truths))
    figure = new_figure(8.8 * columns, rows * max(2.4, 0.5 + LINE * lines) + 0.7, title)
    cells = figure.subfigures(rows, columns, squeeze=False).ravel()
    for k, image in enumerate(images):
        axes = cells[k].subplots(1, 3, width_ratios=[1, 1, 1.9])
        truth, predicted = truths[k], selected[k]
        names = [class_names[label] for label in truth["labels"]]
        _draw(axes[0], image, "truth", _boxes(truth), [TEACHER] * len(names))
        colours = [RIGHT if hit else WRONG for hit in hits[k]]
        _draw(axes[1], image, "found", _boxes(predicted), colours)
        texts = [_sentence(predicted, i, class_names, aspect_ids) for i in range(len(predicted["labels"]))]
        entries = [("truth", GREY), *((f"{i + 1}  {short(name, 24)}", TEACHER) for i, name in enumerate(names))]
        entries += [("", GREY), ("found, score: what is surest of it", GREY), *zip(texts, colours)]
        _write(axes[2], entries)
    return save(figure, path)


def _boxes(objects: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(objects["boxes"], dtype=np.float64).reshape(-1, 4)


def _surest(predicted: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The boxes to show; of those in one place the surest: most detectors name several classes for what they doubt."""
    scores = np.asarray(predicted["scores"])
    overlap, selected = overlaps(_boxes(predicted), _boxes(predicted)), []
    for i in np.argsort(-scores, kind="stable"):
        if scores[i] >= LEAST_SCORE and len(selected) < MOST_BOXES and not (overlap[i, selected] >= SAME).any():
            selected.append(i)
    of_boxes = {name: np.asarray(values) for name, values in predicted.items() if len(values) == len(scores)}
    return {name: values[selected] for name, values in of_boxes.items()}


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


def _sentence(boxes: Mapping[str, np.ndarray], i: int, class_names: Sequence[str], aspect_ids: Sequence[str]) -> str:
    """Class and score of a box, and the three aspects to which the student says yes most surely."""
    text = f"{i + 1}  {short(class_names[boxes['labels'][i]], 20)} {boxes['scores'][i]:.2f}"
    if "aspect_logits" not in boxes:
        return text
    yes = special.expit(boxes["aspect_logits"][i].astype(np.float64))
    surest = np.argsort(-yes, kind="stable")[:3]
    return f"{text}: " + ", ".join(f"{short(aspect_ids[q], 12)} {yes[q]:.2f}".replace(" 0.", " .") for q in surest)


def _write(ax: Axes, entries: Sequence[tuple[str, str]]) -> None:
    """Lines of text in their colours, from the top."""
    ax.axis("off")
    for k, (text, colour) in enumerate(entries):
        position = {"xy": (0, 1), "xycoords": "axes fraction", "xytext": (0, -72 * LINE * k)}
        style = {"va": "top", "fontsize": 8, "color": colour, "parse_math": False}
        ax.annotate(text, **position, textcoords="offset points", **style).set_in_layout(False)
