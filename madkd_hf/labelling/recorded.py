"""Answers that were given elsewhere become columns like any others."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Image

from ..data.columns import ASPECT_COLUMNS, BANK, LOGITS, MASS, add_answers, aspect_features, null_answers, stored
from .answer_files import RecordedAnswers, shown


AnyDataset = TypeVar("AnyDataset", Dataset, DatasetDict)


def attach_recorded_answers(
    dataset: AnyDataset,
    answers: RecordedAnswers,
    *,
    key_column: str | None = None,
    splits: str | Iterable[str] | None = None,
    on_missing: Literal["raise", "null"] = "raise",
    on_unused: Literal["raise", "ignore"] = "raise",
) -> AnyDataset:
    """Store recorded answers as the columns that `attach_aspects` writes.

    `aspect_mass` is null in every row: what else the teacher might have said is not known.

    Args:
        dataset: rows, or a dict of splits.
        answers: from `read_answers_file`.
        key_column: the column whose values are the records' keys; for a column of images, the name of their files.
            By default, for answers with keys, the first column of images.
        splits: of a dict, those that were answered; all by default. The others carry nulls.
        on_missing: what to do about an image without a record: "raise", or leave its answers "null".
        on_unused: what to do about a record without an image: "raise", or "ignore".

    Returns:
        The same rows with the three columns added.

    Raises:
        ValueError: no such column or split, keys of rows that come twice, images without a record or records without
            an image, or another number of rows than of records where there are no keys.
    """
    parts = {str(dataset.split or "dataset"): dataset} if isinstance(dataset, Dataset) else dict(dataset)
    selected = list(parts) if splits is None else [splits] if isinstance(splits, str) else list(splits)
    if missing := [split for split in selected if split not in parts]:
        raise ValueError(f"There is no split {missing[0]!r}: the dataset has {list(parts)}.")
    for split, rows in parts.items():
        if present := [name for name in ASPECT_COLUMNS if name in rows.features]:
            raise ValueError(f"The split {split!r} is labelled already: drop {present} to attach other answers.")
    places = _places(parts, selected, answers, key_column, on_missing)
    if answers.keys is not None and on_unused == "raise":
        used = set().union(*(set(part) for part in places.values()))
        if unused := [i for i in range(len(answers.keys)) if i not in used]:
            raise ValueError(
                f"{len(unused)} of the {len(answers.keys)} records belong to no image, the first to "
                f"{shown(answers.keys[unused[0]])}: check the keys, or pass on_unused='ignore'."
            )
    features = aspect_features(answers.bank)
    made = {}
    for split, rows in parts.items():
        if split in places:
            table = _columns(answers, places[split], features.arrow_schema)
        else:
            table = null_answers(features, len(rows))
        made[split] = add_answers(rows, Dataset(table))
    return made[next(iter(made))] if isinstance(dataset, Dataset) else DatasetDict(made)


def _places(
    parts: dict[str, Dataset],
    selected: list[str],
    answers: RecordedAnswers,
    key_column: str | None,
    on_missing: str,
) -> dict[str, list[int | None]]:
    """For each row of the selected splits, the number of its record."""
    if answers.keys is None:
        if len(selected) != 1:
            raise ValueError(
                f"Records in the order of the rows answer one split, and these are {selected}: name the split, or the "
                "field of the records and the column that name the image."
            )
        rows = parts[selected[0]]
        if len(rows) != len(answers.logits):
            raise ValueError(
                f"There are {len(answers.logits)} records for the {len(rows)} images of split {selected[0]!r}: "
                "expected one for each, in the same order; or name the field and the column that name the image."
            )
        return {selected[0]: list(range(len(rows)))}
    record_of = {key: number for number, key in enumerate(answers.keys)}
    of_file = _records_of_files(answers.keys)
    places: dict[str, list[int | None]] = {}
    seen: dict[str, str] = {}
    for split in selected:
        keys, are_files = _keys(parts[split], key_column)
        for number, key in enumerate(keys):
            if key in seen:
                raise ValueError(
                    f"The key {shown(key)} stands in {seen[key]} and in row {number} of split {split!r}: expected "
                    "another one for each image; pass another key_column, or the splits that were answered."
                )
            seen[key] = f"row {number} of split {split!r}"
        places[split] = [(of_file if are_files else record_of).get(key) for key in keys]
        missing = [number for number, place in enumerate(places[split]) if place is None]
        if missing and on_missing == "raise":
            raise ValueError(
                f"{len(missing)} of the {len(keys)} images of split {split!r} have no record, the first is "
                f"{shown(keys[missing[0]])}: check the keys, or pass on_missing='null' to leave their answers empty."
            )
    return places


def _records_of_files(keys: Sequence[str]) -> dict[str, int]:
    """File name -> record, whatever folders stand before it; without names that several records share."""
    names = [os.path.basename(key) for key in keys]
    counts = Counter(names)
    return {name: number for number, name in enumerate(names) if counts[name] == 1}


def _keys(rows: Dataset, column: str | None) -> tuple[list[str], bool]:
    """The key of each row, and whether keys are names of files."""
    name = column or next((name for name, feature in rows.features.items() if isinstance(feature, Image)), None)
    if name not in rows.features:
        raise ValueError(f"There is no column {name!r} with keys: the dataset has {rows.column_names}.")
    column_of_keys, are_files = stored(rows, name), isinstance(rows.features[name], Image)
    if are_files:  # the images themselves stay on the disk
        column_of_keys = pc.struct_field(column_of_keys, "path")
    values = column_of_keys.to_pylist()
    values = [value and os.path.basename(value) for value in values] if are_files else values
    if None in values:
        raise ValueError(
            f"Row {values.index(None)} has no key in the column {name!r}: pass as key_column one that names every "
            "image."
        )
    return list(map(str, values)), are_files


def _columns(answers: RecordedAnswers, places: list[int | None], schema: pa.Schema) -> pa.Table:
    logits = answers.logits.astype(np.float32)
    values = [None if place is None else logits[place] for place in places]
    return pa.table(
        {
            LOGITS: pa.array(values, schema.field(LOGITS).type),
            MASS: pa.nulls(len(values), schema.field(MASS).type),
            BANK: pa.array([None if place is None else answers.bank.fingerprint for place in places], pa.string()),
        },
        schema=schema,
    )
