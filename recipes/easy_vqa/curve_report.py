"""What a number of questions is worth to students: accuracies by how they were chosen, in numbers and a picture."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from madkd_hf.files import write_whole
from madkd_hf.report.comparison import left_out_sentence, markdown_table, mean_text, paired_gain, points_text
from madkd_hf.report.figures import COLOURS, GREY, STUDENT, TEACHER, new_axes, new_figure, save
from madkd_hf.text import block, markdown


METHODS = {
    "evidence": "by evidence",
    "jmi": "by evidence (JMI)",
    "mrmr": "by evidence (mRMR)",
    "llm": "in the order of the list",
    "random": "at random",
}
LINES = {"evidence": STUDENT, "llm": COLOURS["shuffled"], "random": COLOURS["constant"], "jmi": GREY, "mrmr": TEACHER}
TITLE = "Accuracy against the number of questions"


def summarise_curve(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracies and differences, paired by seed.

    Args:
        points: one for each student, with `method` (of `METHODS`, or "base", "all"), `asked`, `kept` (numbers of
            questions), `seed`, `accuracy` (per cent).

    Returns:
        `seeds`; `students`: the points; `accuracy`: method -> number asked for -> per cent, in the order of the seeds;
        `over`: other method -> number asked for -> what the choice by evidence is ahead, see `paired_gain`.
    """
    accuracy: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for point in sorted(points, key=lambda point: (point["asked"], point["seed"])):
        accuracy[point["method"]][point["asked"]].append(point["accuracy"])
    evidence, over = accuracy.get("evidence", {}), {}
    for other in [name for name in ("random", "llm", "jmi", "mrmr", "all") if name in accuracy]:
        runs = accuracy[other] if other != "all" else dict.fromkeys(evidence, _only(accuracy, "all"))
        over[other] = {count: paired_gain(values, runs[count]) for count, values in evidence.items()}
    seeds = sorted({point["seed"] for point in points})
    return {"seeds": seeds, "students": list(points), "accuracy": accuracy, "over": over}


def _only(accuracy: Mapping[str, Mapping[int, list[float]]], method: str) -> list[float]:
    return next(iter(accuracy[method].values()))


def curve_table(summary: Mapping[str, Any]) -> str:
    """Mean accuracy ± standard deviation for each number of questions, and what evidence is ahead by."""
    accuracy, over = summary["accuracy"], summary["over"] if "evidence" in summary["accuracy"] else {}
    methods = [name for name in METHODS if name in accuracy]
    head = ["Questions", *(METHODS[name][0].upper() + METHODS[name][1:] for name in methods)]
    lines = [head + [f"Evidence less {METHODS.get(name, name)}" for name in over]]
    for count in sorted({count for name in methods for count in accuracy[name]}):
        cells = [mean_text(accuracy[name][count]) if count in accuracy[name] else "" for name in methods]
        lines.append([str(count), *cells, *(points_text(gains[count], 1) for gains in over.values())])
    for name, label in (("all", f"all {summary['candidates']}"), ("base", "none")):
        lines.append([label, mean_text(_only(accuracy, name)), *[""] * (len(lines[0]) - 2)])
    return markdown_table(lines, right=range(1, len(lines[0])))


def write_curve(summary: Mapping[str, Any], output_dir: str | os.PathLike) -> tuple[Path, str]:
    """Write `questions_curve.md`, `questions_curve.json` and `figures/questions_curve.png`.

    Args:
        summary: of `summarise_curve`, and `candidates`, `dataset`, `images_per_class`, `validation_images`, `command`.

    Returns:
        The first file's path, and its table.
    """
    folder = Path(output_dir)
    plot_curve(summary, folder / "figures" / "questions_curve.png")
    write_whole(folder / "questions_curve.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    table, seeds = curve_table(summary), len(summary["seeds"])
    few = f"{summary['images_per_class']} images a class" if summary["images_per_class"] else "all training images"
    text = (
        f"{len(summary['students'])} students of {markdown(summary['dataset'])}, {few}, {summary['candidates']} "
        f"candidate questions. Accuracies are in per cent of {summary['validation_images']} validation images; the "
        f"test images were not touched. Mean ± standard deviation over {seeds} seeds; differences in points, paired "
        "by seed, with a 95% t interval. The choice by evidence saw the answers and classes of its student's own "
        "training images, and nothing else; at random, each seed draws anew."
    )
    parts = [f"# {TITLE}", text]
    parts += [f"**{verdict}**"] if (verdict := curve_verdict(summary)) else []
    parts += [f"![{TITLE}](figures/questions_curve.png)", table]
    parts += [left_out_sentence(summary["left_out"])] if summary.get("left_out") else []
    parts.append(f"## Reproduce\n\n{block(summary['command'], 'bash')}")
    return write_whole(folder / "questions_curve.md", "\n\n".join(parts) + "\n"), table


def curve_verdict(summary: Mapping[str, Any]) -> str:
    """What about a third of the candidates is worth, chosen by evidence; empty where that was not tried."""
    evidence = summary["accuracy"].get("evidence", {})
    few = max((count for count in evidence if count <= summary["candidates"] / 3), default=None)
    if few is None:
        return ""
    everything, none = (np.mean(_only(summary["accuracy"], name)) for name in ("all", "base"))
    return (
        f"By evidence, {few} of {summary['candidates']} questions give {np.mean(evidence[few]):.1f}%, all of them "
        f"{everything:.1f}%, none {none:.1f}%: a difference from all of "
        f"{points_text(summary['over']['all'][few], 1)} points."
    )


def plot_curve(summary: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Accuracy (per cent, validation images) against the number of questions; a dot a student, a line the means."""
    accuracy = summary["accuracy"]
    methods = [name for name in METHODS if name in accuracy]
    figure = new_figure(9.0, 5.4, TITLE)
    few = f"; {summary['images_per_class']} training images a class" if summary["images_per_class"] else ""
    seeds = f"Line: mean of {len(summary['seeds'])} seeds; dot: one student"
    ax = new_axes(figure, f"{seeds}{few}; no test image was used")
    counts = sorted({count for name in methods for count in accuracy[name]})
    right = max(counts) * 1.06
    for name, label, style in (("all", f"all {summary['candidates']} questions", "--"), ("base", "no questions", ":")):
        mean = np.mean(_only(accuracy, name))
        ax.axhline(mean, color=GREY, linestyle=style, linewidth=1.6, zorder=1)
        ax.text(right, mean, f" {label}\n {mean:.1f}%", color=GREY, va="center", fontsize=9, clip_on=False)
    for k, name in enumerate(methods):
        x = np.array(list(accuracy[name])) + (k - (len(methods) - 1) / 2) * 0.012 * max(counts)
        values = np.array(list(accuracy[name].values()))
        for column in values.T:
            ax.scatter(x, column, s=14, color=LINES[name], alpha=0.45, linewidth=0, zorder=2)
        front = {"linewidth": 2.6, "zorder": 4} if name == "evidence" else {"linewidth": 1.8, "zorder": 3}
        ax.plot(x, values.mean(axis=1), "o-", color=LINES[name], markersize=6, label=METHODS[name], **front)
    ax.set(xlim=(0, right), xlabel="questions asked of each image", ylabel="accuracy on the validation images, %")
    ax.set_xticks(counts)
    ax.grid(axis="y", color="#EEEEEE")
    ax.legend(edgecolor="none", framealpha=1, loc="lower right", fontsize=9)
    return save(figure, path)
