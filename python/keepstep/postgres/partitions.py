"""Partitions of the event tables: a month of ``events_keep``, a week of ``events_standard``, in UTC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, cast

from psycopg import sql

from keepstep.model import RetentionClass
from keepstep.postgres.arrays import texts
from keepstep.postgres.queries import EVENT_TABLES, query

if TYPE_CHECKING:
    from keepstep.postgres.pool import Connection

PARTITIONS_LOCK: Final = 0x6B65_6570_7061_7274
"""Advisory lock ("keeppart"): one node makes partitions at a time."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition that holds received_at from ``from_ms`` up to, not including, ``to_ms``; unix milliseconds."""

    table: str
    from_ms: int
    to_ms: int

    @property
    def name(self) -> str:
        """For example ``events_keep_20251101``."""
        return f"{self.table}_{_EPOCH + timedelta(milliseconds=self.from_ms):%Y%m%d}"


def partitions_of(retention_class: int, at_ms: int, *, ahead: int = 0) -> Iterator[Partition]:
    """The partition for events received at ``at_ms``, and the ``ahead`` ones that follow it."""
    start = _start(retention_class, at_ms)
    for _ in range(1 + ahead):
        end = _next(retention_class, start)
        yield Partition(EVENT_TABLES[RetentionClass(retention_class)], _to_ms(start), _to_ms(end))
        start = end


def make_partitions(connection: Connection, partitions: Sequence[Partition]) -> int:
    """Make those that are missing, in one transaction; returns how many. Blocks.

    Attaching a table that is there already does not keep appends waiting, as creating it in place would.

    Raises:
        psycopg.Error: none was made.
    """
    by_name = {partition.name: partition for partition in partitions}
    with connection.transaction():
        connection.execute(query("lock_partitions"), {"key": PARTITIONS_LOCK})
        rows = connection.execute(query("missing_partitions"), {"names": texts(list(by_name))}).fetchall()
        for (name,) in rows:
            _make(connection, by_name[cast("str", name)])
    return len(rows)


def _make(connection: Connection, partition: Partition) -> None:
    names = {"table": sql.Identifier(partition.table), "partition": sql.Identifier(partition.name)}
    bounds = {"from_ms": sql.Literal(partition.from_ms), "to_ms": sql.Literal(partition.to_ms)}
    connection.execute(sql.SQL("CREATE TABLE {partition} (LIKE {table} INCLUDING ALL)").format(**names), prepare=False)
    connection.execute(
        sql.SQL("ALTER TABLE {table} ATTACH PARTITION {partition} FOR VALUES FROM ({from_ms}) TO ({to_ms})").format(
            **names, **bounds
        ),
        prepare=False,
    )


def _start(retention_class: int, at_ms: int) -> datetime:
    day = (_EPOCH + timedelta(milliseconds=at_ms)).replace(hour=0, minute=0, second=0, microsecond=0)
    if retention_class == RetentionClass.KEEP:
        return day.replace(day=1)
    return day - timedelta(days=day.weekday())


def _next(retention_class: int, start: datetime) -> datetime:
    if retention_class == RetentionClass.KEEP:
        return (start + timedelta(days=31)).replace(day=1)
    return start + timedelta(days=7)


def _to_ms(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)
