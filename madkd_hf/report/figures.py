"""Pictures of a run: what the teacher said, what its answers tell, what the students scored, what aspects taught."""

from __future__ import annotations

import math
import os
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from ..files import whole_file, writing
from ..text import figure as drawn_text
from .comparison import TERMS, gain_text, mean_and_half_width, terms, verdict
from .information import LOW_MASS


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .comparison import Terms
    from .information import QuestionEvidence

COLOURS = {"base": "#5A5A5A", "madkd": "#0072B2", "shuffled": "#BF6F00", "constant": "#B85C93"}  # after Okabe and Ito
COLOURS |= {"object": COLOURS["madkd"], "image": "#007A5A", "image_shuffled": "#6A51A3"}
TEACHER, STUDENT, RIGHT, WRONG = "#222222", COLOURS["madkd"], "#007A5A", "#C44E00"
STYLES = {"base": "-", "madkd": "-", "shuffled": "--", "constant": ":"}
STYLES |= {"object": "-", "image": "-.", "image_shuffled": (0, (4, 1, 1, 1, 1, 1))}
GREY, PALE, FAINT = "#666666", "#DDDDDD", "#CFE2F0"


def class_aspect_means(labels: Sequence[int], logits: np.ndarray, num_classes: int) -> np.ndarray:
    """The teacher's mean probability of yes, per class.

    Args:
        labels: [n] class indices.
        logits: [n, Q] log-odds of yes; rows with a NaN (images without aspects) are ignored.
        num_classes: C.

    Returns:
        [C, Q] between 0 and 1, NaN for a class without labelled images.
    """
    labels, logits = np.asarray(labels), np.asarray(logits)
    sums, counts = np.zeros((num_classes, logits.shape[1])), np.zeros((num_classes, 1))
    for start in range(0, len(logits), 10_000):  # doubles of a large dataset may not fit
        part = logits[start : start + 10_000].astype(np.float64)
        known = ~np.isnan(part).any(axis=1)
        classes = labels[start : start + 10_000][known]
        np.add.at(sums, classes, special.expit(part[known]))
        np.add.at(counts, classes, 1)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def plot_accuracies(report: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Test accuracy in per cent, or AP in points, per condition: a dot per seed, the mean, its 95% interval; lines
    join a seed."""
    words = terms(report)
    accuracy = report[words.key]
    count = len(next(iter(accuracy.values())))
    jitter = (np.arange(count) - (count - 1) / 2) * min(0.05, 0.3 / count)
    title = verdict(report["gain"], words.score) if report.get("gain") else f"Test {words.score} of each student"
    figure = new_figure(max(6.0, 2.1 * len(accuracy)), 4.8, title)
    ax = new_axes(figure, "Dot: one student; line: same seed; bar: mean; box: 95% interval of the mean")
    ax.use_sticky_edges = False
    for seed, values in enumerate(zip(*accuracy.values())):
        ax.plot(np.arange(len(accuracy)) + jitter[seed], values, color="#BBBBBB", linewidth=0.8, zorder=1)
    labels = []
    for x, (name, values) in enumerate(accuracy.items()):
        mean, half = mean_and_half_width(values)
        ax.bar(x, 2 * (half or 0), 0.5, mean - (half or 0), color=COLOURS[name], alpha=0.18, zorder=0)
        ax.hlines(mean, x - 0.25, x + 0.25, color=COLOURS[name], linewidth=2.5, zorder=2)
        ax.scatter(x + jitter, values, s=34, color=COLOURS[name], edgecolor="white", linewidth=0.8, zorder=3)
        shown = gain_text(report, name) or f"{mean:.2f}{words.unit}"
        labels.append(f"{name}\n{shown}\n{_balanced(words.conditions[name], 22)}")
    ax.set_xticks(range(len(labels)), labels, fontsize=10)
    for tick, name in zip(ax.get_xticklabels(), accuracy):
        tick.set_color(COLOURS[name])
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.5, len(labels) - 0.5)
    ax.set_ylabel(_axis(words, "test"))
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, -1), min(high, 101))  # of few seeds, an interval may reach beyond what a score can be
    ax.grid(axis="y", color="#EEEEEE")
    return save(figure, path)


def _balanced(text: str, width: int) -> str:
    """In as few lines as the width allows, none much longer than the others."""
    lines = len(textwrap.wrap(text, width))
    return textwrap.fill(text, next(w for w in range(1, width + 1) if len(textwrap.wrap(text, w)) <= lines))


def _axis(words: Terms, part: str) -> str:
    return f"{words.score} on the {part} images, {words.unit or 'points'}"


def plot_teacher(
    probabilities: np.ndarray,
    class_names: Sequence[str],
    aspect_ids: Sequence[str],
    path: str | os.PathLike,
    groups: Sequence[str] | None = None,
    unit: str = "image",
) -> Path:
    """Heat map of the teacher's mean probability of yes.

    Args:
        probabilities: [C, Q], see `class_aspect_means`; NaN is drawn grey.
        class_names, aspect_ids: C and Q names; where they do not fit, every k-th is written.
        groups: Q group names; aspects of a group are put side by side under its name.
        unit: what the questions are about, "image" or "object".
    """
    values = np.asarray(probabilities, dtype=np.float64)
    groups = list(groups or [""] * values.shape[1])
    order = sorted(range(len(groups)), key=lambda q: groups.index(groups[q]))
    cells = (min(0.26, 14 / len(values)), min(0.42, 15 / len(order)))  # inches: height and width of one cell
    room = [0.08 * min(30, max(map(len, names))) + 1.2 for names in (aspect_ids, class_names)]
    size = (max(6.0, cells[1] * len(order) + room[1]), cells[0] * len(values) + room[0] + 0.2)
    figure = new_figure(*size, "What the teacher sees in each class")
    ax = new_axes(figure, f"Mean probability of yes to each aspect (column) over the {unit}s of a class (row)")
    ax.set_facecolor("#BBBBBB")
    shown = np.ma.masked_invalid(values[:, order])
    mesh = ax.pcolormesh(shown, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=cells[0] * 3)
    ax.invert_yaxis()
    ax.tick_params(length=0)
    steps = [math.ceil(0.13 / cell) for cell in cells]
    sizes = [min(9.0, 60 * cell * step) for cell, step in zip(cells, steps)]
    rows, columns = (range(0, n, step) for n, step in zip(values.shape, steps))
    ax.set_yticks([r + 0.5 for r in rows], [short(class_names[r]) for r in rows], fontsize=sizes[0])
    names = [short(aspect_ids[order[q]]) for q in columns]
    ax.set_xticks([q + 0.5 for q in columns], names, rotation=90, fontsize=sizes[1])
    _name_groups(ax, [groups[q] for q in order], cells[1])
    bar = figure.colorbar(mesh, ax=ax, aspect=30, shrink=min(1, 3 / (cells[0] * len(values))), anchor=(0, 1), pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label("mean P(yes)" + (f"; grey: no {unit}s" if np.isnan(values).any() else ""))
    return save(figure, path)


def _name_groups(ax: Axes, groups: Sequence[str], cell_width: float) -> None:
    """Lines between runs of equal groups, and the name above each run that is wide enough for it."""
    for group in dict.fromkeys(groups):
        start, size = groups.index(group), groups.count(group)
        ax.axvline(start, color=TEACHER, linewidth=1.2 if start else 0)
        if group and size * cell_width > 0.08 * len(group):
            where = {"xy": (start + size / 2, 1), "xytext": (0, 4), "textcoords": "offset points"}
            ax.annotate(
                drawn_text(group), xycoords=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=9, **where
            )
    if any(groups):
        ax.set_title(ax.get_title(loc="left"), loc="left", fontsize=9, color=GREY, pad=22)


def plot_questions(rows: Sequence[QuestionEvidence], path: str | os.PathLike, unit: str = "image") -> Path:
    """What each answer tells (bits) about the class, or where that is unknown about the `unit` ("image" or "object"),
    how often it is yes, its mass, and what is wrong; rows in the order given."""
    texts = [textwrap.wrap(drawn_text(f"{row.id}: {row.question}"), 46, max_lines=3, placeholder=" …") for row in rows]
    heights = [0.16 + 0.15 * max(len(text), len(row.notes)) for text, row in zip(texts, rows)]  # inches
    y, total = np.cumsum(heights) - np.divide(heights, 2), sum(heights)
    classes = any(row.information is not None for row in rows)
    about = "class" if classes else unit
    figure = new_figure(12.0, total + 1.8, f"What each answer tells about the {about}")
    told, yes, mass = figure.subplots(1, 3, sharey=True, width_ratios=[3, 1, 1])
    legend = _plot_information(told, y, rows, about)
    for ax, values in ((yes, [row.yes for row in rows]), (mass, [row.mass for row in rows])):
        colours = [WRONG if ax is mass and "low mass" in row.notes else TEACHER for row in rows]
        ax.hlines(y, 0, 1, color="#EEEEEE", linewidth=1, zorder=0)
        ax.scatter(np.array(values, dtype=np.float64), y, s=36, color=colours, zorder=2, clip_on=False)
        ax.set_xlim(0, 1)
        ax.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    mass.axvspan(0, LOW_MASS, color=WRONG, alpha=0.08, linewidth=0)
    for height, row in zip(y, rows):
        notes, place = "\n".join(f"⚠ {short(note)}" for note in row.notes), mass.get_yaxis_transform()
        mass.text(1.08, height, notes, transform=place, va="center", fontsize=8, color=WRONG, parse_math=False)
    told.set_yticks(y, ["\n".join(text) for text in texts], fontsize=9, parse_math=False)
    told.set_ylim(total, 0)
    for ax, name in zip((told, yes, mass), ("information, bits", "share of yes", "mass of yes and no")):
        ax.set_title(name, loc="left", fontsize=9, color=GREY)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.spines["bottom"].set_color(PALE)
        ax.tick_params(length=0, labeltop=total > 8)
        ax.set_axisbelow(True)
    figure.legend(handles=legend, loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    return save(figure, path)


def _plot_information(ax: Axes, y: np.ndarray, rows: Sequence[QuestionEvidence], about: str) -> list[Any]:
    """Bars for what is told, over the most that could be, and a mark for chance; returns the legend's handles."""
    classes = about == "class"
    told = [row.information or 0.0 if classes else row.entropy - row.doubt for row in rows]
    chance = [row.chance or 0.0 for row in rows]
    most = ax.barh(y, [row.entropy for row in rows], 0.2, color=FAINT, label="most that answers so varied can tell")
    bars = ax.barh(y, told, 0.2, color=STUDENT, label=f"what they tell about the {about}")
    limit = 1.05 * max(0.1, *(row.entropy for row in rows))
    for height, *ends in zip(y, told, chance):
        inside = ends[0] - ends[1] > 0.15 * limit  # and clear of the mark
        where = {"xy": (ends[0] if inside else max(ends), height), "xytext": (-5 if inside else 5, 0)}
        look = {"ha": "right", "color": "white"} if inside else {"ha": "left", "color": TEACHER}
        ax.annotate(f"{ends[0]:.2f}", textcoords="offset points", va="center_baseline", fontsize=8, **where, **look)
    ax.set_xlim(0, limit)
    ax.grid(axis="x", color="#EEEEEE")
    if not classes:
        return [bars, most]
    label = "what they would tell by chance, with classes shuffled"
    return [bars, most, ax.vlines(chance, y - 0.14, y + 0.14, color=TEACHER, linewidth=1.8, label=label)]


def plot_learning_curves(
    cells: Sequence[Mapping[str, Any]], path: str | os.PathLike, task: str = "classification"
) -> Path:
    """Validation accuracy (per cent), or AP (points), against the training step: mean and range over the seeds, per
    condition."""
    words = TERMS[task]
    figure = new_figure(7.0, 4.4, f"Validation {words.score} while the students learn")
    ax = new_axes(figure, "Line: mean over the seeds; band: lowest to highest seed")
    for name in words.conditions:
        curves = [dict(cell["curve"]) for cell in cells if cell["condition"] == name and cell.get("curve")]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        if steps:
            values = np.array([[curve[step] for step in steps] for curve in curves])
            label, front = f"{name}: {words.conditions[name]}", 3 if name == words.treated else 2
            ax.fill_between(steps, values.min(0), values.max(0), color=COLOURS[name], alpha=0.15, linewidth=0)
            look = {"linestyle": STYLES[name], "color": COLOURS[name], "linewidth": 2}
            ax.plot(steps, values.mean(0), label=label, zorder=front, **look)
    ax.set(xlabel="training step", ylabel=_axis(words, "validation"))
    ax.grid(axis="y", color="#EEEEEE")
    if ax.lines:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return save(figure, path)


def plot_aspect_learning(
    ids: Sequence[str], auroc: Sequence[float], path: str | os.PathLike, unit: str = "image"
) -> Path:
    """How well the student's answers rank unseen images (or objects, by `unit`) as the teacher's yes and no do: Q
    AUROCs, NaN left out."""
    auroc = np.asarray(auroc, dtype=np.float64)  # None becomes NaN
    known = sorted(((value, name) for name, value in zip(ids, auroc) if not np.isnan(value)), reverse=True)
    missing = [name for name, value in zip(ids, auroc) if np.isnan(value)]
    mean = f": mean AUROC {np.mean([value for value, _ in known]):.3f}" if known else ""
    pitch = min(0.28, 14 / max(1, len(known)))
    figure = new_figure(6.6, pitch * len(known) + 1.9, f"What each aspect taught the student{mean}")
    ax = new_axes(figure, f"Agreement with the teacher on unseen {unit}s; 0.5: chance, 1: perfect")
    for y, (value, _) in enumerate(known):
        ax.barh(y, value - 0.5, 0.7, left=0.5, color=STUDENT if value >= 0.5 else WRONG)
        ax.text(1.01, y, f"{value:.3f}", va="center_baseline", fontsize=min(9, 60 * pitch), color=GREY)
    ax.set_yticks(range(len(known)), [short(name) for _, name in known], fontsize=min(9, 60 * pitch))
    ax.set(xlim=(min([0.5] + [value - 0.02 for value, _ in known]), 1), ylim=(len(known) - 0.4, -0.6))
    ax.axvline(0.5, color=TEACHER, linewidth=1)
    ax.tick_params(axis="y", length=0)
    label = "AUROC of the student's P(yes) against the teacher's yes or no"
    if missing:
        label += "\n" + textwrap.fill(
            f"left out, no AUROC (one answer only): {', '.join(map(drawn_text, missing))}", 72
        )
    ax.set_xlabel(label, fontsize=9)
    return save(figure, path)


def new_figure(width: float, height: float, title: str) -> Figure:
    """A figure of so many inches, its title in bold at the left; no pyplot: no windows, no global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    figure.suptitle(textwrap.fill(title, int(9 * width)), x=0.015, ha="left", fontsize=12, fontweight="bold")
    return figure


def new_axes(figure: Figure, subtitle: str = "", ax: Axes | None = None) -> Axes:
    ax = ax or figure.add_subplot()
    ax.set_title(subtitle, loc="left", fontsize=9, color=GREY, wrap=True)
    ax.spines["bottom"].set_color(PALE)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_axisbelow(True)
    return ax


def short(name: str, length: int = 30) -> str:
    """Cut in the middle: names that begin alike end apart; in one line without hidden characters."""
    name = drawn_text(name)
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[: length - 1 - half]}…{name[len(name) - half :]}"


def save(figure: Figure, path: str | os.PathLike) -> Path:
    """Draw into a file. Texts are drawn as they are: no formula in them, nothing for TeX, and no word about letters
    that the font lacks."""
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_usetex(False)
        text.set_parse_math(text.get_wrap())  # to wrap a text, its width is measured as that of a formula all the same
        if text.get_wrap():
            text.set_text(re.sub(r"(?<!\\)\$", r"\\$", text.get_text()))
    plain = {"text.parse_math": False, "text.usetex": False}  # for texts that the drawing makes
    with matplotlib.rc_context(plain), warnings.catch_warnings(), writing(path), whole_file(path) as file:
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, dpi=150, format=Path(path).suffix.lstrip(".") or "png")
    return Path(path)
