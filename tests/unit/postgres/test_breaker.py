"""The circuit breaker: closed, open, half open."""

from __future__ import annotations

import pytest

from keepstep.errors import Unavailable
from keepstep.postgres.breaker import FAILURES_MAX, OPEN_S, Breaker, BreakerState
from tests.support.logs import FixedClock


def state(breaker: Breaker) -> BreakerState:
    """What it does with the next call."""
    return breaker.state


def fail(breaker: Breaker, times: int) -> None:
    """So many calls for which the database was not there."""
    for _ in range(times):
        breaker.enter()
        breaker.leave(failed=True)


def test_failures_in_a_row_open_it() -> None:
    """One less does not, and a success in between starts the count anew."""
    breaker = Breaker(FixedClock())
    fail(breaker, FAILURES_MAX - 1)
    breaker.enter()
    breaker.leave(failed=False)
    fail(breaker, FAILURES_MAX - 1)
    assert state(breaker) is BreakerState.CLOSED

    fail(breaker, 1)

    assert state(breaker) is BreakerState.OPEN
    with pytest.raises(Unavailable) as refused:
        breaker.enter()
    assert refused.value.retry_after_ms == OPEN_S * 1000


def test_after_a_while_one_call_tries() -> None:
    """The others are refused until it is back; then it is closed, or open for another while."""
    clock = FixedClock()
    breaker = Breaker(clock)
    fail(breaker, FAILURES_MAX)
    clock.at_s += OPEN_S

    breaker.enter()
    assert state(breaker) is BreakerState.HALF_OPEN
    with pytest.raises(Unavailable):
        breaker.enter()
    breaker.leave(failed=True)
    assert state(breaker) is BreakerState.OPEN
    with pytest.raises(Unavailable):
        breaker.enter()

    clock.at_s += OPEN_S
    breaker.enter()
    breaker.leave(failed=False)
    assert state(breaker) is BreakerState.CLOSED


def test_a_call_that_never_asked_says_nothing() -> None:
    """One that was cancelled before it had a thread neither opens nor closes it."""
    clock = FixedClock()
    breaker = Breaker(clock)
    fail(breaker, FAILURES_MAX)
    clock.at_s += OPEN_S

    breaker.enter()
    breaker.leave(failed=None)

    assert state(breaker) is BreakerState.OPEN
    breaker.enter()
