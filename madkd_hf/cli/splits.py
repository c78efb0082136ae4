"""The splits of a dataset: several joined to one, the columns that are needed, and a validation split where there is
none."""

from __future__ import annotations

import math
from collections import Counter

from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets

from ..data.image_columns import check_image_column
from ..data.limits import note_drawn
from ..text import get_logger
from .arguments import SplitArguments, load_splits, split_names


logger = get_logger(__name__)

PARTS = {0.05: "twentieth", 0.1: "tenth", 0.2: "fifth", 0.25: "quarter", 0.5: "half"}  # in words


def load_joined(args: SplitArguments) -> DatasetDict:
    """The dataset that the arguments name, with the splits that they name by their parts: train+validation.

    The parts of the training split are no splits any more, and another one that holds one of them is as if there were
    none: nothing is chosen or tested by images that were trained on.
    """
    splits = load_splits(args)

    def parts(name: str) -> list[str]:
        return [name] if name in splits else split_names([name])

    trained_on = parts(args.train_split)
    names = [name for name in (args.eval_split, args.test_split) if not set(parts(name)) & set(trained_on)]
    joined = {name: _join(splits, parts(name)) for name in (args.train_split, *names) if len(parts(name)) > 1}
    others = {split: rows for split, rows in splits.items() if split not in trained_on or len(trained_on) == 1}
    return DatasetDict({**others, **joined})


def _join(splits: DatasetDict, names: list[str]) -> Dataset:
    if missing := [name for name in names if name not in splits]:
        raise ValueError(f"There is no split {missing[0]!r} in {'+'.join(names)}: the dataset has {list(splits)}.")
    try:
        return concatenate_datasets([splits[name] for name in names])
    except ValueError as error:  # features that cannot be those of one column
        reason = " ".join(str(error).split()).removesuffix(".")
        raise ValueError(f"Cannot join the splits {'+'.join(names)} ({reason}): give all the same columns.") from error


def check_columns(splits: DatasetDict, args: SplitArguments) -> None:
    """Refuse a dataset without that training split, or without that column of images in it."""
    if args.train_split not in splits:
        raise ValueError(
            f"There is no split {args.train_split!r}: the dataset has {list(splits)}; pass --train_split."
        )
    check_image_column(splits[args.train_split].features, args.image_column)


def with_validation(
    splits: DatasetDict, args: SplitArguments, seed: int, stratify_by_column: str | None = None
) -> DatasetDict:
    """The splits with one for validation: a part of the training images where there is none, of all classes in
    `stratify_by_column`. The only image of a class stays in the training part, and the class is named. With
    `validation_fraction` 0 there is none."""
    if args.eval_split not in splits and args.validation_fraction:
        rows = splits[args.train_split]
        if stratify_by_column and set(Counter(rows[stratify_by_column][:]).values()) == {1}:
            raise ValueError(
                f"None of the classes of {len(rows)} training images has two of them, so that none can be kept for "
                "validation: add images, raise --limit, or pass --eval_split."
            )
        try:
            splits[args.train_split], splits[args.eval_split] = _parts(
                rows, args.validation_fraction, seed, stratify_by_column
            )
        except ValueError as error:
            some, enough = "", ""
            if stratify_by_column:
                counts = [count for count in Counter(rows[stratify_by_column]).values() if count > 1]
                share = math.ceil(100 * len(counts) / max(sum(counts), 1)) / 100
                some = f", some of each of {len(counts)} classes"
                enough = f", such as {share:g}" if args.validation_fraction < share <= 0.5 else ""
            raise ValueError(
                f"Cannot keep {args.validation_fraction:.0%} of {len(rows)} training images for validation{some} "
                f"({error}): pass --eval_split, or another --validation_fraction{enough}."
            ) from error
        part = PARTS.get(args.validation_fraction, f"{args.validation_fraction:.0%}")
        note_drawn(splits[args.eval_split], f"a random {part} of {args.train_split}, drawn with seed {seed}")
    return splits


def _parts(rows: Dataset, fraction: float, seed: int, column: str | None) -> tuple[Dataset, Dataset]:
    """Rows to train on, and rows for validation."""
    labels = rows[column][:] if column else []
    counts = Counter(labels)
    alone = [row for row, label in enumerate(labels) if counts[label] == 1]
    if not alone:
        parts = rows.train_test_split(fraction, stratify_by_column=column, seed=seed)
        return parts["train"], parts["test"]
    others = [row for row, label in enumerate(labels) if counts[label] > 1]
    features = Features({"row": Value("int64"), column: rows.features[column]})
    places = Dataset.from_dict({"row": others, column: [labels[row] for row in others]}, features)
    parts = places.train_test_split(fraction, stratify_by_column=column, seed=seed)
    names = [rows.features[column].int2str(labels[row]) for row in alone]
    logger.warning(
        "Only one image shows %s: it stays in the training part, and no validation image shows that class.",
        ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} other classes" if len(names) > 5 else ""),
    )
    return rows.select([*parts["train"]["row"][:], *alone]), rows.select(parts["test"]["row"][:])


def check_test_split(splits: DatasetDict, args: SplitArguments) -> None:
    if args.test_split in splits:
        return
    if set(split_names([args.test_split])) & set(split_names([args.train_split])):
        raise ValueError(
            f"The images of --test_split {args.test_split} would be trained on, with --train_split "
            f"{args.train_split}: pass another one of them."
        )
    raise ValueError(
        f"There is no split {args.test_split!r} to predict: the dataset has {list(splits)}. Pass another "
        f"--test_split, or move some images into a folder {args.test_split!r} with folders of classes."
    )
