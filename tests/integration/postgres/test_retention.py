"""Partitions of events on their way out, in PostgreSQL: what is dropped, and what a crash in the middle leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import psycopg
import pytest

from keepstep.errors import Unavailable
from keepstep.eventlog.retention import DAY_MS, PARTITION_MARGIN_MS, RetentionRules
from keepstep.model import RetentionClass
from keepstep.postgres.partitions import partitions_of
from keepstep.postgres.pool import Limits
from keepstep.postgres.queries import query
from keepstep.postgres.retention import RETENTION_LOCK, PostgresRetention
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import PostgresPlace, append, create_account, read_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepstep.model import Principal
    from keepstep.postgres.log import PostgresLog
    from tests.support.database import DatabaseServer

ADA: Final = UserFixture("ada")
LATER_MS: Final = NOW_MS + 60 * DAY_MS
OLD: Final = next(partitions_of(RetentionClass.STANDARD, NOW_MS))
MONTH: Final = RetentionRules(30)


@pytest.fixture
def place(database_url: str, database_server: DatabaseServer) -> Iterator[PostgresPlace]:
    """An empty database."""
    place = PostgresPlace(database_url, database_server.admin_url)
    yield place
    place.close()


@pytest.fixture
async def filled(place: PostgresPlace) -> tuple[PostgresLog, Principal]:
    """Three old events and a young one in a stream."""
    log = place.node(tail_bytes_max=0)
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, phone)
    await append(log, principal, *phone.events("notes", 3))
    await append(log, principal, phone.event("notes", b"young"), now_ms=LATER_MS)
    return log, principal


def partitions(place: PostgresPlace) -> list[str]:
    """Names of those that belong to the table, the oldest first."""
    inherited = (
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'events_standard'::regclass ORDER BY 1"
    )
    return [name for (name,) in place.execute(inherited)]


def tables(place: PostgresPlace) -> set[str]:
    """Names of every table of events, detached ones too."""
    return {
        name for (name,) in place.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 'events_standard_%'")
    }


async def advance(retention: PostgresRetention, *, rules: RetentionRules = MONTH) -> None:
    """All tails."""
    while await retention.advance_tail(now_ms=LATER_MS, rules=rules, events_max=100) is not None:
        pass


async def test_a_partition_beyond_all_tails_is_dropped(
    place: PostgresPlace, filled: tuple[PostgresLog, Principal]
) -> None:
    """Not before its tails have advanced, nor before it is over for a while; what is left is read as before."""
    log, principal = filled
    assert await place.retention.drop_partitions(now_ms=LATER_MS) == []
    await advance(place.retention)
    assert await place.retention.drop_partitions(now_ms=OLD.to_ms + PARTITION_MARGIN_MS - 1) == []

    assert await place.retention.drop_partitions(now_ms=LATER_MS) == [OLD.name]

    assert OLD.name not in tables(place)
    assert (await read_all(log, principal, "notes", after=3)).payloads == [b"young"]
    assert await place.retention.drop_partitions(now_ms=LATER_MS) == []
    assert await place.retention.remove_rows(rows_max=10) == 0


async def test_a_partition_that_another_stream_needs_stays(
    place: PostgresPlace, filled: tuple[PostgresLog, Principal]
) -> None:
    """The older ones that nobody needs go; rows that are gone wait for the partition."""
    log, _ = filled
    phone = DeviceFixture(UserFixture("ben"), "phone")
    ben = await create_account(place, log, phone)
    await append(log, ben, *phone.events("notes", 2))
    step = await place.retention.advance_tail(now_ms=LATER_MS, rules=MONTH, events_max=100)
    assert step is not None

    assert await place.retention.drop_partitions(now_ms=LATER_MS) == []
    assert OLD.name in partitions(place)


async def test_rows_that_waited_go_with_their_partition(
    place: PostgresPlace, filled: tuple[PostgresLog, Principal]
) -> None:
    """There is nothing left to remove one by one."""
    del filled
    place.execute("UPDATE users SET retention_days = 30")
    await advance(place.retention, rules=RetentionRules(None))
    state = await place.retention.state(now_ms=LATER_MS, rules=RetentionRules(None))
    assert state.waiting_rows == 3
    assert await place.retention.drop_partitions(now_ms=LATER_MS) == [OLD.name]
    assert (await place.retention.state(now_ms=LATER_MS, rules=RetentionRules(None))).waiting_rows == 0


@pytest.mark.parametrize("crashed_after", ["noting", "detaching", "dropping"])
async def test_a_drop_that_was_cut_short_is_finished(
    place: PostgresPlace, filled: tuple[PostgresLog, Principal], crashed_after: str
) -> None:
    """Wherever: the next run finds what was begun."""
    del filled
    await advance(place.retention)
    place.execute(f"INSERT INTO partition_drops VALUES ('{OLD.name}', {OLD.from_ms}, {OLD.to_ms})")  # noqa: S608  # ours
    if crashed_after != "noting":
        place.execute(f"ALTER TABLE events_standard DETACH PARTITION {OLD.name}")
    if crashed_after == "dropping":
        place.execute(f"DROP TABLE {OLD.name}")

    dropped = await place.retention.drop_partitions(now_ms=LATER_MS)

    assert dropped == ([OLD.name] if crashed_after == "noting" else [])
    assert OLD.name not in tables(place)
    assert place.execute("SELECT count(*) FROM partition_drops") == [(0,)]


async def test_a_detaching_that_was_cut_short_is_finished(
    place: PostgresPlace, filled: tuple[PostgresLog, Principal]
) -> None:
    """PostgreSQL leaves the partition pending where the statement's time is over before everybody is done with it."""
    log, principal = filled
    await advance(place.retention)
    impatient = PostgresRetention(place.connect(Limits(statement_timeout_ms=200)))
    with psycopg.connect(place.url) as reading:
        reading.execute("SELECT FROM events_standard LIMIT 1")
        with pytest.raises(Unavailable):
            await impatient.drop_partitions(now_ms=LATER_MS)
    pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"
    assert place.execute(pending) == [(1,)]
    assert (await read_all(log, principal, "notes", after=3)).payloads == [b"young"]

    await place.retention.drop_partitions(now_ms=LATER_MS)

    assert OLD.name not in tables(place)
    assert place.execute(pending) == [(0,)]


async def test_events_that_came_at_the_last_moment_bring_their_partition_back(
    place: PostgresPlace, filled: tuple[PostgresLog, Principal]
) -> None:
    """Nobody loses what was stored in it while it was on its way out."""
    log, principal = filled
    place.execute(f"INSERT INTO partition_drops VALUES ('{OLD.name}', {OLD.from_ms}, {OLD.to_ms})")  # noqa: S608  # ours
    place.execute(f"ALTER TABLE events_standard DETACH PARTITION {OLD.name}")

    assert await place.retention.drop_partitions(now_ms=LATER_MS) == []

    assert OLD.name in partitions(place)
    assert len((await read_all(log, principal, "notes")).rows) == 4


@pytest.mark.parametrize("step", ["detached", "dropped"])
async def test_a_partition_that_goes_while_tables_are_measured_is_none(
    place: PostgresPlace, filled: tuple[PostgresLog, Principal], step: str
) -> None:
    """Who looks sees it still, and it has no size any more."""
    del filled
    await advance(place.retention)
    place.execute(f"INSERT INTO partition_drops VALUES ('{OLD.name}', {OLD.from_ms}, {OLD.to_ms})")  # noqa: S608  # ours
    place.execute(f"ALTER TABLE events_standard DETACH PARTITION {OLD.name}")
    with psycopg.connect(place.url) as measuring:
        measuring.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        measuring.execute("SELECT count(*) FROM users")
        if step == "dropped":
            place.execute(f"DROP TABLE {OLD.name}")
        measured = {row[0]: row[1:] for row in measuring.execute(query("measure_tables"))}
    assert OLD.name not in measured
    assert all(isinstance(figure, int) for figures in measured.values() for figure in figures)


async def test_one_node_works_at_a_time(place: PostgresPlace, filled: tuple[PostgresLog, Principal]) -> None:
    """The others find nothing to do."""
    del filled
    with psycopg.connect(place.url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (RETENTION_LOCK,))
        assert await place.retention.advance_tail(now_ms=LATER_MS, rules=MONTH, events_max=9) is None
        assert await place.retention.drop_partitions(now_ms=LATER_MS) == []
        # A connection that was closed has its locks until the server's end has noticed.
        other.execute("SELECT pg_advisory_unlock(%s)", (RETENTION_LOCK,))
    assert await place.retention.advance_tail(now_ms=LATER_MS, rules=MONTH, events_max=9) is not None


async def test_a_locked_stream_is_passed_over(place: PostgresPlace, filled: tuple[PostgresLog, Principal]) -> None:
    """Whoever publishes goes first; nothing waits."""
    _, principal = filled
    with psycopg.connect(place.url) as other:
        other.execute("SELECT FROM streams WHERE user_pk = %s FOR UPDATE", (principal.user_pk,))
        assert await place.retention.advance_tail(now_ms=LATER_MS, rules=MONTH, events_max=9) is None
    step = await place.retention.advance_tail(now_ms=LATER_MS, rules=MONTH, events_max=9)
    assert step is not None
    assert (step.from_seq, step.to_seq) == (0, 3)


async def test_a_crash_before_rows_go_leaves_them_to_the_next_run(
    place: PostgresPlace, filled: tuple[PostgresLog, Principal]
) -> None:
    """In between nobody sees them."""
    log, principal = filled
    place.execute("UPDATE users SET retention_days = 30")
    await advance(place.retention, rules=RetentionRules(None))
    assert await place.retention.remove_rows(rows_max=2) == 2
    assert (await read_all(log, principal, "notes", after=3)).payloads == [b"young"]

    again = PostgresRetention(place.connect())

    assert await again.remove_rows(rows_max=2) == 1
    assert await again.remove_rows(rows_max=2) == 0
    assert place.execute("SELECT count(*) FROM events_standard") == [(1,)]


async def test_tables_that_nobody_made_here_are_left_alone(
    place: PostgresPlace, filled: tuple[PostgresLog, Principal]
) -> None:
    """A partition with a name of an operator's own, and all that come after it."""
    del filled
    await advance(place.retention)
    place.execute(f"ALTER TABLE {OLD.name} RENAME TO events_standard_00000000")
    assert await place.retention.drop_partitions(now_ms=LATER_MS) == []


async def test_a_hole_in_the_log_does_not_stop_the_clean_up(
    place: PostgresPlace, filled: tuple[PostgresLog, Principal]
) -> None:
    """What is damaged is passed over."""
    del filled
    place.execute("DELETE FROM events_standard WHERE seq = 1")
    place.execute("UPDATE streams SET first_at = 0 WHERE stream_pk > 2")
    first = await place.retention.advance_tail(now_ms=LATER_MS, rules=MONTH, events_max=100)
    assert first is not None
