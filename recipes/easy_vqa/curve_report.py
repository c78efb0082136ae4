"""What a number of questions is worth to students: accuracies by how they were chosen, in numbers and a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from madkd_hf.files import write_whole
from madkd_hf.report.comparison import left_out_sentence, markdown_table, paired_gain
from madkd_hf.report.figures import COLOURS, GREY, PALE, STUDENT, TEACHER, new_axes, new_figure, save
from madkd_hf.text import block, markdown


METHODS = {
    "evidence": "by evidence",
    "jmi": "by evidence (JMI)",
    "mrmr": "by evidence (mRMR)",
    "llm": "in the order of the list",
    "random": "at random",
}
LINES = {"evidence": STUDENT, "llm": COLOURS["shuffled"], "random": COLOURS["constant"], "jmi": GREY, "mrmr": TEACHER}


def summarise_curve(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracies and differences, paired by seed.

    Args:
        points: one for each student, with `method` (of `METHODS`, or "base", "all"), `asked`, `kept` (numbers of
            questions), `seed`, `accuracy` (per cent).

    Returns:
        `seeds`; `accuracy`: method -> number asked for -> per cent, in the order of the seeds; `kept` likewise;
        `gains`: over base, likewise, see `paired_gain`; `over_random`, `over_llm`, `over_all`: of the choice by
        evidence, for each number asked for.
    """
    seeds = sorted({point["seed"] for point in points})
    accuracy: dict[str, dict[int, list[float]]] = {}
    kept: dict[str, dict[int, list[int]]] = {}
    for point in sorted(points, key=lambda point: (point["asked"], point["seed"])):
        accuracy.setdefault(point["method"], {}).setdefault(point["asked"], []).append(point["accuracy"])
        kept.setdefault(point["method"], {}).setdefault(point["asked"], []).append(point["kept"])
    found = {"seeds": seeds, "accuracy": accuracy, "kept": kept, "students": list(points)}
    base, everything = (next(iter(accuracy[name].values()), None) for name in ("base", "all"))
    found["gains"] = {
        method: {count: paired_gain(values, base) for count, values in runs.items()}
        for method, runs in accuracy.items()
        if method != "base"
    }
    evidence = accuracy.get("evidence", {})
    for other in ("random", "llm", "jmi", "mrmr"):
        if other in accuracy:
            found[f"over_{other}"] = {q: paired_gain(values, accuracy[other][q]) for q, values in evidence.items()}
    found["over_all"] = {q: paired_gain(values, everything) for q, values in evidence.items()}
    return found


def curve_table(summary: Mapping[str, Any]) -> str:
    """Mean accuracy ± standard deviation for each number of questions, and what evidence is ahead by."""
    accuracy = summary["accuracy"]
    methods = [name for name in METHODS if name in accuracy]
    others = [name for name in ("random", "llm", "jmi", "mrmr", "all") if f"over_{name}" in summary]
    ahead = others if "evidence" in accuracy else []
    head = ["Questions", *(METHODS[name][0].upper() + METHODS[name][1:] for name in methods)]
    head += [f"Evidence less {'all' if name == 'all' else METHODS[name]}" for name in ahead]
    lines = [head]
    for count in sorted({count for name in methods for count in accuracy[name]}):
        line = [str(count)] + [_mean(accuracy[name].get(count)) for name in methods]
        lines.append(line + [_difference(summary[f"over_{name}"].get(count)) for name in ahead])
    for name, label in (("all", f"all {summary['candidates']}"), ("base", "none")):
        lines.append([label, _mean(_only(summary, name))] + [""] * (len(head) - 2))
    return markdown_table(lines, right=range(1, len(head)))


def _mean(values: Sequence[float] | None) -> str:
    if not values:
        return ""
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def _difference(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return ""
    low, high = gain["ci95"]
    return f"{gain['mean']:+.1f}" + ("" if low is None else f" [{low:+.1f}, {high:+.1f}]")


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
    parts = ["# Accuracy against the number of questions", text]
    parts += [f"**{verdict}**"] if (verdict := curve_verdict(summary)) else []
    parts += ["![Accuracy against the number of questions](figures/questions_curve.png)", table]
    parts += [left_out_sentence(summary["left_out"])] if summary.get("left_out") else []
    parts.append(f"## Reproduce\n\n{block(summary['command'], 'bash')}")
    return write_whole(folder / "questions_curve.md", "\n\n".join(parts) + "\n"), table


def curve_verdict(summary: Mapping[str, Any]) -> str:
    """What came out for the choice by evidence, in sentences; empty where it was not tried."""
    if "evidence" not in summary["accuracy"]:
        return ""
    sentences = []
    if few := _third(summary):
        share = _share(summary, few)
        everything, none = (np.mean(_only(summary, name)) for name in ("all", "base"))
        sentences.append(
            f"By evidence, {few} of {summary['candidates']} questions give {_mean_of(summary, few):.1f}%, all of them "
            f"{everything:.1f}%, none {none:.1f}%: a difference from all of "
            f"{_difference(summary['over_all'][few])} points" + (f", {share:.0%} of their gain." if share else ".")
        )
    for other in ("random", "llm"):
        if gains := summary.get(f"over_{other}"):
            ahead = [count for count, gain in gains.items() if gain["mean"] > 0]
            clear = [count for count in ahead if (gains[count]["ci95"][0] or -1) > 0]
            sentences.append(
                f"Evidence is ahead of the choice {METHODS[other]} on average at {_numbers(ahead, gains)}, and "
                f"clearly, with an interval above 0, at {_numbers(clear, gains)}."
            )
    if notes := _fewer(summary):
        sentences.append(notes)
    return " ".join(sentences)


def _only(summary: Mapping[str, Any], method: str) -> list[float]:
    return next(iter(summary["accuracy"][method].values()))


def _mean_of(summary: Mapping[str, Any], count: int) -> float:
    return float(np.mean(summary["accuracy"]["evidence"][count]))


def _numbers(some: Sequence[int], every: Mapping[int, Any]) -> str:
    listed = f" ({', '.join(map(str, some))})" if 0 < len(some) < len(every) else ""
    return f"{len(some)} of {len(every)} numbers of questions{listed}"


def _fewer(summary: Mapping[str, Any]) -> str:
    """A sentence on choices that found fewer questions than asked for."""
    kept = summary["kept"].get("evidence", {})
    short = {count: np.mean(numbers) for count, numbers in kept.items() if min(numbers) < count}
    if not short:
        return ""
    listed = ", ".join(f"{mean:.1f} of {count}" for count, mean in short.items())
    return f"It found fewer questions worth asking than it was to keep: {listed} on average."


def _third(summary: Mapping[str, Any]) -> int | None:
    """The largest number of questions that is at most a third of the candidates."""
    return max((count for count in summary["over_all"] if count <= summary["candidates"] / 3), default=None)


def _share(summary: Mapping[str, Any], count: int) -> float | None:
    """What so many questions chosen by evidence gain, of what all gain; None where all gain nothing."""
    base = np.mean(_only(summary, "base"))
    whole = np.mean(_only(summary, "all")) - base
    return float((_mean_of(summary, count) - base) / whole) if whole > 0 else None


def _title(summary: Mapping[str, Any]) -> str:
    """What the picture shows in one line."""
    few = _third(summary)
    share = _share(summary, few) if few else None
    if share is None:
        return "Accuracy against the number of questions"
    return f"Chosen by evidence, {few} of {summary['candidates']} questions bring {share:.0%} of the gain of all"


def plot_curve(summary: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Accuracy (per cent, validation images) against the number of questions; a dot a student, a line the means."""
    accuracy = summary["accuracy"]
    methods = [name for name in METHODS if name in accuracy]
    figure = new_figure(9.0, 5.4, _title(summary))
    few = f"; {summary['images_per_class']} training images a class" if summary["images_per_class"] else ""
    seeds = f"Line: mean of {len(summary['seeds'])} seeds; dot: one student"
    ax = new_axes(figure, f"{seeds}{few}; no test image was used")
    counts = sorted({count for name in methods for count in accuracy[name]})
    right = max(counts) * 1.06
    for name, label, style in (("all", f"all {summary['candidates']} questions", "--"), ("base", "no questions", ":")):
        mean = np.mean(_only(summary, name))
        ax.axhline(mean, color=GREY, linestyle=style, linewidth=1.6, zorder=1)
        ax.text(right, mean, f" {label}\n {mean:.1f}%", color=GREY, va="center", fontsize=9, clip_on=False)
    width = 0.012 * max(counts)
    for k, name in enumerate(methods):
        x = np.array(list(accuracy[name]), dtype=float)
        values = np.array(list(accuracy[name].values()))
        shift = (k - (len(methods) - 1) / 2) * width
        for column in values.T:
            ax.scatter(x + shift, column, s=14, color=LINES[name], alpha=0.45, linewidth=0, zorder=2)
        front = {"linewidth": 2.6 if name == "evidence" else 1.8, "zorder": 4 if name == "evidence" else 3}
        ax.plot(x + shift, values.mean(axis=1), "o-", color=LINES[name], markersize=6, label=METHODS[name], **front)
    third = summary["candidates"] / 3
    if third <= right:
        ax.axvline(third, color=PALE, linewidth=1.2, zorder=0)
        where = {"xy": (third, 1), "xycoords": ax.get_xaxis_transform(), "textcoords": "offset points"}
        ax.annotate("a third of the candidates", xytext=(-4, -10), ha="right", fontsize=8, color=GREY, **where)
    ax.set(xlim=(0, right), xlabel="questions asked of each image", ylabel="accuracy on the validation images, %")
    ax.set_xticks(counts)
    ax.grid(axis="y", color="#EEEEEE")
    ax.legend(edgecolor="none", framealpha=1, loc="lower right", fontsize=9)
    return save(figure, path)
