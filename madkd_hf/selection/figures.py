"""Pictures of answers: what the teacher says of each class, and what each question tells."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from ..aspects import UNPUBLISHED
from ..report.figures import FAINT, GREY, PALE, STUDENT, TEACHER, WRONG, new_axes, new_figure, save, short
from ..text import figure as drawn_text
from .information import LOW_MASS, QuestionEvidence


if TYPE_CHECKING:
    from matplotlib.axes import Axes


MOST_QUESTIONS = 100  # in a picture; the table beside it has all


def class_aspect_means(labels: Sequence[int], logits: np.ndarray, num_classes: int) -> np.ndarray:
    """The teacher's mean probability of yes for each class: [C, Q], NaN for a class without labelled images.

    `labels` are [n] class indices; rows of `logits` [n, Q] with a NaN (images without aspects) are ignored.
    """
    labels, logits = np.asarray(labels), np.asarray(logits)
    sums, counts = np.zeros((num_classes, logits.shape[1])), np.zeros((num_classes, 1))
    for start in range(0, len(logits), 10_000):  # doubles of a large dataset may not fit
        part = logits[start : start + 10_000].astype(np.float64)
        answered = ~np.isnan(part).any(axis=1)
        classes = labels[start : start + 10_000][answered]
        np.add.at(sums, classes, special.expit(part[answered]))
        np.add.at(counts, classes, 1)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


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
            position = {"xy": (start + size / 2, 1), "xytext": (0, 4), "textcoords": "offset points"}
            ax.annotate(
                drawn_text(group), xycoords=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=9, **position
            )
    if any(groups):
        ax.set_title(ax.get_title(loc="left"), loc="left", fontsize=9, color=GREY, pad=22)


def plot_questions(rows: Sequence[QuestionEvidence], path: str | os.PathLike, unit: str = "image") -> Path:
    """What each answer tells (bits) about the class, or where that is unknown about the `unit` ("image" or "object"),
    how often it is yes, its mass, and what is wrong; rows in the order given, of very many the first and the last."""
    cut, count = len(rows) > MOST_QUESTIONS, len(rows)
    if cut:
        rows = [*rows[: MOST_QUESTIONS // 2], *rows[-MOST_QUESTIONS // 2 :]]
    named = [row.id if row.question == UNPUBLISHED.format(id=row.id) else f"{row.id}: {row.question}" for row in rows]
    texts = [textwrap.wrap(drawn_text(text), 46, max_lines=3, placeholder=" …") for text in named]
    heights = [0.16 + 0.15 * max(len(text), len(row.notes)) for text, row in zip(texts, rows)]  # inches
    y, total = np.cumsum(heights) - np.divide(heights, 2), sum(heights)
    classes = any(row.information is not None for row in rows)
    about = "class" if classes else unit
    title = f"What each answer tells about the {about}"
    title += f": {MOST_QUESTIONS // 2} questions from each end of the list of {count}" if cut else ""
    figure = new_figure(12.0, total + 1.8, title)
    shares = {"share of yes": [row.yes for row in rows]}
    if any(row.mass is not None for row in rows):
        shares["mass of yes and no"] = [row.mass for row in rows]
    axes = figure.subplots(1, 1 + len(shares), sharey=True, width_ratios=[3, *[1] * len(shares)])
    bits_ax, last_ax = axes[0], axes[-1]
    legend = _plot_information(bits_ax, y, rows, about)
    for ax, (name, values) in zip(axes[1:], shares.items()):
        of_mass = name.startswith("mass")
        colours = [WRONG if of_mass and "low mass" in row.notes else TEACHER for row in rows]
        if of_mass:
            ax.axvspan(0, LOW_MASS, color=WRONG, alpha=0.08, linewidth=0)
        ax.hlines(y, 0, 1, color="#EEEEEE", linewidth=1, zorder=0)
        ax.scatter(np.array(values, dtype=np.float64), y, s=36, color=colours, zorder=2, clip_on=False)
        ax.set_xlim(0, 1)
        ax.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    for height, row in zip(y, rows):
        notes, place = "\n".join(f"⚠ {short(note)}" for note in row.notes), last_ax.get_yaxis_transform()
        last_ax.text(1.08, height, notes, transform=place, va="center", fontsize=8, color=WRONG, parse_math=False)
    bits_ax.set_yticks(y, ["\n".join(text) for text in texts], fontsize=9, parse_math=False)
    bits_ax.set_ylim(total, 0)
    for ax, name in zip(axes, ("information, bits", *shares)):
        ax.set_title(name, loc="left", fontsize=9, color=GREY)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.spines["bottom"].set_color(PALE)
        ax.tick_params(length=0, labeltop=total > 8)
        ax.set_axisbelow(True)
    figure.legend(handles=legend, loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    return save(figure, path)


def _plot_information(ax: Axes, y: np.ndarray, rows: Sequence[QuestionEvidence], about: str) -> list[Any]:
    """Bars for the information, over the most that is possible, and marks for chance; returns the legend's parts."""
    classes = about == "class"
    information = [row.information or 0.0 if classes else row.entropy - row.doubt for row in rows]
    chance = [row.chance or 0.0 for row in rows]
    most = ax.barh(y, [row.entropy for row in rows], 0.2, color=FAINT, label="most that answers so varied can tell")
    bars = ax.barh(y, information, 0.2, color=STUDENT, label=f"what they tell about the {about}")
    limit = 1.05 * max(0.1, *(row.entropy for row in rows))
    for height, *ends in zip(y, information, chance):
        inside = ends[0] - ends[1] > 0.15 * limit  # and clear of the mark
        place = {"xy": (ends[0] if inside else max(ends), height), "xytext": (-5 if inside else 5, 0)}
        style = {"ha": "right", "color": "white"} if inside else {"ha": "left", "color": TEACHER}
        ax.annotate(f"{ends[0]:.2f}", textcoords="offset points", va="center_baseline", fontsize=8, **place, **style)
    ax.set_xlim(0, limit)
    ax.grid(axis="x", color="#EEEEEE")
    if not classes:
        return [bars, most]
    label = "what they would tell by chance, with classes shuffled"
    return [bars, most, ax.vlines(chance, y - 0.14, y + 0.14, color=TEACHER, linewidth=1.8, label=label)]
