"""Scenes in the columns of detection-datasets/coco."""

from __future__ import annotations

from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as Pillow


def coco_rows(count: int, *flat: int) -> Dataset:
    """Scenes in the columns of detection-datasets/coco; in the rows named, an object has no height."""
    features = {"image_id": Value("int64"), "image": Image(), "width": Value("int64"), "height": Value("int64")}
    each = {"bbox_id": Value("int64"), "category": ClassLabel(names=["red", "blue"])}
    each |= {"bbox": List(Value("float32"), length=4), "area": Value("float32")}
    features["objects"] = {name: List(feature) for name, feature in each.items()}
    rows = []
    for i in range(count):
        image, boxes = Pillow.new("RGB", (96, 96), "white"), [[4.0, 8.0, 40.0 + i, 50.0], [50.0, 40.0, 90.0, 80.0 + i]]
        for box, colour in zip(boxes, ("red", "blue")):
            image.paste(colour, tuple(map(int, box)))
        if i in flat:
            boxes[1][3] = boxes[1][1]
        objects = {"bbox_id": [2 * i, 2 * i + 1], "category": [0, 1], "bbox": boxes, "area": [400.0, 400.0]}
        rows.append({"image_id": i, "image": image, "width": 96, "height": 96, "objects": objects})
    return Dataset.from_list(rows, features=Features(features))
