"""How many requests a server gets at once, with a clock that does not wait."""

from __future__ import annotations

import pytest

from madkd_hf.teachers.served.limiter import PATIENCE, START, Limiter


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def serve(limiter: Limiter, clock: Clock, requests: int, at_once: int, seconds: float = 0.05) -> None:
    """A server that makes so many answers at a time, each in so many seconds; all places are always taken."""
    for _ in range(requests):
        latency = seconds * max(1.0, limiter.limit / at_once)
        clock.now += latency / limiter.limit
        limiter.answered(latency, limiter.limit)


@pytest.mark.parametrize("at_once", [16, 64, 128])
def test_it_finds_as_many_as_the_server_answers_at_a_time(at_once):
    limiter = Limiter(256, Clock())
    serve(limiter, limiter._clock, 1500, at_once)
    assert limiter.limit == at_once and limiter.rate == pytest.approx(at_once / 0.05)


def test_it_never_takes_more_than_it_may():
    for most in (1, 5, 24):
        limiter = Limiter(most, Clock())
        serve(limiter, limiter._clock, 1000, 64)
        assert limiter.limit == most


def test_requests_that_were_begun_with_free_places_say_nothing():
    limiter = Limiter(256, Clock())
    for _ in range(1000):
        limiter.answered(0.05, START - 1)
    assert limiter.limit == START and limiter.rate == 0


def test_a_busy_server_gets_half_once_a_moment_and_the_pause_it_asks_for():
    clock = Clock()
    limiter = Limiter(256, clock)
    serve(limiter, clock, 1500, 64)
    for _ in range(20):  # all that are in flight are told
        limiter.busy(3.0)
    assert limiter.limit == 32 and limiter.wait == pytest.approx(3.0)
    clock.now += 3.5
    assert limiter.wait == 0
    limiter.busy(None)
    assert limiter.limit == 16 and limiter.wait == 0


def test_it_recovers_when_the_server_has_time_again():
    clock = Clock()
    limiter = Limiter(256, clock)
    serve(limiter, clock, 1500, 64)
    limiter.busy(1.0)
    clock.now += 2
    serve(limiter, clock, 2 * 32 * (PATIENCE + 6), 64)
    assert limiter.limit == 64


def test_a_server_that_becomes_slow_gets_fewer():
    clock = Clock()
    limiter = Limiter(256, clock)
    serve(limiter, clock, 1500, 64)
    serve(limiter, clock, 600, 64, seconds=1.0)
    assert limiter.limit < 64
