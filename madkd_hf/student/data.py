"""From dataset rows to batches: crops, flips, the image processor, and the aspect targets."""

from __future__ import annotations

import logging
import math
import zlib
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageOps
from transformers import BaseImageProcessor

from ..images import to_rgb


logger = logging.getLogger(__name__)


def readable(dataset: Dataset, name: str = "the dataset") -> Dataset:
    """The rows without those whose image the labelling could not read, and a warning that says how many they were.

    Such a row names its bank and has no answers, where a row that was merely not labelled has neither. No image is
    looked at.

    Args:
        dataset: labelled or not.
        name: what the warning calls it.

    Returns:
        A selection of the rows; the dataset itself where there are no such rows.

    Raises:
        ValueError: no row is left.
    """
    if not {"aspect_logits", "aspect_bank"} <= set(dataset.features):
        return dataset
    columns = dataset.select_columns(["aspect_logits", "aspect_bank"]).with_format("arrow")
    kept = [
        (table["aspect_logits"].is_valid().to_numpy() | table["aspect_bank"].is_null().to_numpy())
        for table in columns.iter(batch_size=10_000)
    ]
    kept = np.concatenate([np.zeros(0, dtype=bool), *kept])
    if kept.all():
        return dataset
    if not kept.any():
        raise ValueError(
            f"The labelling could read none of the {len(kept)} images of {name}: repair the files and label again."
        )
    logger.warning(
        "Left out %d of the %d rows of %s: the labelling could not read their images.", (~kept).sum(), len(kept), name
    )
    return dataset.select(np.flatnonzero(kept))


class AspectCollator:
    """Turns rows of a labelled dataset into a batch.

    A training batch goes through a random resized crop and a horizontal flip (the paper's augmentation), an evaluation
    batch through the image processor as it is. What is random follows from the seed, the epoch and the image alone, so
    that a resumed run, more workers, more processes or other batches see the same crops.

    Args:
        image_processor: resizes, rescales and normalises.
        num_labels: C, to catch labels outside the classes.
        image_column, label_column: where the rows keep image and class index.
        augment: True for training batches.
        crop_scale: smallest share of the area that a crop keeps.
        horizontal_flip: probability of mirroring.
        seed: of crops and flips.
        num_aspects: Q, for batches in which no row has answers.
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
    ):
        self.image_processor = image_processor
        self.num_labels = num_labels
        self.image_column = image_column
        self.label_column = label_column
        self.augment = augment
        self.crop_scale = crop_scale
        self.horizontal_flip = horizontal_flip
        self.seed = seed
        self.num_aspects = num_aspects
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see it change
        blank = image_processor(Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
        self.height, self.width = blank.shape[-2:]

    def set_epoch(self, epoch: int) -> None:
        """Every epoch draws other crops and flips."""
        self.epoch.fill_(epoch)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Returns:
            `pixel_values` [B, channels, H, W]; `labels` [B] where the rows have them; `aspect_logits` [B, Q] where the
            dataset is labelled, NaN in rows that are not.

        Raises:
            ValueError: a missing image column, or a label outside the classes.
        """
        if self.image_column not in rows[0]:
            raise ValueError(f"The rows have no column {self.image_column!r}, only {sorted(rows[0])}.")
        images = [to_rgb(row[self.image_column]) for row in rows]
        if self.augment:
            images = [self._augment(image) for image in images]
            processed = self.image_processor(images, return_tensors="pt", do_resize=False, do_center_crop=False)
        else:
            processed = self.image_processor(images, return_tensors="pt")
        batch = {"pixel_values": processed["pixel_values"]}
        if self.label_column in rows[0]:
            batch["labels"] = self._labels(rows)
        if "aspect_logits" in rows[0]:
            targets = [row["aspect_logits"] for row in rows]
            length = next((len(target) for target in targets if target is not None), self.num_aspects)
            batch["aspect_logits"] = torch.tensor([target or [math.nan] * length for target in targets])
        return batch

    def _labels(self, rows: list[dict[str, Any]]) -> torch.Tensor:
        labels = [row[self.label_column] for row in rows]
        for label in labels:
            if not isinstance(label, int) or not 0 <= label < self.num_labels:
                raise ValueError(
                    f"The label {label!r} in column {self.label_column!r} is none of the {self.num_labels} classes: "
                    f"expected an integer from 0 to {self.num_labels - 1}."
                )
        return torch.tensor(labels)

    def _augment(self, image: Image.Image) -> Image.Image:
        look = image.resize((8, 8), Image.Resampling.NEAREST).tobytes()
        name = f"{self.seed} {int(self.epoch)} {image.size} ".encode() + look
        generator = torch.Generator().manual_seed(zlib.crc32(name))
        box = random_crop_box(*image.size, self.crop_scale, generator) if self.crop_scale < 1 else None
        image = image.resize((self.width, self.height), Image.Resampling.BILINEAR, box=box)
        return ImageOps.mirror(image) if torch.rand((), generator=generator) < self.horizontal_flip else image


def random_crop_box(
    width: int, height: int, scale: float, generator: torch.Generator | None = None
) -> tuple[int, int, int, int]:
    """The box of a random resized crop: an area share in `scale`..1, an aspect ratio in 3/4..4/3 on a log scale.

    Tries ten times to fit one into the image, then takes the largest centred box within those aspect ratios, as
    torchvision's `RandomResizedCrop` does.
    """
    low, high = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        area = width * height * (scale + (1 - scale) * torch.rand((), generator=generator).item())
        ratio = math.exp(low + (high - low) * torch.rand((), generator=generator).item())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(torch.randint(0, width - w + 1, (), generator=generator))
            top = int(torch.randint(0, height - h + 1, (), generator=generator))
            return left, top, left + w, top + h
    ratio = min(max(width / height, 3 / 4), 4 / 3)
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
