"""In which order training images come where some have a class and most have none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from ...data.unlabelled import epoch_of


class MixedSampler(Sampler[int]):
    """Rows such that each batch has the same share of rows with a class.

    Both kinds are gone through in random order, again and again; what an epoch leaves over comes first in the next
    one. An epoch ends when one kind was seen once, however rare the other one is.
    All follows from seed and epoch: more workers, more processes and a resumed run see the same rows.

    Args:
        labelled, unlabelled: numbers of the rows with and without a class.
        fraction: of rows with a class in a batch, 0..1; where it is no whole number of rows, it holds on average.
        batch_size: of one process: Accelerate gives each process whole batches in turn.
        seed: of the order.
    """

    def __init__(
        self, labelled: Sequence[int], unlabelled: Sequence[int], fraction: float, batch_size: int, seed: int
    ):
        self.rows = np.asarray(labelled), np.asarray(unlabelled)
        self.fraction, self.batch_size, self.seed, self.epoch = fraction, batch_size, seed, 0
        self.length, _ = epoch_of(len(labelled), len(unlabelled), fraction)

    def set_epoch(self, epoch: int) -> None:
        """Which rows come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        batches, places = np.divmod(np.arange(self.length), self.batch_size)
        ends = np.minimum(np.arange(batches.max(initial=-1) + 2) * self.batch_size, self.length)
        due = np.floor(ends * self.fraction + 1e-9).astype(int)  # rows with a class in front of each batch
        labelled = places < np.diff(due)[batches]
        order = np.empty(self.length, dtype=np.int64)
        for kind, at in enumerate((labelled, ~labelled)):
            order[at] = self._next(kind, int(at.sum()))
        return iter(order.tolist())

    def _next(self, kind: int, count: int) -> np.ndarray:
        """The rows of one kind in this epoch, from an endless row of permutations."""
        rows, start = self.rows[kind], self.epoch * count
        first, last = start // len(rows), (start + count - 1) // len(rows)
        turns = [np.random.default_rng([self.seed, kind, turn]).permutation(rows) for turn in range(first, last + 1)]
        return np.concatenate(turns)[start - first * len(rows) :][:count]
