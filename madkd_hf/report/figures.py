"""Pictures of a run: what students scored, how they learnt, what aspects taught; and the style of all pictures."""

from __future__ import annotations

import os
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import whole_file, writing
from ..text import figure as drawn_text
from .comparison import TERMS, gain_text, mean_and_half_width, terms_of, verdict_of


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .comparison import Terms

COLOURS = {"base": "#5A5A5A", "madkd": "#0072B2", "shuffled": "#BF6F00", "constant": "#B85C93"}  # after Okabe and Ito
COLOURS |= {"object": COLOURS["madkd"], "image": "#007A5A", "image_shuffled": "#6A51A3", "smoothing": "#007A5A"}
TEACHER, STUDENT, RIGHT, WRONG = "#222222", COLOURS["madkd"], "#007A5A", "#C44E00"
STYLES = {"base": "-", "madkd": "-", "shuffled": "--", "constant": ":"}
STYLES |= {"object": "-", "image": "-.", "smoothing": "-.", "image_shuffled": (0, (4, 1, 1, 1, 1, 1))}
OF_UNLABELLED = {"unlabelled": "#D55E00", "posterior": "#6A51A3", "both": "#B01E5B"}
COLOURS |= OF_UNLABELLED | {f"{name}_shuffled": colour for name, colour in OF_UNLABELLED.items()}
STYLES |= dict.fromkeys(OF_UNLABELLED, "-") | {f"{name}_shuffled": "--" for name in OF_UNLABELLED}
COLOURS["selftrain"], STYLES["selftrain"] = "#7A6A00", ":"
COLOURS |= {"class_teacher": "#222222", "kd": "#00788A", "kd_aspects": "#3B4CC0"}
STYLES |= {"class_teacher": ":", "kd": "--", "kd_aspects": "-"}
GREY, PALE, FAINT = "#666666", "#DDDDDD", "#CFE2F0"


def plot_accuracies(report: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Test accuracy in per cent, or AP in points, per condition: a dot per seed, the mean, its 95% interval; lines
    join a seed."""
    terms = terms_of(report)
    accuracy = report[terms.key]
    count = len(next(iter(accuracy.values())))
    jitter = (np.arange(count) - (count - 1) / 2) * min(0.05, 0.3 / count)
    title = verdict_of(report) or f"Test {terms.score} of each student"
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
        shown = gain_text(report, name) or f"{mean:.2f}{terms.unit}"
        labels.append(f"{name}\n{shown}\n{_balanced(terms.conditions[name], 22)}")
    ax.set_xticks(range(len(labels)), labels, fontsize=10)
    for tick, name in zip(ax.get_xticklabels(), accuracy):
        tick.set_color(COLOURS[name])
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.5, len(labels) - 0.5)
    ax.set_ylabel(_axis(terms, "test"))
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, -1), min(high, 101))  # of few seeds, an interval may reach beyond what a score can be
    ax.grid(axis="y", color="#EEEEEE")
    return save(figure, path)


def _balanced(text: str, width: int) -> str:
    """In as few lines as the width allows, none much longer than the others."""
    lines = len(textwrap.wrap(text, width))
    return textwrap.fill(text, next(w for w in range(1, width + 1) if len(textwrap.wrap(text, w)) <= lines))


def _axis(terms: Terms, part: str) -> str:
    return f"{terms.score} on the {part} images, {terms.unit or 'points'}"


def plot_learning_curves(
    cells: Sequence[Mapping[str, Any]], path: str | os.PathLike, task: str = "classification"
) -> Path:
    """Validation accuracy (per cent), or AP (points), against the training step: mean and range over the seeds, per
    condition."""
    terms = TERMS[task]
    figure = new_figure(7.0, 4.4, f"Validation {terms.score} while the students learn")
    ax = new_axes(figure, "Line: mean over the seeds; band: lowest to highest seed")
    for name in terms.conditions:
        curves = [dict(cell["curve"]) for cell in cells if cell["condition"] == name and cell.get("curve")]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        if steps:
            values = np.array([[curve[step] for step in steps] for curve in curves])
            label, front = f"{name}: {terms.conditions[name]}", 3 if name == terms.treated else 2
            ax.fill_between(steps, values.min(0), values.max(0), color=COLOURS[name], alpha=0.15, linewidth=0)
            style = {"linestyle": STYLES[name], "color": COLOURS[name], "linewidth": 2}
            ax.plot(steps, values.mean(0), label=label, zorder=front, **style)
    ax.set(xlabel="training step", ylabel=_axis(terms, "validation"))
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
    ranked = sorted(((value, name) for name, value in zip(ids, auroc) if not np.isnan(value)), reverse=True)
    missing = [name for name, value in zip(ids, auroc) if np.isnan(value)]
    mean = f": mean AUROC {np.mean([value for value, _ in ranked]):.3f}" if ranked else ""
    pitch = min(0.28, 14 / max(1, len(ranked)))
    figure = new_figure(6.6, pitch * len(ranked) + 1.9, f"What each aspect taught the student{mean}")
    ax = new_axes(figure, f"Agreement with the teacher on unseen {unit}s; 0.5: chance, 1: perfect")
    for y, (value, _) in enumerate(ranked):
        ax.barh(y, value - 0.5, 0.7, left=0.5, color=STUDENT if value >= 0.5 else WRONG)
        ax.text(1.01, y, f"{value:.3f}", va="center_baseline", fontsize=min(9, 60 * pitch), color=GREY)
    ax.set_yticks(range(len(ranked)), [short(name) for _, name in ranked], fontsize=min(9, 60 * pitch))
    ax.set(xlim=(min([0.5] + [value - 0.02 for value, _ in ranked]), 1), ylim=(len(ranked) - 0.4, -0.6))
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
    as_they_are = {"text.parse_math": False, "text.usetex": False}  # for texts that the drawing makes
    with matplotlib.rc_context(as_they_are), warnings.catch_warnings(), writing(path), whole_file(path) as file:
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, dpi=150, format=Path(path).suffix.lstrip(".") or "png")
    return Path(path)
