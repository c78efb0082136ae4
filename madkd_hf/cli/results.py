"""The files of results beside a student, written, and read again: they may have been damaged since."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from ..files import read_json, whole_file, writing


logger = logging.getLogger(__name__)


def load_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """All arrays in a file of NumPy, which has a checksum for each.

    Args:
        names: those that have to be there.

    Raises:
        ValueError: it is missing, damaged, or lacks one of them.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        if missing := [name for name in names if name not in arrays]:
            raise ValueError(f"there is no {missing[0]!r} in it")
    except Exception as error:  # whatever a damaged archive makes NumPy, zipfile and zlib raise
        raise ValueError(
            f"{path} cannot be read ({error}): delete the folder it lies in, and run the same command again."
        ) from error
    return arrays


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays into a file of NumPy, whole or not at all."""
    with writing(path), whole_file(path) as file:
        np.savez_compressed(file, **arrays)


def remove_damaged_results(folder: Path) -> None:
    """Remove an all_results.json that cannot be read: saving metrics adds to what is there, at the end of it all."""
    path = folder / "all_results.json"
    if path.exists() and warn_if_damaged(path, "the numbers of a student", "it is written anew"):
        path.unlink()


def warn_if_damaged(path: Path, what: str, remedy: str) -> bool:
    """Warn of a JSON file that cannot be read; returns whether it is one."""
    try:
        read_json(path, what, remedy)
    except ValueError as error:
        logger.warning("%s", error)
        return True
    return False
