"""Columns of classes: what can be one, what is made of words, numbers, true and false, and how many rows each has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset, LargeList, List, Value

from ..text import get_logger
from .columns import CLASS_TYPES, stored


logger = get_logger(__name__)


def count_without_class(rows: Dataset, column: str) -> int:
    """How many rows have no class: null, or the -1 that datasets hide labels behind."""
    values = stored(rows, column)
    hidden = pc.sum(pc.equal(values, -1)).as_py() if isinstance(rows.features[column], ClassLabel) else 0
    return values.null_count + (hidden or 0)


def with_whole_numbers(rows: Dataset, column: str) -> Dataset:
    """The rows with integers in place of floats that are whole numbers: a table with gaps is read like that."""
    feature = rows.features[column]
    if not (isinstance(feature, Value) and feature.dtype.startswith("float")):
        return rows
    values = stored(rows, column)
    only_whole = pc.all(pc.equal(pc.floor(values), values)).as_py()
    return rows.cast_column(column, Value("int64")) if only_whole is not False else rows


def class_names(rows: Dataset | IterableDataset, column: str) -> list[str] | None:
    """The classes in the order that a student learns them in, see `class_label`; None where the column says none.

    Of a stream, they are known where they are declared as a ClassLabel.
    """
    feature = rows.features[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    if not isinstance(rows, Dataset):
        return None
    rows = with_whole_numbers(rows, column)
    if not getattr(rows.features[column], "dtype", "").startswith(CLASS_TYPES):
        return None
    values = set(stored(rows, column).unique().to_pylist()) - {None}
    if rows.features[column].dtype.startswith("int") and values != {-1, 1}:
        values -= {-1}  # which hides a class
    return [_text(value) for value in sorted(values)] or None


def class_indices(rows: Dataset, column: str, classes: Sequence[str]) -> np.ndarray:
    """[n] the class of each row as a place among these names; -1 where it has none, or another one."""
    place = {name: index for index, name in enumerate(classes)}
    rows = with_whole_numbers(rows, column)
    feature, values = rows.features[column], stored(rows, column).to_pylist()
    if isinstance(feature, ClassLabel):
        own = range(feature.num_classes)
        names = [feature.names[value] if value in own else None for value in values]
    else:
        names = [None if value is None else _text(value) for value in values]
    return np.array([place.get(name, -1) for name in names], dtype=np.int64)


def class_label(
    name: str,
    feature: Any,
    splits: Mapping[str, Dataset],
    values_of: Callable[[Dataset], Iterable[Any]],
    train_split: str,
) -> ClassLabel:
    """The classes that the training split has, from strings, integers, or true and false; errors call them `name`."""
    if isinstance(feature, (List, LargeList)):
        raise ValueError(
            f"The {name} holds lists, not classes: expected a ClassLabel, strings or integers, a single one each; an "
            "image with several classes cannot be learnt."
        )
    if not getattr(feature, "dtype", "").startswith(CLASS_TYPES):
        raise ValueError(f"The {name} holds {feature}, not classes: expected a ClassLabel, strings or integers.")
    values = {split: set(values_of(rows)) for split, rows in splits.items()}
    for split, present in values.items():
        if strange := sorted(map(str, present - values[train_split])):
            raise ValueError(
                f"The split {split!r} has the label {strange[0]!r}, which is no class of {train_split!r}: "
                "drop those rows, or correct their labels."
            )
    return ClassLabel(names=[_text(value) for value in sorted(values[train_split])])


def _text(value: Any) -> str:
    """As a cast to strings spells it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def with_class_labels(splits: DatasetDict, label_column: str, train_split: str) -> DatasetDict:
    """The splits with that column as ClassLabels."""
    features = splits[train_split].features
    if label_column not in features:
        candidates = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        raise ValueError(
            f"There is no column {label_column!r}: the dataset has {list(features)}; pass --label_column"
            + (f" {candidates[0]}." if len(candidates) == 1 else ", or put the images into a folder for each class.")
        )
    if missing := count_without_class(splits[train_split], label_column):
        raise ValueError(
            f"{missing} of the {len(splits[train_split])} rows of split {train_split!r} have no class in the column "
            f"{label_column!r}: label them, or drop those rows."
        )
    if isinstance(features[label_column], ClassLabel):
        return splits
    having = {split: rows for split, rows in splits.items() if label_column in rows.features}
    having = {split: with_whole_numbers(rows, label_column) for split, rows in having.items()}
    label = class_label(
        f"column {label_column!r}",
        having[train_split].features[label_column],
        having,
        lambda rows: [value for value in rows.unique(label_column) if value is not None],  # null where hidden
        train_split,
    )
    for split, rows in having.items():
        splits[split] = rows.cast_column(label_column, Value("string")).cast_column(label_column, label)
    return splits


def check_images_per_class(rows: Dataset, label_column: str, images_per_class: int) -> None:
    """Raise ValueError where a class has fewer images than are to be drawn of each."""
    if images_per_class < 1:
        raise ValueError(f"--images_per_class is {images_per_class}: expected 1 or more.")
    names, counts = rows.features[label_column].names, Counter(rows[label_column])
    few = sorted((counts[index], name) for index, name in enumerate(names) if counts[index] < images_per_class)
    if few:
        count, name = few[0]
        others = ", ".join(f"{name!r} ({count})" for count, name in few[1:5]) + (", ..." if few[5:] else "")
        raise ValueError(
            f"The class {name!r} has {count} image{'s'[: count != 1]} and --images_per_class asks for "
            f"{images_per_class}{f'; too few have {others} as well' if others else ''}: "
            "ask for fewer, or leave those classes out."
        )


def warn_of_missing_classes(classes: ClassLabel, present: set[int]) -> None:
    """Warn of classes that nobody can learn."""
    if missing := set(range(classes.num_classes)) - present:
        logger.warning("No training image shows %d of the classes, first of all class %d.", len(missing), min(missing))
