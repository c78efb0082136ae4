"""Scenes of several easy-VQA shapes as an object detection dataset, for trying madkd_hf without a download.

Each easy-VQA image shows one coloured shape. Here the shapes are cut out of their images and pasted, scaled and partly
over each other, onto backgrounds of their own, so that every box and every class is known. The images behind the
train, validation and test scenes are those of the same parts of the classification task: they share none, and none
with the teacher's.
"""

import io
from collections import defaultdict
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage

from recipes.easy_vqa.data import CLASSES, COLORS, SHAPES, _read, image_classes, parts


SEED = 0
SIZE = 96
SCENES = {"train": 1000, "validation": 400, "test": 600}
MOST_OBJECTS = 6
SCALES = (0.4, 1.2)
SMALLEST_SIDE = 8
MOST_HIDDEN = 0.4
TRIES = 20
CATEGORIES = {"both": CLASSES, "color": list(COLORS), "shape": list(SHAPES)}

Kind = Literal["both", "color", "shape"]


class Cutout(NamedTuple):
    """A shape without its background: its one colour (RGB) and how much of each pixel it covers (0..255)."""

    color: np.ndarray
    cover: PILImage.Image


def cut_out(image: PILImage.Image) -> Cutout | None:
    """The shape of an easy-VQA image, or None where the image's edge cuts it off; pixels between its colour and the
    background's are its smoothed rim."""
    image = image.convert("RGB")
    pixels = np.asarray(image).astype(float)
    colors = [np.array(color) for _, color in sorted(image.getcolors(image.width * image.height), reverse=True)]
    background = colors[0]
    color = next(color for color in colors if np.abs(color - background).max() > 20)
    step = color - background
    cover = np.clip((pixels - background) @ step / (step @ step), 0, 1)
    rows, columns = np.flatnonzero((cover > 0.5).any(axis=1)), np.flatnonzero((cover > 0.5).any(axis=0))
    (top, bottom), (left, right) = rows[[0, -1]], columns[[0, -1]]
    if min(top, left) == 0 or bottom == len(pixels) - 1 or right == pixels.shape[1] - 1:
        return None
    box = (left - 1, top - 1, right + 2, bottom + 2)
    return Cutout(color, PILImage.fromarray(np.rint(255 * cover).astype(np.uint8)).crop(box))


@cache
def cutouts(part: str) -> dict[str, list[Cutout]]:
    """Class -> the shapes of that class, cut out of the images of a part as `data.parts` names them."""
    source = "test" if part == "test" else "train"
    paths, classes = _read(source)[0], image_classes(source)
    found = defaultdict(list)
    for image_id in parts()[part]:
        with PILImage.open(paths[image_id]) as image:
            cutout = cut_out(image)
        if cutout is not None:
            found[classes[image_id]].append(cutout)
    return found


def compose(
    shapes: dict[str, list[Cutout]], random: np.random.Generator, size: int = SIZE
) -> tuple[PILImage.Image, list[tuple[str, list[float], int]]]:
    """One scene of 1 to 6 shapes, none hidden by more than about 40%: RGB image of size x size, and of each object its
    class, its box (x, y, width, height in pixels) and how many pixels it covers, those behind others included."""
    canvas = _background(random, size)
    masks: list[np.ndarray] = []  # of the shapes so far, what is still visible
    objects: list[tuple[str, list[float], int]] = []
    wanted = random.integers(1, MOST_OBJECTS + 1)
    for _ in range(wanted * TRIES):
        name = CLASSES[random.integers(len(CLASSES))]
        cutout = shapes[name][random.integers(len(shapes[name]))]
        cover = _placed(cutout.cover, random, size)
        mask = cover > 0.5
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if min(len(rows), len(columns)) < SMALLEST_SIDE:
            continue
        visible = [old & ~mask for old in masks]
        if any(now.sum() < (1 - MOST_HIDDEN) * area for now, (_, _, area) in zip(visible, objects)):
            continue
        canvas += cover[..., None] * (cutout.color - canvas)
        masks = [*visible, mask]
        box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
        objects.append((name, [float(value) for value in box], int(mask.sum())))
        if len(objects) == wanted:
            break
    canvas += random.normal(scale=random.uniform(0, 6), size=canvas.shape)
    return PILImage.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8)), objects


def _background(random: np.random.Generator, size: int) -> np.ndarray:
    """[size, size, 3]: a light colour that fades into another; lighter than all shapes, so that none vanishes."""
    first, second = random.uniform(170, 255, size=(2, 3))
    angle = random.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    share = np.clip(0.5 + x * np.cos(angle) + y * np.sin(angle), 0, 1)[..., None]
    return first + share * (second - first)


def _placed(cover: PILImage.Image, random: np.random.Generator, size: int) -> np.ndarray:
    """[size, size] from 0 to 1: the shape scaled at random, somewhere in the scene and wholly inside it."""
    scale = random.uniform(*SCALES)
    width, height = (max(1, round(side * scale)) for side in cover.size)
    canvas = PILImage.new("L", (size, size))
    x, y = random.integers(size - width + 1), random.integers(size - height + 1)
    canvas.paste(cover.resize((width, height), PILImage.Resampling.BILINEAR), (int(x), int(y)))
    return np.asarray(canvas) / 255


def load_scenes(
    kind: Kind = "both",
    scenes: dict[str, int] = SCENES,
    size: int = SIZE,
    seed: int = SEED,
    shapes_of: str | None = None,
) -> DatasetDict:
    """Splits `train`, `validation` and `test` in the usual COCO-like columns.

    Scenes are drawn one by one: with fewer of them, the first ones stay as they are.

    Args:
        kind: what tells two objects apart: `both` colour and shape (24 classes), the `color` (8) or the `shape` (3).
        scenes: how many for each split.
        size: of the square images, in pixels; at least 64, for the largest shape.
        seed: other scenes for each.
        shapes_of: the part of the images, as `data.parts` names them, that the shapes of all splits come from; by
            default each split has its own part.
    """
    return DatasetDict(
        {part: _split(part, shapes_of or part, kind, count, size, seed) for part, count in scenes.items()}
    )


def load_pretraining_scenes() -> DatasetDict:
    """For a detector to be pretrained on: 2,000 training scenes with the 8 colours as classes, other scenes than those
    of `load_scenes`, and of other easy-VQA images."""
    return load_scenes("color", SCENES | {"train": 2000}, seed=1, shapes_of="teacher")


def _split(part: str, shapes_of: str, kind: Kind, count: int, size: int, seed: int) -> Dataset:
    category = ClassLabel(names=CATEGORIES[kind])
    objects = {
        "id": List(Value("int64")),
        "area": List(Value("int64")),
        "bbox": List(List(Value("float32"), length=4)),
        "category": List(category),
    }
    features = Features(
        {
            "image_id": Value("int64"),
            "image": Image(),
            "width": Value("int64"),
            "height": Value("int64"),
            "objects": objects,
        }
    )
    shapes = cutouts(shapes_of)
    number = list(SCENES).index(part)
    rows = [_row(part, kind, i, compose(shapes, np.random.default_rng([seed, number, i]), size)) for i in range(count)]
    return Dataset.from_list(rows, features=features)


def _row(part: str, kind: Kind, index: int, scene: tuple[PILImage.Image, list]) -> dict[str, Any]:
    image, objects = scene
    png = io.BytesIO()
    image.save(png, "PNG", compress_level=1)
    words = {"both": slice(None), "color": slice(1), "shape": slice(1, None)}[kind]
    return {
        "image_id": index,
        "image": {"bytes": png.getvalue(), "path": f"{part}_scene_{index}.png"},
        "width": image.width,
        "height": image.height,
        "objects": {
            "id": [index * MOST_OBJECTS + k + 1 for k in range(len(objects))],  # 0 would not be seen by pycocotools
            "area": [area for _, _, area in objects],
            "bbox": [box for _, box, _ in objects],
            "category": [" ".join(name.split()[words]) for name, _, _ in objects],
        },
    }
