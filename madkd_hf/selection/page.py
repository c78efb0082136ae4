"""The choice of questions: why each was kept or dropped, as a table, a page and a picture."""

from __future__ import annotations

import json
import os
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..files import write_whole
from ..report.comparison import markdown_table
from ..report.figures import FAINT, GREY, STUDENT, TEACHER, WRONG, new_axes, new_figure, save
from ..text import figure as shown
from ..text import markdown
from .evidence import number


if TYPE_CHECKING:
    from .choice import Choice, Selection

CRITERIA = {
    "cmim": "CMIM (conditional mutual information maximisation, Fleuret 2004): information about the class less what "
    "the kept question that tells most of the same has told",
    "jmi": "JMI (joint mutual information, Yang & Moody 1999)",
    "mrmr": "mRMR (minimal redundancy, maximal relevance; Peng, Long & Ding 2005)",
}


def selection_table(selection: Selection, questions: bool = False, most: int | None = None) -> str:
    """A GitHub table that also reads well in a terminal: the kept in order of choice, then the others."""
    lines = [
        ["#", "Question" if questions else "Aspect", "Information, bits", "Told already", "Adds", "Kept or why not"]
    ]
    for choice in selection.ordered[:most]:
        row = choice.evidence
        name = f"{markdown(row.id)}: {markdown(row.question)}" if questions else markdown(row.id)
        lines.append(
            [str(choice.rank or ""), name, number(row.information), number(choice.redundancy), number(choice.score)]
            + [f"**{markdown(choice.reason)}**" if choice.kept else markdown(choice.reason)]
        )
    return markdown_table(lines, right=(0, 2, 3, 4))


TERMS = {
    "Information": "what the answer tells about the class by itself, in bits.",
    "Told already": "how much of that the questions chosen before had told, in bits; below 0 where they make it tell "
    "more.",
    "Adds": "what is left at the time of choice, or of refusal, in bits beyond chance: information less told already "
    "less what the same images with shuffled classes give. The highest comes next.",
}


def write_selection(selection: Selection, output_dir: str | os.PathLike) -> Path:
    """Write `selection.md`, `selection.json` and `figures/selection.png`; returns the first one's path."""
    folder = Path(output_dir)
    plot_selection(selection, folder / "figures" / "selection.png")
    content = {
        "criterion": selection.criterion,
        "asked": selection.asked,
        "kept": selection.bank.ids,
        "images": selection.images,
        "classes": selection.classes,
        "class_bits": selection.class_bits,
        "candidates": [asdict(choice) for choice in selection.choices],
    }
    write_whole(folder / "selection.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    text = f"Criterion: {CRITERIA[selection.criterion]}. The class of an image holds {selection.class_bits:.2f} bits."
    parts = ["# The choice of questions", f"{selection.message} {text}"]
    parts += ["![Why each question was kept or dropped](figures/selection.png)", selection_table(selection, True)]
    parts.append("\n".join(f"- **{term}**: {meaning}" for term, meaning in TERMS.items()))
    return write_whole(folder / "selection.md", "\n\n".join(parts) + "\n")


def plot_selection(selection: Selection, path: str | os.PathLike) -> Path:
    """Every candidate in order of choice: what it tells, what of that is new, and why it was kept or dropped."""
    rows = selection.ordered
    texts = [textwrap.wrap(shown(f"{r.id}: {r.evidence.question}"), 52, max_lines=3, placeholder=" …") for r in rows]
    heights = [0.12 + 0.15 * len(text) for text in texts]  # inches
    n_kept, total = len(selection.bank), sum(heights)
    gap = 0.3 if n_kept < len(rows) else 0.0
    y = np.cumsum(heights) - np.divide(heights, 2) + gap * (np.arange(len(rows)) >= n_kept)
    figure = new_figure(
        12.0, total + gap + 1.7, f"Kept: {n_kept} of {len(rows)} questions, each for what it adds to those above"
    )
    sample = f"{selection.images} images of {selection.classes} classes; criterion: {selection.criterion.upper()}"
    ax = new_axes(figure, f"What the answer tells about the class, in bits ({sample})")
    colours = [STUDENT if row.kept else "#AAAAAA" for row in rows]
    ax.barh(
        y, [row.evidence.information or 0 for row in rows], 0.17, color=[FAINT if r.kept else "#E6E6E6" for r in rows]
    )
    ax.barh(y, [max(0.0, row.score or 0) for row in rows], 0.17, color=colours)
    limit = 1.02 * max(0.1, *(row.evidence.information or 0 for row in rows))
    for height, row in zip(y, rows):
        text, colour = _reason(row)
        position = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 9, "parse_math": False}
        ax.text(1.02, height, text, color=colour, fontweight="bold" if row.kept else "normal", **position)
    if gap:
        line = sum(heights[:n_kept]) + gap / 2
        ax.axhline(line, color=TEACHER, linewidth=1, linestyle=(0, (4, 3)))
    ax.set_yticks(y, ["\n".join(text) for text in texts], fontsize=9, parse_math=False)
    for tick, row in zip(ax.get_yticklabels(), rows):
        tick.set_color(TEACHER if row.kept else GREY)
    ax.set(ylim=(total + gap, 0), xlim=(0, limit))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#EEEEEE")
    labels = {
        STUDENT: "new: adds to those above",
        FAINT: "told already, or by chance",
        "#AAAAAA": "the same, of the dropped",
    }
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=label) for colour, label in labels.items()]
    figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    return save(figure, path)


def _reason(row: Choice) -> tuple[str, str]:
    if row.kept:
        return f"{row.rank}.  kept", STUDENT
    return f"✗  {shown(row.reason)}", GREY if row.reason == "weaker than the kept" else WRONG
