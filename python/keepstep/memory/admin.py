"""``administration.Administration`` in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from keepstep.administration import (
    CUTS_MAX,
    AuditEntry,
    Cut,
    ListedInvite,
    ListedSession,
    ListedUser,
    Quota,
    Statistics,
)
from keepstep.eventlog.store import KEYS_STREAM_PK
from keepstep.memory.database import InviteRow
from keepstep.memory.deletion import delete_user, forget_deleted, remove_deleted
from keepstep.memory.store import raise_auth_epoch
from keepstep.model import DevicePk, UserPk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepstep.memory.database import MemoryDatabase, SessionRow, UserRow


class MemoryAdministration:
    """Administration of a database in memory. Every method is cancel-safe: it is done or it is not.

    Args:
        database: the tables.
    """

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    # -- the audit trail ------------------------------------------------------------------------------------------

    async def add_audit(self, entry: AuditEntry) -> None:
        """As ``Administration.add_audit``."""
        await self._arrive()
        trail = self._database.audit
        trail.append(replace(entry, audit_no=trail[-1].audit_no + 1 if trail else 1))

    async def audit(self, *, before: int | None, limit: int) -> list[AuditEntry]:
        """As ``Administration.audit``."""
        await self._arrive()
        trail = [entry for entry in self._database.audit if before is None or entry.audit_no < before]
        return trail[::-1][:limit]

    async def clean_up(self, *, audit_before_ms: int, cuts_before_ms: int, rows_max: int) -> int:
        """As ``Administration.clean_up``."""
        await self._arrive()
        old = [entry for entry in self._database.audit if entry.at_ms < audit_before_ms][:rows_max]
        self._database.audit = [entry for entry in self._database.audit if entry not in old]
        cuts = [place for place, at_ms in self._database.cuts.items() if at_ms < cuts_before_ms][:rows_max]
        for place in cuts:
            del self._database.cuts[place]
        return len(old) + len(cuts)

    # -- users ----------------------------------------------------------------------------------------------------

    async def users(self, *, after: int, limit: int) -> list[ListedUser]:
        """As ``Administration.users``."""
        await self._arrive()
        return [_listed(user_pk, user) for user_pk, user in self._users() if user_pk > after][:limit]

    async def user(self, user_key: bytes) -> ListedUser | None:
        """As ``Administration.user``."""
        await self._arrive()
        return next((_listed(user_pk, user) for user_pk, user in self._users() if user.user_key == user_key), None)

    async def set_disabled(self, user_pk: UserPk, *, disabled: bool, now_ms: int) -> None:
        """As ``Administration.set_disabled``."""
        await self._arrive()
        user = self._database.users.get(user_pk)
        if user is None or user.deleted_at_ms is not None or disabled == (user.disabled_at_ms is not None):
            return
        raise_auth_epoch(user)
        user.disabled_at_ms = now_ms if disabled else None
        if disabled:
            self._database.cuts[user_pk, 0, 0] = now_ms
        else:
            self._database.cuts.pop((user_pk, 0, 0), None)

    async def delete_user(self, user_pk: UserPk, user_key: bytes, *, now_ms: int) -> None:
        """As ``Administration.delete_user``."""
        await self._arrive()
        delete_user(self._database, user_pk, user_key, now_ms=now_ms)

    async def remove_deleted(self, *, before_ms: int, rows_max: int) -> int:
        """As ``Administration.remove_deleted``."""
        await self._arrive()
        return remove_deleted(self._database, before_ms=before_ms, rows_max=rows_max)

    async def forget_deleted(self, user_key: bytes) -> bool:
        """As ``Administration.forget_deleted``."""
        await self._arrive()
        return forget_deleted(self._database, user_key)

    async def set_quota(self, user_pk: UserPk, quota: Quota) -> None:
        """As ``Administration.set_quota``."""
        await self._arrive()
        if user_pk in self._database.users:
            self._database.users[user_pk].quota = quota
            raise_auth_epoch(self._database.users[user_pk])

    async def quota(self, user_pk: UserPk) -> Quota:
        """As ``Administration.quota``."""
        await self._arrive()
        user = self._database.users.get(user_pk)
        return Quota() if user is None else user.quota

    # -- sessions -------------------------------------------------------------------------------------------------

    async def sessions(self, *, user_pk: UserPk | None, after: bytes, limit: int) -> list[ListedSession]:
        """As ``Administration.sessions``."""
        await self._arrive()
        listed = [
            ListedSession(
                session_id,
                self._database.users[row.user_pk].user_key,
                self._database.users[row.user_pk].devices[row.device_pk].entry.device_id,
                row.session_no,
                row.opened_at_ms,
            )
            for session_id, row in self._open_sessions()
            if session_id > after and user_pk in (None, row.user_pk)
        ]
        return sorted(listed, key=lambda session: session.session_id)[:limit]

    async def cut_session(self, session_id: bytes, *, now_ms: int) -> bool:
        """As ``Administration.cut_session``."""
        await self._arrive()
        row = dict(self._open_sessions()).get(session_id)
        if row is None:
            return False
        self._database.cuts[row.user_pk, row.device_pk, row.session_no] = now_ms
        return True

    async def cuts_since(self, since_ms: int) -> list[Cut]:
        """As ``Administration.cuts_since``."""
        await self._arrive()
        cuts = [(at_ms, place) for place, at_ms in self._database.cuts.items() if at_ms >= since_ms]
        return [
            Cut(UserPk(user_pk), (DevicePk(device_pk), session_no) if device_pk else None)
            for _, (user_pk, device_pk, session_no) in sorted(cuts, reverse=True)[:CUTS_MAX]
        ]

    # -- invites and numbers --------------------------------------------------------------------------------------

    async def invites(self, *, after: bytes, limit: int) -> list[ListedInvite]:
        """As ``Administration.invites``."""
        await self._arrive()
        return [
            ListedInvite(code_hash, row.created_at_ms, row.expires_at_ms, row.note, row.used)
            for code_hash, row in sorted(self._database.invites.items())
            if code_hash > after
        ][:limit]

    async def add_invite(self, code_hash: bytes, *, note: str, now_ms: int, expires_at_ms: int) -> None:
        """As ``Administration.add_invite``."""
        await self._arrive()
        self._database.invites[code_hash] = InviteRow(now_ms, expires_at_ms, note)

    async def delete_invite(self, code_hash: bytes) -> bool:
        """As ``Administration.delete_invite``."""
        await self._arrive()
        return self._database.invites.pop(code_hash, None) is not None

    async def statistics(self) -> Statistics:
        """As ``Administration.statistics``."""
        await self._arrive()
        users = [user for _, user in self._users()]
        return Statistics(
            users=len(users),
            disabled_users=sum(user.disabled_at_ms is not None for user in users),
            devices=sum(_live_devices(user) for user in users),
            streams=sum(len(user.heads) for user in users),
            events=sum(head.seq for user in users for head in user.heads.values()),
            open_sessions=len(list(self._open_sessions())),
            database_bytes=None,
        )

    # -- rows -----------------------------------------------------------------------------------------------------

    def _users(self) -> Iterator[tuple[int, UserRow]]:
        """Accounts that have not been deleted, by row number."""
        return ((user_pk, user) for user_pk, user in sorted(self._database.users.items()) if user.deleted_at_ms is None)

    def _open_sessions(self) -> Iterator[tuple[bytes, SessionRow]]:
        """A device has one session: an older one that is still open ended with its node."""
        for session_id, row in self._database.sessions.items():
            user = self._database.users.get(row.user_pk)
            if row.closed is None and user is not None and user.devices[row.device_pk].session_no == row.session_no:
                yield session_id, row

    async def _arrive(self) -> None:
        await trio.lowlevel.checkpoint()
        self._database.check_here()


def _live_devices(user: UserRow) -> int:
    return sum(device.revoked is None for device in user.devices.values())


def _listed(user_pk: int, user: UserRow) -> ListedUser:
    return ListedUser(
        UserPk(user_pk),
        user.user_key,
        user.created_at_ms,
        user.disabled_at_ms,
        _live_devices(user),
        len(user.heads),
        user.quota,
        sum(head.stored_bytes for head in user.heads.values() if head.stream_pk > KEYS_STREAM_PK),
        sum(head.stored_bytes for head in user.heads.values() if head.stream_pk <= KEYS_STREAM_PK),
    )
