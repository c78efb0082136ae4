"""Images of many requests, read together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar


Item, Result = TypeVar("Item"), TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Puts items that come within a moment of each other through one call, and gives each its own result.

    Args:
        run: takes a list, and returns as many results in the same order; it is called in one thread, never twice at
            once.
        most: items in a call.
        wait: seconds that the first item waits for others. While a call runs, items gather anyway.
        seen: is told the size of every call.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result]],
        most: int,
        wait: float,
        seen: Callable[[int], Any] = lambda size: None,
    ):
        self.run, self.most, self.wait, self.seen = run, most, wait, seen
        self._waiting: asyncio.Queue[tuple[Item, asyncio.Future]] = asyncio.Queue()
        self._pool = ThreadPoolExecutor(1, "student")
        self._task: asyncio.Task | None = None

    async def __aenter__(self) -> Batcher[Item, Result]:
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._task.cancel()
        self._pool.shutdown(cancel_futures=True)

    async def submit(self, item: Item) -> Result:
        """The result of one item; what `run` raised for it alone."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((item, future))
        return await future

    async def _work(self) -> None:
        while True:
            batch = [pair for pair in await self._gather() if not pair[1].done()]  # some were given up
            if batch:
                self.seen(len(batch))
                await self._answer(batch)

    async def _gather(self) -> list[tuple[Item, asyncio.Future]]:
        batch = [await self._waiting.get()]
        end = asyncio.get_running_loop().time() + self.wait
        while len(batch) < self.most:
            left = end - asyncio.get_running_loop().time()
            if not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            elif left <= 0:
                break
            else:
                try:
                    batch.append(await asyncio.wait_for(self._waiting.get(), left))
                except asyncio.TimeoutError:
                    break
        return batch

    async def _answer(self, batch: list[tuple[Item, asyncio.Future]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._pool, self.run, [item for item, _ in batch])
        except Exception as error:  # whatever a model raises
            if len(batch) > 1:  # perhaps for one of them: the others get their answers
                for pair in batch:
                    await self._answer([pair])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
