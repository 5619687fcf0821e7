"""``interfaces.Maintenance`` in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from keepstep.model import has_expired, inbox_of

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

    async def now_ms(self) -> int:
        """As ``Maintenance.now_ms``. Cancel-safe."""
        await self._arrive()
        return self._clock.now_ms()

    async def safe_at_ms(self) -> int:
        """As ``Maintenance.safe_at_ms``: ``MemoryDatabase.safe_at_ms``. Cancel-safe."""
        await self._arrive()
        return self._database.safe_at_ms

    async def make_partitions(self, *, now_ms: int, ahead: int) -> int:
        """As ``Maintenance.make_partitions``: memory has none to make. Cancel-safe."""
        del now_ms, ahead
        await self._arrive()
        return 0

    async def expire_payloads(self, *, now_ms: int, rows_max: int) -> int:
        """As ``Maintenance.expire_payloads``. Cancel-safe."""
        await self._arrive()
        expired = 0
        for place, events in self._database.events.items():
            for row in list(events):
                if expired < rows_max and has_expired(row.expires_at_ms, now_ms):
                    self._database.drop_payload(place, row.seq)
                    expired += 1
        return expired

    async def compact(self, *, now_ms: int, rows_max: int) -> int:
        """As ``Maintenance.compact``. Cancel-safe."""
        await self._arrive()
        due = [
            (place, seq)
            for place, losers in self._database.removals.items()
            for seq, due_at_ms in losers.items()
            if due_at_ms <= now_ms
        ][:rows_max]
        for place, seq in due:
            del self._database.removals[place][seq]
            self._database.drop_payload(place, seq)
        return len(due)

    async def empty_inboxes(self, *, now_ms: int, rows_max: int) -> int:
        """As ``Maintenance.empty_inboxes``. Cancel-safe."""
        del now_ms
        await self._arrive()
        full = [
            ((user_pk, head.stream_pk), row.seq)
            for user_pk, user in self._database.users.items()
            for device in user.devices.values()
            if (head := user.head(inbox_of(device.entry.device_id))) is not None
            for row in self._database.events[user_pk, head.stream_pk]
            if row.payload is not None and row.seq <= device.acks.get(head.stream_pk, (0, b""))[0]
        ][:rows_max]
        for place, seq in full:
            self._database.drop_payload(place, seq)
        return len(full)

    async def _arrive(self) -> None:
        await trio.lowlevel.checkpoint()
        self._database.check_here()
