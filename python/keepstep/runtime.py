"""The real clock, randomness and worker threads that ``server`` hands to everything else."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import trio

if TYPE_CHECKING:
    from keepstep.interfaces import Clock

T = TypeVar("T")

STEP_BACK_MS_MIN: Final = 1_000
"""A step back from here on is a clock that was set, and followed; a smaller one is an error of measurement."""


class SystemClock:
    """This machine's clocks."""

    def now_ms(self) -> int:
        """Wall clock, unix milliseconds; may step."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary point; never steps back."""
        return time.monotonic()


class OffsetClock:
    """A clock that follows another one by an offset, as nodes follow their database (protocol.md section 3).

    ``offset_ms`` is 0 until the first measurement. Each measurement has an error, and what was said to be over must not
    be said to be still to come: payloads are withheld by this clock and heads are signed by it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._latest_ms = 0
        self.offset_ms = 0

    def now_ms(self) -> int:
        """The followed clock as last measured, unix milliseconds; steps back by ``STEP_BACK_MS_MIN`` or not at all."""
        now_ms = self._clock.now_ms() + self.offset_ms
        if not 0 < self._latest_ms - now_ms < STEP_BACK_MS_MIN:
            self._latest_ms = now_ms
        return self._latest_ms

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary point; never steps back."""
        return self._clock.monotonic_s()


class SystemRandomness:
    """The operating system's cryptographic randomness."""

    def bytes(self, count: int) -> bytes:
        """``count`` unpredictable bytes."""
        return secrets.token_bytes(count)


class WorkerThreads:
    """Trio's worker threads."""

    async def run(self, function: Callable[[], T], *, limiter: trio.CapacityLimiter) -> T:
        """Run ``function`` in a worker thread.

        Cancellation: never abandons the thread; a cancelled caller waits for the function's end.
        """
        return await trio.to_thread.run_sync(function, limiter=limiter, abandon_on_cancel=False)
