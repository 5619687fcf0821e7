"""What the server does from time to time: follow the database's clock, make partitions, drop payloads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

import trio

from keepstep.errors import Unavailable
from keepstep.pacing import GENTLE

if TYPE_CHECKING:
    from keepstep.interfaces import Clock, Maintenance
    from keepstep.runtime import OffsetClock
    from keepstep.telemetry import Log, Metrics

DROP_ROWS_MAX: Final = 200
"""Payloads dropped in one transaction, which keeps everybody from the heads of their streams: some milliseconds."""
DROP_BATCHES_MAX: Final = 1_000
"""Transactions in one run; what is left waits for the next."""
ACK_SAVE_INTERVAL_S: Final = 5.0
"""How often acknowledged positions are saved; a crash costs a device that much to be sent again."""

KEEP_SESSIONS_S: Final = 600.0
"""How often a node says which sessions are open on it."""


class _Drop(Protocol):
    """One unit of dropping payloads: at most ``rows_max``; returns how many."""

    async def __call__(self, *, now_ms: int, rows_max: int) -> int:
        """Raises Unavailable."""


class Jobs:
    """The periodic jobs. A database that is away costs a run, any other fault ends the server.

    Args:
        maintenance: the log's housekeeping.
        machine_clock: this machine's.
        clock: follows the database's by what is measured here.
        save_acks: the gateway's.
        keep_sessions: says which sessions are open.
        others: further jobs by name, run as often as payloads are dropped.
        partitions_ahead: how many partitions beyond the running one are kept made.
        metrics: counted into.
        logger: told of runs that failed or did something.
    """

    def __init__(
        self,
        maintenance: Maintenance,
        machine_clock: Clock,
        clock: OffsetClock,
        save_acks: Callable[[], Awaitable[None]],
        keep_sessions: Callable[[], Awaitable[None]],
        others: Mapping[str, Callable[[], Awaitable[None]]],
        *,
        partitions_ahead: int,
        metrics: Metrics,
        logger: Log,
    ) -> None:
        self._maintenance = maintenance
        self._machine_clock = machine_clock
        self._clock = clock
        self._save_acks = save_acks
        self._keep_sessions = keep_sessions
        self._others = others
        self._partitions_ahead = partitions_ahead
        self._metrics = metrics
        self._logger = logger

    async def prepare(self) -> None:
        """What must be done once before the first event. Raises Unavailable."""
        await self.measure_clock()
        await self.make_partitions()

    async def run(
        self,
        *,
        clock_offset_interval_s: float,
        cleanup_interval_s: float,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """All jobs at their intervals, seconds, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._repeat, "clock_offset", clock_offset_interval_s, self.measure_clock)
            nursery.start_soon(self._repeat, "partitions", cleanup_interval_s, self.make_partitions)
            nursery.start_soon(self._repeat, "expire_payloads", cleanup_interval_s, self.expire_payloads)
            nursery.start_soon(self._repeat, "compact", cleanup_interval_s, self.compact)
            nursery.start_soon(self._repeat, "empty_inboxes", cleanup_interval_s, self.empty_inboxes)
            for name, job in self._others.items():
                nursery.start_soon(self._repeat, name, cleanup_interval_s, job)
            nursery.start_soon(self._repeat, "save_acks", ACK_SAVE_INTERVAL_S, self._save_acks)
            nursery.start_soon(self._repeat, "keep_sessions", KEEP_SESSIONS_S, self._keep_sessions)
            task_status.started()

    async def _repeat(self, name: str, interval_s: float, job: Callable[[], Awaitable[None]]) -> None:
        while True:
            await trio.sleep(interval_s)
            try:
                await job()
            except Unavailable:
                self._metrics.jobs.labels(name, "unavailable").inc()
                self._logger.warning("job_failed", job=name, code="unavailable")
            else:
                self._metrics.jobs.labels(name, "ok").inc()

    async def measure_clock(self) -> None:
        """Measure how far the database's clock is from this machine's, half the round trip taken off."""
        before_ms = self._machine_clock.now_ms()
        database_ms = await self._maintenance.now_ms()
        after_ms = self._machine_clock.now_ms()
        self._clock.offset_ms = database_ms - (before_ms + after_ms) // 2
        self._metrics.clock_offset_seconds.set(self._clock.offset_ms / 1000)

    async def make_partitions(self) -> None:
        """Make the event partitions of the time ahead."""
        made = await self._maintenance.make_partitions(now_ms=self._clock.now_ms(), ahead=self._partitions_ahead)
        if made:
            self._metrics.partitions_made.inc(made)
            self._logger.info("partitions_made", count=made)

    async def expire_payloads(self) -> None:
        """Drop what has outlived its TTL."""
        await self._drop(self._maintenance.expire_payloads, self._metrics.expired_payloads.inc)

    async def compact(self) -> None:
        """Drop what has lost its key."""
        await self._drop(self._maintenance.compact, self._metrics.compacted_payloads.inc)

    async def empty_inboxes(self) -> None:
        """Drop what the inboxes' devices have in safety."""
        await self._drop(self._maintenance.empty_inboxes, self._metrics.acked_payloads.inc)

    async def _drop(self, drop: _Drop, count: Callable[[float], None]) -> None:
        """Batch by batch with rests between them, until nothing is left or the run is long enough."""
        for _ in range(DROP_BATCHES_MAX):
            dropped = await GENTLE.step(lambda: drop(now_ms=self._clock.now_ms(), rows_max=DROP_ROWS_MAX))
            count(dropped)
            if dropped < DROP_ROWS_MAX:
                return
