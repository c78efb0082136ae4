"""From dataset rows to batches: crops, flips, the image processor, and the aspect targets."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import BaseImageProcessor

from ...data.columns import CLASS_LOGITS, LOGITS, MASS
from ...data.image_processors import ordinary
from ..base.augmentation import image_key, random_crops
from ..base.collator import Collator
from ..base.processors import check_same_size, options_without_resizing, output_size
from ..losses import NO_CLASS


logger = logging.getLogger(__name__)


class AspectCollator(Collator):
    """Turns rows of a labelled dataset into a batch.

    A training batch goes through a random resized crop and a horizontal flip (the paper's augmentation), an evaluation
    batch through the image processor as it is. What is random is so as `Collator` says.

    Args:
        image_processor: resizes, rescales and normalises.
        num_labels: C, to catch labels outside the classes.
        image_column, label_column: where the rows keep image and class index.
        augment: True for training batches.
        crop_scale: smallest share of the area that a crop keeps.
        horizontal_flip: probability of mirroring.
        seed: of crops and flips.
        num_aspects: Q, for batches in which no row has answers.
        with_mass: whether batches have `aspect_mass`, where the dataset has.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        num_labels: int,
        image_column: str = "image",
        label_column: str = "label",
        augment: bool = False,
        crop_scale: float = 0.08,
        horizontal_flip: float = 0.5,
        seed: int = 0,
        num_aspects: int = 0,
        with_mass: bool = False,
    ):
        super().__init__(ordinary(image_processor), image_column, seed)
        self.num_labels = num_labels
        self.label_column = label_column
        self.augment = augment
        self.crop_scale = crop_scale
        self.horizontal_flip = horizontal_flip
        self.num_aspects = num_aspects
        self.columns = (label_column, LOGITS, CLASS_LOGITS, *([MASS] if with_mass else []))  # of targets
        self.height, self.width = output_size(self.image_processor)
        self._as_it_is = options_without_resizing(self.image_processor, self.height, self.width) if augment else {}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Returns:
            `pixel_values` [B, channels, H, W]; `labels` [B] where the rows have them, in training `NO_CLASS` for a row
            without (null or -1); and, NaN in rows without them, `aspect_logits` [B, Q] where the dataset is labelled,
            `class_logits` [B, C] where a teacher of classes has seen it, and `aspect_mass` [B, Q].

        Raises:
            ValueError: a missing image column, or a label outside the classes.
        """
        images = self.images(rows)
        if self.augment:
            images = [self._augment(image) for image in images]
        columns = [name for name in self.columns if name in rows[0]]
        return {
            "pixel_values": self.processed(images),
            **self.targets({name: [row[name] for row in rows] for name in columns}),
        }

    def processed(self, images: list[Image.Image]) -> torch.Tensor:
        """Pixel values of images; those for training have their size already."""
        try:
            return self.image_processor(images, return_tensors="pt", **self._as_it_is)["pixel_values"]
        except (ValueError, RuntimeError) as error:
            check_same_size(self.image_processor, images, error)
            raise

    def targets(self, columns: dict[str, list]) -> dict[str, torch.Tensor]:
        """What a batch holds beside its images, from columns of rows; see `__call__`."""
        batch = {}
        if self.label_column in columns:
            batch["labels"] = self._labels(columns[self.label_column])
        lengths = {LOGITS: self.num_aspects, MASS: self.num_aspects, CLASS_LOGITS: self.num_labels}
        for name in lengths.keys() & columns.keys():
            length = next((len(target) for target in columns[name] if target is not None), lengths[name])
            rows = [target or [math.nan] * length for target in columns[name]]
            batch[name] = torch.from_numpy(np.array(rows, dtype=np.float32))  # null in a list becomes NaN
        return batch

    def _labels(self, labels: list[Any]) -> torch.Tensor:
        if self.augment:
            labels = [NO_CLASS if label is None else label for label in labels]
        for label in labels:
            if label == NO_CLASS and self.augment:
                continue
            if not isinstance(label, int) or not 0 <= label < self.num_labels:
                raise ValueError(
                    f"The label {label!r} in column {self.label_column!r} is none of the {self.num_labels} classes: "
                    f"expected an integer from 0 to {self.num_labels - 1}."
                )
        return torch.tensor(labels)

    def _augment(self, image: Image.Image) -> Image.Image:
        boxes, flips = self.draw(np.array([image.size]), np.array([image_key(image)]))
        image = image.crop(boxes[0].tolist()).resize((self.width, self.height), Image.Resampling.BILINEAR)
        return ImageOps.mirror(image) if flips[0] else image

    def draw(self, sizes: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Crops and flips of this epoch, see `augmentation.random_crops`."""
        return random_crops(sizes, keys, self.crop_scale, self.horizontal_flip, self.seed, int(self.epoch))
