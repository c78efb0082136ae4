"""Items of many callers in one call: each gets its own result, or its own error."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from madkd_hf.serving.batching import Batcher


def test_items_are_put_together_and_results_are_not_mixed_up():
    calls, threads = [], set()

    def double(items):
        calls.append(len(items))
        threads.add(threading.get_ident())
        time.sleep(0.01)
        return [2 * item for item in items]

    async def many():
        async with Batcher(double, most=4, wait=0.005) as batcher:
            return await asyncio.gather(*(batcher.submit(i) for i in range(30)))

    assert asyncio.run(many()) == [2 * i for i in range(30)]
    assert max(calls) == 4 and sum(calls) == 30 and len(threads) == 1


def test_an_item_that_fails_fails_alone():
    def inverse(items):
        return [1 / item for item in items]

    async def many():
        async with Batcher(inverse, most=8, wait=0.005) as batcher:
            return await asyncio.gather(*(batcher.submit(i) for i in (1, 0, 2)), return_exceptions=True)

    one, error, half = asyncio.run(many())
    assert (one, half) == (1, 0.5) and isinstance(error, ZeroDivisionError)


def test_what_was_given_up_is_not_computed():
    seen = []

    def slow(items):
        seen.extend(items)
        time.sleep(0.05)
        return items

    async def hasty():
        async with Batcher(slow, most=1, wait=0) as batcher:
            first = asyncio.create_task(batcher.submit("a"))
            await asyncio.sleep(0.01)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(batcher.submit("b"), 0.01)
            await batcher.submit("c")
            return await first

    assert asyncio.run(hasty()) == "a" and seen == ["a", "c"]
