"""A comparison at many points: how the gain depends on labels, on alpha, on the number of aspects."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_whole
from ..text import block, code, counted, figure, jsonable, markdown
from .comparison import (
    ANSWERS,
    CONDITIONS,
    WITH_MLLM,
    drawn_sentence,
    gain_text,
    left_out_sentence,
    markdown_table,
    mean_and_half_width,
    mean_text,
    terms_of,
    tested_on,
    treated_of,
)
from .figures import COLOURS, STYLES, TEACHER, new_axes, new_figure, plot_accuracies, save


LEGEND = "Dot: one student; line: mean; bar: 95% interval of the mean"
MARKERS = "osD^vPX*<>"
TITLES = {
    "unlabelled_images": "images without a class",
    "images_per_class": "labelled images of each class",
    "aspect_alpha": "weight of the aspect loss, alpha",
    "aspects": "questions asked of each image",
}


def grid_table(points: Sequence[Mapping[str, Any]]) -> str:
    """A line for each point and condition; options with one value alone have no column, see `same_everywhere`.

    Args:
        points: what `comparison.summarise` returns for each, `validation` (condition -> per cent, in the order of the
            seeds; {} without validation images), `point`: option -> value, and where measured `answers_alone`, shown
            in the first line of a point.
    """
    options = _varied(points)
    validated = any(point["validation"] for point in points)
    head = [*map(markdown, options), "Condition", *(["Validation, %"] if validated else []), "Test, %"]
    head.append("Gain over base, points [95% interval]")
    rows = [[*head, ANSWERS] if _answers_alone(points) else head]
    for point in points:
        answers = mean_text(found[0]["accuracy"]) if (found := _answers_alone([point])) else ""
        for name, values in point["accuracy"].items():
            settings = [markdown(_number(point["point"][option])) for option in options]
            validation = [mean_text(point["validation"][name]) if point["validation"] else ""] if validated else []
            row = [*settings, name, *validation, mean_text(values), gain_text(point, name), answers]
            rows.append(row[: len(rows[0])])
            answers = ""
    return markdown_table(rows, right=[k for k in range(len(rows[0])) if k != len(options)])


def _varied(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """The options with more than one value."""
    return [option for option in points[0]["point"] if len({_number(point["point"][option]) for point in points}) > 1]


def same_everywhere(points: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on the options of the grid with one value alone; "" where there are none."""
    fixed = [option for option in points[0]["point"] if option not in _varied(points)]
    values = ", ".join(f"{markdown(option)} {markdown(_number(points[0]['point'][option]))}" for option in fixed)
    return f"All students: {values}." if fixed else ""


def _answers_alone(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What was measured of the teacher's answers alone."""
    found = [point.get("answers_alone") or {} for point in points]
    return [values for values in found if "accuracy" in values]


def grid_answers_text(points: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on the column of `grid_table` about the answers alone; "" where there is none."""
    found = _answers_alone(points)
    if not found:
        return ""
    return (
        f"The answers alone: per cent of {tested_on(found)} that a logistic regression on the teacher's answers about "
        f"the training images of each seed classifies right: {WITH_MLLM}."
    )


def grid_verdict(points: Sequence[Mapping[str, Any]]) -> str:
    """In a sentence: at how many points distillation gains, and where its students are best on validation images.

    Where students learn from images without a class, too, it is about those of the condition that counts.
    """
    gained = [point for point in points if "gain" in point]
    if not gained:
        return "Nothing to compare: train both base and madkd."
    treated = treated_of(gained[0])
    students = "Distilled students" if treated == terms_of(gained[0]).treated else f"Students of `{treated}`"
    clear = [point for point in gained if (point["gain"]["ci95"][0] or -1) > 0]
    ahead = sum(point["gain"]["mean"] > 0 for point in gained)
    text = (
        f"{students} are ahead of the base ones on average at {ahead} of {len(gained)} points, and clearly, "
        f"with an interval above 0, at {len(clear)}."
    )
    if not gained[0]["validation"]:
        return f"{text} Without validation images no point is chosen."
    best = max(gained, key=lambda point: np.mean(point["validation"][treated]))
    setting = ", ".join(f"{option} {_number(best['point'][option])}" for option in _varied(points) or best["point"])
    return (
        f"{text} On validation images they are best with {setting} ({np.mean(best['validation'][treated]):.1f}%); on "
        f"test images these reach {np.mean(best['accuracy'][treated]):.1f}%, {gain_text(best, treated)} points over "
        "the base ones there."
    )


def write_grid(summary: Mapping[str, Any], output_dir: str | os.PathLike) -> Path:
    """Write `report.json`, `report.md` (its path) and a picture for each option with more than one value; of a single
    point, a picture of its students.

    Args:
        summary: `points`, see `grid_table`, and what `page.write_report` takes beside accuracies.
    """
    points, output_dir = summary["points"], Path(output_dir)
    seeds = len(points[0]["seeds"])
    model = (summary.get("teacher") or {}).get("model")  # answers that were given elsewhere may not say whose they are
    whose = f"; the teacher is {code(model)}" if model else ""
    labels = f", {count} images per class" if (count := summary.get("images_per_class")) else ""
    pictures = []
    for option in _varied(points):
        name = f"against_{option}.png"
        plot_against(points, option, output_dir / "figures" / name)
        pictures.append(f"![Accuracy against {option}](figures/{name})")
    if len(points) == 1:
        plot_accuracies(points[0], output_dir / "figures" / "accuracies.png")
        pictures.append("![Accuracy of every student](figures/accuracies.png)")
    lines = [
        f"# Multi-aspect knowledge distillation on {markdown(summary['dataset'])}",
        f"{counted(len(points), 'point')}, {counted(seeds, 'seed')}{labels}{whose}. Mean ± "
        "standard deviation over the seeds; gains are on the test images, paired by seed, with a 95% t interval. Each "
        "student saw the test images once, after its training.",
        f"**{grid_verdict(points)}**",
        *pictures,
        grid_table(points),
        *filter(None, [same_everywhere(points), grid_answers_text(points)]),
        *([left_out_sentence(summary["left_out"])] if summary.get("left_out") else []),
        *filter(None, [drawn_sentence(summary)]),
        f"## Reproduce\n\n{block(summary['command'], 'bash')}",
    ]
    write_whole(output_dir / "report.json", json.dumps(jsonable(summary), indent=2, allow_nan=False) + "\n")
    return write_whole(output_dir / "report.md", "\n\n".join(lines) + "\n")


def plot_against(points: Sequence[Mapping[str, Any]], option: str, path: str | os.PathLike) -> Path:
    """Test accuracy against one option, a panel for each setting of the others; dots are students, bars intervals."""
    panels: dict[tuple, list[Mapping[str, Any]]] = {}
    for point in points:
        others = [name for name in _varied(points) if name != option]
        panels.setdefault(tuple((name, point["point"][name]) for name in others), []).append(point)
    drawn = new_figure(
        max(6.4, 4.6 * len(panels)),
        5.2 + 0.1 * len(points[0]["accuracy"]),
        f"Accuracy against {TITLES.get(option, figure(option))}",
    )
    axes = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (other_options, row) in zip(axes, panels.items()):
        values = [point["point"][option] for point in row]
        if not any(isinstance(value, str) for value in values):
            row = sorted(row, key=lambda point: point["point"][option])
            values = sorted(values)
        subtitle = ", ".join(f"{name} {_number(value)}" for name, value in other_options)
        new_axes(drawn, figure(subtitle) or LEGEND, ax)
        names = [name for name in CONDITIONS if name in row[0]["accuracy"]]
        pitch = min(0.06, 0.5 / len(names))
        for k, name in enumerate(names):
            x = np.arange(len(row)) + (k - (len(names) - 1) / 2) * pitch
            runs = [point["accuracy"][name] for point in row]
            means, halves = zip(*(mean_and_half_width(run) for run in runs))
            for place, run in zip(x, runs):
                ax.scatter([place] * len(run), run, s=16, color=COLOURS[name], alpha=0.4, linewidth=0)
            style = {
                "color": COLOURS[name],
                "linestyle": STYLES[name],
                "linewidth": 1.5,
                "capsize": 2,
                "markersize": 5,
            }
            bars = [half or 0 for half in halves]
            marker = MARKERS[list(CONDITIONS).index(name) % len(MARKERS)]
            ax.errorbar(x, means, bars, marker=marker, label=f"{name}: {CONDITIONS[name]}", **style)
        if len(answered := _answers_alone(row)) == len(row):
            means = [np.mean(found["accuracy"]) for found in answered]
            ax.plot(np.arange(len(row)), means, ":", color=TEACHER, marker="_", label="the answers alone")
        ax.set_xticks(range(len(values)), [figure(_number(value)) for value in values])
        ax.set_xlabel(TITLES.get(option, figure(option)))
        ax.grid(axis="y", color="#EEEEEE")
    axes[0].set_ylabel("accuracy on the test images, %")
    handles, labels = axes[-1].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return save(drawn, path)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
