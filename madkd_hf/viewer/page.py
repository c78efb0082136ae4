"""The page itself: a folder with one HTML file that opens from a disk, without a server and without the web."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from scipy.special import expit

from ..aspects import AspectBank
from ..data.columns import about_objects, is_labelled, read_answers, read_labels
from ..data.duplicates import same_pictures
from ..data.rows import row_names, row_number
from ..files import own_folder, write_whole, writing
from ..selection.information import LOW_MASS
from ..text import one_line
from . import DATA, KIND, NAMES, PAGE, STATIC, SUSPECTS
from .suspects import SAME_PICTURE, Judged, judge
from .thumbnails import remove_thumbnails, write_thumbnails


STEPS, NONE = 250, 255  # a probability in one byte: 0 to 250, and 255 where there is none
LONGEST = 300  # characters of a class, a question or a file's name


@dataclass(frozen=True)
class View:
    """What `write_view` found; rows of all splits together, in their order.

    Attributes:
        path: of the page.
        splits, rows, names: of each image its split, its number in it, and its file or place.
        labels: [n] class indices, -1 where unknown.
        classes: by name.
        answered: how many images have answers.
        judged: what the answers say of the labels.
        pairs: rows that show the same picture.
        unreadable: how many images could not be read, and have no thumbnail.
    """

    path: Path
    splits: list[str]
    rows: list[int]
    names: list[str]
    labels: np.ndarray
    classes: list[str]
    answered: int
    judged: Judged
    pairs: list[tuple[int, int]]
    unreadable: int

    @property
    def suspects(self) -> list[int]:
        """Rows whose answers speak for another class, or that are there again with another label; likeliest first."""
        return [row for row in self.judged.order if self.judged.scores[row] > 0]

    @property
    def contradictions(self) -> list[tuple[int, int]]:
        """Pairs of the same picture with two labels."""
        return [pair for pair in self.pairs if (self.judged.scores[list(pair)] == SAME_PICTURE).all()]


def write_view(
    splits: DatasetDict,
    bank: AspectBank,
    output_dir: str | Path,
    title: str,
    image_column: str = "image",
    label_column: str | None = "label",
    thumbnail_size: int = 192,
) -> View:
    """Write a page to look through images, answers and labels, the likeliest mistakes of the labels first.

    The folder holds `index.html`, which opens from a disk, a thumbnail of each image, and `suspects.jsonl`, the rows
    whose label is doubtful. Where `index.html` is, the folder is complete.

    Args:
        splits: labelled, some without answers, perhaps: these are shown, too, and looked at for duplicates.
        bank: the questions.
        output_dir: a new folder, or one that this function wrote.
        title: what the dataset is called.
        label_column: the classes; where there is no such column, the images are shown in their order.
        thumbnail_size: pixels of the longer side.

    Raises:
        ValueError: no answers in any split, answers about objects, or a folder with other files.
    """
    check_splits(splits)
    answers, mass, labels, classes = read_all(splits, bank, label_column)
    parts = list(splits.items())
    names = [name for split, rows in parts for name in row_names(rows, range(len(rows)), image_column, split)]
    folder = own_folder(output_dir, KIND, NAMES)
    with writing(folder, "the page is not complete"):
        (folder / PAGE).unlink(missing_ok=True)
        remove_thumbnails(folder, [len(rows) for rows in splits.values()])
        there, marks = zip(
            *(
                write_thumbnails(rows, image_column, k, split, folder, thumbnail_size)
                for k, (split, rows) in enumerate(parts)
            )
        )
        shown = np.concatenate(there)
        places = np.flatnonzero(shown)
        pairs = [(int(places[i]), int(places[j])) for i, j in same_pictures(np.concatenate(marks)[places])]
        view = View(
            folder / PAGE,
            [split for split, rows in parts for _ in range(len(rows))],
            [row_number(rows, row) for _, rows in parts for row in range(len(rows))],
            names,
            labels,
            classes,
            int((~np.isnan(answers).all(axis=1)).sum()),
            judge(answers, labels, len(classes), pairs),
            pairs,
            int((~shown).sum()),
        )
        data = page_data(view, bank, answers, mass, shown, [len(rows) for _, rows in parts], title)
        write_whole(folder / DATA, f"window.MADKD = {script_json(data)};\n")
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in suspects(view)]
        write_whole(folder / SUSPECTS, "".join(lines))
        for name in STATIC:
            write_whole(folder / name, files(__package__).joinpath("static", name).read_bytes())
    return view


def check_splits(splits: DatasetDict) -> None:
    """Refuse a dataset without answers, or with answers about objects."""
    if any(about_objects(rows.features) for rows in splits.values()):
        raise ValueError(
            "The answers are about the objects in each image, and a view shows answers about whole images: label "
            "without --boxes_column."
        )
    if not any(is_labelled(rows.features) for rows in splits.values()):
        raise ValueError(
            f"No split of {list(splits)} has answers: label the dataset first, with `madkd label`, or pass the folder "
            "that it wrote."
        )


def read_all(
    splits: DatasetDict, bank: AspectBank, label_column: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Of all splits together: answers and mass, [n, Q] with NaN where there are none, labels [n], and the classes."""
    answers, masses, values, classes = [], [], [], {}
    for rows in splits.values():
        nothing = np.full((len(rows), len(bank)), np.nan, dtype=np.float32)
        logits, mass, _ = read_answers(rows, bank) if is_labelled(rows.features) else (nothing, None, None)
        answers.append(logits)
        masses.append(nothing if mass is None else mass)
        labels, names = read_labels(rows, label_column)
        values += [None] * len(rows) if labels is None else labels
        classes |= dict.fromkeys(names or [])
    if all(np.isnan(logits).all() for logits in answers):
        raise ValueError(f"No image of {list(splits)} has answers: label some of them, with `madkd label`.")
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([-1 if value is None else numbers[value] for value in values], dtype=np.int64)
    return np.concatenate(answers), np.concatenate(masses), labels, [one_line(name, LONGEST) for name in classes]


def page_data(
    view: View,
    bank: AspectBank,
    answers: np.ndarray,
    mass: np.ndarray,
    shown: np.ndarray,
    sizes: list[int],
    title: str,
) -> dict[str, Any]:
    """What the page's script reads: columns over the images, the likeliest mistakes first."""
    judged, order = view.judged, view.judged.order
    rank = {row: k for k, row in enumerate(order)}
    names = list(dict.fromkeys(view.splits))
    inside = np.concatenate([np.arange(size) for size in sizes])
    unpublished = set(bank.unpublished)
    with np.errstate(all="ignore"):
        mass = np.where(np.isnan(mass).any(axis=1), np.nan, mass.mean(axis=1))
    scores = np.where(np.isinf(judged.scores), np.nan, judged.scores)[order]
    return {
        "title": one_line(title, LONGEST),
        "classes": view.classes,
        "splits": [one_line(name, LONGEST) for name in names],
        "questions": [
            {"id": one_line(a.id, LONGEST), "text": None if a.id in unpublished else one_line(a.question, LONGEST)}
            for a in bank
        ],
        "low_mass": LOW_MASS,
        "usual": _bytes(judged.usual),
        "answers": _bytes(expit(answers[order].astype(np.float64))),
        "split": [names.index(view.splits[row]) for row in order],
        "row": [view.rows[row] for row in order],
        "place": inside[order].tolist(),
        "name": [one_line(view.names[row], LONGEST) for row in order],
        "label": view.labels[order].tolist(),
        "suggested": judged.suggested[order].tolist(),
        "p_label": _rounded(judged.p_label[order]),
        "p_suggested": _rounded(judged.p_suggested[order]),
        "score": _rounded(scores),
        "unlike": _rounded(judged.unlike[order]),
        "mass": _rounded(mass[order]),
        "shown": shown[order].astype(int).tolist(),
        "pairs": [[rank[i], rank[j]] for i, j in view.pairs],
    }


def suspects(view: View) -> list[dict[str, Any]]:
    """A line for each image whose label is doubtful, the likeliest mistakes first."""
    others: dict[int, list[int]] = {}
    for i, j in view.contradictions:
        others.setdefault(i, []).append(j)
        others.setdefault(j, []).append(i)

    def name(index: int) -> str | None:
        return view.classes[index] if index >= 0 else None

    def place(row: int) -> dict[str, Any]:
        return {"split": view.splits[row], "row": view.rows[row], "name": one_line(view.names[row])}

    judged = view.judged
    return [
        {
            **place(row),
            "label": name(view.labels[row]),
            "suggested": name(judged.suggested[row]),
            "p_label": _number(judged.p_label[row]),
            "p_suggested": _number(judged.p_suggested[row]),
            "same_picture": [place(other) | {"label": name(view.labels[other])} for other in others.get(row, [])],
        }
        for row in view.suspects
    ]


def script_json(data: Any) -> str:
    """JSON that stays data inside a script: ASCII alone, and nothing in it opens or closes a tag."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _bytes(probabilities: np.ndarray) -> str:
    steps = np.where(np.isnan(probabilities), NONE, np.rint(np.nan_to_num(probabilities) * STEPS)).astype(np.uint8)
    return base64.b64encode(steps.tobytes()).decode()


def _rounded(values: np.ndarray) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
