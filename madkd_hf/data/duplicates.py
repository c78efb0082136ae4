"""The same image file, or the same picture, in two places."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import xxhash
from datasets import Dataset
from PIL import Image


SIDE = 32  # pixels of a signature
NEAREST = 5  # images that each one is compared with
MOST_DIFFERENCE = 24  # of 255: copies of photographs differ by less than 20, other photographs by 50 and more


def same_images(rows: Dataset, others: Dataset, image_column: str) -> int:
    """How many of the rows have an image whose file is that of another row's, byte for byte."""
    there = set(_digests(others, image_column))
    return sum(digest in there for digest in _digests(rows, image_column))


def _digests(rows: Dataset, image_column: str) -> Iterator[bytes]:
    """Of the image files; of pixels that are no files, nothing is said."""
    if not isinstance(rows.features.get(image_column), datasets.Image):
        return
    images = (
        rows.with_format(None).select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))
    )
    for row in images:
        stored = row[image_column]
        try:
            content = stored["bytes"] or Path(stored["path"]).read_bytes()
        except (OSError, TypeError):  # null, or on the web: that is told elsewhere
            continue
        yield xxhash.xxh3_128(content).digest()


def signature(image: Image.Image) -> np.ndarray:
    """What of an RGB image survives another size or another JPEG quality: 32 x 32 pixels, uint8 [32, 32, 3]."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def same_pictures(signatures: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of images that show the same picture, perhaps of another size or JPEG quality; cropped ones are not found.

    No pixel of the two signatures differs by more than `MOST_DIFFERENCE` of 255. Of many copies of one picture, each
    is paired with the nearest ones.

    Args:
        signatures: uint8 [n, 32, 32, 3], see `signature`.

    Returns:
        Pairs of rows (i, j), i < j, in order.
    """
    n = len(signatures)
    if n < 2:
        return []
    from sklearn.neighbors import NearestNeighbors

    coarse = signatures.reshape(n, 8, 4, 8, 4, 3).mean(axis=(2, 4), dtype=np.float32).reshape(n, -1)
    searched = NearestNeighbors(n_neighbors=min(NEAREST + 1, n), algorithm="brute").fit(coarse)
    pairs = {
        (min(i, j), max(i, j))
        for i, row in enumerate(searched.kneighbors(coarse, return_distance=False).tolist())
        for j in row
        if i != j
    }
    return [
        (i, j)
        for i, j in sorted(pairs)
        if np.abs(signatures[i].astype(np.int16) - signatures[j]).max() <= MOST_DIFFERENCE
    ]
