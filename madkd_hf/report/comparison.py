"""What a comparison found, in numbers and sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import special

from ..text import counted, markdown


CONDITIONS = {
    "base": "classes only",
    "madkd": "classes + aspects",
    "shuffled": "aspects of other images",
    "constant": "each aspect's mean for all",
    "smoothing": "classes only, labels smoothed",
    "unlabelled": "aspects of all images",
    "unlabelled_shuffled": "of other images",
    "posterior": "posterior of unlabelled",
    "posterior_shuffled": "of other images",
    "both": "aspects and posterior",
    "both_shuffled": "of other images",
    "selftrain": "own guesses, no LLM",
    "class_teacher": "larger classifier, classes only",
    "kd": "classes + its scores",
    "kd_aspects": "classes + its scores + aspects",
}
RIVALS = ("selftrain", "class_teacher", "kd")
SUBJECTS = {  # of the verdict, where it is not about the aspects alone
    "unlabelled": "aspects of labelled and unlabelled images",
    "both": "aspects of all images and the posterior of unlabelled ones",
}
DETECTORS = {
    "base": "boxes only",
    "image": "boxes + aspects of the image",
    "image_shuffled": "aspects of other images",
    "object": "boxes + aspects of each object",
    "shuffled": "aspects of other objects",
    "constant": "each aspect's mean for all",
}

ANSWERS = "The answers alone, %"  # at the head of a column
WITH_MLLM = "what you would get if you could afford the MLLM at test time"
OTHERS = {"validation": "validation images", "train": "training images that were not drawn"}


@dataclass(frozen=True)
class Terms:
    """How the report of a task calls its conditions and scores.

    Attributes:
        conditions: name -> what its students learn from, the base ones first.
        treated: the condition whose gain counts, where none of `foremost` was run.
        foremost: conditions that do more, the first of which counts.
        shuffled: each treated condition -> its own control. What is neither `base` nor a key here or in `added_to`,
            nor one of `RIVALS`, is a control.
        added_to: each treated condition that is a rival with aspects -> that rival.
        about: what the answers of `treated` are about, "image" or "object".
        key: of the scores in cells and report.
        score, in_table, are: their name in a sentence, at the head of a column, and before "on the test images".
        unit: that stands right behind a score.
    """

    conditions: Mapping[str, str]
    treated: str
    shuffled: Mapping[str, str]
    about: str
    key: str
    score: str
    in_table: str
    are: str
    unit: str
    foremost: Sequence[str] = ()
    added_to: Mapping[str, str] = field(default_factory=dict)

    def treated_among(self, conditions: Iterable[str]) -> str:
        """The one of these conditions whose gain counts."""
        there = set(conditions)
        return next((name for name in self.foremost if name in there), self.treated)


TERMS = {
    "classification": Terms(
        CONDITIONS,
        treated="madkd",
        shuffled={
            "madkd": "shuffled",
            "unlabelled": "unlabelled_shuffled",
            "posterior": "posterior_shuffled",
            "both": "both_shuffled",
        },
        about="image",
        key="accuracy",
        score="accuracy",
        in_table="Accuracy, %",
        are="Accuracies are",
        unit="%",
        foremost=("both", "unlabelled"),
        added_to={"kd_aspects": "kd"},
    ),
    "detection": Terms(
        DETECTORS,
        treated="object",
        shuffled={"object": "shuffled", "image": "image_shuffled"},
        about="object",
        key="map",
        score="AP",
        in_table="AP, points",
        are="AP (COCO: mean over IoU 0.5 to 0.95) is",
        unit="",
    ),
}


def terms_of(report: Mapping[str, Any]) -> Terms:
    return TERMS[report.get("task", "classification")]


def treated_of(report: Mapping[str, Any]) -> str:
    """The condition whose gain counts; reports of earlier versions do not name it."""
    return report.get("treated") or terms_of(report).treated


def role(terms: Terms, condition: str) -> str:
    """What a condition is in the comparison: "base", "treated", "control", or "rival", another way to the same end."""
    if condition == "base" or condition in RIVALS:
        return "base" if condition == "base" else "rival"
    return "treated" if condition in (*terms.shuffled, *terms.added_to) else "control"


def paired_gain(treated: Sequence[float], control: Sequence[float]) -> dict[str, Any]:
    """How much better the treated students are: paired by seed, with Student's t interval.

    Args:
        treated, control: one accuracy in per cent (or AP in points) per seed, the same seeds in the same order.

    Returns:
        `mean`: in points; `ci95`: [low, high] in points, [None, None] with fewer than two seeds.

    Raises:
        ValueError: no seeds, or not the same number of them.
    """
    if len(treated) != len(control) or not len(treated):
        raise ValueError(f"A paired gain needs the same seeds twice; got {len(treated)} and {len(control)} values.")
    mean, half = mean_and_half_width(np.subtract(treated, control))
    return {"mean": mean, "ci95": [None, None] if half is None else [mean - half, mean + half]}


def mean_and_half_width(values: Sequence[float] | np.ndarray) -> tuple[float, float | None]:
    """The mean, and half the width of its 95% t interval (None for a single value, 0 where all are equal)."""
    n = len(values)
    half = float(special.stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else None
    return float(np.mean(values)), half


def summarise(cells: Sequence[Mapping[str, Any]], task: str = "classification") -> dict[str, Any]:
    """Accuracies and gains over `base`, from one cell per trained student.

    Args:
        cells: each with at least `condition` (a key of `CONDITIONS`), `seed`, `accuracy` (per cent, test images); the
            same seeds in each condition, or ValueError.
        task: "detection" for cells of `DETECTORS`, with `map` (AP in points, test images) in place of `accuracy`.

    Returns:
        `task`; `seeds`: ascending; `accuracy` (or `map`): condition -> per cent, in the order of the seeds; `roles`:
        condition -> its `role`; `treated`: the condition whose gain counts; `gain`: its own over
        base, see `paired_gain`; `gains`: treated condition -> the same over base, over its shuffled control or the
        rival that it adds aspects to, and over label smoothing, by their names; `controls`: control -> its gain over
        base. What was not run is left out.
    """
    terms = TERMS[task]
    by_condition: dict[str, dict[int, float]] = {name: {} for name in terms.conditions}
    for cell in cells:
        by_condition[cell["condition"]][cell["seed"]] = float(cell[terms.key])
    runs = {name: dict(sorted(run.items())) for name, run in by_condition.items() if run}
    seeds = list(next(iter(runs.values()), []))
    if not seeds or any(list(run) != seeds for run in runs.values()):
        received = {name: list(run) for name, run in runs.items()} or "no cells"
        raise ValueError(f"Expected the same seeds in each condition, got {received}: train those that are missing.")
    scores = {name: list(run.values()) for name, run in runs.items()}
    kinds = {name: role(terms, name) for name in scores}
    gains = {name: {} for name, kind in kinds.items() if kind == "treated"}
    for name, gains_over in gains.items():
        for other in ("base", terms.shuffled.get(name) or terms.added_to[name], "smoothing"):
            if other in scores:
                gains_over[other] = paired_gain(scores[name], scores[other])
    treated = terms.treated_among(scores)
    summary = {"task": task, "seeds": seeds, terms.key: scores, "roles": kinds, "treated": treated}
    if treated in gains and "base" in scores:
        summary["gain"] = gains[treated]["base"]
    summary["gains"] = {name: gains_over for name, gains_over in gains.items() if gains_over}
    controls = [name for name, kind in kinds.items() if kind in ("control", "rival") and "base" in scores]
    summary["controls"] = {name: paired_gain(scores[name], scores["base"]) for name in controls}
    return summary


def verdict(gain: Mapping[str, Any], score: str = "accuracy", subject: str = "the aspects") -> str:
    """One sentence, without its full stop, on a gain of `paired_gain`: points, interval, and whether it is clear."""
    mean, (low, high) = gain["mean"], gain["ci95"]
    start = subject[0].upper() + subject[1:]
    if low is None:
        return f"{start} change {score} by {mean:+.2f} points (one seed: no interval)"
    interval = f"(95% interval {low:+.2f} to {high:+.2f})"
    if low <= 0 <= high:
        return f"No clear effect of {subject}: {mean:+.2f} points {interval}"
    return f"{start} {'gain' if mean > 0 else 'cost'} {abs(mean):.2f} points of {score} {interval}"


def verdict_of(report: Mapping[str, Any]) -> str:
    """The `verdict` on the gain that counts in a report; "" without one."""
    subject = SUBJECTS.get(report.get("treated"), "the aspects")
    return verdict(report["gain"], terms_of(report).score, subject) if report.get("gain") else ""


def table(report: Mapping[str, Any]) -> str:
    """The accuracies and gains of `summarise` as a GitHub table that also reads well in a terminal."""
    terms = terms_of(report)
    rows = [["Condition", terms.in_table, "Gain over base, points [95% interval]"]]
    for name, values in report[terms.key].items():
        rows.append([f"{name}: {terms.conditions[name]}", mean_text(values, 2), gain_text(report, name)])
    return markdown_table(rows, right=(1, 2))


def gain_text(report: Mapping[str, Any], name: str) -> str:
    """The gain of a condition over base, points and interval; "" where it is not known."""
    gain = ((report.get("gains") or {}).get(name) or {}).get("base")
    if not gain:  # a control, or a treated condition in a report of an earlier version
        gain = report.get("gain") if name == treated_of(report) else (report.get("controls") or {}).get(name)
    return points_text(gain) if gain else ""


def points_text(gain: Mapping[str, Any], digits: int = 2) -> str:
    """A gain of `paired_gain`, with its interval: "+1.50 [+0.25, +2.75]"."""
    low, high = gain["ci95"]
    return f"{gain['mean']:+.{digits}f}" + ("" if low is None else f" [{low:+.{digits}f}, {high:+.{digits}f}]")


def mean_text(values: Sequence[float], digits: int = 1) -> str:
    """The mean, and the standard deviation where there are several values: "92.4 ± 2.2"."""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def over_controls(report: Mapping[str, Any]) -> str:
    """What each treated condition gains over its own shuffled control, over the same without aspects, and over label
    smoothing, a sentence each; "" where none was run."""
    terms, sentences = terms_of(report), []
    smoothing = dict.fromkeys((*terms.shuffled, *terms.added_to), "smoothing")
    titles = {"its own shuffled control": terms.shuffled, "the same without aspects": terms.added_to}
    for title, control in {**titles, "label smoothing": smoothing}.items():
        found = (report.get("gains") or {}).items()
        gains = {name: over.get(control[name]) for name, over in found if name in control}
        if texts := [f"`{name}` {points_text(gain)}" for name, gain in gains.items() if gain]:
            sentences.append(f"Over {title}, in points [95% interval]: {', '.join(texts)}.")
    return " ".join(sentences)


def answers_alone_text(report: Mapping[str, Any]) -> str:
    """A sentence on what the teacher's answers give without a student; "" where nobody tried."""
    found = report.get("answers_alone")
    if not found:
        return ""
    if "unknown" in found:
        return f"The answers alone were not measured. {found['unknown']}"
    return (
        f"The answers alone: {mean_text(found['accuracy'])}% on {tested_on([found])}, by a logistic regression on the "
        f"teacher's answers about {numbers_text(found['fitted'])} training images of each seed: {WITH_MLLM}."
    )


def tested_on(found: Sequence[Mapping[str, Any]]) -> str:
    """The images on which answers alone were tested: how many, and which."""
    images = numbers_text([count for values in found for count in values["images"]])
    parts = {part for values in found for part in values["of"]}
    if "test" in parts:
        return f"{images} answered test images"
    return f"{images} other answered images ({' and '.join(OTHERS[part] for part in OTHERS if part in parts)})"


def numbers_text(numbers: Sequence[int]) -> str:
    """How many, in words where it differs: "1,530", or "1,530 to 1,938"."""
    return " to ".join(f"{number:,}" for number in sorted({min(numbers), max(numbers)}))


def real_gain(report: Mapping[str, Any]) -> str:
    """How to tell a real gain from a control's, without a full stop; "" without a gain or without controls."""
    terms = terms_of(report)
    kinds = {name: role(terms, name) for name in report[terms.key]}
    treated = [name for name in kinds if name in terms.shuffled]
    controls = [name for name, kind in kinds.items() if kind == "control"]
    if not report.get("gain") or not controls:
        return ""
    lifted = " or ".join(f"`{name}`" for name in treated)
    return f"A real gain lifts {lifted}, and {('not the', 'neither', 'none of the')[min(len(controls), 3) - 1]} " + (
        "controls" if len(controls) > 2 else "control"
    )


def markdown_table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A GitHub table with aligned columns: the first row is its head, the columns in `right` stand at the right."""
    widths = [max(3, *(len(row[k]) for row in rows)) for k in range(len(rows[0]))]
    lines = [[c.rjust(w) if k in right else c.ljust(w) for k, (c, w) in enumerate(zip(row, widths))] for row in rows]
    lines.insert(1, ["-" * (w - 1) + (":" if k in right else "-") for k, w in enumerate(widths)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def drawn_sentence(report: Mapping[str, Any]) -> str:
    """How images were drawn for validation and test where the dataset has no splits for them; "" where it has."""
    drawn = report.get("drawn") or {}
    sentences = [f"The {role} images are {markdown(how)}." for role, how in drawn.items()]
    if not report.get("validated", True):
        sentences.append(
            "No images were kept for validation: there are no learning curves, and nothing shows how well the "
            "students' answers agree with the teacher's."
        )
    return " ".join(sentences)


def left_out_sentence(left_out: Mapping[str, Mapping[str, Any]]) -> str:
    """What reports say of left out images: split -> `images`, `of` how many, and the `first` of them by name."""
    parts = []
    for split, counts in left_out.items():
        first = ", ".join(map(markdown, counts["first"]))
        more = ", ..." if counts["images"] > len(counts["first"]) else ""
        images = counted(counts["of"], "image")
        parts.append(f"{counts['images']} of the {images} of {markdown(split)} ({first}{more})")
    return f"Left out, since nothing can be done with them: {'; '.join(parts)}."
