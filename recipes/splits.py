"""Which rows serve what, once a dataset is loaded: images that can be read, class labels, a validation split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from common import SplitArguments
from datasets import ClassLabel, Dataset, DatasetDict, Value

from madkd_hf.hub.sources import note_drawn
from madkd_hf.student.data import readable


logger = logging.getLogger(__name__)

PARTS = {0.05: "twentieth", 0.1: "tenth", 0.2: "fifth", 0.25: "quarter", 0.5: "half"}  # as one says it


def readable_splits(splits: DatasetDict, args: SplitArguments) -> DatasetDict:
    """The splits without rows whose images the labelling could not read, once the columns are there."""
    check_columns(splits, args)
    return DatasetDict({split: readable(rows, f"split {split!r}") for split, rows in splits.items()})


def check_columns(splits: DatasetDict, args: SplitArguments) -> None:
    """
    Raises:
        ValueError: there is no such training split, or no such column of images in it.
    """
    if args.train_split not in splits:
        raise ValueError(
            f"There is no split {args.train_split!r}: the dataset has {list(splits)}; pass --train_split."
        )
    if args.image_column not in splits[args.train_split].features:
        raise ValueError(
            f"There is no column {args.image_column!r}: the dataset has {splits[args.train_split].column_names}; "
            "pass --image_column."
        )


def with_validation(
    splits: DatasetDict, args: SplitArguments, seed: int, stratify_by_column: str | None = None
) -> DatasetDict:
    """The splits with one for validation: a part of the training images where there is none."""
    if args.eval_split not in splits:
        try:
            parts = splits[args.train_split].train_test_split(
                args.validation_fraction, stratify_by_column=stratify_by_column, seed=seed
            )
        except ValueError as error:
            each = ", some of each class" if stratify_by_column else ""
            raise ValueError(
                f"Cannot keep {args.validation_fraction:.0%} of {len(splits[args.train_split])} training images for "
                f"validation{each} ({error}): pass --eval_split, or another --validation_fraction."
            ) from error
        splits[args.train_split], splits[args.eval_split] = parts["train"], parts["test"]
        part = PARTS.get(args.validation_fraction, f"{args.validation_fraction:.0%}")
        note_drawn(splits[args.eval_split], f"a random {part} of {args.train_split}, drawn with seed {seed}")
    return splits


def with_class_labels(splits: DatasetDict, label_column: str, train_split: str) -> DatasetDict:
    features = splits[train_split].features
    if label_column not in features:
        raise ValueError(
            f"There is no column {label_column!r}: the dataset has {list(features)}; pass --label_column."
        )
    if isinstance(features[label_column], ClassLabel):
        return splits
    having = {split: rows for split, rows in splits.items() if label_column in rows.features}
    label = class_label(
        f"column {label_column!r}",
        features[label_column],
        having,
        lambda rows: rows.select_columns(label_column).unique(label_column),
        train_split,
    )
    for split, rows in having.items():
        splits[split] = rows.cast_column(label_column, Value("string")).cast_column(label_column, label)
    return splits


def class_label(
    name: str,
    feature: Any,
    splits: Mapping[str, Dataset],
    values_of: Callable[[Dataset], Iterable[Any]],
    train_split: str,
) -> ClassLabel:
    """The classes that the training split has, from strings or integers.

    Args:
        name: what an error calls the values.
        feature: of the values.
        values_of: gives those of a split.

    Raises:
        ValueError: other values than strings and integers, or a split with a class that the training split lacks.
    """
    if not getattr(feature, "dtype", "").startswith(("int", "uint", "string", "large_string")):
        raise ValueError(f"The {name} holds {feature}, not classes: expected a ClassLabel, strings or integers.")
    values = {split: set(values_of(rows)) for split, rows in splits.items()}
    for split, found in values.items():
        if strange := [value for value in found if value is None or value not in values[train_split]]:
            raise ValueError(
                f"The split {split!r} has the label {strange[0]!r}, which is no class of {train_split!r}: "
                "drop those rows, or correct their labels."
            )
    return ClassLabel(names=[str(value) for value in sorted(values[train_split])])


def check_test_split(splits: DatasetDict, args: SplitArguments) -> None:
    if args.test_split not in splits:
        raise ValueError(f"There is no split {args.test_split!r} to predict: the dataset has {list(splits)}.")


def warn_of_absent(classes: ClassLabel, found: set[int]) -> None:
    """Tell which classes nobody can learn."""
    if missing := set(range(classes.num_classes)) - found:
        logger.warning("No training image shows %d of the classes, first of all class %d.", len(missing), min(missing))
