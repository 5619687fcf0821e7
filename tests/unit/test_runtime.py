"""The real clock, randomness and threads."""

from __future__ import annotations

import threading
import time

import pytest
import trio
import trio.testing

from keepstep.runtime import STEP_BACK_MS_MIN, OffsetClock, SystemClock, SystemRandomness, WorkerThreads
from tests.support.events import NOW_MS
from tests.support.parts import TestClock


def test_the_system_clock_tells_unix_milliseconds() -> None:
    """Between two looks at Python's own clocks."""
    clock = SystemClock()
    before_s = time.time()
    assert before_s * 1000 - 1 <= clock.now_ms() <= time.time() * 1000 + 1
    before_s = time.monotonic()
    assert before_s <= clock.monotonic_s() <= time.monotonic()


async def test_an_offset_clock_follows_by_what_was_measured(autojump_clock: trio.testing.MockClock) -> None:
    """Its wall clock is shifted, its seconds are not."""
    followed = TestClock()
    clock = OffsetClock(followed)
    assert clock.now_ms() == NOW_MS
    clock.offset_ms = 250
    assert clock.now_ms() == NOW_MS + 250
    assert clock.monotonic_s() == followed.monotonic_s()


def test_an_offset_clock_that_is_measured_anew_does_not_step_back() -> None:
    """A payload that had expired by it would be missing under a head that says it has not; a real step is followed."""
    followed = TestClock()
    clock = OffsetClock(followed)
    clock.offset_ms = 30
    assert clock.now_ms() == NOW_MS + 30
    clock.offset_ms = -20
    assert clock.now_ms() == NOW_MS + 30
    followed.at_ms += 60
    assert clock.now_ms() == NOW_MS + 40
    clock.offset_ms -= STEP_BACK_MS_MIN
    assert clock.now_ms() == NOW_MS + 40 - STEP_BACK_MS_MIN


def test_randomness_gives_as_many_bytes_as_asked_and_others_each_time() -> None:
    """32 bytes that came twice would be a broken generator."""
    randomness = SystemRandomness()
    assert len(randomness.bytes(32)) == 32
    assert randomness.bytes(32) != randomness.bytes(32)


async def test_work_runs_in_another_thread_and_comes_back() -> None:
    """With its result, and with what it raised."""
    limiter = trio.CapacityLimiter(1)
    here = threading.get_ident()
    assert await WorkerThreads().run(threading.get_ident, limiter=limiter) != here

    def fail() -> None:
        raise ValueError("from the thread")

    with pytest.raises(ValueError, match="from the thread"):
        await WorkerThreads().run(fail, limiter=limiter)


async def test_a_cancelled_hop_waits_for_the_work() -> None:
    """A commit is not abandoned: the result of what was running comes back in spite of the cancellation."""
    started, go_on = threading.Event(), threading.Event()

    def work() -> str:
        started.set()
        assert go_on.wait(60)
        return "committed"

    results: list[str] = []

    async def hop() -> None:
        results.append(await WorkerThreads().run(work, limiter=trio.CapacityLimiter(1)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hop)
        await trio.to_thread.run_sync(started.wait)
        nursery.cancel_scope.cancel()
        go_on.set()
    assert results == ["committed"]
