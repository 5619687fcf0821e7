"""Token buckets: how often a caller may call, and what it is told."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from keepstep.access import RatePolicy, RateState
from keepstep.ratelimit import MemoryRateLimiter, RateLimited
from tests.support.parts import TestClock

POLICY = RatePolicy("user", 6, 60)


async def take(limiter: MemoryRateLimiter, caller: str = "user:1", policy: RatePolicy = POLICY) -> RateState:
    """One call."""
    return await limiter.take(caller, policy)


async def test_a_window_of_calls_may_come_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """Then one after the other, as they come back."""
    limiter = MemoryRateLimiter(TestClock())
    states = [await take(limiter) for _ in range(6)]
    assert [(state.remaining, state.reset_s) for state in states] == [
        (5, 10),
        (4, 20),
        (3, 30),
        (2, 40),
        (1, 50),
        (0, 60),
    ]
    with pytest.raises(RateLimited) as refused:
        await take(limiter)
    assert refused.value.retry_after_ms == 10_000
    assert (refused.value.state.remaining, refused.value.state.reset_s) == (0, 60)
    await trio.sleep(10)
    assert (await take(limiter)).remaining == 0


async def test_a_refused_call_costs_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """Who keeps asking does not wait longer for it."""
    limiter = MemoryRateLimiter(TestClock())
    for _ in range(6):
        await take(limiter)
    for _ in range(3):
        with pytest.raises(RateLimited):
            await take(limiter)
    await trio.sleep(10)
    await take(limiter)


async def test_a_bucket_holds_no_more_than_a_window(autojump_clock: trio.testing.MockClock) -> None:
    """However long nobody called."""
    limiter = MemoryRateLimiter(TestClock())
    await take(limiter)
    await trio.sleep(10_000)
    assert (await take(limiter)).remaining == 5


async def test_callers_and_policies_are_counted_apart() -> None:
    """One caller takes nothing from another, and one policy nothing from another."""
    limiter = MemoryRateLimiter(TestClock())
    await take(limiter)
    assert (await take(limiter, "user:2")).remaining == 5
    assert (await take(limiter, policy=RatePolicy("address", 6, 60))).remaining == 5


async def test_so_many_callers_are_remembered() -> None:
    """The one that called longest ago is forgotten first."""
    limiter = MemoryRateLimiter(TestClock(), callers_max=2)
    await take(limiter, "a")
    await take(limiter, "b")
    await take(limiter, "a")
    await take(limiter, "c")
    assert (await take(limiter, "a")).remaining == 3
    assert (await take(limiter, "b")).remaining == 5
