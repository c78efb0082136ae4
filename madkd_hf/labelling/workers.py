"""The processes of one `accelerate launch`: which one this is, and how they fail and decide together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ..data.problems import FailedOnOtherRankError


Result = TypeVar("Result")


@dataclass(frozen=True)
class Workers:
    """This process among its siblings, the main one has the index 0; alone, unless `of_launch` says otherwise."""

    index: int = 0
    count: int = 1

    @classmethod
    def of_launch(cls) -> Workers:
        """The processes of `accelerate launch`, or this one alone where it was started in another way."""
        state = PartialState(cpu=not torch.accelerator.is_available())
        return cls(state.process_index, state.num_processes)

    @property
    def device(self) -> torch.device:
        """The device that is this process's own."""
        return PartialState().device

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def agree(self, step: Callable[[], Result]) -> Result:
        """Do a step on every worker; where it fails, the first raises its error, all others FailedOnOtherRankError."""
        if self.count == 1:
            return step()
        error, result = None, None
        try:
            result = step()
        except Exception as raised:  # whatever it is, the siblings must not wait for ever
            error = raised
        failed = [index for index, bad in enumerate(gather_object([error is not None])) if bad]
        if failed and failed[0] == self.index:
            raise error
        if failed:
            raise FailedOnOtherRankError(f"Worker {failed[0]} failed and says why.")
        return result

    def from_main(self, step: Callable[[], Any]) -> Any:
        """What a step of the main process returns, on every worker; raises as `agree` does."""
        result = [self.agree(step if self.is_main else lambda: None)]
        if self.count > 1:
            broadcast_object_list(result)
        return result[0]
