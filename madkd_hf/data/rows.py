"""How messages name a row: by its file, and by its number in the dataset as the user knows it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import datasets
from datasets import Dataset, IterableDataset

from ..text import masked, one_line


SPLIT_NAME = re.compile(r"\w+(\.\w+)*")  # what `load_dataset` reads back
PARTS = 3  # of a path are shown: birds/a/03.jpg


def split_name(rows: Dataset | IterableDataset) -> str:
    """The split that rows are of, "train" where they do not say; of "train[:50%]" and "train+test" the first word."""
    match = SPLIT_NAME.match(str(rows.split or "train"))
    return match[0] if match else "train"


def row_number(rows: Dataset, index: int) -> int:
    """The number of a row before rows were selected, as far as the dataset knows it."""
    return index if rows._indices is None else rows._indices.column(0)[index].as_py()


def describe_row(path: str | None, number: int, split: str | None = None) -> str:
    """A row by its file, if it has one, and its number."""
    place = f"row {number}" + (f" of split {split!r}" if split else "")
    return f"{file_name(path)} ({place})" if path else place


def file_name(path: str) -> str:
    """The end of a path, as it is shown."""
    parts = PurePosixPath(masked(path).replace("\\", "/").partition("?")[0]).parts
    return one_line("/".join(parts[-PARTS:]).replace("//", "/"))


def row_namer(dataset: Dataset, split: str) -> Callable[[int, str | None], str]:
    """How a message names a row: by its file, or by the row that the user knows, not that of a selection."""

    def name(row: int, path: str | None) -> str:
        return file_name(path) if path else describe_row(None, row_number(dataset, row), split)

    return name


def row_names(dataset: Dataset, rows: Sequence[int], image_column: str, split: str) -> list[str]:
    """How messages name rows: by the files of their images, or by row and split."""
    names = row_namer(dataset, split)
    if not isinstance(dataset.features[image_column], datasets.Image):
        return [names(row, None) for row in rows]
    images = dataset.with_format(None).select_columns(image_column)
    images = images.cast_column(image_column, datasets.Image(decode=False)) if len(rows) else images
    stored = (images[int(row)][image_column] for row in rows)
    return [names(row, (value or {}).get("path")) for row, value in zip(rows, stored)]
