"""Plans on large tables: every statement goes through a key, whatever the tables have grown to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
import trio

from keepstep.model import RetentionClass
from keepstep.postgres.queries import EVENT_TABLES, is_of_class, query, statement_names
from tests.integration.postgres.test_append import positional
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import PAGE_BYTES_MAX, PostgresPlace, append, create_account

if TYPE_CHECKING:
    from keepstep.postgres.pool import Connection, Pool
    from tests.support.database import DatabaseServer
    from tests.support.populated import Populated

ADA: Final = UserFixture("ada")
EVENTS: Final = 200_000
STREAMS: Final = 100_000
DEVICES: Final = 50_000
USERS: Final = 10_000
PARTITION: Final = "events_standard_20251006"
"""Where they are, by their time."""
GROWN: Final = frozenset({"users", "devices", "streams"})
"""Tables with so many rows, beside the partition of events that has them all."""
WHOLE: Final = {
    "read_statistics": "counts what there is, for an administrator",
    "measure_archive": "measures periodically, by an index of the streams that wait for the archive",
    "measure_retention": "measures periodically, by an index of the streams that prune",
    "measure_overdue_of_users": "measures periodically, by an index of the users that have a time of their own",
    "find_aged_of_users": "by an index of the users that have a time of their own",
    "find_unarchived_aged": "by an index of the streams that wait for the archive",
    "find_deleted_archive_user": "by an index of the users that are deleted",
    "list_archived_streams": "for an administrator, page by page",
    "find_inactive_devices": "clean-up",
    "stray_events": "verification reads everything",
    "write_rewinds": "a restore looks at every stream",
}
"""Statements that read a large table or a whole index of it, and why they may: no device waits for any of them."""
STREAMS_OF_ONE: Final = 1_000
"""Of the user that has most."""
ROWS_TOUCHED_MAX: Final = 2 * STREAMS_OF_ONE
"""By one node of a plan that looks once at each of them, with the rows of other users on the same pages."""
CROWD: Final = f"""\
INSERT INTO streams
SELECT 9, 100 + number, 'n' || number, 1, 0, sha256('x'), 0, 0, '', 0
FROM generate_series(1, {STREAMS_OF_ONE}) AS number;
INSERT INTO positions
SELECT 9, 1, 100 + number, 0, repeat('c', 16)::bytea FROM generate_series(1, {STREAMS_OF_ONE}) AS number;
INSERT INTO authors SELECT 9, 100 + number, 1, 1, 1, sha256('x') FROM generate_series(1, {STREAMS_OF_ONE}) AS number;
"""  # noqa: S608 - numbers of our own
CROWD_OF: Final = f"""\
INSERT INTO streams
SELECT {{user_pk}}, 100 + number, 'n' || number, 1, 0, sha256('x'), 0, 0, '', 0
FROM generate_series(1, {STREAMS_OF_ONE}) AS number;
INSERT INTO rewinds VALUES ({{user_pk}}, 1, {NOW_MS}, 0, sha256('x'))
"""  # noqa: S608 - numbers of our own
NAMED: Final = f"'{{{','.join(f'n{number}' for number in range(1, 257))}}}'"
COPIES: Final = frozenset({"copy_events"})
"""What has no plan."""
PREPARED: Final = """
SELECT name, generic_plans, generic_plans + custom_plans FROM pg_prepared_statements
WHERE generic_plans + custom_plans > 0
"""
FILL: Final = f"""\
INSERT INTO users (user_id, next_root_hash, created_at)
SELECT sha256(number::text::bytea), sha256('next'), {NOW_MS} FROM generate_series(1, {USERS}) AS number;
INSERT INTO devices (user_pk, device_pk, device_id, device_key, box_key, capabilities, issued_at, sealed_label,
                     enrolled_at)
SELECT user_pk, number, substr(sha256((user_pk * 16 + number)::text::bytea), 1, 16),
       sha256((user_pk * 16 + number)::text::bytea), sha256('box'), 1, {NOW_MS}, '', {NOW_MS}
FROM users, generate_series(1, {DEVICES // USERS}) AS number WHERE next_root_hash = sha256('next');
INSERT INTO streams
SELECT user_pk, 2 + number, 's' || number, 1, 0, sha256('x'), 0, 0, '', 0
FROM users, generate_series(1, {STREAMS // USERS}) AS number WHERE next_root_hash = sha256('next');
INSERT INTO TABLE (user_pk, stream_pk, seq, received_at, device_pk, n, author_prev_seq, header, sig, payload, chain)
SELECT 9 + seq % {USERS}, 3, seq, {NOW_MS}, 1, seq, seq - 1, '', repeat('s', 64)::bytea, '', repeat('c', 32)::bytea
FROM generate_series(1, {EVENTS}) seq;
"""  # noqa: S608 - numbers of our own


@pytest.fixture(scope="module")
def large(migrated_server: DatabaseServer, populated: tuple[str, Populated]) -> Iterator[PostgresPlace]:
    """A database with rows in every table, with many in those that grow most, and statistics that know it."""
    with migrated_server.database(populated[0]) as url:
        place = PostgresPlace(url, migrated_server.admin_url)
        try:
            trio.run(partial(place.maintenance.make_partitions, now_ms=NOW_MS, ahead=2))
            table = EVENT_TABLES[RetentionClass.STANDARD]
            for statement in FILL.replace("TABLE", table).split(";\n"):
                place.execute(statement or "ANALYZE")
            ((partition,),) = place.execute(f"SELECT tableoid::regclass::text FROM {table} WHERE user_pk > 9 LIMIT 1")  # noqa: S608 - ours
            assert partition == PARTITION
            yield place
        finally:
            place.close()


def scans(plan: dict[str, Any]) -> Iterator[str]:
    """Scans of a plan that read a whole large table, or a whole index of it."""
    name, node = plan.get("Relation Name"), plan["Node Type"]
    is_whole = node == "Seq Scan" or (node in {"Index Scan", "Index Only Scan"} and "Index Cond" not in plan)
    if is_whole and (name in GROWN or name == PARTITION):
        yield f"{node} of {plan.get('Index Name', name)}"
    for part in plan.get("Plans", ()):
        yield from scans(part)


def explain(connection: Connection, statement: bytes) -> list[str]:
    """What the generic plan of a statement reads whole."""
    text, names = positional(statement)
    connection.execute(f"PREPARE explained AS {text}".encode(), prepare=False)
    arguments = f"({', '.join(['NULL'] * names)})" if names else ""
    (row,) = connection.execute(f"EXPLAIN (FORMAT JSON) EXECUTE explained{arguments}".encode(), prepare=False)
    connection.execute("DEALLOCATE explained", prepare=False)
    return list(scans(cast("Any", row[0])[0]["Plan"]))


@pytest.mark.slow
@pytest.mark.parametrize("which", ["append", "read", "accounts"])
def test_no_statement_reads_a_large_table_whole(large: PostgresPlace, which: str) -> None:
    """With the settings of each pool, whatever it is that asks; those that may are named with their reason."""
    connection = cast("Pool", getattr(large.connect(), which)).connect()
    try:
        connection.execute("RESET ROLE")  # plans of all statements, also of those that readers may not run
        found = {
            name: read
            for name in statement_names()
            if name not in COPIES
            for retention_class in classes(name)
            if (read := explain(connection, query(name, retention_class)))
        }
    finally:
        connection.close()
    assert {name: read for name, read in found.items() if name not in WHOLE} == {}
    assert WHOLE.keys() - found.keys() == set(), "it does not any more: take it off the list"


def touched(plan: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """How many rows each node of a plan that was carried out looked at, again wherever it did so again."""
    removed = sum(rows for key, rows in plan.items() if key.startswith("Rows Removed by "))
    yield int((plan["Actual Rows"] + removed) * plan["Actual Loops"]), plan["Node Type"]
    for part in plan.get("Plans", ()):
        yield from touched(part)


def names_of(statement: bytes) -> list[str]:
    """Its arguments, in the order of ``positional``."""
    return list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement.decode())))


@pytest.mark.slow
@pytest.mark.parametrize("has_statistics", [False, True])
@pytest.mark.parametrize(
    ("statement", "arguments"),
    [
        ("follow_all_streams", {}),
        ("follow_streams", {"names": NAMED}),
    ],
)
def test_what_a_device_goes_on_with_is_looked_at_once(
    large: PostgresPlace, statement: str, arguments: dict[str, str], has_statistics: bool
) -> None:
    """No join compares all streams of a user with each other, whether or not the planner knows how many there are."""
    connection = large.connect().read.connect()
    try:
        connection.execute("RESET ROLE")  # to whom tables may be filled, and then emptied again
        connection.execute("BEGIN READ WRITE")
        for fill in filter(None, CROWD.split(";\n")):
            connection.execute(fill.encode())
        if has_statistics:
            connection.execute("ANALYZE streams, positions, authors")
        text, _ = positional(query(statement))
        connection.execute(f"PREPARE explained AS {text}".encode(), prepare=False)
        values = [({"user_pk": "9", "device_pk": "1"} | arguments)[name] for name in names_of(query(statement))]
        execute = f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE explained({', '.join(values)})"
        (row,) = connection.execute(execute.encode(), prepare=False)
    finally:
        connection.close()  # with what is not committed
    assert {each for each in touched(cast("Any", row[0])[0]["Plan"]) if each[0] > ROWS_TOUCHED_MAX} == set()


@pytest.mark.parametrize(
    ("which", "statement"),
    [
        ("append", "load_heads"),
        ("append", "lock_streams"),
        ("read", "read_stream"),
        ("read", "follow_streams"),
        ("read", "find_archived"),
        ("read", "read_rewinds"),
        ("accounts", "save_acks"),
    ],
)
async def test_a_name_is_looked_up_alone_with_a_plan_of_when_there_were_few(
    place: PostgresPlace, which: str, statement: str
) -> None:
    """Statements are planned once for a connection, on a new server with next to no streams, and go on with that."""
    principal = await create_account(place, place.node(), DeviceFixture(ADA, "phone"))
    given = {
        "user_pk": str(principal.user_pk),
        "user_pks": f"'{{{principal.user_pk}}}'",
        "device_pk": str(principal.device_pk),
        **dict.fromkeys(("name", "stream"), f"'n{STREAMS_OF_ONE}'"),
        "names": f"'{{n{STREAMS_OF_ONE}}}'",
        "seqs": "'{0}'",
        "chains": "'{cccccccccccccccc}'",
        "after": "0",
    }
    asked = query(statement)
    execute = f"EXECUTE explained({', '.join(given[name] for name in names_of(asked))})"
    connection = getattr(place.connect(), which).connect()
    try:
        connection.execute(query("name_user"), {"user_pk": int(principal.user_pk)}, prepare=False)
        connection.execute(f"PREPARE explained AS {positional(asked)[0]}".encode(), prepare=False)
        connection.execute(execute.encode(), prepare=False)
        for fill in CROWD_OF.format(user_pk=principal.user_pk).split(";\n"):
            place.execute(fill)
        (row,) = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {execute}".encode(), prepare=False)
    finally:
        connection.close()
    assert {each for each in touched(cast("Any", row[0])[0]["Plan"]) if each[0] > 1} == set()


def classes(name: str) -> tuple[RetentionClass | None, ...]:
    """The tables of events that a statement may be about; none of its own where it names its tables."""
    return tuple(RetentionClass) if is_of_class(name) else (None,)


async def test_statements_are_prepared_once_and_planned_for_all_values(place: PostgresPlace) -> None:
    """After a few batches and pages each connection has every statement prepared, and generic plans only."""
    database = place.connect()
    log = place.node(database=database, tail_bytes_max=0)
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    for number in range(1, 9):
        await append(log, principal, device.event(f"s{number % 2}"))
        await log.read(
            principal.user_pk, f"s{number % 2}", after=0, events_max=9, bytes_max=PAGE_BYTES_MAX, now_ms=NOW_MS
        )

    for each in (database.append, database.read):
        rows = await each.run(lambda lease: lease.ask(lambda connection: connection.execute(PREPARED).fetchall()))
        used = [row for row in rows if row[1] != row[2]]
        assert len(rows) >= 4, each
        assert used == [], "planned for the values of one call"
        assert max(cast("int", row[1]) for row in rows) >= 4, "asked again without being prepared again"
