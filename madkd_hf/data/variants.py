"""Variants of a labelled dataset: fewer of its questions, or controls, whose answers do not fit their images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features
from scipy.special import expit, logit

from ..aspects import AspectBank
from .columns import (
    ASPECT_COLUMNS,
    BANK,
    LOGITS,
    MASS,
    about_objects,
    add_answers,
    aspect_features,
    check_bank,
    check_has_answers,
    matrix,
    stored,
)


def subset(
    dataset: Dataset | DatasetDict, bank: AspectBank, ids: Sequence[str]
) -> tuple[Dataset | DatasetDict, AspectBank]:
    """The labelled dataset with the answers to some of its questions, so that nobody labels twice, and their bank.

    Args:
        dataset: labelled with `bank`; rows without answers stay without, other columns are not touched.
        ids: the questions to keep, in the order that the answers are to have.

    Raises:
        ValueError: an id that the bank lacks or that comes twice, or answers to another bank.
    """
    if unknown := [name for name in ids if name not in bank.ids]:
        raise ValueError(f"The bank has no question {unknown[0]!r}: expected ids among {', '.join(bank.ids)}.")
    positions = [bank.ids.index(name) for name in ids]
    smaller = AspectBank([bank[q] for q in positions], bank.provenance)
    if isinstance(dataset, DatasetDict):
        rows = {split: _subset(rows, bank, smaller, positions) for split, rows in dataset.items()}
        return DatasetDict(rows), smaller
    return _subset(dataset, bank, smaller, positions), smaller


def _subset(rows: Dataset, bank: AspectBank, smaller: AspectBank, positions: list[int]) -> Dataset:
    check_has_answers(rows)
    check_bank(rows, bank.fingerprint)
    names = [name for name in ASPECT_COLUMNS if name in rows.features]
    features = Features({name: feature for name, feature in aspect_features(smaller).items() if name in names})
    columns = {}
    for name in names:
        column = stored(rows, name)
        if name == BANK:
            columns[name] = [smaller.fingerprint if valid else None for valid in column.is_valid().to_pylist()]
        else:
            columns[name] = _fixed_lists(matrix(column, name, len(bank))[:, positions], column.is_null())
    answers = Dataset(pa.table(columns, schema=features.arrow_schema))
    others = rows.remove_columns(names)
    return add_answers(others, answers) if others.column_names else answers


def _fixed_lists(values: np.ndarray, null: pa.ChunkedArray) -> pa.Array:
    values = np.ascontiguousarray(values, dtype=np.float32)
    mask = null.combine_chunks() if len(values) else None
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1], mask=mask)


def _with_mass_of(rows: Dataset, known: Sequence[int], order: np.ndarray) -> Dataset:
    """The rows whose masses go where their answers go: answers in place i come from place order[i], of `known` ones.

    Masses of objects stay: no training weighs these by them.
    """
    if MASS not in rows.features or about_objects(rows.features):
        return rows
    column = rows[MASS][:]
    masses = list(column)
    for i, place in zip(known, order):
        masses[i] = column[known[place]]
    return rows.remove_columns(MASS).add_column(MASS, masses, feature=rows.features[MASS])


def control_answers(rows: Dataset, control: str, seed: int) -> Dataset:
    """Answers that say nothing about their own image or object: what a real gain must beat.

    Args:
        control: "shuffled", the answers of another image or object; or "constant", each question's mean probability.
    """
    check_has_answers(rows)
    column = rows[LOGITS][:]
    answers = [item for row in column for item in row or []] if about_objects(rows.features) else column
    known = [i for i, answer in enumerate(answers) if answer is not None]
    logits = np.array([answers[i] for i in known], dtype=float)
    if control == "shuffled":
        order = np.random.default_rng(seed).permutation(len(known))
        logits, rows = logits[order], _with_mass_of(rows, known, order)
    else:
        given = np.isfinite(logits)
        means = np.where(given, expit(logits), 0).sum(axis=0) / given.sum(axis=0).clip(min=1)
        means = means.clip(1e-6, 1 - 1e-6)  # a mean of exactly 1 has no finite log-odds
        logits = np.where(given, logit(means), np.nan)
    for i, answer in zip(known, logits.tolist()):
        answers[i] = answer
    if about_objects(rows.features):
        remaining = iter(answers)
        answers = [None if row is None else list(itertools.islice(remaining, len(row))) for row in column]
    feature = rows.features[LOGITS]
    return rows.remove_columns(LOGITS).add_column(LOGITS, answers, feature=feature)
