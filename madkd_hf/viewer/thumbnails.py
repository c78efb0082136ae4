"""Small copies of the images of a dataset, as files beside a page."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from ..data.decoding import check_images, count_cores
from ..data.duplicates import SIDE, signature
from ..data.images import load_image
from . import THUMBNAILS


IN_A_FOLDER = 1000
QUALITY = 80  # of the JPEG files
CHUNK = 64  # images handed to the threads at once


def thumbnail_path(split: int, row: int) -> str:
    """Where the thumbnail of a row lies: by numbers alone, whatever split and image are called."""
    return f"{THUMBNAILS}/{split}/{row // IN_A_FOLDER}/{row}.jpg"


def remove_thumbnails(folder: Path, sizes: Sequence[int]) -> None:
    """Remove thumbnails of an older page, of rows that the splits of these sizes do not have."""
    for path in folder.glob(f"{THUMBNAILS}/*/*/*.jpg"):
        split, thousand, row = path.relative_to(folder / THUMBNAILS).with_suffix("").parts
        if not (split + thousand + row).isdecimal():
            continue  # none of ours
        if int(split) >= len(sizes) or int(row) >= sizes[int(split)]:
            path.unlink()


def write_thumbnails(
    rows: Dataset, image_column: str, split: int, name: str, folder: Path, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Write a JPEG of at most `size` pixels a side for each image of a split; smaller images keep their size.

    Args:
        rows: of one split, called `name`; `split` is its number.
        folder: of the page.

    Returns:
        Whether each image could be read, [n]; and their signatures, uint8 [n, 32, 32, 3], see `duplicates.signature`.
    """
    is_image = isinstance(rows.features[image_column], datasets.Image)
    unreadable = {fault.row for fault in check_images(rows, image_column, name)} if is_image else set()
    for number in range((len(rows) + IN_A_FOLDER - 1) // IN_A_FOLDER):
        (folder / thumbnail_path(split, number * IN_A_FOLDER)).parent.mkdir(parents=True, exist_ok=True)
    stored = rows.with_format(None).select_columns(image_column)
    if is_image and len(rows):
        stored = stored.cast_column(image_column, datasets.Image(decode=False))

    def write(row: int, value: Any) -> np.ndarray | None:
        if row in unreadable or value is None:
            return None
        image = load_image(value, image_column)
        mark = signature(image)
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
        image.save(content := BytesIO(), "JPEG", quality=QUALITY)  # without the EXIF data and profile of the original
        (folder / thumbnail_path(split, row)).write_bytes(content.getvalue())
        return mark

    if not len(rows):
        return np.zeros(0, dtype=bool), np.zeros((0, SIDE, SIDE, 3), dtype=np.uint8)
    there, marks = np.zeros(len(rows), dtype=bool), np.zeros((len(rows), SIDE, SIDE, 3), dtype=np.uint8)
    with (
        ThreadPoolExecutor(count_cores(), "thumbnails") as pool,
        tqdm(total=len(rows), desc=f"thumbnails of {name}", unit="img", delay=1) as bar,
    ):
        for start in range(0, len(rows), CHUNK):
            values = stored[start : start + CHUNK][image_column]
            for row, mark in enumerate(pool.map(write, range(start, start + len(values)), values), start):
                if mark is not None:
                    there[row], marks[row] = True, mark
            bar.update(len(values))
    return there, marks
