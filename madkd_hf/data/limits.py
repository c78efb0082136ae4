"""Rows drawn from a split: by --limit, the same few every time and of all classes; and the note of how they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, IterableDataset, Value

from .columns import stored


SEED = 0
DRAWN = "madkd_hf: these rows are "  # begins a line of a dataset's description
Rows = Dataset | IterableDataset


def limited(rows: Rows, limit: int | None, label_column: str) -> Rows:
    """At most `limit` rows, in their order: drawn evenly from all classes; of a stream the first ones."""
    if limit is None:
        return rows
    if isinstance(rows, IterableDataset):
        return rows.take(limit)
    if limit >= len(rows):
        return rows
    return rows.select(draw_evenly(labels_of(rows, label_column), limit))


def labels_of(rows: Dataset, column: str) -> list[Any]:
    """The class of each row; the same for all where the column holds none."""
    feature = rows.features.get(column)
    if isinstance(feature, ClassLabel) or (isinstance(feature, Value) and not feature.dtype.startswith("float")):
        return stored(rows, column).to_pylist()
    return [None] * len(rows)


def draw_evenly(labels: list[Any], count: int, seed: int = SEED, without_class: bool = True) -> list[int]:
    """The sorted indices of `count` rows, drawn evenly from all classes; with `without_class`, None is one, too."""
    turn: dict[Any, int] = {}
    places = []
    for row in np.random.default_rng(seed).permutation(len(labels)).tolist():
        if labels[row] is None and not without_class:
            continue
        turn[labels[row]] = turn.get(labels[row], 0) + 1
        places.append((turn[labels[row]], len(places), row))
    return sorted(row for _, _, row in sorted(places)[:count])


def notes(splits: Mapping[str, Rows], limit: int | None, label_column: str) -> list[str]:
    """What the limit does, in a sentence."""
    if limit is None:
        return []
    if any(isinstance(rows, IterableDataset) for rows in splits.values()):
        return [f"--limit {limit}: the first {limit} rows of each split, as the stream brings them."]
    cut = [rows for rows in splits.values() if limit < len(rows)]
    if not cut:
        return [f"--limit {limit}: no split has more rows."]
    by_class = any(len(set(labels_of(rows, label_column))) > 1 for rows in cut)
    how = f"drawn evenly of the classes in {label_column!r}" if by_class else "drawn at random"
    return [f"--limit {limit}: {limit} rows of each split, {how} (seed {SEED})."]


def note_drawn(rows: Dataset, how: str) -> None:
    """Note how rows were chosen ("a random tenth of train, drawn with seed 0"); copies and files keep the note."""
    rows.info.description = "\n".join(filter(None, [rows.info.description, f"{DRAWN}{how}"]))


def how_drawn(rows: Any) -> str | None:
    """How rows were chosen that are no split of their dataset, where that was noted."""
    description = getattr(getattr(rows, "info", None), "description", None) or ""
    lines = [line.removeprefix(DRAWN) for line in description.splitlines() if line.startswith(DRAWN)]
    return " ".join(lines[-1].split())[:200] if lines else None
