"""``verification.Source`` over PostgreSQL: each user in one read-only snapshot, rows in bounded pages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import psycopg

from keepstep.errors import StartupError
from keepstep.model import RetentionClass
from keepstep.postgres.queries import EVENT_TABLES, query
from keepstep.verification.account import StoredDevice
from keepstep.verification.database import StoredUser, Stray, verify
from keepstep.verification.kept import KeptEvent
from keepstep.verification.stored import StoredEvent, StoredSnapshot, StoredStream, Winner

if TYPE_CHECKING:
    from keepstep.verification.faults import Progress, Report

CONNECT_TIMEOUT_S: Final = 10
"""Seconds for the connection; libpq takes whole ones."""
USERS_PAGE: Final = 1_000
EVENTS_PAGE: Final = 256
"""Rows in memory at a time: with the largest payloads a server takes, 64 MiB."""
STRAYS_MAX: Final = 1_000
"""Streams that rows without one are told of, for each table."""


def verify_database(
    url: str,
    *,
    now_ms: int,
    user_key: bytes | None = None,
    stream: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Verify everything in a database. Blocks for as long as it takes; changes nothing, and servers may go on.

    Args:
        url: of the owner of the tables: others are shown the rows of one user only.
        now_ms: unix milliseconds, now: payloads whose time is over when they are read may be gone.
        user_key: only this user.
        stream: only streams of this name.
        progress: called after each page of rows and each user.

    Raises:
        StartupError: the database cannot be read, or its schema is another one than this keepstep's.
    """
    try:
        with psycopg.connect(
            url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, application_name="keepstep verify"
        ) as connection:
            for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
                connection.execute("SELECT set_config(%s, '0', false)", [name])
            _check_owner(connection)
            source = PostgresSource(connection)
            return verify(
                source,
                now_ms=now_ms,
                monotonic_s=time.monotonic,
                user_key=user_key,
                stream=stream,
                progress=progress,
            )
    except psycopg.Error as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise StartupError(f"the database cannot be verified: {reason}") from error


def _check_owner(connection: psycopg.Connection) -> None:
    """Row-level security hides rows from everybody else, which would look as if they were missing."""
    row = connection.execute("SELECT row_security_active(to_regclass('users'))").fetchone()
    if row == (None,):
        raise StartupError("the database cannot be verified: there is nothing of keepstep in it")
    if row == (True,):
        raise StartupError("the database cannot be verified: connect as the role that owns its tables")


class PostgresSource:
    """A database that is read over one connection, which is in autocommit."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def users(self, user_key: bytes | None) -> Iterator[int]:
        """As ``verification.Source.users``."""
        after = 0
        while True:
            arguments = {"after": after, "user_id": user_key, "rows_max": USERS_PAGE}
            rows = self._connection.execute(query("verified_users"), arguments).fetchall()
            for (after,) in rows:
                yield after
            if len(rows) < USERS_PAGE:
                return

    @contextmanager
    def snapshot(self, user_pk: int) -> Iterator[_Snapshot | None]:
        """As ``verification.Source.snapshot``."""
        with self._connection.transaction():
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            row = self._connection.execute(query("verified_user"), {"user_pk": user_pk}, binary=True).fetchone()
            yield None if row is None else _Snapshot(self._connection, user_pk, StoredUser(*row))

    def strays(self, user_key: bytes | None) -> list[Stray]:
        """As ``verification.Source.strays``."""
        strays: list[Stray] = []
        arguments = {"user_id": user_key, "rows_max": STRAYS_MAX}
        for retention_class in RetentionClass:
            rows = self._connection.execute(
                query("stray_events", retention_class),
                arguments | {"retention_class": int(retention_class)},
                binary=True,
            )
            strays += [Stray(EVENT_TABLES[retention_class], *row) for row in rows]
        strays += [Stray(*row) for row in self._connection.execute(query("stray_rows"), arguments, binary=True)]
        return strays


class _Snapshot:
    """One user in an open transaction."""

    def __init__(self, connection: psycopg.Connection, user_pk: int, user: StoredUser) -> None:
        self._connection = connection
        self._user_pk = user_pk
        self._user = user

    @property
    def user(self) -> StoredUser:
        """As ``verification.UserSnapshot.user``."""
        return self._user

    def devices(self) -> list[StoredDevice]:
        """As ``verification.UserSnapshot.devices``."""
        return [StoredDevice(*row) for row in self._rows("verified_devices")]

    def streams(self) -> list[StoredStream]:
        """As ``verification.UserSnapshot.streams``."""
        return [StoredStream(*row) for row in self._rows("verified_streams")]

    def details(self, stream: StoredStream) -> StoredStream:
        """As ``verification.UserSnapshot.details``."""
        place = {"stream_pk": stream.stream_pk}
        return replace(
            stream,
            authors=[tuple(row) for row in self._rows("verified_authors", **place)],
            snapshots=[StoredSnapshot(*row) for row in self._rows("verified_snapshots", **place)],
            positions=[tuple(row) for row in self._rows("verified_positions", **place)],
            rewinds=[tuple(row) for row in self._rows("verified_rewinds", **place)],
        )

    def events(self, stream: StoredStream) -> Iterator[list[StoredEvent]]:
        """As ``verification.UserSnapshot.events``."""
        arguments = {"user_pk": self._user_pk, "stream_pk": stream.stream_pk, "tail_seq": stream.tail_seq}
        with self._connection.cursor(name="verified_events") as cursor:
            cursor.execute(query("verified_events", stream.retention_class), arguments, binary=True)
            while rows := cursor.fetchmany(EVENTS_PAGE):
                yield [StoredEvent(*row) for row in rows]

    def kept(self, stream: StoredStream) -> list[KeptEvent]:
        """As ``verification.UserSnapshot.kept``."""
        return [KeptEvent(*row) for row in self._rows("verified_kept", stream_pk=stream.stream_pk)]

    def winners(self, stream: StoredStream, keys: Sequence[bytes]) -> Mapping[bytes, Winner]:
        """As ``verification.UserSnapshot.winners``."""
        rows = self._rows("verified_winners", stream_pk=stream.stream_pk, keys=list(keys))
        return {key: Winner(seq, hlc, device_id) for key, seq, hlc, device_id in rows}

    def winners_count(self, stream: StoredStream) -> int:
        """As ``verification.UserSnapshot.winners_count``."""
        ((count,),) = self._rows("count_winners", stream_pk=stream.stream_pk, tail_seq=stream.tail_seq)
        return int(count)

    def _rows(self, name: str, **arguments: object) -> list[Any]:
        return self._connection.execute(query(name), {"user_pk": self._user_pk, **arguments}, binary=True).fetchall()
