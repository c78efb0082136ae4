"""Batches of an `AspectCollator`, cut from images that were decoded once."""

from __future__ import annotations

from collections.abc import Callable

import datasets
import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import get_worker_info

from ...text import get_logger
from .data import AspectCollator
from .image_store import ImageStore, NoRoomError, store_bytes


logger = get_logger(__name__)


class StoredRows(torch.utils.data.Dataset):
    """What a data loader samples from: row numbers, which `StoreCollator` makes batches of."""

    def __init__(self, rows: Dataset):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        return index


class StoreCollator:
    """Makes the batches of an `AspectCollator` from stored images: the same rows, crops and flips.

    A batch has bytes in place of pixel values, or only says which crops to make; `finish` does the rest where the
    student is. Pixels differ by rounding in evaluation, and in training by what resizing twice does to them.

    Args:
        collator: says how.
        rows: a dataset whose images are stored.
        store: its images: for training of any size, for evaluation as the image processor has them.
        scale, bias: [1, 3, 1, 1] each, from a pixel's byte to its value, see `pixel_scale`.
        defer: leave the crops to `finish`. Workers of a data loader make those of a store on disk themselves.
    """

    def __init__(
        self,
        collator: AspectCollator,
        rows: Dataset,
        store: ImageStore,
        scale: torch.Tensor,
        bias: torch.Tensor,
        defer: bool = False,
    ):
        self.collator, self.store, self.scale, self.bias, self.defer = collator, store, scale, bias, defer
        columns = [name for name in collator.columns if name in rows.features]
        self.columns = collator.targets(rows.select_columns(columns)[:]) if columns else {}

    def __call__(self, indices: list[int]) -> dict[str, torch.Tensor | np.ndarray]:
        """
        Returns:
            `pixels` [B, H, W, 3] uint8, or `crops` [B, 6]: row, left, top, right, bottom, flip; and the targets
            like `AspectCollator`.
        """
        batch = {name: values[indices] for name, values in self.columns.items()}
        if not self.collator.augment:
            return {**batch, "pixels": self.store.pixels[torch.as_tensor(indices, device=self.store.pixels.device)]}
        boxes, flips = self.collator.draw(self.store.sizes[indices], self.store.keys[indices])
        crops = np.concatenate([np.array(indices)[:, None], boxes, flips[:, None]], axis=1)
        if self.defer and self.store.pixels.device.type != "cpu":
            return {**batch, "crops": crops}  # a tensor would be moved to the device, and be read back from there
        if self.defer and get_worker_info() is None:
            return {**batch, "crops": torch.from_numpy(crops)}
        size = self.collator.height, self.collator.width
        pixels = self.store.pixels.new_empty(len(indices), *size, 3)
        self._cropped(crops, pixels.movedim(-1, 1))
        return {**batch, "pixels": pixels}

    def finish(self, batch: dict[str, torch.Tensor | np.ndarray]) -> None:
        """Put `pixel_values` [B, 3, H, W] into a batch, on the device of its bytes, or of the store."""
        crops, pixels = batch.pop("crops", None), batch.pop("pixels", None)
        device = self.store.pixels.device if pixels is None else pixels.device
        scale, bias = self.scale[0].to(device), self.bias[0].to(device)

        def write(values: torch.Tensor, pixels: torch.Tensor) -> None:
            values.copy_(pixels.contiguous()).mul_(scale).add_(bias)

        size = self.collator.height, self.collator.width
        count = len(pixels if crops is None else crops)
        values = torch.empty(count, 3, *size, dtype=torch.float, device=device)
        if crops is not None:
            self._cropped(crops, values, write)
        elif device.type == "cpu":  # image by image: each stays in the cache for all operations
            for value, image in zip(values, pixels.movedim(-1, 1)):
                write(value, image)
        else:
            write(values, pixels.movedim(-1, 1))
        batch["pixel_values"] = values

    def _cropped(self, crops: np.ndarray | torch.Tensor, batch: torch.Tensor, *write: Callable) -> None:
        crops = np.asarray(crops)
        self.store.crop(crops[:, 0], crops[:, 1:5], crops[:, 5] > 0, batch, *write)


def store_collator(
    collator: AspectCollator,
    rows: Dataset,
    choice: str,
    device: torch.device,
    disable_tqdm: bool = False,
    scale: float = 2.0,
) -> StoreCollator | None:
    """Stores a dataset's images and makes its batches from them; None where they are to be decoded anew each time.

    Args:
        collator: for training, or for evaluation.
        rows: what to train or to evaluate on.
        choice: see `MadkdTrainingArguments.image_store`; "auto" takes at most half of the free disk and memory.
        device: where the student is.
        scale: side of an image to crop, in sides of the student's input: what is cropped smaller is scaled up, and
            shows less detail than a crop of the image itself.

    Raises:
        ValueError: a store was asked for, and cannot be had.
    """
    if choice == "none":
        return None
    if rows.format["type"] != "custom":
        rows = rows.with_format(None)  # tensors and arrays are the images themselves; a transform may change them
    reason, values = None, pixel_scale(collator)
    if not isinstance(rows.features.get(collator.image_column), datasets.Image):
        reason = f"the column {collator.image_column!r} is not one of images"
    elif rows.format["type"] is not None:
        reason = "the dataset has a transform of its own, which may change its images"
    elif values is None:
        reason = "the image processor does more to pixels than to rescale and normalise them"
    shape = collator.height, collator.width
    if collator.augment and collator.crop_scale < 1:
        shape = tuple(round(scale * side) for side in shape)
    needed = store_bytes(len(rows), shape)
    if reason and choice != "auto":
        raise ValueError(f"The images cannot be stored: {reason}. Pass --image_store none to decode in every epoch.")

    def render(image: Image.Image) -> np.ndarray:
        if collator.augment:
            return np.asarray(image.resize(shape[::-1], Image.Resampling.BILINEAR))
        return _as_bytes(collator, image)

    if not reason:
        name = "whole" if collator.augment else collator.image_processor.to_json_string()
        share = 0.5 if choice == "auto" else 1.0
        try:
            store = ImageStore.open(rows, collator.image_column, render, shape, name, None, disable_tqdm, share)
        except NoRoomError:
            if choice != "auto":
                raise
            cache = datasets.config.HF_DATASETS_CACHE
            reason = f"they would take {needed / 1e9:.1f} GB, more than half of what is free in {cache}"
    if reason:
        logger.warning("Images are decoded in every epoch: %s.", reason)
        return None
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    if choice == "device" or (choice == "auto" and needed < free / 2):
        store.pixels = store.pixels.to(device)
    return StoreCollator(collator, rows, store, *values, defer=store.pixels.device.type == device.type)


def pixel_scale(collator: AspectCollator) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scale and bias [1, 3, 1, 1] from a byte to what the image processor makes of it; None where it does more."""
    shape = (1, collator.height, collator.width, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)[0]
    black, white, mixed = (
        collator.processed([Image.fromarray(picture)])
        for picture in (np.zeros_like(noise), np.full_like(noise, 255), noise)
    )
    bias = black.mean(dim=(2, 3), keepdim=True)
    scale = (white.mean(dim=(2, 3), keepdim=True) - bias) / 255
    try:
        pixels = torch.from_numpy(noise if collator.augment else _as_bytes(collator, Image.fromarray(noise)))
    except (TypeError, ValueError):  # it cannot be kept from rescaling, or gives no arrays
        return None
    same = torch.allclose(pixels.movedim(-1, 0)[None] * scale + bias, mixed, atol=1e-4)
    return (scale, bias) if same else None


def _as_bytes(collator: AspectCollator, image: Image.Image) -> np.ndarray:
    """[H, W, 3] as the image processor has it before it rescales and normalises."""
    pixels = collator.image_processor([image], return_tensors="np", do_rescale=False, do_normalize=False)
    return pixels["pixel_values"][0].transpose(1, 2, 0).astype(np.uint8)
