"""Whether the objects of a dataset fit a detector, seen before the first batch."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, IterableDataset
from transformers import PretrainedConfig

from ...data.boxes import BOX_FORMATS
from ...data.objects import BOX, CATEGORY, iter_field, object_fields
from ..base.models import check_classes, check_has_column


def check_objects(
    dataset: Dataset | IterableDataset,
    name: str,
    boxes_column: str,
    box_format: str,
    config: PretrainedConfig,
    with_labels: bool,
) -> None:
    """Refuses objects that a detector cannot be trained or measured on.

    Args:
        dataset: with or without the column; of a stream, only the features are looked at.
        name: what messages call the dataset.
        with_labels: False for predictions, which may do without objects.

    Raises:
        ValueError: no such column, other fields, other classes, and with labels no objects or boxes without area.
    """
    if boxes_column not in dataset.features and not with_labels:
        return
    check_has_column(dataset.features, name, boxes_column, "boxes_column")
    feature = dataset.features[boxes_column]
    fields = object_fields(dataset.features, boxes_column)
    if not {BOX, CATEGORY} <= set(fields):
        raise ValueError(
            f"The column {boxes_column!r} of {name} holds {feature}: expected objects with the fields 'bbox' "
            "and 'category'; rename its fields, or name another boxes_column."
        )
    category = fields[CATEGORY]
    if isinstance(category, ClassLabel):
        check_classes(category.num_classes, config)
    elif not getattr(category, "dtype", "").startswith(("int", "uint")):
        raise ValueError(
            f"The categories in the column {boxes_column!r} of {name} are {category}: expected a ClassLabel or "
            "integers; cast them to a ClassLabel."
        )
    if isinstance(dataset, IterableDataset) or not len(dataset):
        return
    count, lowest, highest = _categories(dataset, boxes_column)
    if with_labels and not count:
        raise ValueError(
            f"None of the {len(dataset)} images of {name} has an object in the column {boxes_column!r}: "
            "there is nothing to learn or to measure; pass rows with objects."
        )
    if with_labels and (offender := _without_area(dataset, boxes_column, box_format)):
        raise ValueError(
            f"An object in row {offender[0]} of {name} has the box {offender[1]}, which has no area: expected "
            f"{box_format} boxes, {BOX_FORMATS[box_format]}; correct the box or leave the object out."
        )
    classes = config.num_labels
    if count and not (0 <= lowest and highest < classes):
        offender = lowest if lowest < 0 else highest
        raise ValueError(
            f"An object of {name} has the category {offender}, which is none of the {classes} classes: expected an "
            f"integer from 0 to {classes - 1}; build the model with the dataset's id2label."
        )


def _categories(dataset: Dataset, boxes_column: str) -> tuple[int, int, int]:
    """How many objects there are, lowest and highest of their categories; ValueError where one has none."""
    count, low, high = 0, [], []
    for rows, values in iter_field(dataset, boxes_column, CATEGORY):
        if values.null_count:
            row = rows[pc.index(values.is_null(), True).as_py()]
            raise ValueError(f"An object in row {row} has no category: give it one, or leave the object out.")
        limits = pc.min_max(values).as_py()
        if limits["min"] is not None:
            count += len(values)
            low.append(limits["min"])
            high.append(limits["max"])
    return count, min(low, default=0), max(high, default=0)


def _without_area(dataset: Dataset, boxes_column: str, box_format: str) -> tuple[int, list[float]] | None:
    """The first object whose box has no width or no height: its row and its box."""
    for rows, values in iter_field(dataset, boxes_column, BOX):
        numbers = pc.list_flatten(values).to_numpy(zero_copy_only=False)
        if len(numbers) != 4 * len(values):
            continue  # the first batch tells which
        boxes = numbers.reshape(-1, 4)
        sides = boxes[:, 2:] - boxes[:, :2] if box_format == "pascal_voc" else boxes[:, 2:]
        bad = np.flatnonzero((sides <= 0).any(axis=1))
        if len(bad):
            return rows[int(bad[0])].as_py(), boxes[bad[0]].tolist()
    return None
