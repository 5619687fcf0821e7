"""What the server does from time to time: follow the database's clock, make partitions, drop expired payloads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from keepstep.errors import Unavailable

if TYPE_CHECKING:
    from keepstep.interfaces import Clock, Maintenance
    from keepstep.runtime import OffsetClock
    from keepstep.telemetry import Log, Metrics

EXPIRE_ROWS_MAX: Final = 1_000
"""Payloads dropped in one transaction."""
EXPIRE_BATCHES_MAX: Final = 100
"""Transactions in one run; what is left waits for the next."""
ACK_SAVE_INTERVAL_S: Final = 5.0
"""How often acknowledged positions are saved; a crash costs a device that much to be sent again."""


class Jobs:
    """The periodic jobs. A database that is away costs a run, any other fault ends the server.

    Args:
        maintenance: the log's housekeeping.
        machine_clock: this machine's.
        clock: follows the database's by what is measured here.
        save_acks: the gateway's.
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
        *,
        partitions_ahead: int,
        metrics: Metrics,
        logger: Log,
    ) -> None:
        self._maintenance = maintenance
        self._machine_clock = machine_clock
        self._clock = clock
        self._save_acks = save_acks
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
            nursery.start_soon(self._repeat, "save_acks", ACK_SAVE_INTERVAL_S, self._save_acks)
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
        """Drop what has outlived its TTL, batch by batch."""
        for _ in range(EXPIRE_BATCHES_MAX):
            expired = await self._maintenance.expire_payloads(now_ms=self._clock.now_ms(), rows_max=EXPIRE_ROWS_MAX)
            self._metrics.expired_payloads.inc(expired)
            if expired < EXPIRE_ROWS_MAX:
                return
