"""``interfaces.Accounts`` over PostgreSQL: users, devices, sessions, ack positions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from keepstep.errors import Unavailable
from keepstep.gathering import Gathering
from keepstep.interfaces import ListedDevice, OpenedSession
from keepstep.model import (
    CHANGES_MAX,
    SESSION_LOST,
    SESSIONS_PER_DEVICE_MAX,
    Capability,
    ClonedDevice,
    DeviceEntry,
    DevicePk,
    KnownDevice,
    Position,
    Principal,
    RevokedDevice,
    StreamPk,
    UserPk,
)
from keepstep.postgres.arrays import bigints, byteas, texts
from keepstep.postgres.queries import query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.interfaces import Claim
    from keepstep.postgres.pool import Database

REASON_CHARACTERS_MAX: Final = 64
"""Longest reason that is recorded for the end of a session; the rest is cut off."""
SESSIONS_MAX: Final = 500
"""Sessions that one statement says to be open."""
SESSIONS_TOGETHER_MAX: Final = 64
"""Sessions that one statement opens, or closes: it holds their devices' rows for so long."""
LOCKED_PAUSES_S: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 0.73)
"""Seconds after which a session is asked for again whose device's row somebody else had locked; 2 s in all."""

_Closing = tuple[UserPk, DevicePk, int, int, str]
"""(user_pk, device_pk, session_no, unix milliseconds, reason) of a session that is over."""


@dataclass(frozen=True, slots=True, eq=False)
class _Opening:
    """A session that is asked for."""

    claim: Claim
    session_id: bytes
    now_ms: int


class _Locked:
    """In place of a session: somebody else has its device's row locked."""


class PostgresAccounts:
    """Users, devices and sessions. All methods raise Unavailable while the database is away.

    Args:
        database: where they are.
        pause: waits for so many seconds, until a locked row may be free.
    """

    def __init__(self, database: Database, *, pause: Callable[[float], Awaitable[None]] = trio.sleep) -> None:
        self._database = database
        self._pause = pause
        # A session is closed by whoever opened it: its key is remembered here, so that no index on ids is needed.
        self._open: dict[bytes, tuple[UserPk, DevicePk, int]] = {}
        self._opening = Gathering(
            self._open_together,
            at_once=1,
            together_max=SESSIONS_TOGETHER_MAX,
            key=lambda each: (each.claim.user_key, each.claim.device_id, each.claim.device_key),
        )
        self._closing = Gathering(self._close_together, at_once=1, together_max=SESSIONS_TOGETHER_MAX)

    async def principal(self, user_key: bytes, device_id: bytes) -> Principal | None:
        """The live device, or ``None`` for an unknown user or device and for one that has ended. Cancel-safe."""
        known = await self.device(user_key, device_id)
        return None if known is None or known.revoked_seq is not None else known.principal

    async def device(self, user_key: bytes, device_id: bytes) -> KnownDevice | None:
        """The device, live or ended, or ``None`` for an unknown user or device. Cancel-safe."""
        (row,) = await self._rows("find_device", user_id=user_key, device_id=device_id)
        known = _known(user_key, device_id, row)
        return known if row[0] else None

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

    async def open_session(self, claim: Claim, session_id: bytes, *, now_ms: int) -> OpenedSession | None:
        """As ``Accounts.open_session``: with all that are opened at the same moment.

        A device whose row is locked, say by the end of its last session, is asked about again and holds up nobody else.
        A cancellation waits for the record. Where the answer is lost a number may be left out; none is given twice.
        Raises Unavailable also where the row was locked for as long as ``LOCKED_PAUSES_S``.
        """
        opening = _Opening(claim, session_id, now_ms)
        opened = await self._opening.ask(opening)
        pauses_s = iter(LOCKED_PAUSES_S)
        while isinstance(opened, _Locked):
            pause_s = next(pauses_s, None)
            if pause_s is None:
                raise Unavailable("a device's row was not free in time")
            await self._pause(pause_s)
            opened = await self._opening.ask(opening)
        if opened is not None and opened.session_no is not None:
            principal = opened.known.principal
            self._open[session_id] = (principal.user_pk, principal.device_pk, opened.session_no)
        return opened

    async def _open_together(self, asked: Sequence[_Opening]) -> list[OpenedSession | _Locked | None]:
        rows = await self._rows(
            "open_sessions",
            user_ids=byteas([each.claim.user_key for each in asked]),
            device_ids=byteas([each.claim.device_id for each in asked]),
            device_keys=byteas([each.claim.device_key for each in asked]),
            session_ids=byteas([each.session_id for each in asked]),
            now_ms=max(each.now_ms for each in asked),
            kept=SESSIONS_PER_DEVICE_MAX,
        )
        return [_opened(each.claim, row) for each, row in zip(asked, rows, strict=True)]

    async def close_session(self, session_id: bytes, *, now_ms: int, reason: str) -> None:
        """Record the end of a session that was opened here; of another one nothing is recorded.

        A cancellation waits for the record.
        """
        key = self._open.pop(session_id, None)
        if key is not None:
            await self._closing.ask((*key, now_ms, reason[:REASON_CHARACTERS_MAX]))

    async def _close_together(self, ended: Sequence[_Closing]) -> list[None]:
        user_pks, device_pks, session_nos, closed_ats, reasons = zip(*sorted(ended), strict=True)
        arguments: dict[str, object] = {
            "user_pks": bigints(user_pks),
            "device_pks": bigints(device_pks),
            "session_nos": bigints(session_nos),
            "closed_ats": bigints(closed_ats),
            "reasons": texts(reasons),
            "lost": SESSION_LOST,
        }
        await self._run("close_sessions", arguments)
        return [None] * len(ended)

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
        await self._run("save_acks", arguments)

    async def _rows_of(self, statement: str, /, *, user_pk: int, **arguments: int) -> list[Any]:
        """Behind the second wall: of that user only, whatever the statement asks for."""
        arguments["user_pk"] = user_pk
        return await self._database.read_as(
            user_pk,
            lambda connection: list[Any](connection.execute(query(statement), arguments, binary=True).fetchall()),
        )

    async def _rows(self, statement: str, /, **arguments: object) -> list[Any]:
        return await self._database.accounts.ask(statement, arguments)

    async def _run(self, statement: str, arguments: dict[str, object]) -> None:
        await self._database.accounts.ask(statement, arguments)


def _known(user_key: bytes, device_id: bytes, row: Sequence[Any]) -> KnownDevice:
    """A device as the database has it; made in any case: by the clock, unknown is as known."""
    _, user_pk, device_pk, device_key, capabilities, expires_at_ms, manage_from_ms, revoked_seq = row[:8]
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
    return KnownDevice(principal, revoked_seq)


def _opened(claim: Claim, row: Sequence[Any]) -> OpenedSession | _Locked | None:
    session_no, devices_pk, head_seq, head_chain, is_locked = row[8:]
    known = _known(claim.user_key, claim.device_id, row)
    opened = OpenedSession(known, session_no, StreamPk(devices_pk), Position(head_seq, head_chain))
    if is_locked:
        return _Locked()
    return opened if row[0] else None
