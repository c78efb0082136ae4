"""How many requests a server gets at once: found by what it answers, not guessed."""

from __future__ import annotations

import time
from collections.abc import Callable


START = 8
GAIN = 1.1  # by which twice as many requests have to bring more answers, to be kept
SLOWER = 4.0  # times the latency at which the number was found: the server has other work
PATIENCE = 8  # windows before another try, doubled each time


class Limiter:
    """Doubles the number of requests in flight while that brings more answers a second; halves it where it hurts.

    By Little's law, n requests that take t seconds each are n / t answers a second. Measured over windows of requests
    that were begun with all places taken, so that pauses between two batches of images do not count.

    Args:
        most: never more than this.
        clock: seconds, for tests.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic):
        self.most, self.limit, self._clock = most, min(START, most), clock
        self.resume_at = 0.0
        self._rate, self._latency = 0.0, float("inf")  # of the best number of requests so far
        self._previous = self.limit  # to go back to
        self._window: list[float] = []
        self._trying = True
        self._rest, self._patience = 0, PATIENCE
        self._not_again_before = 0.0

    @property
    def wait(self) -> float:
        """Seconds until the next request may be sent."""
        return max(0.0, self.resume_at - self._clock())

    @property
    def rate(self) -> float:
        """Answers a second, as far as that has been found out; 0 before the first window has ended."""
        return self._rate

    def busy(self, seconds: float | None) -> None:
        """The server says that it has too much to do, and perhaps how long."""
        now = self._clock()
        self.resume_at = max(self.resume_at, now + (seconds or 0.0))
        if now < self._not_again_before:  # the others of the same moment
            return
        self._halve(now + max(1.0, seconds or 0.0))

    def answered(self, latency: float, in_flight: int) -> None:
        """A request was answered after so many seconds; `in_flight` is how many there were when it was begun."""
        if in_flight != self.limit:  # not all places were taken, or there were others then
            return
        self._window.append(latency)
        if len(self._window) >= 2 * self.limit:
            self._end_window()

    def _end_window(self) -> None:
        latency = sum(self._window) / len(self._window)
        rate, self._window = self.limit / max(latency, 1e-9), []
        if self._trying:
            if rate > GAIN * self._rate:
                self._rate, self._latency, self._previous = rate, latency, self.limit
                self._try_more()
            else:
                self.limit, self._trying = self._previous, False
            return
        if latency > SLOWER * self._latency and self._clock() >= self._not_again_before:
            self._halve(self._clock() + 10 * latency)
            return
        self._rest += 1
        if self._rest >= self._patience:
            self._rest, self._patience = 0, 2 * self._patience
            self._rate, self._latency, self._previous = rate, latency, self.limit
            self._try_more()

    def _try_more(self) -> None:
        self.limit, self._trying = min(self.most, 2 * self.limit), self.limit < self.most

    def _halve(self, not_again_before: float) -> None:
        self.limit = self._previous = max(1, self.limit // 2)
        self._trying, self._rest, self._window = False, 0, []
        self._latency, self._rate = float("inf"), 0.0
        self._patience = PATIENCE
        self._not_again_before = not_again_before
