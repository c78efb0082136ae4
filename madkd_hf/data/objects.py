"""The objects of an image, which datasets keep in two layouts; no other module has to know which.

A row's objects are a struct of lists, `{"bbox": [[...], ...], "category": [...]}`, or a list of structs,
`[{"bbox": [...], "category": ...}, ...]`. Here both become one list for each field. What is stored, saved and
published keeps the user's own layout: to rewrite the column would copy the images beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, LargeList, List, Value
from PIL import Image

from ..text import python
from .boxes import check_box_format, corners, grown
from .columns import BANK, LOGITS, MASS


BOX = "bbox"  # the field of the Hub's detection datasets
CATEGORY = "category"  # where detectors look for classes
LISTS = (List, LargeList)

Feature = ClassLabel | Value | List | LargeList


# One layout


def object_fields(features: Features, column: str | None) -> dict[str, Feature]:
    """What is stored of each object: name -> feature; nothing where the column holds no objects with boxes."""
    feature = features.get(column)
    if isinstance(feature, LISTS):
        fields = feature.feature if isinstance(feature.feature, dict) else {}
    else:
        fields = feature if isinstance(feature, dict) else {}
        fields = {name: field.feature for name, field in fields.items() if isinstance(field, LISTS)}
    return dict(fields) if isinstance(fields.get(BOX), LISTS) else {}


def as_columns(stored: dict[str, list] | list[dict[str, Any] | None] | None) -> dict[str, list]:
    """The objects of a row as one list for each field; empty lists where the row says nothing about them."""
    if isinstance(stored, dict) and stored.get(BOX, []) is not None:
        return stored
    objects = [item or {} for item in stored] if isinstance(stored, list) else []
    names = objects[0] if objects else (BOX, CATEGORY)
    return {name: [item.get(name) for item in objects] for name in names}


def flat_field(column: pa.Array | pa.ChunkedArray, field: str) -> tuple[pa.Array, pa.Array]:
    """One field of all objects in a stored column, and the place in the column of each object's row."""
    if pa.types.is_struct(column.type):
        lists = pc.struct_field(column, field)
        return pc.list_parent_indices(lists), pc.list_flatten(lists)
    return pc.list_parent_indices(column), pc.struct_field(pc.list_flatten(column), field)


def iter_field(rows: Dataset, column: str, field: str) -> Iterator[tuple[pa.Array, pa.Array]]:
    """One field of all objects, and the number of each object's row, table by table; no image is touched."""
    start = 0
    for table in rows.select_columns(column).with_format("arrow").iter(batch_size=10_000):
        parents, values = flat_field(table[column].combine_chunks(), field)
        yield pc.add(parents, start), values
        start += len(table)


def count_objects(column: pa.ChunkedArray) -> int:
    """How many objects all rows of a stored column have."""
    lists = pc.struct_field(column, BOX) if pa.types.is_struct(column.type) else column
    return pc.sum(pc.list_value_length(lists)).as_py() or 0


def feature_path(features: Features, column: str, field: str) -> str:
    """Python code that, behind the name of a `Features`, gives the feature of a field of the objects."""
    if isinstance(features[column], dict):
        return f"[{python(column)}][{python(field)}].feature"
    return f"[{python(column)}].feature[{python(field)}]"


def with_category(
    rows: Dataset, column: str, field: str, label: ClassLabel, change: Callable[[Any], int] = int
) -> Dataset:
    """The same rows, in their layout, with the classes of the objects in `CATEGORY` in place of `field`.

    `change` gives the class index of a value; the images are not touched.
    """

    def others(fields: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if name != field}

    def changed(stored: Any) -> Any:
        if isinstance(stored, list):
            return [others(item) | {CATEGORY: change(item[field])} for item in stored]
        if stored is None:
            return None
        return others(stored) | {CATEGORY: stored[field] and [change(value) for value in stored[field]]}

    feature = rows.features[column]
    if isinstance(feature, LISTS):
        feature = List(others(feature.feature) | {CATEGORY: label})
    else:
        feature = others(feature) | {CATEGORY: List(label)}
    objects = [changed(stored) for stored in rows.select_columns(column)[column]]
    return rows.remove_columns(column).add_column(column, objects, feature=feature)


# Answers about objects


def flatten_objects(labelled: Dataset, boxes_column: str | None = None, field: str | None = None) -> Dataset:
    """The answers about the objects of all images, one row each; images that have none are left out.

    Beside the answers stands a `field` of the objects in `boxes_column`, such as "category", if all of them have it.
    """
    feature = object_fields(labelled.features, boxes_column).get(field)
    columns = [LOGITS, MASS, BANK, *([boxes_column] if feature else [])]
    table = labelled.select_columns(columns).with_format("arrow")[:]
    table = table.filter(table[LOGITS].is_valid()).combine_chunks()
    parents = pc.list_parent_indices(table[LOGITS])
    rows = {column: pc.list_flatten(table[column]) for column in (LOGITS, MASS)}
    rows[BANK] = table[BANK].take(parents)
    features = {column: labelled.features[column].feature for column in (LOGITS, MASS)}
    features[BANK] = labelled.features[BANK]
    if feature:
        _, values = flat_field(table[boxes_column], field)
        if len(values) == len(parents):  # else some objects are without
            rows[field], features[field] = values, feature
    features = Features(features)
    return Dataset(pa.table(rows).cast(features.arrow_schema))


# What the teacher sees of an object


@dataclass(frozen=True)
class Boxes:
    """Which column has the boxes, and how an object is cut out of its image.

    Attributes:
        column: of objects, in either layout.
        format: what the 4 numbers of a box are, a name from `madkd_hf.data.boxes.BOX_FORMATS`.
        margin: what is shown around the box on each side, as a part of its width and height.
        padding: the crop is put in the middle of a white square, with at least this much white on each side, as a part
            of its longer side; None leaves it as it is.
    """

    column: str
    format: str = "coco"
    margin: float = 0.1
    padding: float | None = None

    def __post_init__(self) -> None:
        check_box_format(self.format)
        for name, value in (("margin", self.margin), ("padding", self.padding or 0)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"box_{name}={value} is no {name}: expected a part of the box's sides, 0 or more, such as 0.1."
                )

    @property
    def state(self) -> dict[str, Any]:
        """What the manifest says of this."""
        settings = asdict(self)
        if self.padding is None:  # nor did earlier jobs say that there is none
            del settings["padding"]
        return settings

    def check(self, features: Features) -> None:
        """Raise ValueError where the features have no such boxes."""
        if self.column not in features:
            raise ValueError(
                f"There is no column {self.column!r}: the dataset has {list(features)}; name the objects with "
                "boxes_column."
            )
        feature, box = features[self.column], object_fields(features, self.column).get(BOX)
        number = box and box.feature
        if not (isinstance(number, Value) and number.dtype.startswith(("float", "int", "uint"))):
            raise ValueError(
                f"The column {self.column!r} holds {feature}, no boxes: expected objects with a field {BOX!r} of 4 "
                'numbers each, as in {"bbox": List(List(Value("float32")))}; rename the field, or name another '
                "boxes_column."
            )

    def of(self, stored: Any) -> list[Any]:
        """The boxes of a row; none where the row has no objects or says nothing about them."""
        return as_columns(stored)[BOX]

    def crops(self, image: Image.Image, stored: Any) -> list[Image.Image]:
        """One image for each object, in the order of the boxes; raises ValueError for a box that cannot be."""
        edges = grown(corners(self.of(stored), self.format, image.size), self.margin, image.size)
        crops = [image.crop(tuple(box)) for box in edges.tolist()]
        return crops if self.padding is None else [_padded(crop, self.padding) for crop in crops]


def _padded(crop: Image.Image, padding: float) -> Image.Image:
    side = max(crop.size) + 2 * math.ceil(padding * max(crop.size))
    square = Image.new("RGB", (side, side), "white")
    square.paste(crop, ((side - crop.width) // 2, (side - crop.height) // 2))
    return square
