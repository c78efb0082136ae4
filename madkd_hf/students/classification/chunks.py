"""The files of an image store: pixels and facts in chunks, each with a checksum that tells damage and what is missing.

A chunk's checksum is written after the chunk itself. So whatever ends a process, and whatever happens to the files, a
chunk whose checksum is right is whole, and any other is made again.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.lib.format import open_memmap
from tqdm.auto import tqdm


logger = logging.getLogger(__name__)

PIXELS, FACTS, CHECKSUMS = "pixels.npy", "images.npy", "checksums.npy"


class BrokenStoreError(ValueError):
    """The files are not those of a store of this size; the message says which one."""


@dataclass
class Chunks:
    """Pixels and facts of N images, mapped from their files.

    Attributes:
        size: images in a chunk; the last one may have fewer.
        pixels: [N, H, W, 3] uint8.
        facts: [N, 3] int64: width, height and key of an image.
        checksums: [chunks, 16] uint8: zeros until the chunk is there.
    """

    folder: Path
    size: int
    pixels: np.ndarray
    facts: np.ndarray
    checksums: np.ndarray

    @classmethod
    def open(cls, folder: Path, count: int, shape: tuple[int, int], size: int) -> Chunks | None:
        """What is in the folder, finished or not; None where there is nothing, or nothing that can be gone on with."""
        arrays = _arrays(count, shape, size)
        if not any((folder / name).exists() for name in arrays):
            return None
        try:
            return cls(folder, size, *(_mapped(folder / name, *kind) for name, kind in arrays.items()))
        except BrokenStoreError as reason:
            logger.warning("The image store in %s is damaged (%s): all its images are stored again.", folder, reason)
            return None

    @classmethod
    def create(cls, folder: Path, count: int, shape: tuple[int, int], size: int) -> Chunks:
        """New files, nothing done; the checksums come last, so that with them the others are there."""
        cls.remove(folder)
        mapped = []
        for name, (dtype, full) in _arrays(count, shape, size).items():
            mapped.append(open_memmap(folder / name, mode="w+", dtype=dtype, shape=full))
            if name == PIXELS and hasattr(os, "posix_fallocate"):
                # a disk that others fill up meanwhile would end the process without a word
                with open(folder / name, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, os.stat(file.fileno()).st_size)
        return cls(folder, size, *mapped)

    @staticmethod
    def remove(folder: Path) -> None:
        """Take away what is there."""
        for name in (CHECKSUMS, FACTS, PIXELS):
            (folder / name).unlink(missing_ok=True)

    def rows(self, chunk: int) -> range:
        """The images of a chunk."""
        return range(chunk * self.size, min((chunk + 1) * self.size, len(self.pixels)))

    def missing(self, disable_tqdm: bool = False) -> list[int]:
        """The chunks that have to be made: those not done yet and, with a warning, those damaged since."""
        missing, damaged = [], []
        bar = tqdm(
            self.checksums, "checking stored images", unit=" chunks", delay=2, leave=False, disable=disable_tqdm
        )
        for chunk, checksum in enumerate(bar):
            if checksum.any() and checksum.tobytes() == self._checksum(chunk):
                continue
            missing.append(chunk)
            if checksum.any() or self.facts[self.rows(chunk)].any():
                damaged.append(chunk)
        if damaged:
            images, (first, last) = sum(len(self.rows(chunk)) for chunk in damaged), (damaged[0], damaged[-1])
            logger.warning(
                "%d of %d stored images, between rows %d and %d of %s, do not match their checksums: they are stored "
                "again.",
                *(images, len(self.pixels), self.rows(first)[0], self.rows(last)[-1], self.folder / PIXELS),
            )
        return missing

    def write(self, chunk: int, facts: list[tuple[int, int, int]]) -> None:
        """A chunk whose pixels are in their places is done."""
        self.facts[self.rows(chunk)] = facts
        self.pixels.flush()
        self.facts.flush()
        self.checksums[chunk] = np.frombuffer(self._checksum(chunk), np.uint8)
        self.checksums.flush()

    def _checksum(self, chunk: int) -> bytes:
        """Of this chunk in this store: another one in its place is as bad as a damaged one."""
        rows = self.rows(chunk)
        digest = xxhash.xxh3_128(f"{self.folder.name} {chunk} ".encode())
        for array in (self.pixels, self.facts):
            digest.update(array[rows.start : rows.stop])
        return digest.digest()


def _arrays(count: int, shape: tuple[int, int], size: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """What the files hold: name -> type and shape."""
    return {
        PIXELS: (np.dtype(np.uint8), (count, *shape, 3)),
        FACTS: (np.dtype(np.int64), (count, 3)),
        CHECKSUMS: (np.dtype(np.uint8), (-(-count // size), 16)),
    }


def _mapped(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = open_memmap(path, mode="r")  # for writing, a file that is cut off would be filled up with zeros
    except FileNotFoundError:
        raise BrokenStoreError(f"there is no {path.name}") from None
    except Exception as error:  # whatever a damaged header makes NumPy raise
        raise BrokenStoreError(f"{path.name} cannot be read") from error
    complete = path.stat().st_size == array.offset + array.nbytes
    if not complete or (array.dtype, array.shape) != (dtype, shape) or not array.flags.c_contiguous:
        raise BrokenStoreError(f"{path.name} does not hold {' x '.join(map(str, shape))} numbers of type {dtype}")
    return open_memmap(path, mode="r+")
