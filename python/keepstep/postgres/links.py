"""``links.LinkStore`` over PostgreSQL: any node serves any link."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from keepstep.links import LinkMessage
from keepstep.postgres.queries import query

if TYPE_CHECKING:
    from keepstep.links import LinkPlace
    from keepstep.model import UserPk
    from keepstep.postgres.pool import Connection, Database

T = TypeVar("T")


class PostgresLinks:
    """Links. All methods raise Unavailable while the database is away; a cancellation waits for the end.

    Args:
        database: where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(
        self,
        user_pk: UserPk,
        link_hash: bytes,
        *,
        now_ms: int,
        expires_at_ms: int,
        links_per_user_max: int,
        links_max: int,
    ) -> int | None:
        """As ``LinkStore.begin``. Of many that come at the same moment a few more than the limit may be let in."""
        link = {"link_hash": link_hash, "user_pk": int(user_pk), "now_ms": now_ms}
        limits = {"links_per_user_max": links_per_user_max, "links_max": links_max}

        def begin(connection: Connection) -> int | None:
            _execute(connection, "begin_link", **link, **limits, expires_at=expires_at_ms)
            row = _row(connection, "read_link", **link)
            return None if row is None else int(row[0])

        return await self._ask(begin)

    async def write(self, place: LinkPlace, message: LinkMessage, *, now_ms: int) -> LinkMessage | None:
        """As ``LinkStore.write``."""

        def write(connection: Connection) -> LinkMessage | None:
            content = {"message": message.message, "address": message.address}
            _execute(connection, "write_link_message", **_place(place), **content, now_ms=now_ms)
            return _read(connection, place, now_ms)[1]

        return await self._ask(write)

    async def read(self, place: LinkPlace, *, now_ms: int) -> tuple[bool, LinkMessage | None]:
        """As ``LinkStore.read``."""
        return await self._ask(lambda connection: _read(connection, place, now_ms))

    async def end(self, user_pk: UserPk, link_hash: bytes) -> None:
        """As ``LinkStore.end``."""
        await self._ask(lambda connection: _execute(connection, "end_link", link_hash=link_hash, user_pk=int(user_pk)))

    async def clean_up(self, *, now_ms: int, rows_max: int) -> int:
        """As ``LinkStore.clean_up``."""
        return await self._ask(
            lambda connection: _execute(connection, "clean_up_links", now_ms=now_ms, rows_max=rows_max)
        )

    async def _ask(self, ask: Callable[[Connection], T]) -> T:
        return await self._database.accounts.run(lambda lease: lease.ask(ask))


def _place(place: LinkPlace) -> dict[str, Any]:
    return {"link_hash": place.link_hash, "side": int(place.side), "number": place.number}


def _read(connection: Connection, place: LinkPlace, now_ms: int) -> tuple[bool, LinkMessage | None]:
    row = _row(connection, "read_link_message", **_place(place), now_ms=now_ms)
    if row is None or row[0] is None:
        return row is not None, None
    return True, LinkMessage(row[0], row[1])


def _execute(connection: Connection, statement: str, /, **arguments: object) -> int:
    """Run a statement; returns how many rows it touched."""
    return connection.execute(query(statement), arguments).rowcount


def _row(connection: Connection, statement: str, /, **arguments: object) -> tuple[Any, ...] | None:
    """The one row that a statement finds."""
    return cast("tuple[Any, ...] | None", connection.execute(query(statement), arguments, binary=True).fetchone())
