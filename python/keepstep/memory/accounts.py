"""``interfaces.Accounts`` in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from keepstep.interfaces import ListedDevice, OpenedSession
from keepstep.memory.database import SessionRow
from keepstep.model import (
    CHANGES_MAX,
    DEVICES_STREAM,
    SESSION_LOST,
    SESSIONS_PER_DEVICE_MAX,
    ClonedDevice,
    DevicePk,
    KnownDevice,
    Position,
    Principal,
    RevokedDevice,
    StreamPk,
    UserPk,
)

if TYPE_CHECKING:
    from keepstep.interfaces import Claim
    from keepstep.memory.database import DeviceRow, MemoryDatabase


class MemoryAccounts:
    """Users, devices and sessions in memory.

    Args:
        database: the tables.
    """

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database
        self._open: set[bytes] = set()

    async def principal(self, user_key: bytes, device_id: bytes) -> Principal | None:
        """As ``Accounts.principal``. Cancel-safe."""
        known = await self.device(user_key, device_id)
        return None if known is None or known.revoked_seq is not None else known.principal

    async def device(self, user_key: bytes, device_id: bytes) -> KnownDevice | None:
        """As ``Accounts.device``. Cancel-safe."""
        await self._arrive()
        user_pk = self._database.user_pk(user_key)
        if user_pk is None or self._database.users[user_pk].disabled_at_ms is not None:
            return None
        for device_pk, row in self._database.users[user_pk].devices.items():
            entry = row.entry
            if entry.device_id == device_id:
                principal = Principal(
                    UserPk(user_pk),
                    user_key,
                    DevicePk(device_pk),
                    device_id,
                    entry.device_key,
                    entry.capabilities,
                    entry.expires_at_ms,
                    row.manage_from_ms,
                )
                return KnownDevice(principal, None if row.revoked is None else row.revoked[1])
        return None

    async def user(self, user_key: bytes) -> UserPk | None:
        """As ``Accounts.user``. Cancel-safe."""
        await self._arrive()
        user_pk = self._database.user_pk(user_key)
        if user_pk is None or self._database.users[user_pk].disabled_at_ms is not None:
            return None
        return UserPk(user_pk)

    async def revoked_since(self, since_ms: int) -> list[RevokedDevice]:
        """As ``Accounts.revoked_since``. Cancel-safe."""
        await self._arrive()
        revoked = [
            (row.revoked, RevokedDevice(UserPk(user_pk), DevicePk(device_pk), row.revoked[1]))
            for user_pk, user in self._database.users.items()
            for device_pk, row in user.devices.items()
            if row.revoked is not None and row.revoked[0] >= since_ms
        ]
        revoked.sort(key=lambda each: each[0], reverse=True)
        return [device for _, device in revoked[:CHANGES_MAX]]

    async def record_clone(self, principal: Principal, *, now_ms: int) -> None:
        """As ``Accounts.record_clone``. Cancel-safe: it was recorded or it was not."""
        await self._arrive()
        self._device(principal).cloned_at_ms = now_ms

    async def cloned_since(self, since_ms: int) -> list[ClonedDevice]:
        """As ``Accounts.cloned_since``. Cancel-safe."""
        await self._arrive()
        cloned = [
            ClonedDevice(UserPk(user_pk), row.entry.device_id, row.cloned_at_ms)
            for user_pk, user in self._database.users.items()
            for row in user.devices.values()
            if row.cloned_at_ms is not None and row.cloned_at_ms >= since_ms
        ]
        return sorted(cloned, key=lambda each: each.cloned_at_ms, reverse=True)[:CHANGES_MAX]

    async def devices(self, user_pk: UserPk) -> list[ListedDevice]:
        """As ``Accounts.devices``. Cancel-safe."""
        await self._arrive()
        user = self._database.users.get(user_pk)
        rows = user.devices if user is not None else {}
        return [
            ListedDevice(DevicePk(device_pk), row.entry, row.manage_from_ms, row.revoked, row.last_seen_at_ms)
            for device_pk, row in rows.items()
        ]

    async def open_session(self, claim: Claim, session_id: bytes, *, now_ms: int) -> OpenedSession | None:
        """As ``Accounts.open_session``. Cancel-safe: it was recorded or it was not."""
        known = await self.device(claim.user_key, claim.device_id)
        if known is None:
            return None
        principal = known.principal
        head = self._database.users[principal.user_pk].head(DEVICES_STREAM)
        assert head is not None
        position = Position(head.seq, head.chain)
        is_live = known.revoked_seq is None and not principal.is_expired(now_ms)
        if not is_live or principal.device_key != claim.device_key:
            return OpenedSession(known, None, StreamPk(head.stream_pk), position)
        device = self._device(principal)
        device.session_no += 1
        device.last_seen_at_ms = now_ms
        self._database.sessions[session_id] = SessionRow(
            principal.user_pk, principal.device_pk, device.session_no, now_ms
        )
        self._open.add(session_id)
        if device.session_no > SESSIONS_PER_DEVICE_MAX:
            self._forget_session(principal, device.session_no - SESSIONS_PER_DEVICE_MAX)
        return OpenedSession(known, device.session_no, StreamPk(head.stream_pk), position)

    def _forget_session(self, principal: Principal, session_no: int) -> None:
        key = principal.user_pk, principal.device_pk, session_no
        for session_id, row in tuple(self._database.sessions.items()):
            if (row.user_pk, row.device_pk, row.session_no) == key:
                del self._database.sessions[session_id]

    async def close_session(self, session_id: bytes, *, now_ms: int, reason: str) -> None:
        """As ``Accounts.close_session``. Cancel-safe."""
        await self._arrive()
        self._open.discard(session_id)
        session = self._database.sessions.get(session_id)
        if session is not None and _may_be_open(session):
            self._database.sessions[session_id] = replace(session, closed=(now_ms, reason))

    async def keep_sessions(self, *, now_ms: int) -> None:
        """As ``Accounts.keep_sessions``."""
        await self._arrive()
        for session_id in self._open:
            session = self._database.sessions.get(session_id)
            if session is not None and _may_be_open(session):
                self._database.sessions[session_id] = replace(session, closed=None, seen_at_ms=now_ms)
                device = self._database.users[session.user_pk].devices[session.device_pk]
                device.last_seen_at_ms = max(device.last_seen_at_ms or 0, now_ms)

    async def save_acks(self, principal: Principal, positions: dict[str, tuple[int, bytes]]) -> None:
        """As ``Accounts.save_acks``. Cancel-safe."""
        await self._arrive()
        user = self._database.users[principal.user_pk]
        acks = self._device(principal).acks
        for name, position in positions.items():
            head = user.head(name)
            if head is not None and head.seq >= position[0] > acks.get(head.stream_pk, (0, b""))[0]:
                acks[head.stream_pk] = position

    async def _arrive(self) -> None:
        await trio.lowlevel.checkpoint()
        self._database.check_here()

    def _device(self, principal: Principal) -> DeviceRow:
        return self._database.users[principal.user_pk].devices[principal.device_pk]


def _may_be_open(session: SessionRow) -> bool:
    """Whether nobody who knew has recorded its end."""
    return session.closed is None or session.closed[1] == SESSION_LOST
