"""``keepstep verify`` where the beginning of streams is gone: what is left verifies, and what is kept of it too."""

# ruff: noqa: S608  # statements of our own

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import psycopg
import pytest
import trio

from keepstep.eventlog.retention import RetentionRules
from keepstep.model import Kind, Policy, Position
from keepstep.postgres.retention import PostgresRetention
from keepstep.postgres.verification import verify_database
from keepstep.protocol.policy import encode_policy
from keepstep.protocol.snapshot import encode_confirm, encode_snapshot
from tests.support.events import NOW_MS, UserFixture
from tests.support.logs import PostgresPlace
from tests.support.populated import Account, accepted

if TYPE_CHECKING:
    from tests.support.database import DatabaseServer

CAROL = UserFixture("carol")
DAY_MS = 24 * 60 * 60 * 1000
LATER_MS = NOW_MS + 60 * DAY_MS
NOTES = "stream_pk = 3"
"""A policy, three events of the phone, two of the laptop, a snapshot and its confirmation, gone; then two more."""
STATE = "stream_pk = 4"
"""A policy, keys a and b, gone; then a again, and of b one that loses to what is gone and has lost its payload."""


async def write_and_prune(place: PostgresPlace) -> None:
    """Write, write again two months later, and take away what was before."""
    log = place.node()
    account = Account(place, log, CAROL)
    phone, laptop = account.device("phone"), account.device("laptop")
    on_phone = await account.begin(phone)
    on_laptop = await account.enrol(phone, laptop)
    policy = encode_policy(Policy.FORK, ttl_max_s=365 * 24 * 60 * 60)
    await accepted(log, on_phone, phone.event("notes", policy, kind=Kind.POLICY))
    await accepted(log, on_phone, *(phone.event("notes", bytes([each]), ttl_s=DAY_MS // 10) for each in range(3)))
    await accepted(log, on_laptop, *(laptop.event("notes", bytes([each]), ttl_s=DAY_MS // 10) for each in range(2)))
    covers = Position(6, await log.chain_at(on_phone.user_pk, "notes", 6))
    snapshot = encode_snapshot(covers, {phone.device_id: 4, laptop.device_id: 2}, b"sealed state")
    await accepted(log, on_phone, phone.event("notes", snapshot, kind=Kind.SNAPSHOT))
    await accepted(log, on_laptop, laptop.event("notes", encode_confirm(7), kind=Kind.CONFIRM))
    await accepted(log, on_phone, phone.event("state", encode_policy(Policy.LATEST), kind=Kind.POLICY))
    for name in (b"a", b"b"):
        await accepted(log, on_phone, phone.event("state", name, key=name * 16))
    await accepted(log, on_phone, phone.event("notes", b"late", ttl_s=DAY_MS // 10, at_ms=LATER_MS), now_ms=LATER_MS)
    await accepted(log, on_laptop, laptop.event("notes", b"later", ttl_s=DAY_MS // 10, at_ms=LATER_MS), now_ms=LATER_MS)
    await accepted(log, on_phone, phone.event("state", b"a again", key=b"a" * 16, at_ms=LATER_MS), now_ms=LATER_MS)
    await accepted(log, on_laptop, laptop.event("state", b"b before", key=b"b" * 16, at_ms=NOW_MS - 1), now_ms=LATER_MS)
    retention = PostgresRetention(place.connect())
    rules = RetentionRules(days=30)
    while await retention.advance_tail(now_ms=LATER_MS + DAY_MS, rules=rules, events_max=3) is not None:
        pass
    while await retention.remove_rows(rows_max=100):
        pass
    assert await place.maintenance.compact(now_ms=LATER_MS + DAY_MS, rows_max=100) == 2


@pytest.fixture(scope="module")
def pruned(migrated_server: DatabaseServer) -> Iterator[str]:
    """The name of a database whose streams have lost their beginning."""
    with migrated_server.database() as url:
        place = PostgresPlace(url, migrated_server.admin_url)
        trio.run(write_and_prune, place)
        place.close()
        yield place.name


@pytest.fixture
def pruned_url(migrated_server: DatabaseServer, pruned: str) -> Iterator[str]:
    """URL of a copy of it."""
    with migrated_server.database(pruned) as url:
        yield url


def faults(url: str, *statements: str) -> set[tuple[str, str | None, int | None]]:
    """What is found after what no server does."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())
    report = verify_database(url, now_ms=LATER_MS + DAY_MS)
    return {(fault.code, fault.stream, fault.seq) for fault in report.faults}


def test_what_is_left_of_a_pruned_stream_has_no_fault(pruned_url: str) -> None:
    """It begins where the tail says; policy and snapshot from before are still in force."""
    with psycopg.connect(pruned_url) as connection:
        tails = connection.execute("SELECT tail_seq, head_seq FROM streams WHERE stream_pk > 2 ORDER BY stream_pk")
        assert tails.fetchall() == [(8, 10), (3, 5)]
        kept = connection.execute(f"SELECT seq FROM kept_events WHERE {NOTES} ORDER BY seq").fetchall()
        assert kept == [(1,), (7,), (8,)]
    assert faults(pruned_url) == set()


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (f"UPDATE streams SET tail_chain = sha256('x') WHERE {NOTES}", {("chain_differs", "notes", 9)}),
        (
            f"UPDATE streams SET tail_authors = '\\x80' WHERE {NOTES}",
            {("tail_differs", "notes", 8), ("author_number", "notes", 9), ("author_number", "notes", 10)},
        ),
        (f"UPDATE streams SET tail_authors = '\\xc1' WHERE {NOTES}", {("tail_differs", "notes", 8)}),
        (
            f"UPDATE events_standard SET author_prev_seq = 9 WHERE {NOTES} AND seq = 10",
            {("author_prev_seq", "notes", 10)},
        ),
        (f"UPDATE kept_events SET sig = sha512('x') WHERE {NOTES} AND seq = 7", {("kept_event", "notes", 7)}),
        (f"UPDATE kept_events SET payload = 'x' WHERE {NOTES} AND seq = 7", {("kept_event", "notes", 7)}),
        (f"UPDATE kept_events SET n = 9 WHERE {NOTES} AND seq = 7", {("kept_event", "notes", 7)}),
        (f"UPDATE kept_events SET device_pk = 9 WHERE {NOTES} AND seq = 7", {("kept_event", "notes", 7)}),
        (f"UPDATE kept_events SET seq = 9 WHERE {NOTES} AND seq = 8", {("kept_event", "notes", 9)}),
        (f"DELETE FROM kept_events WHERE {NOTES} AND seq = 1", {("policy_differs", "notes", None)}),
        (
            f"DELETE FROM events_standard WHERE {NOTES} AND seq = 9",
            {("seq_missing", "notes", 9), ("stored_bytes_differ", "notes", None)},
        ),
        (f"UPDATE latest SET hlc = 1 WHERE {STATE} AND seq = 4", {("latest_differs", "state", 4)}),
    ],
)
def test_a_fault_of_a_pruned_stream_is_found_and_named(
    pruned_url: str, statement: str, expected: set[tuple[str, str | None, int | None]]
) -> None:
    """Of the tail, of what is kept, of what is left."""
    assert expected <= faults(pruned_url, statement)


def test_rows_below_the_tail_are_no_part_of_the_stream(pruned_url: str) -> None:
    """They are being removed, in whatever state."""
    columns = "received_at, device_pk, n, 1, expires_at, header, sig, payload, chain"
    copy = f"INSERT INTO events_standard SELECT user_pk, stream_pk, 4, {columns} FROM events_standard"
    assert faults(pruned_url, f"{copy} WHERE {NOTES} AND seq = 10") == set()
