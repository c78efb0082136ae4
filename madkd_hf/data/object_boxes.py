"""What the teacher sees of each object of an image."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from datasets import Features, Value
from PIL import Image

from .boxes import check_format, corners, grown
from .objects import BOX, LISTS


@dataclass(frozen=True)
class Boxes:
    """Which column has the boxes, and how an object is cut out of its image.

    Attributes:
        column: of structs of lists, `{"bbox": [[...], ...], ...}`, or of lists of structs, `[{"bbox": [...]}, ...]`.
        format: what the 4 numbers of a box are, a name from `madkd_hf.data.boxes.BOX_FORMATS`.
        margin: what is shown around the box on each side, as a part of its width and height.
        padding: the crop is put in the middle of a white square, with at least this much white on each side, as a part
            of its longer side; None leaves it as it is.

    Raises:
        ValueError: an unknown format, or a margin or padding that is no number from 0 on.
    """

    column: str
    format: str = "coco"
    margin: float = 0.1
    padding: float | None = None

    def __post_init__(self) -> None:
        check_format(self.format)
        for name, value in (("margin", self.margin), ("padding", self.padding or 0)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"box_{name}={value} is no {name}: expected a part of the box's sides, 0 or more, such as 0.1."
                )

    @property
    def state(self) -> dict[str, Any]:
        """What the manifest says of this."""
        told = asdict(self)
        if self.padding is None:  # nor did earlier jobs say that there is none
            del told["padding"]
        return told

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

    def crops(self, image: Image.Image, stored: Any) -> list[Image.Image]:
        """One image for each object, in the order of the boxes; raises ValueError for a box that cannot be."""
        found = grown(corners(self.of(stored), self.format, image.size), self.margin, image.size)
        crops = [image.crop(tuple(box)) for box in found.tolist()]
        return crops if self.padding is None else [_padded(crop, self.padding) for crop in crops]


def _padded(crop: Image.Image, padding: float) -> Image.Image:
    side = max(crop.size) + 2 * math.ceil(padding * max(crop.size))
    square = Image.new("RGB", (side, side), "white")
    square.paste(crop, ((side - crop.width) // 2, (side - crop.height) // 2))
    return square
