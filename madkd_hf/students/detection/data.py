"""From rows with boxes to batches for a detector: flips and zooms, the image processor, and the aspect targets."""

from __future__ import annotations

import operator
import os
import random
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor

from ...data.boxes import check_box_format, corners
from ...data.objects import as_columns
from ..base.augmentation import chances, image_key
from ..base.collator import Collator
from ..base.models import check_has_column


LEAST_VISIBLE = 0.4  # an object of which less stays inside the image is no longer there


class DetectionCollator(Collator):
    """Turns rows with boxes into a batch.

    An evaluation batch is what the image processor makes of the images and boxes. Before it, a training batch goes
    through a horizontal flip, a zoom in or out, and a change of brightness and contrast; what is random is so as
    `Collator` says.

    Rows hold an image and its objects, one struct of lists, `{"bbox": n boxes, "category": n classes}`, or a list of n
    structs, with `area` and `iscrowd` where known. Crowds, and objects that the image processor leaves out or a zoom
    leaves outside the image, are no targets, neither is their row of `aspect_logits`.

    Args:
        image_processor: the detector's own.
        image_column, boxes_column: where the rows keep image and objects.
        box_format: `coco`, `pascal_voc` or `yolo`, see `madkd_hf.data.boxes`.
        num_aspects: Q, for batches in which no row has answers; 0 leaves such batches without aspect targets.
        aspects_per_object: in such batches, whether answers would be about objects or about the image.
        num_classes: C, to catch categories outside the classes; None lets them be.
        pixel_mask: False for detectors that take no `pixel_mask` (YOLOS).
        augment: True for training batches; needs albumentations.
        horizontal_flip: probability of mirroring.
        zoom: by which share images grow or shrink at most; they also move by up to half of it.
        brightness: by which share brightness and contrast change at most, in half of the images.
        seed: of all that is random.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        image_column: str = "image",
        boxes_column: str = "objects",
        box_format: str = "coco",
        num_aspects: int = 0,
        aspects_per_object: bool = False,
        num_classes: int | None = None,
        pixel_mask: bool = True,
        augment: bool = False,
        horizontal_flip: float = 0.5,
        zoom: float = 0.25,
        brightness: float = 0.2,
        seed: int = 0,
    ):
        check_box_format(box_format)
        super().__init__(image_processor, image_column, seed)
        self.boxes_column = boxes_column
        self.box_format = box_format
        self.num_aspects = num_aspects
        self.aspects_per_object = aspects_per_object
        self.num_classes = num_classes
        self.pixel_mask = pixel_mask
        self.changes = _changes(horizontal_flip, zoom, brightness) if augment else None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """
        Returns:
            `pixel_values` [B, channels, H, W], padded to the largest image where the image processor pads, and then
            `pixel_mask` [B, H, W], 1 for pixels of the image. `labels`, where the rows have objects: for each image
            `class_labels` [n], `boxes` [n, 4] (centre, width and height as parts of the padded image, as transformers
            has them), `area` [n], `iscrowd` [n], `image_id` [1] (0 where a row has no number), `orig_size` [2] (height
            and width before the image processor), `size` [2], and where the dataset is labelled `aspect_logits`: [Q]
            about the image or [n, Q] about its objects, NaN where there is no answer. Where an image of an evaluation
            batch has k crowds, `crowd_boxes` [k, 4] (left, top, right, bottom in pixels of the image as the row has
            it) and `crowd_labels` [k].

        Raises:
            ValueError: a missing image column, for training a missing column of objects, objects without box or
                category or with one that is none, or columns of different lengths.
            ImportError: augmentation without albumentations.
        """
        images = self.images(rows)
        if self.changes is not None:
            check_has_column(rows[0], "these rows", self.boxes_column, "boxes_column")
        if self.boxes_column not in rows[0]:
            return self._processed(images)
        objects = [self._objects(row, image) for row, image in zip(rows, images)]
        counts = [len(item["boxes"]) for item in objects]
        crowds = [_selected(item, item["iscrowd"] != 0) for item in objects]
        objects = [_selected(item, item["iscrowd"] == 0) for item in objects]
        if self.changes is not None:
            images, objects = zip(*(self._augmented(*pair) for pair in zip(images, objects)))
        ids = [row["image_id"] if isinstance(row.get("image_id"), int) else 0 for row in rows]
        batch = self._processed(list(images), [_annotations(i, item) for i, item in zip(ids, objects)])
        aspects = self._aspects(rows, counts)
        batch["labels"] = [
            _target(label, item, target) for label, item, target in zip(batch["labels"], objects, aspects)
        ]
        if self.changes is None:  # nobody asks where a zoom leaves a crowd
            for label, crowd in zip(batch["labels"], crowds):
                if len(crowd["boxes"]):
                    label["crowd_boxes"] = torch.from_numpy(crowd["boxes"]).float()
                    label["crowd_labels"] = torch.from_numpy(crowd["category"])
        return batch

    def _processed(self, images: list[Image.Image], annotations: list[dict] | None = None) -> dict[str, Any]:
        options = {} if annotations is None else {"annotations": annotations}
        batch = dict(self.image_processor(images, **options, return_tensors="pt"))
        if not self.pixel_mask:
            batch.pop("pixel_mask", None)
        return batch

    def _objects(self, row: dict[str, Any], image: Image.Image) -> dict[str, np.ndarray]:
        """The objects of one image; `place` tells them apart whatever is left out later."""
        try:
            return self._checked_objects(as_columns(row[self.boxes_column]), image.size)
        except ValueError as error:
            raise ValueError(f"Image {row.get('image_id', '')!r}: {error}") from error

    def _checked_objects(self, fields: dict[str, list], size: tuple[int, int]) -> dict[str, np.ndarray]:
        if missing := {"bbox", "category"} - set(fields):
            raise ValueError(
                f"its objects have no {' and no '.join(sorted(missing))}, only {sorted(fields)}: rename their fields, "
                "or name another boxes_column."
            )
        boxes = corners(fields["bbox"], self.box_format, size)
        try:
            category = np.array([operator.index(value) for value in fields["category"]], dtype=np.int64)
        except TypeError as error:
            raise ValueError(
                f"its categories are {fields['category']}, expected an integer for each object; cast them to a "
                "ClassLabel, and leave objects without class out."
            ) from error
        sizes = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        columns = {
            "category": category,
            "area": np.array(_or_default(fields.get("area"), sizes), dtype=np.float64),
            "iscrowd": np.array(_or_default(fields.get("iscrowd"), [0] * len(boxes)), dtype=np.int64),
        }
        for name, values in columns.items():
            if len(values) != len(boxes):
                raise ValueError(
                    f"it has {len(boxes)} boxes, but {len(values)} values of {name!r}: expected one for each box."
                )
        outside = category[(category < 0) | (category >= (self.num_classes or np.inf))]
        if len(outside):
            raise ValueError(
                f"an object has the category {outside[0]}, which is none of the {self.num_classes} classes: build the "
                "model with the dataset's id2label."
            )
        return {"boxes": boxes, "place": np.arange(len(boxes)), **columns}

    def _augmented(
        self, image: Image.Image, objects: dict[str, np.ndarray]
    ) -> tuple[Image.Image, dict[str, np.ndarray]]:
        drawn = chances(self.seed, int(self.epoch), np.array([image_key(image)]), 1)
        seed = int(drawn[0, 0] * 2**53)
        # One generator for all: set_random_seed would make every transform draw the same numbers.
        self.changes.set_random_state(np.random.default_rng(seed), random.Random(seed))
        rows = np.arange(len(objects["boxes"]))
        changed = self.changes(image=np.asarray(image), bboxes=objects["boxes"], rows=rows)
        kept_rows = np.asarray(changed["rows"], dtype=np.int64)
        boxes = np.asarray(changed["bboxes"], dtype=np.float64).reshape(-1, 4)
        rest = _selected(objects, kept_rows)
        old, new = ((box[:, 2:] - box[:, :2]).prod(axis=1) for box in (rest["boxes"], boxes))
        return Image.fromarray(changed["image"]), {**rest, "boxes": boxes, "area": rest["area"] * new / old}

    def _aspects(self, rows: list[dict[str, Any]], counts: list[int]) -> list[torch.Tensor | None]:
        """For each image [Q], or [objects before any was left out, Q]; None where the dataset is not labelled."""
        if "aspect_logits" not in rows[0]:
            return [None] * len(rows)
        answers = [row["aspect_logits"] for row in rows]
        values = [value for row in answers if row is not None for value in row]
        lists = [value for value in values if np.ndim(value)]
        per_object = bool(lists) or (not values and self.aspects_per_object)
        length = len(lists[0]) if lists else len(values) // max(1, sum(row is not None for row in answers))
        length = length or self.num_aspects
        if length == 0:
            return [None] * len(rows)
        nothing = [float("nan")] * length
        if not per_object:
            return [torch.tensor(nothing if row is None else row) for row in answers]
        targets = []
        for row, count in zip(answers, counts):
            row = [None] * count if row is None else row
            if len(row) != count:
                raise ValueError(
                    f"An image has {count} objects, but answers about {len(row)}: label the dataset again."
                )
            targets.append(torch.tensor([answer or nothing for answer in row]).reshape(count, length))
        return targets


def _selected(objects: dict[str, np.ndarray], which: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[which] for name, values in objects.items()}


def _or_default(values: list | None, otherwise: Any) -> list:
    """The values, and in place of those that are missing others."""
    if values is None or len(values) != len(otherwise):
        return list(otherwise) if values is None else values
    return [default if value is None else value for value, default in zip(values, otherwise)]


def _changes(horizontal_flip: float, zoom: float, brightness: float) -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks the network for its newest version
    try:
        import albumentations as A
        import cv2
    except ImportError as error:
        raise ImportError('Augmentation of boxes needs albumentations: pip install "madkd_hf[detection]"') from error
    return A.Compose(
        [
            A.HorizontalFlip(p=horizontal_flip),
            A.Affine(
                scale=(1 - zoom, 1 + zoom),
                translate_percent={"x": (-zoom / 2, zoom / 2), "y": (-zoom / 2, zoom / 2)},
                keep_ratio=True,
                border_mode=cv2.BORDER_REPLICATE,
                p=float(zoom > 0),
            ),
            A.RandomBrightnessContrast(brightness_limit=brightness, contrast_limit=brightness, p=0.5),
        ],
        bbox_params=A.BboxParams(
            format="pascal_voc", label_fields=["rows"], min_area=1, min_visibility=LEAST_VISIBLE, clip=True
        ),
    )


def _annotations(image_id: int, objects: dict[str, np.ndarray]) -> dict[str, Any]:
    """COCO annotations whose category is the object's place in its image: what comes back tells which are left."""
    boxes = np.concatenate([objects["boxes"][:, :2], objects["boxes"][:, 2:] - objects["boxes"][:, :2]], axis=1)
    rows = enumerate(zip(boxes.tolist(), objects["area"].tolist()))
    return {
        "image_id": image_id,
        "annotations": [
            {"image_id": image_id, "category_id": i, "bbox": box, "area": area, "iscrowd": 0}
            for i, (box, area) in rows
        ],
    }


def _target(label: Any, objects: dict[str, np.ndarray], aspects: torch.Tensor | None) -> dict[str, torch.Tensor]:
    kept = label["class_labels"].numpy()
    target = {**label, "class_labels": torch.from_numpy(objects["category"][kept])}
    if aspects is not None:
        target["aspect_logits"] = aspects[objects["place"][kept]] if aspects.ndim == 2 else aspects
    return target
