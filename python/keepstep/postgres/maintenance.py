"""``interfaces.Maintenance`` over PostgreSQL: one short unit of housekeeping each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

from keepstep.model import RetentionClass
from keepstep.postgres.partitions import make_partitions, partitions_of
from keepstep.postgres.queries import query

if TYPE_CHECKING:
    from keepstep.postgres.pool import Connection, Database

T = TypeVar("T")


class PostgresMaintenance:
    """Housekeeping. All methods raise Unavailable while the database is away. A cancellation waits for the end.

    Args:
        database: what is kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ping(self) -> None:
        """One round trip to the database, for readiness."""
        await self._value("ping")

    async def now_ms(self) -> int:
        """The database's own clock, unix milliseconds, which ``received_at`` follows."""
        return cast("int", await self._value("read_clock"))

    async def safe_at_ms(self) -> int:
        """What was received by then is in a verified backup, unix milliseconds; 0 for nothing."""
        return cast("int", await self._value("read_safe_at"))

    async def make_partitions(self, *, now_ms: int, ahead: int) -> int:
        """Make the event partitions of the running period and ``ahead`` more; returns how many were missing."""
        wanted = [
            partition
            for retention_class in RetentionClass
            for partition in partitions_of(retention_class, now_ms, ahead=ahead)
        ]
        return await self._ask(lambda connection: make_partitions(connection, wanted))

    async def expire_payloads(self, *, now_ms: int, rows_max: int) -> int:
        """Drop the payloads of at most ``rows_max`` events whose TTL ran out; returns how many (0: done)."""

        def expire(connection: Connection) -> int:
            expired = 0
            for retention_class in RetentionClass:
                arguments = {"now_ms": now_ms, "rows_max": rows_max - expired}
                row = connection.execute(query("expire_payloads", retention_class), arguments).fetchone()
                assert row is not None
                expired += cast("int", row[0])
            return expired

        return await self._ask(expire)

    async def empty_inboxes(self, *, now_ms: int, rows_max: int) -> int:
        """Drop the payloads of about ``rows_max`` messages that the inbox's device acknowledged; how many (0: done)."""
        del now_ms

        def empty(connection: Connection) -> int:
            emptied = 0
            while emptied < rows_max:
                arguments = {"rows_max": rows_max - emptied}
                row = connection.execute(query("empty_inbox", RetentionClass.STANDARD), arguments).fetchone()
                if row is None:
                    break
                emptied += cast("int", row[0])
            return emptied

        return await self._ask(empty)

    async def compact(self, *, now_ms: int, rows_max: int) -> int:
        """Drop the payloads of at most ``rows_max`` events that lost their key an hour ago; how many (0: done)."""

        def compact(connection: Connection) -> int:
            dropped = 0
            for retention_class in RetentionClass:
                arguments = {"now_ms": now_ms, "rows_max": rows_max - dropped, "retention_class": int(retention_class)}
                row = connection.execute(query("compact", retention_class), arguments).fetchone()
                assert row is not None
                dropped += cast("int", row[0])
            return dropped

        return await self._ask(compact)

    async def _value(self, name: str) -> object:
        row = await self._ask(lambda connection: connection.execute(query(name)).fetchone())
        assert row is not None
        return row[0]

    async def _ask(self, ask: Callable[[Connection], T]) -> T:
        return await self._database.accounts.run(lambda lease: lease.ask(ask))
