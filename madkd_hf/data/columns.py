"""The columns that labelling adds to a dataset: what they are, whose answers they hold, and how they are read."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, IterableDataset, List, Value, concatenate_datasets

from ..aspects import AspectBank
from ..text import get_logger


logger = get_logger(__name__)

LOGITS, MASS, BANK = ASPECT_COLUMNS = ("aspect_logits", "aspect_mass", "aspect_bank")
CLASS_LOGITS, CLASS_TEACHER = CLASS_COLUMNS = ("class_logits", "class_teacher")
ANSWERS_AND_SOURCE = ((LOGITS, BANK), (CLASS_LOGITS, CLASS_TEACHER))  # what is read, and whose it is
CLASS_TYPES = ("int", "uint", "string", "large_string", "bool")
READ_ROWS = 10_000  # at a time


# What the columns are


def aspect_features(bank: AspectBank, by_object: bool = False) -> Features:
    """The three columns that labelling adds, see `attach_aspects`; with `by_object`, answers for each object."""
    answers = List(Value("float32"), length=len(bank))
    answers = List(answers) if by_object else answers
    return Features({LOGITS: answers, MASS: answers, BANK: Value("string")})


def rows_with_class(rows: Dataset, column: str) -> np.ndarray:
    """[n] whether the class of a row is known: a label that is neither null nor -1, as datasets hide it."""
    labels = stored(rows, column)
    return pc.fill_null(pc.greater_equal(labels, 0), False).to_numpy()


def add_null_column(rows: Dataset, name: str, feature: Any) -> Dataset:
    """The rows with null in a new column."""
    features = Features({name: feature})
    return add_answers(rows, Dataset(null_answers(features, len(rows)), info=datasets.DatasetInfo(features=features)))


def is_labelled(features: Mapping[str, Any]) -> bool:
    """Whether the rows have answers, and say to which bank."""
    return {LOGITS, BANK} <= set(features)


def about_objects(features: Features) -> bool:
    """Whether the answers are about each object, not about the image."""
    return _is_list(features.get(LOGITS)) and _is_list(features[LOGITS].feature)


def _is_list(feature: Any) -> bool:
    return isinstance(feature, (List, datasets.LargeList))


def null_answers(features: Features, rows: int) -> pa.Table:
    """The columns of rows without answers."""
    schema = features.arrow_schema
    return pa.table({field.name: pa.nulls(rows, field.type) for field in schema}, schema=schema)


def add_answers(source: Dataset, answers: Dataset) -> Dataset:
    """Columns beside the source's; a source that is a selection of rows gets them copied out by the concatenation."""
    if not len(source):  # concatenation would drop an empty dataset, columns included
        info = source.info.copy()
        info.features = Features({**source.features, **answers.features})
        return Dataset.from_dict({name: [] for name in info.features}, info=info, split=source.split)
    with hidden_progress_bars():
        return concatenate_datasets([source, answers], split=source.split, axis=1)


@contextmanager
def hidden_progress_bars() -> Iterator[None]:
    """Without the progress bars of `datasets`, which count examples: ours counts what is read."""
    enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_progress_bars()


# Whose answers they are


def check_bank(rows: Dataset, fingerprint: str, name: str = "dataset", holder: str = "this one is") -> None:
    """Refuse answers to the questions of another bank; the message calls the rows `name`, and the bank by `holder`."""
    fingerprints = stored(rows, BANK).unique().to_pylist() if BANK in rows.features else []
    if others := sorted(set(fingerprints) - {None, fingerprint}):
        raise ValueError(
            f"The {name} was labelled with the bank {others[0]} and {holder} {fingerprint}: questions or their order "
            "differ; use the aspects.json beside the dataset."
        )


def check_answers(rows: Dataset, fingerprint: str | None, count: int, by_object: bool) -> None:
    """Refuse answers that do not fit a model of `count` aspects, of a bank `fingerprint`, about objects or images."""
    if LOGITS not in rows.features or not count:
        return
    feature = rows.features[LOGITS]
    answers = getattr(feature, "feature", None)  # of an image, or of an object
    nested = hasattr(answers, "feature")
    if answers is not None and getattr(answers, "dtype", None) != "null" and nested != by_object:
        there, expected, remedy = "each object", "whole images", "without boxes_column"
        if by_object:
            there, expected, remedy = expected, there, "with boxes_column"
        level = "object" if nested else "image"
        raise ValueError(
            f"The dataset answers about {there} and the model about {expected}: label it {remedy}, or train a "
            f'MadkdForObjectDetection with aspect_level="{level}".'
        )
    length = getattr(answers if nested else feature, "length", -1)
    if length == -1:
        values = rows.select_columns(LOGITS)[LOGITS]
        values = (answer for row in values for answer in row or ()) if nested else values
        length = next((len(answer) for answer in values if answer is not None), count)
    if length != count:
        raise ValueError(
            f"The dataset answers {length} questions and the model has {count} aspects: "
            "use the bank that the dataset was labelled with (aspects.json beside it)."
        )
    check_bank(rows, fingerprint, holder="the model was built for")


# What stands in them


def skipped_rows(labelled: Dataset | IterableDataset) -> list[int]:
    """The rows that could not be read, for their image or a box, and that `on_error="skip"` left without answers.

    Such a row names its bank and has no answers, or names its class teacher and has no class targets; a row that was
    not labelled has neither.
    """
    pairs = [pair for pair in ANSWERS_AND_SOURCE if set(pair) <= set(labelled.features)]
    if not pairs:
        return []
    columns = labelled.select_columns([name for pair in pairs for name in pair]).with_format("arrow")
    rows, start = [], 0
    for table in columns.iter(READ_ROWS):
        skipped = [pc.and_(table[answers].is_null(), table[source].is_valid()) for answers, source in pairs]
        rows += [start + row for row in pc.indices_nonzero(functools.reduce(pc.or_, skipped)).to_pylist()]
        start += len(table)
    return rows


def count_missing(labelled: Dataset) -> dict[str, int]:
    """How many answers a teacher was asked for and did not give: NaN in the lists of `aspect_logits`.

    Returns:
        `answers`, that it was asked for; of them `refused`, of which nothing is known, and `without_yes_or_no`: one of
        the two was not among the likeliest tokens, so that there are no log-odds, but a mass.
    """
    counts = dict.fromkeys(("answers", "refused", "without_yes_or_no"), 0)
    for table in labelled.select_columns([LOGITS, MASS]).with_format("arrow").iter(READ_ROWS):
        logits, mass = (_numbers(table[name]) for name in (LOGITS, MASS))
        missing, known = np.isnan(logits), np.isfinite(mass) if len(mass) == len(logits) else np.zeros(1, dtype=bool)
        counts["answers"] += len(logits)
        counts["refused"] += int((missing & ~known).sum())
        counts["without_yes_or_no"] += int((missing & known).sum())
    return counts


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """All numbers in a column of lists, or of lists of lists, of the rows that have some."""
    values = column.combine_chunks()
    while pa.types.is_nested(values.type):
        values = values.drop_null().flatten()
    return values.to_numpy(zero_copy_only=False)


def drop_skipped_rows(dataset: Dataset, name: str = "the dataset") -> Dataset:
    """The rows without `skipped_rows`, and a warning that says how many they were; refused where no row is left."""
    skipped = skipped_rows(dataset)
    if not skipped:
        return dataset
    if len(skipped) == len(dataset):
        raise ValueError(
            f"The labelling could read none of the {len(dataset)} images of {name}, or a box in each: repair the "
            "files, or see what box_format says, and label again."
        )
    logger.warning(
        "Left out %d of the %d rows of %s: the labelling could not read their images, or a box in them.",
        len(skipped), len(dataset), name,
    )  # fmt: skip
    return dataset.select(np.setdiff1d(np.arange(len(dataset)), skipped))


def read_answers(dataset: Dataset, bank: AspectBank) -> tuple[np.ndarray, np.ndarray | None, dict[str, int]]:
    """What the teacher answered in one labelled split, one row an image (or an object, see `objects.flatten_objects`).

    Returns:
        Log-odds and, where known, mass, [n, Q] float32 each, NaN in rows without answers; and how many `rows` there
        are: `images` with answers, `unlabelled`, and `unreadable`.
    """
    if not isinstance(dataset, Dataset):
        splits = f" with the splits {list(dataset)}: pass one of them" if isinstance(dataset, dict) else ""
        raise ValueError(f"Expected the Dataset of one split; received {type(dataset).__name__}{splits}.")
    check_has_answers(dataset)
    check_bank(dataset, bank.fingerprint)
    logits = _read(dataset, LOGITS, len(bank))
    mass = _read(dataset, MASS, len(bank)) if MASS in dataset.features else None
    mass = None if mass is None or np.isnan(mass).all() else mass  # of recorded answers it is not known
    answered = ~np.isnan(logits).all(axis=1)
    labelled = stored(dataset, BANK).is_valid().to_numpy() if BANK in dataset.features else answered
    counts = {"rows": len(logits), "images": answered.sum(), "unlabelled": (~labelled & ~answered).sum()}
    counts["unreadable"] = (labelled & ~answered).sum()
    return logits, mass, {name: int(count) for name, count in counts.items()}


def answered_rows(dataset: Dataset) -> np.ndarray:
    """[n] which rows have an answer at least; none without the column."""
    if LOGITS not in dataset.features:
        return np.zeros(len(dataset), dtype=bool)
    width = dataset.features[LOGITS].length
    if width < 0:  # lists of any length, which are refused elsewhere
        return stored(dataset, LOGITS).is_valid().to_numpy()
    return ~np.isnan(_read(dataset, LOGITS, width)).all(axis=1)


def read_labels(dataset: Dataset, column: str | None) -> tuple[list[Any] | None, list[Any] | None]:
    """The class of each row, None where unknown, and all classes; nothing for a column that holds no classes."""
    feature = dataset.features.get(column) if column else None
    if isinstance(feature, ClassLabel):
        names = feature.names
        indices = stored(dataset, column).to_pylist()
        return [None if index is None or index < 0 else names[index] for index in indices], names
    if not isinstance(feature, Value) or not feature.dtype.startswith(CLASS_TYPES):
        return None, None
    labels = stored(dataset, column).to_pylist()
    return labels, sorted(set(labels) - {None})


def warn_of_unanswered(rows: Dataset, name: str) -> None:
    """Warn of training images that nobody was asked about."""
    if LOGITS in rows.features and (missing := stored(rows, LOGITS).null_count):
        logger.warning(
            "%d of the %d training images have no answers and teach their classes alone: label them with "
            "`madkd label --splits %s`, if that is not meant.",
            missing, len(rows), name,
        )  # fmt: skip


def check_has_answers(dataset: Dataset) -> None:
    if LOGITS not in dataset.features:
        raise ValueError(
            f"The dataset has the columns {dataset.column_names} and no {LOGITS}: label it with attach_aspects."
        )


def stored(dataset: Dataset, column: str, rows: slice = slice(None)) -> pa.ChunkedArray:
    """A column as it is stored: nulls stay nulls, and images are not touched."""
    return dataset.select_columns(column).with_format("arrow")[rows][column]


def _read(dataset: Dataset, column: str, width: int) -> np.ndarray:
    parts = [np.empty((0, width), dtype=np.float32)]
    for start in range(0, len(dataset), READ_ROWS):
        parts.append(matrix(stored(dataset, column, slice(start, start + READ_ROWS)), column, width))
    return np.concatenate(parts)


def matrix(answers: pa.ChunkedArray, name: str, width: int) -> np.ndarray:
    """[n, width] float32 of a column of lists, NaN where there is none."""
    valid = answers.is_valid().to_numpy()
    flat = answers.drop_null().combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if flat.size != valid.sum() * width:
        raise ValueError(
            f"The column {name!r} holds other than {width} answers a row, one for each question of the bank: use the "
            "aspects.json beside the dataset."
        )
    values = np.full((len(valid), width), np.nan, dtype=np.float32)
    values[valid] = flat.reshape(-1, width)
    return values
