"""``interfaces.Accounts`` in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from keepstep.memory.database import SessionRow
from keepstep.model import DevicePk, Principal, UserPk

if TYPE_CHECKING:
    from keepstep.memory.database import DeviceRow, MemoryDatabase
    from keepstep.model import DeviceEntry


class MemoryAccounts:
    """Users, devices and sessions in memory.

    Args:
        database: the tables.
    """

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def principal(self, user_key: bytes, device_id: bytes) -> Principal | None:
        """As ``Accounts.principal``. Cancel-safe."""
        await self._arrive()
        user_pk = self._database.user_pk(user_key)
        if user_pk is None:
            return None
        for device_pk, row in self._database.users[user_pk].devices.items():
            entry = row.entry
            if entry.device_id == device_id:
                return Principal(
                    UserPk(user_pk),
                    user_key,
                    DevicePk(device_pk),
                    device_id,
                    entry.device_key,
                    entry.capabilities,
                    entry.expires_at_ms,
                )
        return None

    async def devices(self, user_pk: UserPk) -> list[tuple[DevicePk, DeviceEntry]]:
        """As ``Accounts.devices``. Cancel-safe."""
        await self._arrive()
        user = self._database.users.get(user_pk)
        rows = user.devices if user is not None else {}
        return [(DevicePk(device_pk), row.entry) for device_pk, row in rows.items()]

    async def open_session(self, principal: Principal, session_id: bytes, *, now_ms: int) -> int:
        """As ``Accounts.open_session``. Cancel-safe: it was recorded or it was not."""
        await self._arrive()
        device = self._device(principal)
        device.session_no += 1
        self._database.sessions[session_id] = SessionRow(
            principal.user_pk, principal.device_pk, device.session_no, now_ms
        )
        return device.session_no

    async def close_session(self, session_id: bytes, *, now_ms: int, reason: str) -> None:
        """As ``Accounts.close_session``. Cancel-safe."""
        await self._arrive()
        session = self._database.sessions.get(session_id)
        if session is not None and session.closed is None:
            self._database.sessions[session_id] = replace(session, closed=(now_ms, reason))

    async def save_acks(self, principal: Principal, positions: dict[str, tuple[int, bytes]]) -> None:
        """As ``Accounts.save_acks``. Cancel-safe."""
        await self._arrive()
        user = self._database.users[principal.user_pk]
        acks = self._device(principal).acks
        for name, position in positions.items():
            head = user.head(name)
            if head is not None and position[0] > acks.get(head.stream_pk, (0, b""))[0]:
                acks[head.stream_pk] = position

    async def acks(self, principal: Principal) -> dict[str, int]:
        """As ``Accounts.acks``. Cancel-safe."""
        await self._arrive()
        heads = self._database.users[principal.user_pk].heads
        return {heads[stream_pk].name: seq for stream_pk, (seq, _) in self._device(principal).acks.items()}

    async def _arrive(self) -> None:
        await trio.lowlevel.checkpoint()
        self._database.check_here()

    def _device(self, principal: Principal) -> DeviceRow:
        return self._database.users[principal.user_pk].devices[principal.device_pk]
