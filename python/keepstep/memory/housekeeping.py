"""``cleanup.Housekeeping`` and ``measuring.MeasuredDatabase`` in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from keepstep.measuring import DatabaseSize, TableSize
from keepstep.model import SESSION_LOST, inbox_of

if TYPE_CHECKING:
    from keepstep.memory.database import DeviceRow, MemoryDatabase, UserRow


class MemoryHousekeeping:
    """Clean-up and measuring of a database in memory. All methods are cancel-safe.

    Args:
        database: the tables.
    """

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def take_turn(self, name: str, holder: bytes, *, now_ms: int, until_ms: int) -> bool:
        """As ``Housekeeping.take_turn``."""
        await self._arrive()
        has_it, until = self._database.turns.get(name, (holder, 0))
        if has_it != holder and until > now_ms:
            return False
        self._database.turns[name] = (holder, until_ms)
        return True

    async def close_lost_sessions(self, *, before_ms: int, rows_max: int) -> int:
        """As ``Housekeeping.close_lost_sessions``."""
        await self._arrive()
        seen = [
            (session_id, row, row.opened_at_ms if row.seen_at_ms is None else row.seen_at_ms)
            for session_id, row in self._database.sessions.items()
            if row.closed is None
        ]
        lost = [each for each in seen if each[2] < before_ms][:rows_max]
        for session_id, row, seen_at_ms in lost:
            self._database.sessions[session_id] = replace(row, closed=(seen_at_ms, SESSION_LOST))
        return len(lost)

    async def drop_sessions(self, *, before_ms: int, rows_max: int) -> int:
        """As ``Housekeeping.drop_sessions``."""
        await self._arrive()
        closed = [
            session_id
            for session_id, row in self._database.sessions.items()
            if row.closed is not None and row.closed[0] < before_ms
        ][:rows_max]
        for session_id in closed:
            del self._database.sessions[session_id]
        return len(closed)

    async def drop_invites(self, *, before_ms: int, rows_max: int) -> int:
        """As ``Housekeeping.drop_invites``."""
        await self._arrive()
        over = [
            code_hash
            for code_hash, row in self._database.invites.items()
            if row.expires_at_ms < before_ms or (row.used is not None and row.used[0] < before_ms)
        ][:rows_max]
        for code_hash in over:
            del self._database.invites[code_hash]
        return len(over)

    async def clean_devices(self, *, before_ms: int, now_ms: int, rows_max: int) -> int:
        """As ``Housekeeping.clean_devices``."""
        await self._arrive()
        cleaned = 0
        for user_pk, user in self._database.users.items():
            for device_pk, device in user.devices.items():
                seen_at_ms = device.entry.issued_at_ms if device.last_seen_at_ms is None else device.last_seen_at_ms
                cleaned_before = device.cleaned_at_ms is not None and device.cleaned_at_ms >= seen_at_ms
                if seen_at_ms < before_ms and not cleaned_before and cleaned < rows_max:
                    cleaned += self._clean(user_pk, user, device_pk, device, rows_max - cleaned)
                    if cleaned < rows_max:
                        device.cleaned_at_ms = now_ms
                        cleaned += 1
        return cleaned

    def _clean(self, user_pk: int, user: UserRow, device_pk: int, device: DeviceRow, rows_max: int) -> int:
        inbox = user.head(inbox_of(device.entry.device_id))
        gone = 0
        if inbox is not None:
            place = user_pk, inbox.stream_pk
            full = [row.seq for row in self._database.events[place] if row.payload is not None][:rows_max]
            for seq in full:
                self._database.drop_payload(place, seq)
            gone += len(full)
        sessions = [
            session_id
            for session_id, row in self._database.sessions.items()
            if (row.user_pk, row.device_pk) == (user_pk, device_pk) and row.closed is not None
        ][: rows_max - gone]
        for session_id in sessions:
            del self._database.sessions[session_id]
        gone += len(sessions)
        positions = list(device.acks)[: rows_max - gone]
        for stream_pk in positions:
            del device.acks[stream_pk]
        gone += len(positions)
        if gone < rows_max:
            gone += len(device.token_families)
            device.token_families.clear()
        return gone

    async def measure(self) -> DatabaseSize:
        """As ``MeasuredDatabase.measure``: memory knows how many events there are, and not what they take."""
        await self._arrive()
        rows = [row for events in self._database.events.values() for row in events]
        oldest = min((row.received_at_ms for row in rows), default=None)
        return DatabaseSize(0, [TableSize("events", len(rows), 0, 0)], oldest)

    async def _arrive(self) -> None:
        await trio.lowlevel.checkpoint()
        self._database.check_here()
