"""``interfaces.Maintenance`` in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from keepstep.interfaces import Clock
    from keepstep.memory.database import MemoryDatabase


class MemoryMaintenance:
    """Housekeeping of a log in memory.

    Args:
        database: the tables.
        clock: what the database's own clock shows.
    """

    def __init__(self, database: MemoryDatabase, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def ping(self) -> None:
        """As ``Maintenance.ping``. Cancel-safe."""
        await self._arrive()

    async def epoch(self) -> int:
        """As ``Maintenance.epoch``. Cancel-safe."""
        await self._arrive()
        return self._database.epoch

    async def now_ms(self) -> int:
        """As ``Maintenance.now_ms``. Cancel-safe."""
        await self._arrive()
        return self._clock.now_ms()

    async def make_partitions(self, *, now_ms: int, ahead: int) -> int:
        """As ``Maintenance.make_partitions``: memory has none to make. Cancel-safe."""
        del now_ms, ahead
        await self._arrive()
        return 0

    async def expire_payloads(self, *, now_ms: int, rows_max: int) -> int:
        """As ``Maintenance.expire_payloads``. Cancel-safe."""
        await self._arrive()
        expired = 0
        for events in self._database.events.values():
            for index, row in enumerate(events):
                if expired < rows_max and row.expires_at_ms is not None and row.expires_at_ms <= now_ms:
                    events[index] = replace(row, payload=None, expires_at_ms=None)
                    expired += 1
        return expired

    async def _arrive(self) -> None:
        await trio.lowlevel.checkpoint()
        self._database.check_here()
