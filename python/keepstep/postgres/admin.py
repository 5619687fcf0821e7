"""``administration.Administration`` over PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from keepstep import _keepstep
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
from keepstep.model import DevicePk, UserPk
from keepstep.postgres.arrays import bigints
from keepstep.postgres.deletion import delete_user, remove_deleted
from keepstep.postgres.queries import query

if TYPE_CHECKING:
    from keepstep.postgres.pool import Connection, Database, Pool

T = TypeVar("T")

BEFORE_ALL: Final = (1 << 63) - 1
"""No audit entry has a number as high."""


class PostgresAdministration:
    """Administration. All methods raise Unavailable while the database is away.

    Args:
        database: what is administrated.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- the audit trail ------------------------------------------------------------------------------------------

    async def add_audit(self, entry: AuditEntry) -> None:
        """As ``Administration.add_audit``. An entry whose answer is lost on the way here may be there twice."""
        await self._rows(
            "add_audit",
            at=entry.at_ms,
            request_id=entry.request_id,
            address=entry.address,
            action=entry.action,
            target=entry.target,
            status=entry.status,
        )

    async def audit(self, *, before: int | None, limit: int) -> list[AuditEntry]:
        """As ``Administration.audit``. Cancel-safe."""
        rows = await self._rows("read_audit", before=BEFORE_ALL if before is None else before, rows_max=limit)
        return [AuditEntry(*row) for row in rows]

    async def clean_up(self, *, audit_before_ms: int, cuts_before_ms: int, rows_max: int) -> int:
        """As ``Administration.clean_up``."""
        entries = await self._rows("clean_up_audit", before_ms=audit_before_ms, rows_max=rows_max)
        cuts = await self._rows("clean_up_cuts", before_ms=cuts_before_ms, rows_max=rows_max)
        return int(entries[0][0]) + int(cuts[0][0])

    # -- users ----------------------------------------------------------------------------------------------------

    async def users(self, *, after: int, limit: int) -> list[ListedUser]:
        """As ``Administration.users``. Cancel-safe."""
        return [_listed(row) for row in await self._rows("list_users", after=after, rows_max=limit)]

    async def user(self, user_key: bytes) -> ListedUser | None:
        """As ``Administration.user``. Cancel-safe."""
        rows = await self._rows("list_user", user_id=user_key)
        return _listed(rows[0]) if rows else None

    async def set_disabled(self, user_pk: UserPk, *, disabled: bool, now_ms: int) -> None:
        """As ``Administration.set_disabled``. On the connections whose commits a standby has to confirm."""

        def change(connection: Connection) -> None:
            with connection.transaction():
                # First the streams, in the order of every transaction: whoever stores an event of the user is waited
                # for, and whoever comes later sees that its devices have ended.
                # $devices by a statement of its own: the next one then sees also a stream that was just being created.
                connection.execute(query("lock_devices_streams"), {"user_pks": bigints([user_pk])})
                connection.execute(query("raise_auth_epoch"), {"user_pk": int(user_pk)})
                if disabled:
                    connection.execute(query("disable_user"), {"user_pk": int(user_pk), "now_ms": now_ms})
                else:
                    connection.execute(query("enable_user"), {"user_pk": int(user_pk)})

        await self._ask(change, self._database.append)

    async def delete_user(self, user_pk: UserPk, user_key: bytes, *, now_ms: int) -> None:
        """As ``Administration.delete_user``."""
        await delete_user(self._database, user_pk, user_key, now_ms=now_ms)

    async def remove_deleted(self, *, before_ms: int, rows_max: int) -> int:
        """As ``Administration.remove_deleted``."""
        return await remove_deleted(self._database, before_ms=before_ms, rows_max=rows_max)

    async def forget_deleted(self, user_key: bytes) -> bool:
        """As ``Administration.forget_deleted``."""
        return bool(await self._rows("forget_deleted", user_id=user_key, user_hash=_keepstep.blake3(user_key)))

    async def set_quota(self, user_pk: UserPk, quota: Quota) -> None:
        """As ``Administration.set_quota``."""
        user = {"user_pk": int(user_pk)}
        arguments = user | {
            "streams_max": quota.streams_max,
            "devices_max": quota.devices_max,
            "bytes_max": quota.bytes_max,
            "retention_days": quota.retention_days,
        }

        def change(connection: Connection) -> None:
            with connection.transaction():
                # As in set_disabled: with the epoch every node reads anew what it remembers of the account.
                connection.execute(query("lock_devices_streams"), {"user_pks": bigints([user_pk])})
                connection.execute(query("raise_auth_epoch"), user)
                connection.execute(query("set_quota"), arguments)

        await self._ask(change, self._database.append)

    async def quota(self, user_pk: UserPk) -> Quota:
        """As ``Administration.quota``. Cancel-safe."""
        rows = await self._rows("read_quota", user_pk=int(user_pk))
        return Quota(*rows[0]) if rows else Quota()

    # -- sessions -------------------------------------------------------------------------------------------------

    async def sessions(self, *, user_pk: UserPk | None, after: bytes, limit: int) -> list[ListedSession]:
        """As ``Administration.sessions``. Cancel-safe."""
        of = None if user_pk is None else int(user_pk)
        rows = await self._rows("list_sessions", user_pk=of, after=after, rows_max=limit)
        return [ListedSession(*row) for row in rows]

    async def cut_session(self, session_id: bytes, *, now_ms: int) -> bool:
        """As ``Administration.cut_session``."""
        return bool(await self._rows("cut_session", session_id=session_id, now_ms=now_ms))

    async def cuts_since(self, since_ms: int) -> list[Cut]:
        """As ``Administration.cuts_since``. Cancel-safe."""
        return [
            Cut(UserPk(user_pk), (DevicePk(device_pk), session_no) if device_pk else None)
            for user_pk, device_pk, session_no in await self._rows("read_cuts", since_ms=since_ms, rows_max=CUTS_MAX)
        ]

    # -- invites and numbers --------------------------------------------------------------------------------------

    async def invites(self, *, after: bytes, limit: int) -> list[ListedInvite]:
        """As ``Administration.invites``. Cancel-safe."""
        return [
            ListedInvite(
                code_hash, created_at_ms, expires_at_ms, note, None if used_at_ms is None else (used_at_ms, user_key)
            )
            for code_hash, created_at_ms, expires_at_ms, note, used_at_ms, user_key in await self._rows(
                "list_invites", after=after, rows_max=limit
            )
        ]

    async def add_invite(self, code_hash: bytes, *, note: str, now_ms: int, expires_at_ms: int) -> None:
        """As ``Administration.add_invite``."""
        await self._rows("add_invite", code_hash=code_hash, note=note, now_ms=now_ms, expires_at=expires_at_ms)

    async def delete_invite(self, code_hash: bytes) -> bool:
        """As ``Administration.delete_invite``."""
        return bool(await self._rows("delete_invite", code_hash=code_hash))

    async def statistics(self) -> Statistics:
        """As ``Administration.statistics``. Cancel-safe."""
        (row,) = await self._rows("read_statistics")
        return Statistics(*row)

    # -- asking ---------------------------------------------------------------------------------------------------

    async def _rows(self, statement: str, /, **arguments: object) -> list[tuple[Any, ...]]:
        """Run a statement outside the log's connections; its rows, none where it gives none."""

        def ask(connection: Connection) -> list[tuple[Any, ...]]:
            cursor = connection.execute(query(statement), arguments, binary=True)
            return cursor.fetchall() if cursor.description else []

        return await self._ask(ask, self._database.accounts)

    async def _ask(self, ask: Callable[[Connection], T], pool: Pool) -> T:
        return await pool.run(lambda lease: lease.ask(ask))


def _listed(row: tuple[Any, ...]) -> ListedUser:
    user_pk, user_key, created_at_ms, disabled_at_ms, devices, streams, stored_bytes, reserved_bytes, *quota = row
    return ListedUser(
        UserPk(user_pk),
        user_key,
        created_at_ms,
        disabled_at_ms,
        devices,
        streams,
        Quota(*quota),
        stored_bytes,
        reserved_bytes,
    )
