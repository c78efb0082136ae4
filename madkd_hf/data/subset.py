"""Some of the questions of a labelled dataset: their answers are there already, so nobody labels twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets

from ..aspects import ASPECT_COLUMNS, AspectBank


LOGITS, MASS, BANK = ASPECT_COLUMNS


def subset(
    dataset: Dataset | DatasetDict, bank: AspectBank, ids: Sequence[str]
) -> tuple[Dataset | DatasetDict, AspectBank]:
    """The labelled dataset with the answers to some of its questions, and the bank of these.

    Args:
        dataset: labelled with `bank`; rows without answers stay without.
        bank: all the questions.
        ids: those to keep, in the order that the answers are to have.

    Returns:
        The dataset with shorter `aspect_logits` and `aspect_mass`, and the new bank's fingerprint in `aspect_bank`;
        and that bank, with the provenance of the old one. Columns that labelling did not add are not touched.

    Raises:
        ValueError: an id that the bank lacks or that comes twice, a dataset without answers, or with those to another
            bank.
    """
    if unknown := [name for name in ids if name not in bank.ids]:
        raise ValueError(f"The bank has no question {unknown[0]!r}: expected ids among {', '.join(bank.ids)}.")
    positions = [bank.ids.index(name) for name in ids]
    kept = AspectBank([bank[q] for q in positions], bank.provenance)
    if isinstance(dataset, DatasetDict):
        return DatasetDict({split: _subset(rows, bank, kept, positions) for split, rows in dataset.items()}), kept
    return _subset(dataset, bank, kept, positions), kept


def _subset(rows: Dataset, bank: AspectBank, kept: AspectBank, positions: list[int]) -> Dataset:
    names = [name for name in ASPECT_COLUMNS if name in rows.features]
    if LOGITS not in names:
        raise ValueError(
            f"The dataset has the columns {rows.column_names} and no {LOGITS}: label it with attach_aspects."
        )
    table = rows.select_columns(names).with_format("arrow")[:]
    columns, types = {}, {}
    for name in names:
        column = table[name].combine_chunks()
        if name == BANK:
            if foreign := set(column.unique().to_pylist()) - {None, bank.fingerprint}:
                raise ValueError(
                    f"The dataset was labelled with the bank {foreign.pop()} and this one is {bank.fingerprint}: "
                    "use the aspects.json beside the dataset."
                )
            columns[name] = [kept.fingerprint if valid else None for valid in column.is_valid().to_pylist()]
            types[name] = Value("string")
        else:
            columns[name] = _columns(column, len(bank), positions)
            types[name] = List(Value("float32"), length=len(positions))
    features = Features({**rows.remove_columns(names).features, **types})
    if not len(rows):  # concatenation would drop an empty dataset, columns included
        return Dataset.from_dict({name: [] for name in features}, features=features, split=rows.split)
    answers = Dataset(pa.table(columns, schema=Features(types).arrow_schema))
    if len(names) == len(rows.column_names):
        return answers
    return concatenate_datasets([rows.remove_columns(names), answers], split=rows.split, axis=1)


def _columns(answers: pa.Array, width: int, positions: list[int]) -> pa.Array:
    """Some places of each list; a null stays one."""
    valid = answers.is_valid().to_numpy(zero_copy_only=False)
    flat = answers.drop_null().flatten().to_numpy(zero_copy_only=False)
    if flat.size != valid.sum() * width:
        raise ValueError(
            f"The dataset holds other than {width} answers a row, one for each question of the bank: use the "
            "aspects.json beside the dataset."
        )
    values = np.zeros((len(valid), len(positions)), dtype=np.float32)
    values[valid] = flat.reshape(-1, width)[:, positions]
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), len(positions), mask=pa.array(~valid))
