"""Class targets: the columns in which a teacher's scores of the classes stand, and whose scores they are."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, LargeList, List, Value

from ..text import one_line
from .columns import CLASS_COLUMNS, CLASS_LOGITS, CLASS_TEACHER, add_answers, stored
from .target_facts import LONGEST, TargetFacts


def class_features(num_classes: int) -> Features:
    """The two columns of class targets: a teacher's scores of the C classes before the softmax, null in rows that it
    has not seen; and which teacher, of which classes, see `class_teacher`."""
    return Features({CLASS_LOGITS: List(Value("float32"), length=num_classes), CLASS_TEACHER: Value("string")})


def class_teacher(teacher: str, classes: Sequence[str]) -> str:
    """What stands in the column `class_teacher`: who gave the scores, and a digest of the classes in their order."""
    digest = hashlib.sha256(json.dumps(list(classes), ensure_ascii=False).encode()).hexdigest()[:16]
    return f"{teacher}:{digest}"


def check_class_targets(rows: Dataset, classes: Sequence[str]) -> None:
    """Refuse class targets that are scores of other classes, or of the same in another order."""
    if CLASS_LOGITS not in rows.features:
        return
    feature, column = rows.features[CLASS_LOGITS], stored(rows, CLASS_LOGITS).drop_null()
    if not isinstance(feature, (List, LargeList)) or not _is_number(feature.feature):
        raise ValueError(f"The column {CLASS_LOGITS!r} holds {feature}: expected a list of {len(classes)} scores.")
    expected = class_teacher("", classes)
    teachers = stored(rows, CLASS_TEACHER).unique().to_pylist() if CLASS_TEACHER in rows.features else []
    others = [teacher for teacher in teachers if teacher is not None and not teacher.endswith(expected)]
    lengths = {length for length in pc.list_value_length(column).unique().to_pylist() if length != len(classes)}
    if others or lengths:
        raise ValueError(
            f"The column {CLASS_LOGITS!r} holds scores of {min(lengths) if lengths else 'other'} "
            f"classes, or of classes in another order, than the {len(classes)} of the student: make it again with "
            "this dataset's classes, or remove the column."
        )
    scores = column.combine_chunks().flatten()
    if scores.null_count or not pc.all(pc.is_finite(scores), min_count=0).as_py():
        raise ValueError(
            f"The column {CLASS_LOGITS!r} holds NaN, infinite or missing scores: clip them, or leave those rows null."
        )


def _is_number(feature: Any) -> bool:
    return getattr(feature, "dtype", "").startswith(("float", "int", "uint"))


def without_class_targets(splits: DatasetDict) -> DatasetDict:
    """The splits without the class targets that they have; themselves where there are none."""
    there = {split: [name for name in CLASS_COLUMNS if name in rows.features] for split, rows in splits.items()}
    if not any(there.values()):
        return splits
    return DatasetDict({split: rows.remove_columns(there[split]) for split, rows in splits.items()})


def with_class_targets(rows: Dataset, class_logits: np.ndarray, teacher: str, classes: Sequence[str]) -> Dataset:
    """The rows with the two columns of class targets in place of those there may be.

    Args:
        class_logits: [n, C], NaN in rows without.
        teacher: who gave them.
        classes: the C of them by name, in order.
    """
    there = ~np.isnan(class_logits).any(axis=1)
    names = [class_teacher(teacher, classes) if row else None for row in there]
    flat = pa.array(np.ascontiguousarray(class_logits, dtype=np.float32).ravel())
    scores = pa.FixedSizeListArray.from_arrays(flat, len(classes), mask=pa.array(~there))
    schema = class_features(len(classes)).arrow_schema
    columns = Dataset(pa.table({CLASS_LOGITS: scores, CLASS_TEACHER: names}, schema=schema))
    return add_answers(rows.remove_columns([name for name in CLASS_COLUMNS if name in rows.features]), columns)


def count_targets(table: pa.Table | Dataset) -> Counter[str]:
    """Class teacher -> how many rows have its scores; of rows that do not say whose they are, under ""."""
    if CLASS_LOGITS not in table.column_names:
        return Counter()
    has_scores, *named = (
        stored(table, name) if isinstance(table, Dataset) else table[name]
        for name in (CLASS_LOGITS, CLASS_TEACHER)
        if name in table.column_names
    )
    names = named[0].to_pylist() if named else [None] * len(has_scores)
    return Counter(name or "" for name, there in zip(names, has_scores.is_valid().to_pylist()) if there)


def facts_of(counts: Mapping[str, Counter[str]], known: Iterable[TargetFacts | None] = ()) -> TargetFacts | None:
    """What is known of class targets, with the numbers of rows as they are; None where there are no targets.

    Args:
        counts: split -> what `count_targets` says of it.
        known: what may have been kept of them; what is about the scores of others is not looked at.
    """
    total = sum(counts.values(), Counter())
    if not total:
        return None
    rows = {split: sum(count.values()) for split, count in counts.items()}
    for facts in known:
        if facts is not None and set(total) == {facts.teacher}:
            return replace(facts, rows=rows)
    names = ", ".join(name or "unknown" for name, _ in total.most_common())
    return TargetFacts(one_line(names, LONGEST), "other", rows)
