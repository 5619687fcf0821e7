"""``restores.Restores`` over PostgreSQL, and the beginning of an epoch in it (protocol.md section 4)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, LiteralString, TypeVar, cast

import psycopg

from keepstep import _keepstep
from keepstep.errors import StartupError
from keepstep.model import Position
from keepstep.postgres import arrays
from keepstep.postgres.queries import query
from keepstep.protocol.chain import chain_0
from keepstep.restores import RECENT_MS, HealWindow, StreamRewind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keepstep.model import DevicePk, UserPk
    from keepstep.postgres.pool import Connection, Database

T = TypeVar("T")

_VOID: Final = ("void_challenges", "void_families", "void_links", "void_invites")


SERVER_GONE_S: Final = 3.0
"""How long a server that was stopped just now may take to be gone from its database, seconds."""
_LOOK_S: Final = 0.1
_SERVERS: Final = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND application_name LIKE 'keepstep %'"
)
"""Connections of servers: what ``postgres.pool`` opens names itself so."""


def begin_epoch(connection: Connection, *, at_least: int) -> tuple[int, int]:
    """Begin an epoch: rewinds for all streams, and nothing is let in by what was handed out before. One transaction.

    Access tokens name the epoch they are of, so they end with it.

    Args:
        connection: as the owner of the tables, outside a transaction; nobody else writes.
        at_least: the epoch is this one, or above the one that the database has.

    Returns:
        the epoch, and how many streams it sets back.

    Raises:
        psycopg.Error: nothing was changed.
    """
    with connection.transaction():
        row = connection.execute(query("raise_epoch"), {"epoch": at_least}).fetchone()
        assert row is not None
        epoch = cast("int", row[0])
        rewinds = connection.execute(query("write_rewinds"), {"epoch": epoch}).rowcount
        for statement in _VOID:
            connection.execute(query(statement))
    return epoch, rewinds


def begin_epoch_at(database_url: str, *, at_least: int) -> tuple[int, int]:
    """``begin_epoch`` in a database by its URL. Blocks.

    Raises:
        StartupError: a server runs on it, also one of another machine; or it cannot be used. Nothing was changed.
    """
    try:
        with psycopg.connect(database_url, autocommit=True) as connection:
            _check_no_server(connection)
            arrays.register(connection)
            return begin_epoch(connection, at_least=at_least)
    except psycopg.Error as error:
        raise StartupError(f"no new epoch could be begun in the database: {type(error).__name__}: {error}") from error


def _check_no_server(connection: Connection) -> None:
    """A server beside it would go on signing in the old epoch. Raises StartupError."""
    give_up_s = time.monotonic() + SERVER_GONE_S
    while _count(connection, _SERVERS):
        if time.monotonic() >= give_up_s:
            raise StartupError("a server, or another command of keepstep, is at work on the database: stop it first")
        time.sleep(_LOOK_S)


def _count(connection: Connection, statement: LiteralString) -> int:
    row = connection.execute(statement).fetchone()
    assert row is not None
    return cast("int", row[0])


def begin_at_nothing(connection: Connection, user_pk: int, user_key: bytes, *, epoch: int) -> None:
    """An account that only the journal held begins the epoch with nothing. Raises psycopg.Error."""
    chain = chain_0(_keepstep, user_key, "$devices")
    connection.execute(query("begin_at_nothing"), {"user_pk": user_pk, "epoch": epoch, "chain": chain})


class PostgresRestores:
    """Rewinds and heal windows. All methods raise Unavailable while the database is away.

    Args:
        database: where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def rewinds(self, user_pk: UserPk, stream: str) -> Sequence[StreamRewind]:
        """As ``Restores.rewinds``."""

        def ask(connection: Connection) -> list[StreamRewind]:
            rows = _rows(connection, "read_rewinds", user_pk=int(user_pk), name=stream)
            if not rows:
                return []
            ((user_key,),) = _rows(connection, "read_user_id", user_pk=int(user_pk))
            nothing = Position(0, chain_0(_keepstep, user_key, stream))
            return [StreamRewind(epoch, nothing if seq is None else Position(seq, chain)) for epoch, seq, chain in rows]

        return await self._database.read_as(user_pk, ask)

    async def window(self, user_pk: UserPk, *, now_ms: int) -> HealWindow | None:
        """As ``Restores.window``."""

        def ask(connection: Connection) -> HealWindow | None:
            place = {"user_pk": int(user_pk), "recent_ms": RECENT_MS}
            rows = _rows(connection, "read_heal_window", **place)
            if not rows:
                connection.execute(query("open_heal_window"), {"user_pk": int(user_pk), "now_ms": now_ms})
                rows = _rows(connection, "read_heal_window", **place)
            return HealWindow(*rows[0]) if rows else None

        return await self._ask(ask)

    async def report(self, user_pk: UserPk, device_pk: DevicePk, step: int) -> None:
        """As ``Restores.report``."""
        arguments = {"user_pk": int(user_pk), "device_pk": int(device_pk), "step": step}
        await self._ask(lambda connection: connection.execute(query("put_heal_report"), arguments))

    async def close_window(self, user_pk: UserPk, *, now_ms: int) -> None:
        """As ``Restores.close_window``."""
        arguments = {"user_pk": int(user_pk), "now_ms": now_ms}
        await self._ask(lambda connection: connection.execute(query("close_heal_window"), arguments))

    async def _ask(self, ask: Callable[[Connection], T]) -> T:
        return await self._database.accounts.run(lambda lease: lease.ask(ask))


def _rows(connection: Connection, statement: str, /, **arguments: object) -> list[Any]:
    return connection.execute(query(statement), arguments, binary=True).fetchall()
