"""What is in a dataset, in a few lines for its owner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from datasets import ClassLabel, Dataset, IterableDataset, Value

from ..text import one_line
from .columns import CLASS_TYPES, stored


CLASSES = 8  # are named one by one
REASONS = 8
LONGEST = 60  # characters of a name


def lines(
    name: str,
    splits: Mapping[str, Dataset | IterableDataset],
    label_column: str,
    left_out: Mapping[str, list[str]],
    notes: list[str],
) -> list[str]:
    """Rows, classes and splits; what was left out, each with its reason; and the notes."""
    parts = [f"Dataset {one_line(name)}:"]
    for split, rows in splits.items():
        parts.append(f"  {_short(split)}: {_rows(rows)}{_classes(rows, label_column)}")
    if reasons := left_out_lines(left_out):
        parts.append(f"  left out: {'; '.join(reasons)}")
    return parts + [f"  {note}" for note in notes]


def left_out_lines(left_out: Mapping[str, list[str]], most: int = REASONS) -> list[str]:
    """How many files were left out for which reason, most of them first; each with an example."""
    counts = sorted(((len(names), reason, names) for reason, names in left_out.items() if names), reverse=True)
    parts = [
        f"{count} {one_line(reason)} ({_short(names[0])}{', ...' if count > 1 else ''})"
        for count, reason, names in counts
    ]
    if len(parts) > most:
        n_rest = sum(count for count, *_ in counts[most:])
        parts[most:] = [f"{n_rest} files for {len(counts) - most} other reasons"]
    return parts


def _rows(rows: Dataset | IterableDataset) -> str:
    if isinstance(rows, Dataset):
        return "1 image" if len(rows) == 1 else f"{len(rows)} images"
    known = (rows.info.splits or {}).get(str(rows.split))
    return f"a stream of {known.num_examples} images" if known and known.num_examples else "a stream of images"


def _classes(rows: Dataset | IterableDataset, column: str) -> str:
    feature = (rows.features or {}).get(column)
    if isinstance(rows, IterableDataset):
        return f", {feature.num_classes} classes" if isinstance(feature, ClassLabel) else ""
    if isinstance(feature, ClassLabel):
        counts = dict.fromkeys(feature.names, 0)
        name_of: Any = feature.names.__getitem__
    elif isinstance(feature, Value) and feature.dtype.startswith(CLASS_TYPES):
        counts, name_of = {}, str
    else:
        return f", no column {column!r}" if feature is None else ""
    value_counts = Counter(stored(rows, column).to_pylist())
    unlabelled = value_counts.pop(None, 0) + (value_counts.pop(-1, 0) if isinstance(feature, ClassLabel) else 0)
    counts |= {name_of(value): count for value, count in value_counts.items()}
    text = _counted(counts) if any(counts.values()) else ""
    return text + (f", {unlabelled or 'none'} without a class" if unlabelled else "")


def _counted(counts: dict[str, int]) -> str:
    missing = [name for name, count in counts.items() if not count]
    present = {name: count for name, count in counts.items() if count}
    classes = "1 class" if len(present) == 1 else f"{len(present)} classes"
    if len(present) <= CLASSES:
        text = f", {classes} ({', '.join(f'{_short(name)} {count}' for name, count in present.items())})"
    else:
        least = min(present, key=present.__getitem__)
        text = f", {classes} of {present[least]} ({_short(least)}) to {max(present.values())} images"
    some = ", ".join(map(_short, missing[:3])) + (", ..." if len(missing) > 3 else "")
    return text + (f", none of {some}" if missing else "")


def _short(name: str) -> str:
    return one_line(name, LONGEST)
