"""Columns of classes: what can be one, and what is made of words, numbers, true and false."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, LargeList, List, Value


def without_class(rows: Dataset, column: str) -> int:
    """How many rows have no class: null, or the -1 that datasets hide labels behind."""
    values = rows.select_columns(column).with_format("arrow")[:][column]
    hidden = pc.sum(pc.equal(values, -1)).as_py() if isinstance(rows.features[column], ClassLabel) else 0
    return values.null_count + (hidden or 0)


def with_whole_numbers(rows: Dataset, column: str) -> Dataset:
    """The rows with integers in place of floats that are whole numbers: a table with gaps is read like that."""
    feature = rows.features[column]
    if not (isinstance(feature, Value) and feature.dtype.startswith("float")):
        return rows
    values = rows.select_columns(column).with_format("arrow")[:][column]
    whole = pc.all(pc.equal(pc.floor(values), values)).as_py()
    return rows.cast_column(column, Value("int64")) if whole is not False else rows


def class_label(
    name: str,
    feature: Any,
    splits: Mapping[str, Dataset],
    values_of: Callable[[Dataset], Iterable[Any]],
    train_split: str,
) -> ClassLabel:
    """The classes that the training split has, from strings, integers, or true and false.

    Args:
        name: what an error calls the values.
        feature: of the values.
        values_of: gives those of a split.

    Raises:
        ValueError: other values, or a split with a class that the training split lacks.
    """
    if isinstance(feature, (List, LargeList)):
        raise ValueError(
            f"The {name} holds lists, not classes: expected a ClassLabel, strings or integers, a single one each; an "
            "image with several classes cannot be learnt."
        )
    if not getattr(feature, "dtype", "").startswith(("int", "uint", "string", "large_string", "bool")):
        raise ValueError(f"The {name} holds {feature}, not classes: expected a ClassLabel, strings or integers.")
    values = {split: set(values_of(rows)) for split, rows in splits.items()}
    for split, found in values.items():
        if strange := sorted(map(str, found - values[train_split])):
            raise ValueError(
                f"The split {split!r} has the label {strange[0]!r}, which is no class of {train_split!r}: "
                "drop those rows, or correct their labels."
            )
    return ClassLabel(names=[_text(value) for value in sorted(values[train_split])])


def _text(value: Any) -> str:
    """As a cast to strings spells it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
