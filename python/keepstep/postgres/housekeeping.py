"""``cleanup.Housekeeping`` and ``measuring.MeasuredDatabase`` over PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from keepstep.measuring import DatabaseSize, TableSize
from keepstep.model import SESSION_LOST, RetentionClass, inbox_of
from keepstep.postgres.queries import query

if TYPE_CHECKING:
    from keepstep.postgres.pool import Connection, Database

T = TypeVar("T")

DEVICES_MAX: Final = 100
"""Inactive devices that are looked for at a time."""


class PostgresHousekeeping:
    """Clean-up and measuring. All methods raise Unavailable while the database is away. A cancellation waits.

    Args:
        database: what is kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take_turn(self, name: str, holder: bytes, *, now_ms: int, until_ms: int) -> bool:
        """As ``Housekeeping.take_turn``."""
        arguments = {"name": name, "holder": holder, "now_ms": now_ms, "until": until_ms}
        taken = await self._ask(lambda connection: connection.execute(query("take_turn"), arguments).fetchone())
        return taken is not None

    async def close_lost_sessions(self, *, before_ms: int, rows_max: int) -> int:
        """As ``Housekeeping.close_lost_sessions``."""
        arguments = {"before_ms": before_ms, "rows_max": rows_max, "reason": SESSION_LOST}
        return await self._ask(lambda connection: connection.execute(query("close_lost_sessions"), arguments).rowcount)

    async def drop_sessions(self, *, before_ms: int, rows_max: int) -> int:
        """As ``Housekeeping.drop_sessions``."""
        return await self._drop("drop_sessions", before_ms, rows_max)

    async def drop_invites(self, *, before_ms: int, rows_max: int) -> int:
        """As ``Housekeeping.drop_invites``."""
        return await self._drop("drop_invites", before_ms, rows_max)

    async def clean_devices(self, *, before_ms: int, now_ms: int, rows_max: int) -> int:
        """As ``Housekeeping.clean_devices``: each statement a transaction; a device is marked when nothing is left."""

        def clean(connection: Connection) -> int:
            arguments = {"before_ms": before_ms, "devices_max": DEVICES_MAX}
            devices = connection.execute(query("find_inactive_devices"), arguments, binary=True).fetchall()
            cleaned = 0
            for user_pk, device_pk, device_id in cast("list[tuple[int, int, bytes]]", devices):
                if cleaned >= rows_max:
                    break
                cleaned += _clean_device(connection, user_pk, device_pk, device_id, now_ms, rows_max - cleaned)
            return cleaned

        return await self._ask(clean)

    async def measure(self) -> DatabaseSize:
        """As ``MeasuredDatabase.measure``."""

        def ask(connection: Connection) -> DatabaseSize:
            tables = cast("list[Any]", connection.execute(query("measure_tables")).fetchall())
            (size_bytes,) = _row(connection, "measure_database")
            (oldest_event_ms,) = _row(connection, "oldest_event")
            return DatabaseSize(size_bytes, [TableSize(*row) for row in tables], oldest_event_ms)

        return await self._ask(ask)

    async def _drop(self, statement: str, before_ms: int, rows_max: int) -> int:
        arguments = {"before_ms": before_ms, "rows_max": rows_max}
        return await self._ask(lambda connection: connection.execute(query(statement), arguments).rowcount)

    async def _ask(self, ask: Callable[[Connection], T]) -> T:
        return await self._database.accounts.run(lambda lease: lease.ask(ask))


def _clean_device(
    connection: Connection, user_pk: int, device_pk: int, device_id: bytes, now_ms: int, rows_max: int
) -> int:
    """Rows that went, at most about ``rows_max``, and 1 for the mark."""
    device = {"user_pk": user_pk, "device_pk": device_pk}
    inbox = {"user_pk": user_pk, "name": inbox_of(device_id), "rows_max": rows_max}
    gone = cast("int", _row(connection, "drop_device_inbox", inbox, retention_class=RetentionClass.STANDARD)[0])
    for statement in ("drop_device_sessions", "drop_device_positions"):
        if gone >= rows_max:
            return gone
        gone += connection.execute(query(statement), device | {"rows_max": rows_max - gone}).rowcount
    if gone >= rows_max:
        return gone
    gone += connection.execute(query("drop_device_families"), device).rowcount
    connection.execute(query("mark_cleaned"), device | {"now_ms": now_ms})
    return gone + 1


def _row(
    connection: Connection,
    statement: str,
    arguments: dict[str, object] | None = None,
    *,
    retention_class: RetentionClass | None = None,
) -> tuple[Any, ...]:
    row = connection.execute(query(statement, retention_class), arguments or {}).fetchone()
    assert row is not None
    return cast("tuple[Any, ...]", row)
