"""Checksums inside Arrow and Parquet files: damage is seen before anything tries to make sense of their bytes.

A file carries the checksum of its own bytes, so that both have their name in one step and travel together. It stands
near the end of the file, where readers of Arrow and Parquet pass it by: behind the end of an Arrow stream, among the
key-value metadata of a Parquet file. The checksum is taken with zeros in its own place.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import xxhash


LABEL = b"madkd_hf xxh3_128 "
OPEN_SEAL = LABEL + 32 * b"0"  # what a file that is to be sealed holds
TAIL = 1 << 10  # the checksum stands in the last so many bytes; in a Parquet file, in the footer
BLOCK = 1 << 22


def seal(file: BinaryIO) -> None:
    """Write the checksum of a file that holds `OPEN_SEAL` near its end into that place."""
    place = _place(file)
    if place is None:
        raise ValueError("There is no place for a checksum in the file.")
    digest = _digest(file, place)
    file.seek(place)
    file.write(digest)


def is_whole(path: str | os.PathLike) -> bool | None:
    """Whether a file is what was sealed, byte for byte; None where there is no checksum in it."""
    with open(Path(path), "rb") as file:
        place = _place(file)
        if place is None:
            return None
        file.seek(place)
        return file.read(32) == _digest(file, place)


def _place(file: BinaryIO) -> int | None:
    """Where the checksum stands."""
    end, tail = file.seek(0, os.SEEK_END), TAIL
    file.seek(max(0, end - 8))
    last = file.read(8)
    if last[4:] == b"PAR1":  # behind the length of the footer, which grows with columns, row groups and class names
        tail = max(tail, int.from_bytes(last[:4], "little") + 8)
    start = max(0, end - tail)
    file.seek(start)
    position = file.read(end - start).rfind(LABEL)
    return None if position < 0 else start + position + len(LABEL)


def _digest(file: BinaryIO, place: int) -> bytes:
    """Of all bytes but the 32 at that place, in hexadecimal digits; read block by block."""
    file.seek(0)
    hashed = xxhash.xxh3_128()
    for start, end in ((0, place), (place + 32, None)):
        file.seek(start)
        while block := file.read(BLOCK if end is None else min(BLOCK, end - file.tell())):
            hashed.update(block)
        hashed.update(b"\0")
    return hashed.hexdigest().encode()
