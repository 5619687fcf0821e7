"""``interfaces.Accounts`` over PostgreSQL: users, devices, sessions, ack positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from keepstep.interfaces import ListedDevice
from keepstep.model import (
    CHANGES_MAX,
    SESSION_LOST,
    Capability,
    ClonedDevice,
    DeviceEntry,
    DevicePk,
    KnownDevice,
    Principal,
    RevokedDevice,
    UserPk,
)
from keepstep.postgres.arrays import bigints, byteas, texts
from keepstep.postgres.queries import query

if TYPE_CHECKING:
    from keepstep.postgres.pool import Connection, Database

T = TypeVar("T")

REASON_CHARACTERS_MAX: Final = 64
"""Longest reason that is recorded for the end of a session; the rest is cut off."""
SESSIONS_MAX: Final = 500
"""Sessions that one statement says to be open."""


class PostgresAccounts:
    """Users, devices and sessions. All methods raise Unavailable while the database is away.

    Args:
        database: where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # A session is closed by whoever opened it: its key is remembered here, so that no index on ids is needed.
        self._open: dict[bytes, tuple[UserPk, DevicePk, int]] = {}

    async def principal(self, user_key: bytes, device_id: bytes) -> Principal | None:
        """The live device, or ``None`` for an unknown user or device and for one that has ended. Cancel-safe."""
        known = await self.device(user_key, device_id)
        return None if known is None or known.revoked_seq is not None else known.principal

    async def device(self, user_key: bytes, device_id: bytes) -> KnownDevice | None:
        """The device, live or ended, or ``None`` for an unknown user or device. Cancel-safe."""
        ((is_known, *row),) = await self._rows("find_device", user_id=user_key, device_id=device_id)
        user_pk, device_pk, device_key, capabilities, expires_at_ms, manage_from_ms, revoked_seq = row
        principal = Principal(
            UserPk(user_pk),
            user_key,
            DevicePk(device_pk),
            device_id,
            device_key,
            Capability(capabilities),
            expires_at_ms,
            manage_from_ms,
        )
        known = KnownDevice(principal, revoked_seq)  # made in any case: by the clock, unknown is as known
        return known if is_known else None

    async def user(self, user_key: bytes) -> UserPk | None:
        """The user's row number, ``None`` for an unknown user. Cancel-safe."""
        rows = await self._rows("find_enabled_user", user_id=user_key)
        return UserPk(rows[0][0]) if rows else None

    async def revoked_since(self, since_ms: int) -> list[RevokedDevice]:
        """As ``Accounts.revoked_since``. Cancel-safe."""
        rows = await self._rows("read_revoked", since_ms=since_ms, rows_max=CHANGES_MAX)
        return [RevokedDevice(UserPk(user_pk), DevicePk(device_pk), seq) for user_pk, device_pk, seq in rows]

    async def record_clone(self, principal: Principal, *, now_ms: int) -> None:
        """As ``Accounts.record_clone``. A cancellation waits for the record."""
        await self._rows(
            "record_clone", user_pk=int(principal.user_pk), device_pk=int(principal.device_pk), now_ms=now_ms
        )

    async def cloned_since(self, since_ms: int) -> list[ClonedDevice]:
        """As ``Accounts.cloned_since``. Cancel-safe."""
        rows = await self._rows("read_cloned", since_ms=since_ms, rows_max=CHANGES_MAX)
        return [ClonedDevice(UserPk(user_pk), device_id, cloned_at) for user_pk, device_id, cloned_at in rows]

    async def devices(self, user_pk: UserPk) -> list[ListedDevice]:
        """All devices of a user, also those that have ended, in order of enrolment. Cancel-safe."""
        rows = await self._rows_of("read_devices", user_pk=int(user_pk))
        return [
            ListedDevice(
                DevicePk(row[0]),
                DeviceEntry(row[1], row[2], row[3], Capability(row[4]), *row[5:8]),
                manage_from_ms=row[8],
                revoked=None if row[9] is None else (row[9], row[10]),
                last_seen_ms=row[11],
            )
            for row in rows
        ]

    async def open_session(self, principal: Principal, session_id: bytes, *, now_ms: int) -> int:
        """Record a session; returns the device's next ``session_no``, which fences its older sessions.

        A cancellation waits for the record. Where the answer is lost a number may be left out; none is given twice.
        """
        rows = await self._rows(
            "open_session",
            user_pk=int(principal.user_pk),
            device_pk=int(principal.device_pk),
            session_id=session_id,
            now_ms=now_ms,
        )
        session_no = int(rows[0][0])
        self._open[session_id] = (principal.user_pk, principal.device_pk, session_no)
        return session_no

    async def close_session(self, session_id: bytes, *, now_ms: int, reason: str) -> None:
        """Record the end of a session that was opened here; of another one nothing is recorded.

        A cancellation waits for the record.
        """
        key = self._open.pop(session_id, None)
        if key is None:
            return
        user_pk, device_pk, session_no = key
        arguments = {
            "user_pk": int(user_pk),
            "device_pk": int(device_pk),
            "session_no": session_no,
            "now_ms": now_ms,
            "reason": reason[:REASON_CHARACTERS_MAX],
            "lost": SESSION_LOST,
        }
        await self._ask(lambda connection: connection.execute(query("close_session"), arguments))

    async def keep_sessions(self, *, now_ms: int) -> None:
        """As ``Accounts.keep_sessions``: in bounded statements, each a transaction of its own."""
        opened = sorted(self._open.values())
        for start in range(0, len(opened), SESSIONS_MAX):
            user_pks, device_pks, session_nos = zip(*opened[start : start + SESSIONS_MAX], strict=True)
            devices = {"user_pks": bigints(user_pks), "device_pks": bigints(device_pks), "now_ms": now_ms}
            sessions = {**devices, "session_nos": bigints(session_nos), "lost": SESSION_LOST}
            await self._run("keep_sessions", sessions)
            await self._run("see_devices", devices)

    async def save_acks(self, principal: Principal, positions: dict[str, tuple[int, bytes]]) -> None:
        """Move ack positions up, never down nor above the head; streams that are not there are left out.

        Cancel-safe.
        """
        arguments = {
            "user_pk": int(principal.user_pk),
            "device_pk": int(principal.device_pk),
            "names": texts(list(positions)),
            "seqs": bigints([seq for seq, _ in positions.values()]),
            "chains": byteas([chain16 for _, chain16 in positions.values()]),
        }
        await self._ask(lambda connection: connection.execute(query("save_acks"), arguments))

    async def acks(self, principal: Principal) -> dict[str, int]:
        """The device's ack positions by stream name. Cancel-safe."""
        of_device = {"user_pk": int(principal.user_pk), "device_pk": int(principal.device_pk)}
        return dict(await self._rows_of("read_acks", **of_device))

    async def _rows_of(self, statement: str, /, *, user_pk: int, **arguments: int) -> list[Any]:
        """Behind the second wall: of that user only, whatever the statement asks for."""
        arguments["user_pk"] = user_pk
        return await self._database.read_as(
            user_pk,
            lambda connection: list[Any](connection.execute(query(statement), arguments, binary=True).fetchall()),
        )

    async def _rows(self, statement: str, /, **arguments: object) -> list[Any]:
        return await self._ask(
            lambda connection: list[Any](connection.execute(query(statement), arguments, binary=True).fetchall())
        )

    async def _run(self, statement: str, arguments: dict[str, object]) -> None:
        await self._ask(lambda connection: connection.execute(query(statement), arguments))

    async def _ask(self, ask: Callable[[Connection], T]) -> T:
        return await self._database.accounts.run(lambda lease: lease.ask(ask))
