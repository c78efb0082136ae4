"""Which images could be decoded before, so that no command decodes them again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import datasets
import numpy as np
import PIL

from ..files import whole_file


FORMAT = 1
MOST = 1 << 23  # keys, 64 MB; beyond, the file begins anew


class CheckedImages:
    """The 64-bit keys of images that are intact, in one file; where it is damaged, images are decoded again."""

    def __init__(self, folder: str | os.PathLike | None = None):
        folder = Path(folder or Path(datasets.config.HF_DATASETS_CACHE) / "madkd_checked")
        self.path = folder / f"whole-{FORMAT}-pillow-{PIL.__version__}.bin"  # another Pillow reads other files
        self.keys = self._load()
        self.new: set[int] = set()

    def __contains__(self, key: int) -> bool:
        if key in self.new:
            return True
        place = int(np.searchsorted(self.keys, np.uint64(key)))
        return place < len(self.keys) and int(self.keys[place]) == key

    def has_file(self, path: str, mode: str | None = None) -> bool:
        """Whether the image in a file is intact, and the file has not changed since."""
        try:
            return key_of_file(path, os.stat(path), mode) in self
        except (OSError, ValueError):
            return False

    def add(self, keys: Iterable[int]) -> None:
        self.new.update(keys)

    def save(self) -> None:
        """Write what was added, with what others have added meanwhile; where that cannot be, nothing is lost."""
        if not self.new:
            return
        added = np.fromiter(self.new, np.uint64, len(self.new))
        stored = self._load()
        keys = np.union1d(stored if len(stored) + len(added) <= MOST else stored[:0], added)
        try:
            with whole_file(self.path) as file:
                file.write(keys.astype("<u8").tobytes())
        except (OSError, ValueError):  # no room, or not ours to write: the next command decodes again
            return
        self.keys, self.new = keys, set()

    def _load(self) -> np.ndarray:
        nothing = np.empty(0, np.uint64)
        try:
            if not self.path.is_file() or self.path.stat().st_size > 8 * MOST:
                return nothing
            return np.unique(np.fromfile(self.path, "<u8"))
        except (OSError, ValueError):
            return nothing


def key_of(kind: str, *facts: object) -> int:
    """A key for facts that name one content."""
    return _key(json.dumps([kind, *map(str, facts)]).encode("utf-8", "surrogatepass"))


def key_of_file(path: str, facts: os.stat_result, mode: str | None) -> int:
    """A key for an image file as it is now, decoded to `mode`."""
    return key_of("file", os.path.abspath(path), facts.st_size, facts.st_mtime_ns, mode)


def key_of_bytes(content: object, mode: str | None) -> int:
    """A key for the bytes of an image file, decoded to `mode`."""
    return key_of("bytes", hashlib.sha256(content).hexdigest(), mode)


def _key(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")
