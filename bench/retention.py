"""What letting old events go costs those who publish: ``python -m bench.retention`` (``make bench-retention``).

A server whose database is filled with a year of events; a device publishes all the time. In turns, for some seconds
each, nothing else happens, and the clean-up runs with a server's own rests: tails advance, partitions are dropped, rows
are removed for a user whose events stay for a shorter time. Both are of one run, so that whatever else the machine
does counts for both. What is left of the clean-up after the last turn is done at once, and not measured.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg
import structlog
import trio

from bench.clients import make_account, run
from bench.server import BenchError, checkpoint, database_url
from bench.statistics import percentile
from keepstep.client import open_device
from keepstep.client.store import open_store
from keepstep.eventlog.retention import DAY_MS, RetentionRules
from keepstep.model import RetentionClass
from keepstep.pacing import AT_ONCE, GENTLE
from keepstep.postgres import arrays
from keepstep.postgres.partitions import make_partitions, partitions_of
from keepstep.postgres.pool import Database
from keepstep.postgres.retention import PostgresRetention
from keepstep.retention import RetentionRun
from keepstep.runtime import SystemClock, WorkerThreads
from keepstep.telemetry import Metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bench.server import Server
    from keepstep.client import Device
    from keepstep.pacing import Pace

EVENTS: Final = 5_000_000
WEEKS: Final = 52
WEEK_MS: Final = 7 * DAY_MS
STREAMS: Final = 125
"""Of the filled ones; a fifth belongs to the user whose events are removed one by one."""
KEPT_DAYS: Final = 60
"""What is younger stays."""
FILLERS: Final = 2
"""Connections that fill at the same time, each its share of the streams: PostgreSQL gives each one core."""
SHORTER_DAYS: Final = 14
"""By which the events of one user go before everybody's."""
PAYLOAD_BYTES: Final = 256
WINDOW_S: Final = 5.0
PAIRS_MIN: Final = 3
PAIRS_MAX: Final = 12
WRITERS: Final = 8
WRITE_INTERVAL_S: Final = 0.05
"""Each writer publishes so often, whatever the answers take: what waits counts as waiting."""
MILLISECONDS: Final = 1e3
MIB: Final = 1024 * 1024

_STREAMS: Final = """
INSERT INTO streams (user_pk, stream_pk, name, retention_class, head_seq, head_chain, head_received_at, auth_epoch,
                     authors, created_at, stored_bytes)
SELECT u.user_pk, 1000 + n, 'old-' || n, 1, %(events)s, sha256(int8send(n)), %(until_ms)s, d.auth_epoch,
       int8send(1) || int8send(%(events)s) || int8send(%(events)s) || sha256(int8send(n)), %(from_ms)s,
       %(events)s * %(row_bytes)s
FROM generate_series(%(first)s::bigint, %(last)s::bigint) n, users u
JOIN streams d ON d.user_pk = u.user_pk AND d.stream_pk = 1
WHERE u.user_id = %(user_id)s
"""
_EVENTS: Final = """
INSERT INTO events_standard (user_pk, stream_pk, seq, received_at, device_pk, n, author_prev_seq, header, sig, payload,
                             chain)
SELECT s.user_pk, s.stream_pk, seq, %(from_ms)s + seq * %(span_ms)s / s.head_seq, 1, seq, seq - 1,
       decode('9e0100' || repeat(md5(seq::text), 9), 'hex'), decode(repeat(md5(seq::text), 4), 'hex'),
       decode(repeat(md5((seq + 1)::text), (%(payload_bytes)s / 16)::integer), 'hex'), sha256(int8send(seq))
FROM streams s, generate_series(%(first)s::bigint, %(last)s::bigint) seq
WHERE s.stream_pk >= 1000 AND s.stream_pk %% %(fillers)s = %(filler)s
"""
_HEADER_AND_SIG_BYTES: Final = 3 + 9 * 16 + 64


@dataclass(frozen=True, slots=True)
class Publishing:
    """Milliseconds from a publish to its receipt.

    Attributes:
        publishes: how many.
        p50_ms: the median.
        p99_ms: 99 % are not above it.
        max_ms: the slowest.
        database_mib: at the beginning, and at the end of the clean-up.
        events: in the database, and let go by the clean-up.
        p99_ratio: to that without clean-up.
    """

    publishes: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    database_mib: float
    events: int
    p99_ratio: float


async def measure(server: Server, directory: Path, count: int) -> dict[str, Publishing]:
    """In pairs: without clean-up and with it."""
    url = database_url(server)
    (directory / "short").mkdir()
    phone_path = await make_account(server, directory)
    short_path = await make_account(server, directory / "short")
    users = [_user_id(path) for path in (phone_path, short_path)]
    await trio.to_thread.run_sync(fill, url, users, count)
    await trio.to_thread.run_sync(settle, server, url)
    began_bytes = database_bytes(url)
    quiet: list[float] = []
    busy: list[float] = []
    async with open_device(phone_path) as phone:
        await phone.wait_until_ready()
        await _window(phone, [], WINDOW_S)  # what is done for the first time
        cleaning = Cleaning(url, users[1])
        pairs = 0
        while not cleaning.is_done and pairs < PAIRS_MAX:
            await _window(phone, quiet, WINDOW_S)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cleaning.run)
                await _window(phone, busy, WINDOW_S)
                nursery.cancel_scope.cancel()
            pairs += 1
        await cleaning.finish()
    if pairs < PAIRS_MIN:
        raise BenchError(f"the clean-up was over after {pairs} pairs: --count is too low")
    without = _publishing(quiet, began_bytes, count, percentile(quiet, 0.99))
    return {
        "without clean-up": without,
        "during clean-up": _publishing(busy, database_bytes(url), cleaning.events, without.p99_ms),
    }


class Cleaning:
    """The server's clean-up, a week of the year after the other.

    Args:
        url: of the database.
        short_user: whose events go ``SHORTER_DAYS`` before everybody's.
    """

    def __init__(self, url: str, short_user: bytes) -> None:
        self._url = url
        self._short_user = short_user
        self._database = Database(url, threads=WorkerThreads(), clock=SystemClock())
        self._metrics = Metrics()
        self._days = (WEEKS + 1) * 7
        self._run = self._runs(GENTLE)
        self.is_done = False

    @property
    def events(self) -> int:
        """Let go so far."""
        return int(self._metrics.registry.get_sample_value("keepstep_pruned_events_total") or 0)

    async def run(self) -> None:
        """Until everything has gone, or it is cancelled between two steps."""
        while self._days > KEPT_DAYS:
            await self._have_rules()
            while not (await self._run.run()).is_done:
                pass
            self._days = max(KEPT_DAYS, self._days - 7)
        self.is_done = True

    async def finish(self) -> None:
        """What is left where the pairs ended first, without rests."""
        self._days = KEPT_DAYS
        await self._have_rules()
        at_once = self._runs(AT_ONCE)
        while not (await at_once.run()).is_done:
            pass
        self._database.close()

    def _runs(self, pace: Pace) -> RetentionRun:
        return RetentionRun(
            PostgresRetention(self._database),
            SystemClock(),
            lambda: RetentionRules(self._days),
            metrics=self._metrics,
            logger=structlog.get_logger(),
            pace=pace,
        )

    async def _have_rules(self) -> None:
        """Of the user; everybody's are asked for."""

        def have() -> None:
            with psycopg.connect(self._url, autocommit=True) as connection:
                statement = "UPDATE users SET retention_days = %s WHERE user_id = %s"
                connection.execute(statement, (max(1, self._days - SHORTER_DAYS), self._short_user))

        await trio.to_thread.run_sync(have)


async def _window(device: Device, samples: list[float], duration_s: float) -> None:
    """Publish for so long; the samples are milliseconds."""

    async def write(number: int) -> None:
        stream = f"bench-{number}"
        due_s = time.perf_counter() + WRITE_INTERVAL_S * number / WRITERS
        end_s = due_s + duration_s
        while due_s < end_s:
            await trio.sleep(max(0.0, due_s - time.perf_counter()))
            publication = await device.publish(stream, bytes(PAYLOAD_BYTES))
            await publication.accepted()
            samples.append((time.perf_counter() - due_s) * MILLISECONDS)
            due_s += WRITE_INTERVAL_S

    async with trio.open_nursery() as nursery:
        for number in range(WRITERS):
            nursery.start_soon(write, number)


def fill(url: str, users: Sequence[bytes], events: int) -> None:
    """A year of events: rows as the server writes them, but for what their bytes mean. Blocks."""
    now_ms = SystemClock().now_ms()
    from_ms = now_ms - WEEKS * WEEK_MS
    per_stream = events // STREAMS
    long_streams = STREAMS * 4 // 5
    values = {
        "events": per_stream,
        "from_ms": from_ms,
        "until_ms": now_ms,
        "span_ms": WEEKS * WEEK_MS,
        "row_bytes": _HEADER_AND_SIG_BYTES + PAYLOAD_BYTES,
        "payload_bytes": PAYLOAD_BYTES,
        "fillers": FILLERS,
    }
    with psycopg.connect(url, autocommit=True) as connection:
        arrays.register(connection)
        make_partitions(connection, list(partitions_of(RetentionClass.STANDARD, from_ms, ahead=WEEKS)))
        for user_id, first, last in ((users[0], 1, long_streams), (users[1], long_streams + 1, STREAMS)):
            connection.execute(_STREAMS, values | {"first": first, "last": last, "user_id": user_id})
    with ThreadPoolExecutor(FILLERS) as fillers:
        for done in [fillers.submit(_fill_share, url, values | {"filler": number}) for number in range(FILLERS)]:
            done.result()


def _fill_share(url: str, values: Mapping[str, int]) -> None:
    """The events of some streams, a week after the other."""
    per_stream = values["events"]
    step = max(1, per_stream // WEEKS)
    with psycopg.connect(url, autocommit=True) as connection:
        # Whoever fills anew after a crash loses nothing.
        connection.execute("SET synchronous_commit = off")
        for first in range(1, per_stream + 1, step):
            last = min(per_stream, first + step - 1)
            connection.execute(_EVENTS, {**values, "first": first, "last": last})


def settle(server: Server, url: str) -> None:
    """Have done what filling leaves behind, so that it disturbs nobody who publishes. Blocks."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE, SKIP_LOCKED) streams, events_standard")
    checkpoint(server)


def _user_id(path: Path) -> bytes:
    store = open_store(path)
    user_key = store.identity.user_key
    store.close()
    return user_key


def database_bytes(url: str) -> int:
    """All that the database takes on the disk. Blocks."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    assert row is not None
    return int(row[0])


def _publishing(samples: Sequence[float], database_bytes: int, events: int, p99_ms: float) -> Publishing:
    at_99 = percentile(samples, 0.99)
    return Publishing(
        len(samples),
        percentile(samples, 0.5),
        at_99,
        max(samples),
        database_bytes / MIB,
        events,
        at_99 / p99_ms,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and keep; the exit status."""
    return run(
        "retention",
        "publishing while old events go, against publishing alone",
        measure,
        arguments,
        count=EVENTS,
        what="events in the database",
        settings={"KEEPSTEP_CLEANUP_INTERVAL_S": "86400"},  # the clean-up that is measured is the only one
    )


if __name__ == "__main__":
    sys.exit(main())
