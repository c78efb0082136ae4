"""The same image file, or the same picture, in two places."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import xxhash
from datasets import Dataset
from PIL import Image

from .columns import answered_rows


SIDE = 32  # pixels of a signature
NEAREST = 5  # images that each one is compared with
MOST_DIFFERENCE = 24  # of 255: copies of photographs differ by less than 20, other photographs by 50 and more
MOST_KEPT = 8  # datasets whose digests are remembered: commands ask for the same ones again and again
_DIGESTS: dict[tuple[str, str], list[bytes | None]] = {}


Part = tuple[Dataset, Sequence[int]]  # a dataset, and the numbers of some of its rows


def same_images(rows: Dataset, others: Dataset, image_column: str) -> int:
    """How many of the rows have an image whose file is that of another row's, byte for byte."""
    return int(shown_in(rows, (others, range(len(others))), image_column).sum())


def shown_in(rows: Dataset, part: Part, image_column: str) -> np.ndarray:
    """[n] which rows have an image whose file is that of a row of `part`, byte for byte."""
    files = digests(part[0], image_column)
    there = {files[place] for place in part[1]} - {None}
    return np.array([digest in there for digest in digests(rows, image_column)], dtype=bool)


def first_of_each(part: Part, others: Sequence[Part], image_column: str) -> np.ndarray:
    """[n] which rows to learn from, so that no image file counts twice: not those of `others`, and each once.

    An answered row stays where no other one of the same image is answered.
    """
    seen: dict[bytes, bool] = {}  # image -> whether one of `others` that shows it is answered
    for other in others:
        for digest, answered in zip(*_digests_and_answered(other, image_column)):
            if digest is not None:
                seen[digest] = seen.get(digest, False) or answered
    own, answers = _digests_and_answered(part, image_column)
    chosen: dict[bytes, int] = {}
    for row, (digest, answered) in enumerate(zip(own, answers)):
        if digest is not None and (digest not in chosen or (answered and not answers[chosen[digest]])):
            chosen[digest] = row
    kept = [
        digest is None or (chosen[digest] == row and (digest not in seen or (answered and not seen[digest])))
        for row, (digest, answered) in enumerate(zip(own, answers))
    ]
    return np.array(kept, dtype=bool)


def _digests_and_answered(part: Part, image_column: str) -> tuple[list[bytes | None], list[bool]]:
    """Of these rows; the files of all are read once, whichever of them are asked for."""
    rows, places = part
    files, answered = digests(rows, image_column), answered_rows(rows)
    return [files[place] for place in places], [answered[place] for place in places]


def digests(rows: Dataset, image_column: str) -> list[bytes | None]:
    """[n] of the image files; None of pixels that are no file, and of what cannot be read, which is told elsewhere."""
    key = rows._fingerprint, image_column
    if key not in _DIGESTS:
        while len(_DIGESTS) >= MOST_KEPT:
            _DIGESTS.pop(next(iter(_DIGESTS)))
        _DIGESTS[key] = _read(rows, image_column)
    return _DIGESTS[key]


def _read(rows: Dataset, image_column: str) -> list[bytes | None]:
    if not isinstance(rows.features.get(image_column), datasets.Image):
        return [None] * len(rows)
    images = (
        rows.with_format(None).select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))
    )
    return [_digest(row[image_column]) for row in images]


def _digest(image: dict | None) -> bytes | None:
    try:
        return xxhash.xxh3_128(image["bytes"] or Path(image["path"]).read_bytes()).digest()
    except (OSError, TypeError):  # null, or on the web
        return None


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
