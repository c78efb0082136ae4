"""What the teacher is worth: how its answers vary over images or objects, and what they tell about the classes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..aspects import AspectBank
from ..data.columns import read_answers, read_labels
from ..files import write_whole
from ..report.comparison import markdown_table
from ..text import code, markdown, terminal
from . import figures
from .information import LOW_MASS, SHUFFLES, QuestionEvidence, class_entropy, question_evidence


MOST_CLASSES = 300  # that the map of classes and aspects can show
TERMS = {  # what is asked about, an image or an object, is put in for {unit}
    "Information": "what the answer tells about the class, in bits (mutual information); 1 would halve the classes.",
    "By chance": "the same after the {unit}s swapped their classes at random, mean of "
    f"{SHUFFLES} times. Information is to be read against it: "
    "few {unit}s of many classes seem to tell something.",
    "Yes": "share of {unit}s with the answer yes.",
    "Entropy": "how varied the answers are over the {unit}s, in bits (entropy of the mean probability of yes): the "
    "most that they can tell.",
    "Doubt": "how undecided the teacher is about one {unit}, in bits (mean entropy of its probability of yes).",
    "Mass": "mean probability that the teacher put on yes and no together; where it is low, it was not answering.",
}


@dataclass(frozen=True)
class Evidence:
    """What `write_evidence` found.

    Attributes:
        rows: one for each question, in the bank's order.
        table: the rows as a GitHub table that also reads well in a terminal, most informative first.
        warnings: sentences; none where all is well.
        path: of `questions.md`.
        unit: what the questions are about, "image" or "object".
    """

    rows: list[QuestionEvidence]
    table: str
    warnings: list[str]
    path: Path
    unit: str = "image"


def evidence_warnings(
    rows: Sequence[QuestionEvidence], unit: str = "image", shown: Callable[[str], str] = terminal
) -> list[str]:
    """One sentence for each kind of trouble, with its remedy; `shown` writes a name for where they are to stand."""
    low = [f"{shown(row.id)} ({row.mass:.2f})" for row in rows if "low mass" in row.notes]
    constant = [f"{shown(row.id)} ({'yes' if row.yes > 0.5 else 'no'})" for row in rows if "constant" in row.notes]
    useless = [shown(row.id) for row in rows if "no more than chance" in row.notes]
    repeated = [(row.id, note) for row in rows for note in row.notes if note.startswith(("same", "opposite"))]
    twins = [f"{shown(name)} ({shown(note)})" for name, note in repeated]
    lines = []
    if low:
        lines.append(
            f"The teacher is hardly answering yes or no to {_listed(low)}: the mean mass is below {LOW_MASS}; "
            "try another prompt, other answer tokens, or another teacher."
        )
    if constant:
        lines.append(f"The answer is all but the same for all {unit}s and teaches nothing: {_listed(constant)}.")
    if twins:
        lines.append(f"The answers repeat those to another question, and one of the two is enough: {_listed(twins)}.")
    if useless:
        lines.append(
            f"The answers tell no more about the class than chance would, with so few {unit}s at least: "
            f"{_listed(useless)}."
        )
    return lines


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def by_information(rows: Sequence[QuestionEvidence]) -> list[QuestionEvidence]:
    """Most informative first: about the class, or where that is unknown, about the image or object."""
    return sorted(rows, key=lambda row: (row.information or 0.0, row.entropy - row.doubt), reverse=True)


def evidence_table(rows: Sequence[QuestionEvidence], questions: bool = False) -> str:
    """A GitHub table that also reads well in a terminal, most informative first; with the questions where asked."""
    classes = any(row.information is not None for row in rows)
    head = ["Aspect", *(["Information, bits", "By chance"] if classes else []), "Yes", "Entropy, bits", "Doubt, bits"]
    head += ["Mass", "Note"] + (["Question"] if questions else [])
    lines = [head]
    for row in by_information(rows):
        line = [markdown(row.id), *([number(row.information), number(row.chance)] if classes else [])]
        line += [f"{row.yes:.1%}", number(row.entropy), number(row.doubt), number(row.mass)]
        lines.append(line + [markdown(", ".join(row.notes))] + ([markdown(row.question)] if questions else []))
    return markdown_table(lines, right=range(1, head.index("Note")))


def evidence_terms(rows: Sequence[QuestionEvidence], unit: str = "image") -> dict[str, str]:
    """What the columns of `evidence_table` mean."""
    classes = any(row.information is not None for row in rows)
    return {term: meaning.format(unit=unit) for term, meaning in TERMS.items() if classes or "class" not in meaning}


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def write_evidence(
    dataset: Dataset,
    bank: AspectBank,
    output_dir: str | os.PathLike,
    label_column: str | None = "label",
    unit: str = "image",
) -> Evidence:
    """Write `questions.md` with its pictures under `figures/`, and `questions.json`, on the answers in a dataset.

    Args:
        dataset: one labelled split; only its answers and labels are read, never the images.
        bank: the questions it was labelled with.
        output_dir: a folder, made where missing; that of the dataset is a good place.
        label_column: the classes: a ClassLabel, strings or integers. Where there is no such column, or None is given,
            nothing is said about classes.
        unit: what a row is, "image" or "object": what the text is to count.

    Raises:
        ValueError: no single split, no answers in it, or answers to other questions.
    """
    logits, mass, counts = read_answers(dataset, bank)
    counts = {f"{unit}s" if name == "images" else name: count for name, count in counts.items()}
    if not counts[f"{unit}s"]:
        raise ValueError(f"No {unit} has an answer to {bank.ids[0]!r}: label the dataset first, with attach_aspects.")
    labels, names = read_labels(dataset, label_column)
    rows = question_evidence(logits, mass, labels, bank.questions, bank.ids)
    warnings = evidence_warnings(rows, unit)
    output_dir = Path(output_dir)
    figures.plot_questions(by_information(rows), output_dir / "figures" / "questions.png", unit)
    drawn = _draw_classes(bank, logits, labels, names, output_dir / "figures" / "teacher.png", unit)
    if labels is not None:
        answered = ~np.isnan(logits).all(axis=1)
        counts["class_bits"] = class_entropy([label for label, has_answer in zip(labels, answered) if has_answer])
    content = {**counts, "warnings": warnings, "questions": [asdict(row) for row in rows]}
    write_whole(output_dir / "questions.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    path = write_whole(output_dir / "questions.md", _page(rows, counts, bank, drawn, unit))
    return Evidence(rows, evidence_table(rows), warnings, path, unit)


def _draw_classes(
    bank: AspectBank, logits: np.ndarray, labels: list[Any] | None, names: list[Any] | None, path: Path, unit: str
) -> bool:
    """The map of classes and aspects, where there are classes and not too many."""
    path.unlink(missing_ok=True)
    known = np.array([label is not None for label in labels or []])
    if not known.any() or len(names) > MOST_CLASSES:
        return False
    index = {name: c for c, name in enumerate(names)}
    codes = np.array([index[label] for label in labels if label is not None])
    means = figures.class_aspect_means(codes, logits[known], len(names))
    figures.plot_teacher(means, list(map(str, names)), bank.ids, path, [aspect.group for aspect in bank], unit)
    return True


def _page(
    rows: Sequence[QuestionEvidence],
    counts: dict[str, Any],
    bank: AspectBank,
    drawn: bool,
    unit: str,
) -> str:
    model = (bank.provenance or {}).get("model")
    subject = f"The teacher {code(model)}" if model else "The teacher"
    text = f"{subject} answered {len(bank)} questions about {counts[f'{unit}s']} {unit}s."
    if counts["unlabelled"]:
        text += f" Rows that were not labelled: {counts['unlabelled']} of {counts['rows']}."
    if counts["unreadable"]:
        text += f" Rows whose {unit} could not be read: {counts['unreadable']} of {counts['rows']}."
    if any(row.information is not None for row in rows):
        text += f" The class of an {unit} holds {counts['class_bits']:.2f} bits."
    else:
        text += " Nothing can be said about classes: the rows have none, or a single one, in the column asked for."
    parts = ["# What the teacher is worth", text]
    warnings = evidence_warnings(rows, unit, markdown)
    parts += ["\n".join(f"- **Warning.** {warning}" for warning in warnings)] if warnings else []
    parts += ["![What each question tells](figures/questions.png)", evidence_table(rows, questions=True)]
    parts.append("\n".join(f"- **{term}**: {meaning}" for term, meaning in evidence_terms(rows, unit).items()))
    parts += ["![What the teacher sees in each class](figures/teacher.png)"] if drawn else []
    return "\n\n".join(parts) + "\n"
