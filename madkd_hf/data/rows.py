"""What a row of a dataset is called in a message: its file, and its number in the dataset that the user knows."""

from __future__ import annotations

from pathlib import PurePosixPath

import datasets
from datasets import Dataset

from ..text import masked, seen


PARTS = 3  # of a path are shown: birds/a/03.jpg


def row_name(rows: Dataset, index: int, split: str | None = None, image_column: str = "image") -> str:
    """Such as `birds/a/03.jpg (row 17 of split 'train')`, or the latter alone where the row has no file.

    Args:
        rows: which may be a selection of those that the user knows.
        index: in `rows`.
        split: the user's name for where they come from.
        image_column: whose file it is; not decoded.
    """
    images = rows.with_format(None).select_columns(image_column)
    stored = images.cast_column(image_column, datasets.Image(decode=False))[index][image_column]
    return named(stored and stored["path"], row_number(rows, index), split)


def row_number(rows: Dataset, index: int) -> int:
    """The number of a row before rows were selected, as far as the dataset knows it."""
    return index if rows._indices is None else rows._indices.column(0)[index].as_py()


def named(path: str | None, number: int, split: str | None = None) -> str:
    """A row by its file, if it has one, and its number."""
    place = f"row {number}" + (f" of split {split!r}" if split else "")
    return f"{file_name(path)} ({place})" if path else place


def file_name(path: str) -> str:
    """The end of a path, as it is shown."""
    parts = PurePosixPath(masked(path).replace("\\", "/").partition("?")[0]).parts
    return seen("/".join(parts[-PARTS:]).replace("//", "/"))
