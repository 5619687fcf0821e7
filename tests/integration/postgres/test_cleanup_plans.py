"""Clean-up goes through keys in tables that have grown for years: what it looks for every minute it finds at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from keepstep.model import RetentionClass
from keepstep.postgres.queries import EVENT_TABLES, query
from tests.integration.postgres.test_append import positional
from tests.support.events import NOW_MS

if TYPE_CHECKING:
    from tests.support.logs import PostgresPlace

ROWS: Final = 3_000
PARTITIONS: Final = 3
FILL: Final = """
INSERT INTO {table} (user_pk, stream_pk, seq, received_at, device_pk, n, author_prev_seq, expires_at, header, sig,
                     payload, chain)
SELECT 1, 3, seq, {now_ms}, 1, seq, seq - 1, CASE WHEN seq % 2 = 0 THEN {now_ms} + seq END, '', repeat('s', 64)::bytea,
       '', repeat('c', 32)::bytea
FROM generate_series(1, {rows}) seq
"""


@pytest.mark.parametrize("retention_class", list(RetentionClass))
@pytest.mark.parametrize(
    ("name", "condition"),
    [("expire_payloads", "Index Cond: (expires_at <= $"), ("remove_events", "Index Cond: (user_pk = $")],
)
async def test_rows_are_found_by_their_key(
    place: PostgresPlace, name: str, condition: str, retention_class: RetentionClass
) -> None:
    """What has outlived its time by that, an account's by the account: in each partition, whatever statistics say."""
    await place.maintenance.make_partitions(now_ms=NOW_MS, ahead=PARTITIONS - 1)
    table = EVENT_TABLES[retention_class]
    fill = FILL.format(table=table, now_ms=NOW_MS, rows=ROWS)
    connection = place.connect().accounts.connect()
    text, names = positional(query(name, retention_class))
    try:
        for statistics in ("SELECT 1", f"ANALYZE {table}", fill, f"ANALYZE {table}"):
            place.execute(statistics)
            connection.execute(f"PREPARE cleaning AS {text}".encode(), prepare=False)
            explained = f"EXPLAIN EXECUTE cleaning({', '.join(['NULL'] * names)})"
            plan = [str(row[0]).strip() for row in connection.execute(explained.encode(), prepare=False)]
            connection.execute("DEALLOCATE cleaning", prepare=False)
            assert [line for line in plan if "Seq Scan" in line] == [], statistics
            assert len([line for line in plan if line.startswith(condition)]) == PARTITIONS, statistics
    finally:
        connection.close()
