"""Where a detection dataset keeps the objects of an image, and what the teacher sees of each."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, LargeList, List, Value
from PIL.Image import Image

from ..boxes import check_format, corners, grown


BOX = "bbox"  # the field of the Hub's detection datasets
LISTS = (List, LargeList)


@dataclass(frozen=True)
class Boxes:
    """Which column has the boxes, and how an object is cut out of its image.

    Attributes:
        column: of structs of lists, `{"bbox": [[...], ...], ...}`, or of lists of structs, `[{"bbox": [...]}, ...]`.
        format: what the 4 numbers of a box are, a name from `madkd_hf.boxes.BOX_FORMATS`.
        margin: what is shown around the box on each side, as a part of its width and height.

    Raises:
        ValueError: an unknown format, or a margin that is no number from 0 on.
    """

    column: str
    format: str = "coco"
    margin: float = 0.1

    def __post_init__(self) -> None:
        check_format(self.format)
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise ValueError(
                f"box_margin={self.margin} is no margin: expected a part of the box's sides, 0 or more, such as 0.1."
            )

    @property
    def state(self) -> dict[str, Any]:
        """What the manifest says of this."""
        return asdict(self)

    def check(self, features: Features) -> None:
        """Raise ValueError where the features have no such boxes."""
        if self.column not in features:
            raise ValueError(
                f"There is no column {self.column!r}: the dataset has {list(features)}; name the objects with "
                "boxes_column."
            )
        feature = features[self.column]
        of_each = feature.feature if isinstance(feature, LISTS) else feature
        box = of_each.get(BOX) if isinstance(of_each, dict) else None
        if box is not None and of_each is feature:  # one list for all objects
            box = box.feature if isinstance(box, LISTS) else None
        number = box.feature if isinstance(box, LISTS) else None
        if not (isinstance(number, Value) and number.dtype.startswith(("float", "int", "uint"))):
            raise ValueError(
                f"The column {self.column!r} holds {feature}, no boxes: expected objects with a field {BOX!r} of 4 "
                'numbers each, as in {"bbox": List(List(Value("float32")))}; rename the field, or name another '
                "boxes_column."
            )

    def of(self, stored: dict[str, Any] | list[dict[str, Any] | None] | None) -> list[Any]:
        """The boxes of a row; none where the row has no objects or says nothing about them."""
        if isinstance(stored, dict):
            return stored[BOX] or []
        return [each and each[BOX] for each in stored or []]

    def crops(self, image: Image, stored: Any) -> list[Image]:
        """One image for each object, in the order of the boxes; raises ValueError for a box that cannot be."""
        found = grown(corners(self.of(stored), self.format, image.size), self.margin, image.size)
        return [image.crop(tuple(box)) for box in found.tolist()]

    def count(self, column: pa.ChunkedArray) -> int:
        """How many objects all rows have."""
        lists = pc.struct_field(column, BOX) if pa.types.is_struct(column.type) else column
        return pc.sum(pc.list_value_length(lists)).as_py() or 0


def one_row_an_object(labelled: Dataset, boxes_column: str | None = None, name: str | None = None) -> Dataset:
    """The answers about the objects of all images, one row each; images that have none are left out.

    Args:
        labelled: a split as `attach_aspects(..., boxes_column=...)` returns it.
        boxes_column, name: a field of the objects that is to stand beside the answers, such as their "category"; where
            not all of them have it, the answers stand alone.
    """
    answers = ["aspect_logits", "aspect_mass"]
    feature = labelled.features.get(boxes_column)
    of_each = feature.feature if isinstance(feature, LISTS) else feature
    field = of_each.get(name) if isinstance(of_each, dict) else None
    names = [*answers, "aspect_bank", *([boxes_column] if field else [])]
    table = labelled.select_columns(names).with_format("arrow")[:]
    table = table.filter(table["aspect_logits"].is_valid()).combine_chunks()
    parents = pc.list_parent_indices(table["aspect_logits"])
    columns = {column: pc.list_flatten(table[column]) for column in answers}
    columns["aspect_bank"] = table["aspect_bank"].take(parents)
    features = {column: labelled.features[column].feature for column in answers}
    features["aspect_bank"] = labelled.features["aspect_bank"]
    if field and of_each is not feature:
        columns[name], features[name] = pc.struct_field(pc.list_flatten(table[boxes_column]), name), field
    elif isinstance(field, LISTS):
        columns[name], features[name] = pc.list_flatten(pc.struct_field(table[boxes_column], name)), field.feature
    if name in features and len(columns[name]) != len(parents):  # some objects without
        del columns[name], features[name]
    features = Features(features)
    return Dataset(pa.table(columns).cast(features.arrow_schema))
