"""What disks, copies and kills do to files, drawn by a seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np


def flip_bits(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
    return bytes(changed)


def cut_off(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))]


def zero_block(content: bytes, rng: np.random.Generator) -> bytes:
    start = rng.integers(len(content))
    end = min(len(content), start + rng.integers(1, len(content)))
    return content[:start] + bytes(end - start) + content[end:]


def zero_all(content: bytes, rng: np.random.Generator) -> bytes:
    return bytes(len(content))


def append_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    return content + rng.bytes(rng.integers(1, 200))


def repeat_all(content: bytes, rng: np.random.Generator) -> bytes:
    return 2 * content


def swap_blocks(content: bytes, rng: np.random.Generator) -> bytes:
    size = rng.integers(1, len(content) // 2)
    first = rng.integers(len(content) - 2 * size + 1)
    second = rng.integers(first + size, len(content) - size + 1)
    blocks = content[first : first + size], content[second : second + size]
    return content[:first] + blocks[1] + content[first + size : second] + blocks[0] + content[second + size :]


def of_one_file(change: Callable[[bytes, np.random.Generator], bytes]) -> Callable:
    def damage(files: Sequence[Path], others: Sequence[Path], rng: np.random.Generator) -> list[Path]:
        path = files[rng.integers(len(files))]
        content = path.read_bytes()
        changed = change(content, rng)
        path.write_bytes(changed)
        return [path] if changed != content else []

    damage.__name__ = change.__name__
    return damage


def swap_files(files: Sequence[Path], others: Sequence[Path], rng: np.random.Generator) -> list[Path]:
    pair = [files[i] for i in rng.choice(len(files), 2, replace=False)]
    contents = [path.read_bytes() for path in pair]
    for path, content in zip(pair, reversed(contents)):
        path.write_bytes(content)
    return pair if contents[0] != contents[1] else []


def take_another_s(files: Sequence[Path], others: Sequence[Path], rng: np.random.Generator) -> list[Path]:
    """A file of the same name, out of another folder."""
    place = rng.integers(len(files))
    files[place].write_bytes(others[place].read_bytes())
    return [files[place]]


def remove(files: Sequence[Path], others: Sequence[Path], rng: np.random.Generator) -> list[Path]:
    path = files[rng.integers(len(files))]
    path.unlink()
    return [path]


BYTES = (flip_bits, flip_bits, cut_off, zero_block, zero_all, append_bytes, repeat_all, swap_blocks)
KINDS = (*map(of_one_file, BYTES), swap_files, take_another_s, remove)


def told(counts: Counter, title: str) -> str:
    """The counts of a fuzzer in one line."""
    return f"{title}: " + ", ".join(f"{name} {count}" for name, count in counts.items())
