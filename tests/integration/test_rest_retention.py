"""How long a stream keeps what, set over REST by a signed event, and seen to act in a real server's database."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from keepstep.eventlog.retention import DAY_MS, RetentionRules
from keepstep.model import PREV_BYTES, Kind, Policy, RetentionClass
from keepstep.postgres.maintenance import PostgresMaintenance
from keepstep.postgres.pool import Database
from keepstep.postgres.retention import PostgresRetention
from keepstep.protocol.policy import encode_policy
from keepstep.runtime import SystemClock, WorkerThreads
from tests.integration.test_rest_application import Account, account

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIFE_S = 60
NO_TAIL = {"tail_bytes_max": 0, "tail_stream_bytes_max": 0}
"""What is read comes from the database: nothing is remembered of before the jobs."""


@contextmanager
def database_at(url: str) -> Iterator[Database]:
    """The server's database, for its jobs at another time."""
    database = Database(url, threads=WorkerThreads(), clock=SystemClock())
    yield database
    database.close()


async def read(alice: Account, stream: str) -> tuple[int, Any]:
    """The status, and the payloads or the code."""
    answer = await alice.http.get("/api/v1/events", params={"stream": stream, "after": 0})
    told = answer.json()
    return answer.status_code, [each["payload"] for each in told["events"]] if "events" in told else told["code"]


async def test_a_streams_longest_life_is_set_and_ends_payloads(data_dir: Path, database_url: str) -> None:
    """An event has to name a life within it; when that is over its payload is gone, and its place stays."""
    async with account(data_dir, database_url=database_url, settings=NO_TAIL) as (_, alice):
        phone = alice.phone
        payload = encode_policy(Policy.APPEND, ttl_max_s=LIFE_S)
        (made,) = await alice.publish(phone.event("notes", payload, kind=Kind.POLICY))
        assert made["result"] == "accepted"
        shown = (await alice.http.get("/api/v1/streams/notes")).json()
        assert (shown["retention_class"], shown["ttl_max_s"]) == ("standard", LIFE_S)
        for ttl_s in (None, LIFE_S + 1):
            too_long = phone.sign("notes", b"for ever", n=2, prev=phone.authored["notes"][1][:PREV_BYTES], ttl_s=ttl_s)
            (refused,) = await alice.publish(too_long)
            assert (refused["result"], refused.get("code")) == ("refused", "unprocessable")
        (accepted,) = await alice.publish(phone.event("notes", b"for a minute", ttl_s=LIFE_S))
        assert accepted["result"] == "accepted"
        with database_at(database_url) as database:
            maintenance = PostgresMaintenance(database)
            soon_ms = SystemClock().now_ms()
            assert await maintenance.expire_payloads(now_ms=soon_ms, rows_max=9) == 0
            assert (await read(alice, "notes"))[1][1] is not None
            assert await maintenance.expire_payloads(now_ms=soon_ms + 2 * LIFE_S * 1000, rows_max=9) == 1
        status, payloads = await read(alice, "notes")
        assert (status, len(payloads), payloads[1]) == (200, 2, None)


async def test_a_streams_retention_class_is_set_and_keeps_it(data_dir: Path, database_url: str) -> None:
    """Where everything else of the server goes after a day and the rest of the week, it stays whole."""
    async with account(data_dir, database_url=database_url, settings=NO_TAIL) as (_, alice):
        phone = alice.phone
        for stream, kept in (("diary", RetentionClass.KEEP), ("notes", RetentionClass.STANDARD)):
            payload = encode_policy(Policy.APPEND, retention_class=kept)
            await alice.publish(phone.event(stream, payload, kind=Kind.POLICY), phone.event(stream, b"old"))
        shown = (await alice.http.get("/api/v1/streams/diary")).json()
        assert shown["retention_class"] == "keep"
        prev = phone.authored["diary"][1][:PREV_BYTES]
        (refused,) = await alice.publish(
            phone.sign("diary", encode_policy(Policy.APPEND), kind=Kind.POLICY, n=3, prev=prev)
        )
        assert (refused["result"], refused.get("code")) == ("refused", "unprocessable")
        with database_at(database_url) as database:
            retention = PostgresRetention(database)
            now_ms = SystemClock().now_ms() + 9 * DAY_MS  # the week of the events is over, and a day
            while await retention.advance_tail(now_ms=now_ms, rules=RetentionRules(1), events_max=9) is not None:
                pass
        assert await read(alice, "notes") == (410, "pruned")
        status, payloads = await read(alice, "diary")
        assert (status, len(payloads), None in payloads) == (200, 2, False)
