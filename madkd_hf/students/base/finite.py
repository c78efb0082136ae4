"""Whether losses, gradients and weights are finite numbers, and what to say where they are not."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn


GRADIENT = "the gradient norm"
SKIPS = 32  # a gradient scaler halves its scale at each step it skips: from 65,536 to nothing


class TrainingDivergedError(ValueError):
    """A loss, a gradient, the weights or what a student says are no finite numbers any more."""


class Watch:
    """Since which step values are not finite; kept on the device, and read when somebody waits for it anyway.

    Args:
        patience: how many times in a row a value may be no finite number; 1 lets none be.
    """

    def __init__(self, patience: int = 1):
        self.patience = patience
        self._since: dict[tuple[str, ...], torch.Tensor] = {}

    def note(self, step: int, values: Mapping[str, torch.Tensor]) -> None:
        """Look at scalars of this step, without waiting for them."""
        names = tuple(values)
        bad = ~torch.stack([_local(value).detach().float().reshape(()) for value in values.values()]).isfinite()
        since = self._since.get(names)
        since = torch.full_like(bad, -1, dtype=torch.long) if since is None else since
        self._since[names] = torch.where(bad, torch.where(since < 0, step, since), -1 if self.patience > 1 else since)

    def read(self, step: int, *names: str) -> dict[str, int]:
        """Name -> the step since which it has not been finite, where patience is over; waits for the device."""
        groups = [group for group in self._since if not names or set(names) & set(group)]
        if not groups:
            return {}
        since = torch.cat([self._since[group] for group in groups]).tolist()  # one wait
        first_steps = {name: first for name, first in zip(itertools.chain(*groups), since) if first >= 0}
        return {name: first for name, first in first_steps.items() if step - first + 1 >= self.patience}

    def first_failure(self, step: int, processes: int, together: bool) -> tuple[list[str], int] | None:
        """What is not finite, and since which step, the same in all processes; None where all is.

        `together`, all processes tell each other; otherwise each looks at the gradient, which is the same in all.
        """
        failed = self.read(step, *([] if processes <= 1 or together else [GRADIENT]))
        if processes > 1 and (together or failed):
            everywhere = gather_object([self.read(step)])
            names = dict.fromkeys(name for steps in everywhere for name in steps)  # in the same order in all of them
            failed = {name: min(steps[name] for steps in everywhere if name in steps) for name in names}
        if not failed:
            return None
        first = min(failed.values())
        names = [name for name, since in failed.items() if since == first]
        # The loss is made of its parts, and the gradient of the loss.
        parts = [name for name in names if name not in ("loss", GRADIENT)]
        return parts or [name for name in names if name != GRADIENT] or names, first


def _local(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def not_finite(model: nn.Module, weights: Mapping[str, Any] | None = None) -> str | None:
    """What of a student's weights, its state, is not finite, in a few words; None where all are."""
    infinite = {name for name, _ in model.named_buffers() if not name.endswith(("running_mean", "running_var"))}
    weights = model.state_dict() if weights is None else weights
    flags = {}
    for name, value in weights.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.element_size() > 1:
            bad = value.isnan() if name in infinite else ~value.isfinite()  # a mask may hold infinities
            flags[name] = bad.any()
    if not flags:
        return None
    device = next(iter(flags.values())).device
    flagged = torch.stack([flag.to(device) for flag in flags.values()]).tolist()
    bad = [name for name, flag in zip(flags, flagged) if flag]
    return f"{len(bad)} of its {len(flags)} weight tensors are not finite, first {bad[0]}" if bad else None


def diverged(reason: str, step: int | None, learning_rate: float) -> TrainingDivergedError:
    """The error to raise where something, the `reason`, is not finite; without `step` a student is only measured."""
    if step is None:
        return TrainingDivergedError(
            f"This student cannot be used: {reason}; take one whose training did not diverge, or look for "
            "images that are no numbers."
        )
    return TrainingDivergedError(
        f"The training diverged at step {step}: {reason}, with learning_rate={learning_rate:g}. This student "
        "was not saved; lower learning_rate, or look for images or answers that are no numbers."
    )
