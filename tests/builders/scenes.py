"""Scenes of easy-VQA shapes."""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage
from PIL import ImageDraw


COLOURS = {"red": (200, 0, 0), "blue": (0, 0, 200), "green": (0, 150, 0)}


FEATURES = Features(
    {
        "image_id": Value("int64"),
        "image": Image(),
        "objects": {"bbox": List(List(Value("float32"), length=4)), "category": List(ClassLabel(names=list(COLOURS)))},
    }
)


def scene(i: int) -> dict:
    """Two rectangles on white, or none in every fifth scene."""
    image, draw = PILImage.new("RGB", (96, 96), "white"), np.random.default_rng(i)
    boxes, colours = [], []
    for _ in range(2 if i % 5 else 0):
        left, top, width, height = (int(value) for value in draw.integers((0, 0, 20, 20), (60, 60, 36, 36)))
        boxes.append([left, top, width, height])
        colours.append(list(COLOURS)[draw.integers(3)])
        ImageDraw.Draw(image).rectangle((left, top, left + width, top + height), fill=COLOURS[colours[-1]])
    return {"image_id": i, "image": image, "objects": {"bbox": boxes, "category": colours}}


def make_scenes() -> DatasetDict:
    sizes = {"train": range(12), "validation": range(12, 17), "test": range(17, 23)}
    return DatasetDict(
        {name: Dataset.from_list([scene(i) for i in rows], features=FEATURES) for name, rows in sizes.items()}
    )
