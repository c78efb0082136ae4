"""Objects, labelled."""

from __future__ import annotations

from builders import tiny
from builders.labelling import teacher
from datasets import (
    ClassLabel,
    Dataset,
    Features,
    Image,
    List,
    Value,
)
from PIL import Image as Pillow

from madkd_hf import attach_aspects


BANK = tiny.bank(3)


WIDTH, HEIGHT = 40, 30


COCO = [  # rows of boxes; the second image has none
    [[0, 0, 20, 10], [10.5, 5, 12, 20.25], [30, 20, 10, 10]],
    [],
    [[5, 5, 30, 20]],
    [[0, 0, 40, 30], [1, 2, 3, 4]],
]


STRUCT = {"bbox": List(List(Value("float32"), length=4)), "category": List(ClassLabel(names=["cup", "fork"]))}


LIST = List({"bbox": List(Value("float64")), "category": ClassLabel(names=["cup", "fork"])})


def pictures(count: int = 4) -> list[Pillow.Image]:
    return [image.crop((0, 0, WIDTH, HEIGHT)) for image in tiny.images(count, 40)]


def rows(boxes=COCO, layout: str = "struct", images=None) -> Dataset:
    images = images or pictures(len(boxes))
    if layout == "struct":
        objects = [{"bbox": each, "category": [i % 2 for i in range(len(each))]} for each in boxes]
    else:
        objects = [[{"bbox": box, "category": i % 2} for i, box in enumerate(each)] for each in boxes]
    kinds = Features({"image": Image(), "objects": STRUCT if layout == "struct" else LIST})
    return Dataset.from_dict({"image": images, "objects": objects}, features=kinds)


def attach(source, folder, who=None, **settings):
    return attach_aspects(source, BANK, who or teacher(), work_dir=folder, **{"boxes_column": "objects", **settings})


def in_format(name: str) -> list:
    x, y = WIDTH, HEIGHT
    convert = {
        "pascal_voc": lambda left, top, w, h: [left, top, left + w, top + h],
        "yolo": lambda left, top, w, h: [(left + w / 2) / x, (top + h / 2) / y, w / x, h / y],
    }[name]
    return [[convert(*box) for box in each] for each in COCO]
