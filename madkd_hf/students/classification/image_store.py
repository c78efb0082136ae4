"""Images decoded and resized once, and batches cut out of them: what training would else do anew in every epoch."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from numpy.lib.format import open_memmap
from PIL import Image
from torch.nn import functional as F
from tqdm.auto import tqdm

from ...data.decoding import count_cores
from ...data.images import to_rgb
from ...data.rows import describe_row, row_number
from ...files import locked
from ..base.augmentation import image_key
from .chunks import FACTS, PIXELS, Chunks


FORMAT = 1
CHUNK = 256  # images between two moments from which an interrupted store goes on


class NoRoomError(ValueError):
    """The disk has no room for a store."""


@dataclass
class ImageStore:
    """Images of one size in a memory-mapped file, or on a device.

    The files lie in a folder of `madkd_images` beside the cached datasets. Nothing removes them: whoever needs the
    room can delete that folder whenever nothing trains; what is missed then is stored anew.

    Attributes:
        pixels: [N, H, W, 3] uint8.
        sizes: [N, 2] width and height of the images before they were resized, in pixels.
        keys: [N] see `augmentation.image_key`.
    """

    pixels: torch.Tensor
    sizes: np.ndarray
    keys: np.ndarray
    folder: Path

    @classmethod
    def open(
        cls,
        rows: Dataset,
        image_column: str,
        render: Callable[[Image.Image], np.ndarray],
        shape: tuple[int, int],
        name: str,
        cache_dir: str | Path | None = None,
        disable_tqdm: bool = False,
        share: float = 1.0,
    ) -> ImageStore:
        """The images of a dataset from the cache; built first, or built on, where the cache does not hold them all.

        What is there is checked first, at the speed of the disk or the memory; damaged images are made again. Several
        processes may ask at once: one builds, the others wait. What is there already, or has been begun, needs no more
        room, so that the others, and later runs, do not decide differently from the first.

        Args:
            rows: with a column of images.
            render: an RGB image -> [H, W, 3] uint8.
            shape: H, W.
            name: of what `render` does; another name is another store.
            cache_dir: by default `madkd_images` beside the cached datasets.
            share: of the free disk, the most that a new store may take.

        Raises:
            ValueError: an image cannot be read, or is missing; `NoRoomError` where it would take more than that share.
        """
        folder = store_folder(rows, image_column, shape, name, cache_dir)
        with locked(folder, "it decodes the images", wait=True):
            stored = Chunks.open(folder, len(rows), shape, CHUNK)
            if stored is None:
                Chunks.remove(folder)  # before it is asked what is free
                needed, free = store_bytes(len(rows), shape), shutil.disk_usage(folder).free
                if needed > share * free:
                    raise NoRoomError(
                        f"The decoded images need {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free: "
                        "set HF_DATASETS_CACHE to a larger disk, or decode in every epoch with --image_store none."
                    )
                stored = Chunks.create(folder, len(rows), shape, CHUNK)
            _fill(rows, image_column, render, stored, disable_tqdm)
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path) -> ImageStore:
        """A finished store."""
        pixels, facts = (open_memmap(folder / name, mode="r+") for name in (PIXELS, FACTS))
        return cls(torch.from_numpy(pixels), np.array(facts[:, :2]), np.array(facts[:, 2]), folder)

    def __reduce__(self) -> tuple:
        """A data loader's worker that is not a fork maps the file anew; a pickle would hold a copy of it."""
        return ImageStore.load, (self.folder,)

    def crop(
        self,
        indices: Sequence[int],
        boxes: np.ndarray,
        flips: np.ndarray,
        batch: torch.Tensor,
        write: Callable[[torch.Tensor, torch.Tensor], Any] = torch.Tensor.copy_,
    ) -> None:
        """Write crops of B images, resized bilinearly with antialiasing, into a batch on the device of the pixels.

        On a CPU, in as many threads as PyTorch works with in the caller's (one in a data loader's worker).

        Args:
            boxes: [B, 4] left, top, right, bottom in pixels of the images as they were.
            flips: [B] whether to mirror.
            batch: [B, 3, height, width].
            write: puts one crop [3, height, width], uint8 on a CPU and float elsewhere, into its place in the batch.
        """
        stored = np.array(self.pixels.shape[2:0:-1])
        scale = np.tile(stored / self.sizes[indices], 2)
        boxes = np.rint(boxes * scale).astype(int)
        boxes[:, :2] = np.minimum(boxes[:, :2], stored - 1)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        crops = list(zip(indices, boxes.tolist(), flips, batch))
        floating = self.pixels.device.type != "cpu"  # the kernel for bytes is the CPU's, and several times faster

        def crop_some(first: int, step: int) -> None:
            for index, (left, top, right, bottom), flip, place in crops[first::step]:
                part = self.pixels[index, top:bottom, left:right]
                part = part.float() if floating else part.contiguous()  # in the kernel's own order of bytes
                part = part[None].movedim(-1, 1)
                resized = F.interpolate(part, place.shape[1:], mode="bilinear", antialias=True)[0]
                write(place, resized.flip(-1) if flip else resized)  # while it is in the cache

        threads = 1 if floating else min(torch.get_num_threads(), len(crops))
        if threads > 1:
            list(_pool(os.getpid(), threads).map(crop_some, range(threads), [threads] * threads))
            torch.set_num_threads(torch.get_num_threads())  # for threads that begin later, see `_pool`
        else:
            crop_some(0, 1)


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """A fork has none of its parent's threads, and needs a pool of its own."""
    # The setting holds for its own thread, and for threads that start later.
    return ThreadPoolExecutor(threads, "crops", initializer=torch.set_num_threads, initargs=(1,))


def store_bytes(count: int, shape: tuple[int, int]) -> int:
    return count * math.prod(shape) * 3


def store_folder(
    rows: Dataset, image_column: str, shape: tuple[int, int], name: str, cache_dir: str | Path | None = None
) -> Path:
    """Where the images of a dataset are kept, named after them in their order and how they are rendered."""
    mode = rows.features[image_column].mode
    identity = json.dumps([FORMAT, images_digest(rows, image_column), len(rows), mode, shape, name])
    root = Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "madkd_images")
    return root / hashlib.sha256(identity.encode()).hexdigest()[:16]


def images_digest(rows: Dataset, image_column: str) -> str:
    """SHA-256 of the encoded images in their order; of a file by its path, size and time of change, unread."""
    digest, encoded = hashlib.sha256(), not_decoded(rows, image_column)
    for table in encoded.with_format("arrow").iter(CHUNK):
        contents, paths = (pc.struct_field(table[image_column], name) for name in ("bytes", "path"))
        for content, path in zip(contents, paths):
            kind, part = (b"bytes", content.as_buffer()) if content.is_valid else (b"file", _file_facts(path.as_py()))
            digest.update(b"%s %d " % (kind, len(part)))
            digest.update(part)
    return digest.hexdigest()


def not_decoded(rows: Dataset, image_column: str) -> Dataset:
    return rows.select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))


def _file_facts(path: str | None) -> bytes:
    try:
        facts = os.stat(path)
    except (OSError, TypeError, ValueError):  # of another machine, in an archive, or no file at all
        return json.dumps([path]).encode()
    return json.dumps([path, facts.st_size, facts.st_mtime_ns]).encode()


def _fill(
    rows: Dataset,
    image_column: str,
    render: Callable[[Image.Image], np.ndarray],
    chunks: Chunks,
    disable_tqdm: bool,
) -> None:
    """Decode what is not stored yet, with a thread for each core: Pillow works beside the interpreter."""
    feature = datasets.Image(mode=rows.features[image_column].mode)  # the column's own may be told not to decode
    encoded = not_decoded(rows, image_column)
    missing = chunks.missing(disable_tqdm)
    count, todo = len(chunks.pixels), sum(len(chunks.rows(chunk)) for chunk in missing)

    def store_image(index: int, value: dict | None) -> tuple[int, int, int]:
        if not value or (value["bytes"] is None and value["path"] is None):
            raise ValueError(f"Row {row_number(rows, index)} has no image: leave it out.")
        try:
            image = to_rgb(feature.decode_example(value))
        except Exception as error:
            name = describe_row(value["path"], row_number(rows, index))
            raise ValueError(
                f"The image {'' if value['path'] else 'of '}{name} cannot be read ({error}): repair it, or leave that "
                "row out."
            ) from error
        chunks.pixels[index] = render(image)
        return *image.size, image_key(image)

    with (
        ThreadPoolExecutor(count_cores()) as pool,
        tqdm(total=count, initial=count - todo, desc="decoding", unit="img", delay=1,
             disable=disable_tqdm or not todo) as bar,
    ):  # fmt: skip
        for chunk in missing:
            indices = chunks.rows(chunk)
            chunks.write(chunk, list(pool.map(store_image, indices, encoded[indices][image_column])))
            bar.update(len(indices))
