"""Which classes gained, which confusions went away, and whether confidence tells accuracy: base against distilled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from ..files import write_whole
from ..metrics import CalibrationError
from ..text import markdown
from .comparison import markdown_table, paired_gain, points_text, terms_of
from .figures import COLOURS, GREY, PALE, RIGHT, WRONG, new_axes, new_figure, save, short


MOST_CLASSES, MOST_CONFUSIONS, BINS = 40, 12, 15  # bins as in `CalibrationError`
BOTH = ("base", "madkd")
COUNTED = {"classification": "images", "detection": "objects"}
SCORES = {"classification": "test images of the class that are classified right, %"}
SCORES["detection"] = "AP of the class on the test images, points"
INTRO = {
    "classification": "Of the test images of each class, how many are classified right;",
    "detection": "AP of each class on the test images (COCO: mean over IoU 0.5 to 0.95), in points;",
}


def summarise_classes(
    logits: dict[str, Sequence[np.ndarray]], labels: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    """What the distilled students get right that the base ones do not.

    Args:
        logits: "base" and "madkd" -> for each seed, in the same order, the class logits [n, C] of the same images.
        labels: [n] their class indices.
        names: the C classes.

    Returns:
        `task`; `classes`: those that the images show, in the order of `gain`, with mean recalls in per cent;
        `confusions`: the pairs that changed most, in per cent of the images of the class shown; `calibration`, by
        condition: `error` (mean expected calibration error, 0..1), `deviation` (over the seeds), and in each of 15
        bins of all seeds together `confidence`, `accuracy` and `share` of the images (None where empty).
    """
    labels, count = np.asarray(labels), len(names)
    matrices = {name: np.stack([_confusion(array, labels, count) for array in logits[name]]) for name in BOTH}
    recalls = {name: 100 * np.diagonal(array, axis1=1, axis2=2) for name, array in matrices.items()}
    base, madkd = (100 * matrices[name].mean(axis=0) for name in BOTH)
    change = np.abs(madkd - base)
    np.fill_diagonal(change, 0)
    pairs = [divmod(int(place), count) for place in np.argsort(-change, axis=None, kind="stable")]
    return {
        "task": "classification",
        "classes": _by_gain(recalls, np.bincount(labels, minlength=count), names, "classification"),
        "confusions": [
            {"shown": names[i], "taken_for": names[j], "base": float(base[i, j]), "madkd": float(madkd[i, j])}
            for i, j in pairs[:MOST_CONFUSIONS]
            if change[i, j] > 0
        ],
        "calibration": {name: _calibration(logits[name], labels) for name in BOTH},
    }


def summarise_detected_classes(
    ap: dict[str, np.ndarray], objects: Sequence[int], names: Sequence[str]
) -> dict[str, Any]:
    """Which classes the detectors with aspects of each object find better than the base ones, as `summarise_classes`
    says it: `task`, and `classes` with mean AP in points.

    Args:
        ap: "base" and "object" -> AP of each class on the same images, in points, [seeds, C] in the same order.
        objects: [C] how many of each class the images show.
        names: the C classes.
    """
    return {"task": "detection", "classes": _by_gain(ap, objects, names, "detection")}


def _by_gain(
    scores: dict[str, np.ndarray], counts: Sequence[int], names: Sequence[str], task: str
) -> list[dict[str, Any]]:
    """A row for each class that is shown, of scores [seeds, C] of the base and the treated students."""
    rows = []
    for index in np.flatnonzero(counts):
        by_condition = {name: np.asarray(scores[name])[:, index] for name in compared({"task": task})}
        gain = paired_gain(*reversed(by_condition.values()))
        means = {name: float(values.mean()) for name, values in by_condition.items()}
        rows.append({"name": names[index], COUNTED[task]: int(counts[index]), "gain": gain, **means})
    return sorted(rows, key=lambda row: -row["gain"]["mean"])


def compared(summary: dict[str, Any]) -> tuple[str, str]:
    """The conditions whose classes a summary compares, the base one first."""
    return "base", terms_of(summary).treated


def _confusion(logits: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """[C, C] share of the images of a row's class that are taken for the column's."""
    matrix = np.zeros((count, count))
    np.add.at(matrix, (labels, logits.argmax(axis=1)), 1)
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def _calibration(logits: Sequence[np.ndarray], labels: np.ndarray, bins: int = BINS) -> dict[str, Any]:
    errors, sums = [], np.zeros((3, bins))
    for class_logits in logits:
        p = softmax(np.asarray(class_logits, dtype=float), axis=1)
        confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
        place = np.minimum((confidence * bins).astype(int), bins - 1)
        bin_sums = np.stack([np.bincount(place, values, bins) for values in (np.ones(len(p)), confidence, right)])
        metric = CalibrationError(keep_in_memory=True).compute(predictions=class_logits, references=labels, bins=bins)
        errors.append(metric["calibration_error"])
        sums += bin_sums
    filled = np.where(sums[0] > 0, sums[0], np.nan)
    curve = {"confidence": sums[1] / filled, "accuracy": sums[2] / filled}
    return {
        "error": float(np.mean(errors)),
        "deviation": float(np.std(errors, ddof=1)) if len(errors) > 1 else None,
        **{name: [None if np.isnan(value) else float(value) for value in values] for name, values in curve.items()},
        "share": (sums[0] / sums[0].sum()).tolist(),
    }


def classes_page(summary: dict[str, Any]) -> str:
    """`summarise_classes`, or that of detectors, as Markdown, with its pictures."""
    counted, unit = COUNTED[summary["task"]], terms_of(summary).unit
    unit = f", {unit}" if unit else ", AP"
    head = ["Class", counted.capitalize(), f"Base{unit}", f"Distilled{unit}", "Gain, points [95% interval]"]
    rows = []
    for row in summary["classes"]:
        scores = [f"{row[name]:.1f}" for name in compared(summary)]
        rows.append([markdown(row["name"]), str(row[counted]), *scores, points_text(row["gain"], 1)])
    lines = [
        "# Class by class",
        f"{INTRO[summary['task']]} mean over the seeds, gains paired by seed. "
        "With many classes, some intervals lie beside 0 by chance.",
        "![Which classes gained](figures/classes.png)",
        markdown_table([head, *rows], right=range(1, 5)),
    ]
    if "confusions" in summary:
        lines += _confusions(summary)
    if "calibration" in summary:
        lines += ["## Calibration", calibration_sentence(summary), "![Calibration](figures/calibration.png)"]
    return "\n\n".join(lines) + "\n"


def _confusions(summary: dict[str, Any]) -> list[str]:
    title = "## Confusions that changed most"
    if not summary["confusions"]:
        return [title, "None."]
    head, rows = ["Shown", "Taken for", "Base, %", "Distilled, %", "Change"], []
    for row in summary["confusions"]:
        shares = [f"{row['base']:.1f}", f"{row['madkd']:.1f}", f"{row['madkd'] - row['base']:+.1f}"]
        rows.append([markdown(row["shown"]), markdown(row["taken_for"]), *shares])
    return [title, "In per cent of the images of the class shown.", markdown_table([head, *rows], right=range(2, 5))]


def calibration_sentence(summary: dict[str, Any]) -> str:
    texts = []
    for name in BOTH:
        calibration = summary["calibration"][name]
        deviation = "" if calibration["deviation"] is None else f" ± {100 * calibration['deviation']:.1f}"
        texts.append(f"{100 * calibration['error']:.1f}{deviation}")
    return (
        f"Expected calibration error over {BINS} bins (mean distance between confidence and accuracy, in points): "
        f"{texts[0]} for the base student, {texts[1]} for the distilled one."
    )


def write_classes(summary: dict[str, Any], output_dir: str | os.PathLike) -> Path:
    """Write `classes.md` and its pictures, of classifiers with that of their calibration; returns the page's path."""
    plot_classes(summary, Path(output_dir) / "figures" / "classes.png")
    if "calibration" in summary:
        plot_calibration(summary, Path(output_dir) / "figures" / "calibration.png")
    return write_whole(Path(output_dir) / "classes.md", classes_page(summary))


def plot_classes(summary: dict[str, Any], path: str | os.PathLike) -> Path:
    """A line for each class from the base students' recall, or AP, to the distilled ones', the most gained on top."""
    rows, conditions = summary["classes"], compared(summary)
    better = sum(row["gain"]["mean"] > 0 for row in rows)
    cut = len(rows) > MOST_CLASSES
    if cut:
        rows = rows[: MOST_CLASSES // 2] + rows[-MOST_CLASSES // 2 :]
    pitch = min(0.3, 12 / len(rows))
    figure = new_figure(7.4, pitch * len(rows) + 1.9, f"{better} of {len(summary['classes'])} classes gained")
    subtitle = "From the base student to the distilled one: mean over the seeds"
    ax = new_axes(figure, subtitle + (f"; the {MOST_CLASSES // 2} that gained most and least" if cut else ""))
    for y, row in enumerate(rows):
        colour = RIGHT if row["gain"]["mean"] > 0 else WRONG if row["gain"]["mean"] < 0 else GREY
        ax.plot([row[name] for name in conditions], [y, y], color=colour, linewidth=2, alpha=0.5, zorder=1)
    for name, label in zip(conditions, ("base", "distilled")):
        values = [row[name] for row in rows]
        ax.scatter(values, range(len(rows)), s=30, color=COLOURS[name], label=label, zorder=2)
    ax.set_yticks(range(len(rows)), [short(row["name"]) for row in rows], fontsize=min(9, 60 * pitch))
    ax.set(ylim=(len(rows) - 0.4, -0.6), xlabel=SCORES[summary["task"]])
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#EEEEEE")
    figure.legend(loc="outside lower right", ncols=2, frameon=False, fontsize=9)
    return save(figure, path)


def plot_calibration(summary: dict[str, Any], path: str | os.PathLike) -> Path:
    """Accuracy against confidence, a dot a bin, as large as its share of the images; the diagonal is calibrated."""
    figure = new_figure(5.6, 5.0, "Does confidence tell accuracy?")
    ax = new_axes(figure, "Dot: images of one range of confidence, all seeds; on the line: calibrated")
    ax.plot([0, 1], [0, 1], color=PALE, linewidth=1.5, zorder=0)
    for name, label in zip(BOTH, ("base", "distilled")):
        curve = summary["calibration"][name]
        bins = [k for k, value in enumerate(curve["accuracy"]) if value is not None]
        x, y = ([curve[key][k] for k in bins] for key in ("confidence", "accuracy"))
        text = f"{label}: error {100 * curve['error']:.1f} points"
        ax.plot(x, y, color=COLOURS[name], linewidth=1.4, alpha=0.7)
        ax.scatter(x, y, [15 + 400 * curve["share"][k] for k in bins], color=COLOURS[name], alpha=0.75, label=text)
    ax.set(xlabel="confidence", ylabel="accuracy on the test images", xlim=(0, 1.03), ylim=(0, 1.03))
    ax.grid(color="#EEEEEE")
    legend = ax.legend(frameon=False, loc="upper left", fontsize=9)
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    return save(figure, path)
