"""The splits of a dataset: joined, with the columns that are needed, and drawn for validation and test where there are
none."""

from __future__ import annotations

import math
from collections import Counter

from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets

from ..data.image_columns import check_image_column
from ..data.limits import how_drawn, note_drawn
from ..text import get_logger
from .arguments import SplitArguments, load_splits, split_names


logger = get_logger(__name__)

TEST_SEED = 0  # one test, whatever the seed of the student
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


def with_test(splits: DatasetDict, args: SplitArguments, stratify_by_column: str | None = None) -> DatasetDict:
    """The splits with one for the test, where there is none and `test_fraction` is given: a part of the training
    images, the same whatever the training's seed. It is drawn before that for validation."""
    if args.test_fraction and args.test_split in splits:
        logger.warning("--test_fraction is not used: the dataset has a split %r.", args.test_split)
    elif args.test_fraction:
        _keep(splits, args, "test", args.test_split, TEST_SEED, stratify_by_column)
    return splits


def with_validation(
    splits: DatasetDict, args: SplitArguments, seed: int, stratify_by_column: str | None = None
) -> DatasetDict:
    """The splits with one for validation: a part of the training images where there is none. With
    `validation_fraction` 0 there is none."""
    if args.eval_split not in splits and args.validation_fraction:
        _keep(splits, args, "validation", args.eval_split, seed, stratify_by_column)
    return splits


def _keep(splits: DatasetDict, args: SplitArguments, role: str, name: str, seed: int, column: str | None) -> None:
    """Move a part of the training images, of all classes in `column`, to a split `name` for validation or test.

    The only image of a class stays in the training part, and the class is named.
    """
    rows, option = splits[args.train_split], "test_split" if role == "test" else "eval_split"
    fraction, purpose = getattr(args, f"{role}_fraction"), "the test" if role == "test" else role
    if column and set(Counter(rows[column][:]).values()) == {1}:
        raise ValueError(
            f"None of the classes of {len(rows)} training images has two of them, so that none can be kept for "
            f"{purpose}: add images, raise --limit, or pass --{option}."
        )
    of_test = f" of {args.train_split}, drawn with seed {TEST_SEED}"
    rest = "the rest of " if (how_drawn(splits.get(args.test_split)) or "").endswith(of_test) else ""
    try:
        splits[args.train_split], splits[name] = _parts(rows, fraction, seed, column, role)
    except ValueError as error:
        some, enough = "", ""
        if column:
            counts = [count for count in Counter(rows[column]).values() if count > 1]
            share = math.ceil(100 * len(counts) / max(sum(counts), 1)) / 100
            some = f", some of each of {len(counts)} classes"
            enough = f", such as {share:g}" if fraction < share <= 0.5 else ""
        raise ValueError(
            f"Cannot keep {fraction:.0%} of {len(rows)} training images for {purpose}{some} ({error}): pass "
            f"--{option}, or another --{role}_fraction{enough}."
        ) from error
    part = PARTS.get(fraction, f"{fraction:.0%}")
    note_drawn(splits[name], f"a random {part} of {rest}{args.train_split}, drawn with seed {seed}")


def _parts(rows: Dataset, fraction: float, seed: int, column: str | None, role: str) -> tuple[Dataset, Dataset]:
    """Rows to train on, and rows for validation or test."""
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
        "Only one image shows %s: it stays in the training part, and no %s image shows that class.",
        ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} other classes" if len(names) > 5 else ""),
        role,
    )
    return rows.select([*parts["train"]["row"][:], *alone]), rows.select(parts["test"]["row"][:])


def check_test_split(splits: DatasetDict, args: SplitArguments) -> None:
    if args.test_split in splits or args.test_fraction:
        return
    if set(split_names([args.test_split])) & set(split_names([args.train_split])):
        raise ValueError(
            f"The images of --test_split {args.test_split} would be trained on, with --train_split "
            f"{args.train_split}: pass another one of them, or --test_fraction 0.2 to keep some of all images for it."
        )
    raise ValueError(
        f"There is no split {args.test_split!r} to predict: the dataset has {list(splits)}. Pass another "
        f"--test_split, or --test_fraction 0.2 to keep training images for it, or move some images into a folder "
        f"{args.test_split!r} with folders of classes."
    )
