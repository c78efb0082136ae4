"""All problems of a command in one error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class FailedOnOtherRankError(RuntimeError):
    """Another worker failed and says why: there is nothing to add here."""


class Problems:
    """Collects what keeps a command from beginning, one sentence each."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Collect the error of the steps within, and go on."""
        try:
            yield
        except (ValueError, OSError, ImportError) as error:
            if str(error) not in map(str, self.errors):
                self.errors.append(error)

    def step(self, function: Callable, *args: Any) -> Any:
        """What a step returns; None where it failed."""
        with self.noted():
            return function(*args)

    def passes(self, function: Callable, *args: Any) -> bool:
        """Whether a step succeeds."""
        before = len(self.errors)
        self.step(function, *args)
        return len(self.errors) == before

    def add(self, sentence: str) -> None:
        with self.noted():
            raise ValueError(sentence)

    def raise_all(self) -> None:
        """Raise what was collected: a single error as it is, several as a ValueError that lists them."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            lines = [" ".join(str(error).split("\n")) for error in self.errors]
            raise ValueError("\n - ".join([f"{len(lines)} things are wrong before we can begin:", *lines]))
