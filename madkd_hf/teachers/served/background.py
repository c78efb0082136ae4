"""An event loop in a thread of its own: notebooks have one that runs already, and calls may come from any thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar


Result = TypeVar("Result")


class Background:
    """Runs coroutines, until `close` or the end of the process.

    Args:
        close: what is to be closed then, in the loop.
    """

    def __init__(self, *close: Callable[[], Awaitable[None]]):
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.close = weakref.finalize(self, _close, self._loop, close)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What a coroutine returns; Ctrl-C stops it, too."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def _close(loop: asyncio.AbstractEventLoop, close: tuple[Callable[[], Awaitable[None]], ...]) -> None:
    async def close_all() -> None:
        for each in close:
            await each()

    with contextlib.suppress(Exception):
        asyncio.run_coroutine_threadsafe(close_all(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
