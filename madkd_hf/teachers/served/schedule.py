"""Which request goes to which server when: of an image first one alone, then its others, all to the same server."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from .endpoint import Endpoint


Job = tuple[int, int]  # the number of an image, and of its request
Send = Callable[[Endpoint, Job], Awaitable[None]]


class Schedule:
    """The requests of some images, done as fast as the servers answer.

    Args:
        counts: for each image, how many requests there are.
        endpoints: the servers; a request that one cannot answer goes to another, as long as there is one.
        alone_first: send the first request of an image alone: the server keeps what it read of the image, and the
            others need not read it again.
        send: makes a request; returns False where the server is out of order, and another one has to make it.
    """

    def __init__(self, counts: Sequence[int], endpoints: Sequence[Endpoint], alone_first: bool, send: Send):
        self.counts, self.endpoints, self.alone_first, self.send = counts, endpoints, alone_first, send
        self._new = deque(image for image, count in enumerate(counts) if count)
        self._ready: dict[int, deque[Job]] = {number: deque() for number in range(len(endpoints))}
        self._left = sum(counts)
        self._tasks: set[asyncio.Task] = set()

    async def run(self) -> None:
        """Return when all is done, or raise what the first request raised that failed for good."""
        if not self._left:
            return
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        try:
            self._fill_all()
            await self._over
        finally:
            if not self._over.done():
                self._over.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _fill_all(self) -> None:
        """Begin requests, one with each server in turn, so that a few images are shared, too."""
        open_ones = list(range(len(self.endpoints)))
        while open_ones:
            open_ones = [number for number in open_ones if self._begin(number)]

    def _fill(self, number: int) -> None:
        """Begin requests until all places of a server are taken."""
        while self._begin(number):
            pass

    def _begin(self, number: int) -> bool:
        """Begin one request with a server; False where there is none, or no place."""
        endpoint = self.endpoints[number]
        if self._over.done() or endpoint.dead is not None or endpoint.in_flight >= endpoint.limiter.limit:
            return False
        if wait := endpoint.limiter.wait:
            self._loop.call_later(wait, self._fill, number)
            return False
        if (job := self._next(number)) is None:
            return False
        endpoint.in_flight += 1
        task = self._loop.create_task(self._timed(endpoint, job))
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, number, job))
        return True

    def _next(self, number: int) -> Job | None:
        if self._ready[number]:
            return self._ready[number].popleft()
        if not self._new:
            return None
        image = self._new.popleft()
        if not self.alone_first:
            self._ready[number].extend((image, request) for request in range(1, self.counts[image]))
        return image, 0

    async def _timed(self, endpoint: Endpoint, job: Job) -> bool:
        begun, in_flight = self._loop.time(), endpoint.in_flight
        answered = await self.send(endpoint, job)
        endpoint.limiter.answered(self._loop.time() - begun, in_flight)
        return answered

    def _done(self, number: int, job: Job, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        self.endpoints[number].in_flight -= 1
        if self._over.done():
            return
        if task.cancelled() or task.exception() is not None:
            self._over.set_exception(task.exception() if not task.cancelled() else asyncio.CancelledError())
            return
        if not task.result():
            self._give_away(number, job)
            return
        self._left -= 1
        image, request = job
        if request == 0 and self.alone_first:
            self._ready[number].extend((image, later) for later in range(1, self.counts[image]))
        if self._left:
            self._fill(number)
        else:
            self._over.set_result(None)

    def _give_away(self, number: int, job: Job) -> None:
        """What a server that is out of order was to do, others do."""
        alive = [other for other, endpoint in enumerate(self.endpoints) if endpoint.dead is None]
        if not alive:
            self._over.set_exception(self.endpoints[number].dead)
            return
        jobs = [job, *self._ready[number]]
        self._ready[number].clear()
        for turn, each in enumerate(jobs):
            self._ready[alive[turn % len(alive)]].append(each)
        self._fill_all()
