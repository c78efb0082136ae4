"""What rows a training step counts, over accumulated batches and several processes."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from accelerate.state import GradientState

from ..losses.base import COUNTED, UNCOUNTED, rows_with


def without_repeats(batch: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """The batch, with `UNCOUNTED` for the label of each row that it only repeats."""
    if "labels" not in batch:
        return batch
    own = own_rows(len(batch["labels"]), accelerator)
    if own == len(batch["labels"]):
        return batch
    labels = batch["labels"].clone()
    labels[own:] = UNCOUNTED
    return {**batch, "labels": labels}


def own_rows(rows: int, accelerator: Accelerator) -> int:
    """How many of the rows of this process's batch count: the first ones, in front of those that it only repeats.

    So that all processes have as many rows, Accelerate fills the last batches up with rows of the first ones. These
    come last, and the processes' batches, one after the other, are the whole batch.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader:
        return rows
    remainder = _rows_of_last_batch(state)
    if remainder < 1:
        return rows
    return min(max(remainder - accelerator.process_index * rows, 0), rows)


def _rows_of_last_batch(state: GradientState) -> int:
    """In all processes; 0 where it is full, below where nobody knows. Accelerate forgets it when a run is resumed."""
    loader = state.active_dataloader
    sampler = getattr(loader, "batch_sampler", None)
    while sampler is not None and not isinstance(sampler, BatchSamplerShard):
        sampler = getattr(sampler, "batch_sampler", None)
    if sampler is None or sampler.batch_size is None:
        return state.remainder
    if sampler.drop_last:
        return 0
    source = getattr(sampler.batch_sampler, "sampler", loader.dataset)  # which may draw fewer rows than there are
    return len(source) % (sampler.batch_size * (1 if sampler.split_batches else sampler.num_processes))


def rows_per_batch(batches: list[dict[str, Any]], accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """Name of a target -> how many rows have it, on average over a step's batches in all processes; 1 for none."""
    counts = torch.stack([torch.stack([rows_with(batch, name).sum() for name in COUNTED]) for batch in batches])
    mean = accelerator.gather(counts.float().mean(dim=0, keepdim=True).to(accelerator.device)).mean(dim=0)
    return dict(zip(COUNTED, torch.where(mean > 0, mean, 1.0)))
