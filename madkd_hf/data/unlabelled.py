"""Rows without a class: what is kept of them, and how they stand beside rows that have one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from datasets import Dataset, Features, concatenate_datasets

from ..text import counted, terminal
from .columns import ASPECT_COLUMNS, CLASS_COLUMNS, add_null_column, hidden_progress_bars


UNLABELLED = "unlabelled"  # the split that they are in, once loaded
LEARNED = (*ASPECT_COLUMNS, *CLASS_COLUMNS)  # what a student learns from beside the class


def select_learned(rows: Dataset, image_column: str) -> Dataset:
    """The rows with the columns that are learned from, without their classes."""
    if image_column not in rows.features:
        raise ValueError(
            f"The images without a class have the columns {rows.column_names} and no {image_column!r}: rename the "
            "one that holds them."
        )
    return rows.select_columns([name for name in rows.column_names if name in (image_column, *LEARNED)])


def check_count(count: int, there: int) -> None:
    """Raise ValueError where there are fewer images without a class than are to be drawn."""
    if not 0 < count <= there:
        raise ValueError(
            f"--unlabelled_images {count} is to draw from {counted(there, 'image')} without a class: pass a number "
            "from 1 to that, or leave it out to learn from all."
        )


def epoch_of(labelled: int, unlabelled: int, fraction: float) -> tuple[int, int]:
    """How many rows an epoch has that ends when one kind was seen once, and how many of them have a class.

    Args:
        labelled, unlabelled: how many rows there are with a class and without.
        fraction: of rows with a class in an epoch, 0..1.
    """
    rows = math.floor(min(labelled / fraction, unlabelled / (1 - fraction)) + 1e-9)
    return rows, math.floor(rows * fraction + 1e-9)


def check_fraction(labelled: int, unlabelled: int, fraction: float) -> None:
    """Raise ValueError where no row of an epoch would have a class, see `epoch_of`."""
    if epoch_of(labelled, unlabelled, fraction)[1]:
        return
    # one image with a class is not in every epoch unless it is half of it
    least = 0 if labelled == 1 else math.ceil(1000 / (unlabelled + 1)) / 1000
    raise ValueError(
        f"With labelled_fraction={fraction} no image of an epoch has a class, of {labelled} with one and {unlabelled} "
        f"without: pass {f'{least:g} or more' if fraction < least else '0.5'}."
    )


def draw_unlabelled(parts: list[Dataset], count: int, seed: int) -> Dataset:
    """As many rows of all parts, by seed; those that fewer would be are among them."""
    rows = concatenated(parts)
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.select(np.sort(order[:count]))


def concatenated(parts: list[Dataset]) -> Dataset:
    """The rows of all parts, with null in the columns that a part lacks, or has nothing but null in."""
    features: dict[str, Any] = {}
    for rows in parts:
        for name, feature in rows.features.items():
            if name not in features or str(features[name]).count("null"):
                features[name] = feature
    same = []
    for rows in parts:
        for name, feature in features.items():
            if name not in rows.features:
                rows = add_null_column(rows, name, feature)
        try:
            same.append(rows.select_columns(list(features)).cast(Features(features)))
        except (TypeError, ValueError) as error:  # pyarrow's errors are such
            name = next((name for name, kind in rows.features.items() if kind != features[name]), "")
            raise ValueError(
                f"Images with and without a class have other columns {name!r}, {terminal(features[name], 60)} and "
                f"{terminal(rows.features[name], 60)}: give both the same, or leave the column out."
            ) from error
    with hidden_progress_bars():
        return concatenate_datasets(same) if len(same) > 1 else same[0]
