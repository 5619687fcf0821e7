"""Lets the oldest events go, in steps between which publishing has the database to itself (eventlog/retention.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keepstep.eventlog.retention import (
    EVENTS_PER_STEP_MAX,
    EVENTS_PER_STEP_MIN,
    PARTITIONS_PER_RUN_MAX,
    ROWS_PER_STEP_MAX,
    ROWS_PER_STEP_MIN,
)
from keepstep.pacing import GENTLE, AdaptedSteps, Pace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keepstep.eventlog.retention import Retention, RetentionRules
    from keepstep.interfaces import Clock
    from keepstep.telemetry import Log, Metrics

STEPS_MAX: Final = 2_000
"""Steps of each kind in one run; what is left waits for the next."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one run did.

    Attributes:
        events: that left their streams.
        rows: removed one by one.
        partitions: dropped, by name.
        is_done: nothing was left to do.
    """

    events: int
    rows: int
    partitions: tuple[str, ...]
    is_done: bool


class RetentionRun:
    """Runs of the clean-up of events.

    Args:
        retention: does the steps.
        clock: the one ``received_at`` follows.
        rules: how long events stay, as it is set now.
        metrics: counted into.
        logger: told of runs that did something.
        pace: how much of the time the steps may take.
    """

    def __init__(
        self,
        retention: Retention,
        clock: Clock,
        rules: Callable[[], RetentionRules],
        *,
        metrics: Metrics,
        logger: Log,
        pace: Pace = GENTLE,
    ) -> None:
        self._retention = retention
        self._pace = pace
        self._advancing = AdaptedSteps(pace, rows_min=EVENTS_PER_STEP_MIN, rows_max=EVENTS_PER_STEP_MAX)
        self._removing = AdaptedSteps(pace, rows_min=ROWS_PER_STEP_MIN, rows_max=ROWS_PER_STEP_MAX)
        self._clock = clock
        self._rules = rules
        self._metrics = metrics
        self._logger = logger

    async def run(self) -> Pruned:
        """Advance tails, drop partitions, remove rows: as much as one run may. Cancel-safe between steps.

        Raises:
            Unavailable: the database is away; what was done stays done.
        """
        events, advanced = await self._repeat(self._advancing, self._advance)
        dropped = await self._drop()
        rows, removed = await self._repeat(self._removing, self._remove)
        await self.measure()
        done = Pruned(events, rows, tuple(dropped), advanced and removed)
        if events or rows or dropped:
            self._logger.info("events_pruned", count=events, rows=rows, partitions=dropped)
        return done

    async def clean_up(self) -> None:
        """``run``, as one of the server's jobs. Raises Unavailable."""
        await self.run()

    async def measure(self) -> None:
        """Tell the metrics how far it is. Raises Unavailable."""
        now_ms = self._clock.now_ms()
        state = await self._retention.state(now_ms=now_ms, rules=self._rules())
        age_ms = 0 if state.oldest_at_ms is None else max(0, now_ms - state.oldest_at_ms)
        self._metrics.oldest_event_seconds.set(age_ms / 1000)
        self._metrics.retention_overdue_seconds.set(state.overdue_ms / 1000)
        self._metrics.pruned_rows_waiting.set(state.waiting_rows)

    async def _drop(self) -> list[str]:
        """Partition by partition, with rests: whoever publishes looks the partitions up anew after each."""
        dropped: list[str] = []
        while len(dropped) < PARTITIONS_PER_RUN_MAX:
            names = await self._pace.step(
                lambda: self._retention.drop_partitions(now_ms=self._clock.now_ms(), partitions_max=1)
            )
            if not names:
                break
            self._metrics.dropped_partitions.inc(len(names))
            dropped += names
        return dropped

    async def _advance(self, events_max: int) -> int | None:
        """One step of a tail; how many events, ``None`` where there is nothing to do."""
        step = await self._retention.advance_tail(
            now_ms=self._clock.now_ms(), rules=self._rules(), events_max=events_max
        )
        if step is None:
            return None
        self._metrics.pruned_events.inc(step.to_seq - step.from_seq)
        return step.to_seq - step.from_seq

    async def _remove(self, rows_max: int) -> int | None:
        removed = await self._retention.remove_rows(rows_max=rows_max)
        self._metrics.pruned_rows.inc(removed)
        return removed or None

    async def _repeat(self, steps: AdaptedSteps, step: Callable[[int], Awaitable[int | None]]) -> tuple[int, bool]:
        """Step by step, with rests; the sum, and whether nothing was left."""
        total = 0
        for _ in range(STEPS_MAX):
            count = await steps.step(step)
            if count is None:
                return total, True
            total += count
        return total, False
