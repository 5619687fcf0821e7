"""How fast work goes that can wait: short steps with rests between them, so that publishing has the database to itself.

A rest is as long as its step took, times a factor, and a step that took too long makes the next one smaller: where
others wait for the disk or for a core, such work makes room for them by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

REST_S_MAX: Final = 10.0
"""Seconds: a step that waited for a lock, or for a database that was away, does not hold the next up for longer."""
STEP_S: Final = 0.01
"""Seconds that a step of adapted size is to take: what is behind it waits about as long as for an fsync."""
GROWTH_MAX: Final = 2.0
"""By what a size changes from one step to the next at most."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How much of the time work may take.

    Attributes:
        rest_share: the rest after a step, as a multiple of what the step took; 0: none.
        rest_s_min: seconds that every rest takes at least, where there is one.
    """

    rest_share: float
    rest_s_min: float = 0.0

    async def step(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do one step, then rest. Cancel-safe in the rest; what ``work`` raises passes, without one."""
        began_s = trio.current_time()
        done = await work()
        await self.rest(trio.current_time() - began_s)
        return done

    async def rest(self, took_s: float) -> None:
        """The rest after a step of so many seconds. Cancel-safe."""
        if self.rest_share > 0:
            await trio.sleep(min(REST_S_MAX, max(self.rest_s_min, took_s * self.rest_share)))


GENTLE: Final = Pace(rest_share=9.0, rest_s_min=0.01)
"""Of a server that works for others: a tenth of one connection."""
AT_ONCE: Final = Pace(rest_share=0.0)
"""Of a command that somebody waits for while nobody publishes."""


class AdaptedSteps:
    """Steps whose size follows from how long they take: ``STEP_S`` each; without rests they are as large as may be.

    Args:
        pace: of the rests.
        rows_min: the smallest size.
        rows_max: the largest.
    """

    def __init__(self, pace: Pace, *, rows_min: int, rows_max: int) -> None:
        self._pace = pace
        self._rows_min = rows_min
        self._rows_max = rows_max
        self.rows = rows_min if pace.rest_share > 0 else rows_max

    async def step(self, work: Callable[[int], Awaitable[int | None]]) -> int | None:
        """Do one step of at most ``rows``, then rest; gives what it did. Cancel-safe in the rest; errors pass.

        A step that found less than it was asked for says nothing of how long a larger one would take.
        """
        began_s = trio.current_time()
        done = await work(self.rows)
        took_s = trio.current_time() - began_s
        if self._pace.rest_share > 0:
            growth = GROWTH_MAX if took_s <= 0 else min(GROWTH_MAX, max(1 / GROWTH_MAX, STEP_S / took_s))
            growth = growth if done is not None and done >= self.rows else min(growth, 1.0)
            self.rows = min(self._rows_max, max(self._rows_min, round(self.rows * growth)))
        await self._pace.rest(took_s)
        return done
