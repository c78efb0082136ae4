"""How a detection dataset keeps the objects of an image, and the answers about each of them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, LargeList, List, Value


BOX = "bbox"  # the field of the Hub's detection datasets
LISTS = (List, LargeList)

Feature = ClassLabel | Value | List | LargeList


def object_fields(features: Features, column: str) -> dict[str, Feature]:
    """What is stored of each object: name -> feature; nothing where the column holds no objects with boxes.

    Args:
        column: of structs of lists, `{"bbox": [[...], ...], ...}`, or of lists of structs, `[{"bbox": [...]}, ...]`.
    """
    feature = features.get(column)
    if isinstance(feature, LISTS):
        fields = feature.feature if isinstance(feature.feature, dict) else {}
    else:
        fields = feature if isinstance(feature, dict) else {}
        fields = {name: each.feature for name, each in fields.items() if isinstance(each, LISTS)}
    return dict(fields) if isinstance(fields.get(BOX), LISTS) else {}


def count_objects(column: pa.ChunkedArray) -> int:
    """How many objects all rows have."""
    lists = pc.struct_field(column, BOX) if pa.types.is_struct(column.type) else column
    return pc.sum(pc.list_value_length(lists)).as_py() or 0


def flatten_objects(labelled: Dataset, boxes_column: str | None = None, name: str | None = None) -> Dataset:
    """The answers about the objects of all images, one row each; images that have none are left out.

    Args:
        labelled: a split as `attach_aspects(..., boxes_column=...)` returns it.
        boxes_column, name: a field of the objects that is to stand beside the answers, such as their "category"; where
            not all of them have it, the answers stand alone.
    """
    answers = ["aspect_logits", "aspect_mass"]
    field = object_fields(labelled.features, boxes_column).get(name)
    columns = [*answers, "aspect_bank", *([boxes_column] if field else [])]
    table = labelled.select_columns(columns).with_format("arrow")[:]
    table = table.filter(table["aspect_logits"].is_valid()).combine_chunks()
    parents = pc.list_parent_indices(table["aspect_logits"])
    rows = {column: pc.list_flatten(table[column]) for column in answers}
    rows["aspect_bank"] = table["aspect_bank"].take(parents)
    features = {column: labelled.features[column].feature for column in answers}
    features["aspect_bank"] = labelled.features["aspect_bank"]
    if field:
        objects = table[boxes_column]
        if pa.types.is_struct(objects.type):
            values = pc.list_flatten(pc.struct_field(objects, name))
        else:
            values = pc.struct_field(pc.list_flatten(objects), name)
        if len(values) == len(parents):  # else some objects are without
            rows[name], features[name] = values, field
    features = Features(features)
    return Dataset(pa.table(rows).cast(features.arrow_schema))
