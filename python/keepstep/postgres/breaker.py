"""A circuit breaker: while what is asked is away, calls fail at once instead of each waiting for its own timeout."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from keepstep.errors import Unavailable

if TYPE_CHECKING:
    from keepstep.interfaces import Clock

FAILURES_MAX: Final = 3
"""Failures in a row that open the breaker."""
OPEN_S: Final = 1.0
"""Seconds it stays open where nothing else is said."""


class BreakerState(enum.Enum):
    """What the breaker does with the next call."""

    CLOSED = "closed"
    """Lets it through."""
    HALF_OPEN = "half_open"
    """One call is trying; the others are refused until it is back."""
    OPEN = "open"
    """Refuses it."""


class Breaker:
    """Belongs to the Trio thread. ``enter`` before a call, ``leave`` after it, whatever came of it.

    Args:
        clock: whose monotonic seconds count.
        what: that is asked, in words.
        open_s: seconds it stays open before one call may try again.
    """

    def __init__(self, clock: Clock, *, what: str = "the database", open_s: float = OPEN_S) -> None:
        self._clock = clock
        self._what = what
        self._open_s = open_s
        self._failures = 0
        self._opened_at_s = 0.0
        self._trying = False

    @property
    def state(self) -> BreakerState:
        """What would happen to the next call."""
        if self._failures < FAILURES_MAX:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._trying else BreakerState.OPEN

    def enter(self) -> None:
        """Let a call through.

        Raises:
            Unavailable: not now; with the time after which it makes sense to ask again.
        """
        if self.state is BreakerState.CLOSED:
            return
        wait_s = self._opened_at_s + self._open_s - self._clock.monotonic_s()
        if self._trying or wait_s > 0:
            raise Unavailable(f"{self._what} does not answer", retry_after_ms=max(int(wait_s * 1000), 0) or 1)
        self._trying = True

    def leave(self, *, failed: bool | None) -> None:
        """A call is over. ``failed``: whether it was not there for it; ``None`` where it was never asked."""
        self._trying = False
        if failed:
            self._failures += 1
            self._opened_at_s = self._clock.monotonic_s()
        elif failed is not None:
            self._failures = 0
