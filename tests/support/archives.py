"""Archives for tests: in a directory, and in an S3 API on this machine; and what may go wrong with what is in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import httpx
import structlog

from keepstep.archive.opening import ArchiveKeys
from keepstep.archive.reading import ArchivedPast
from keepstep.archive.store import ArchiveStore, S3Access, open_store
from keepstep.archive.verifying import ArchiveReport, verify_archive
from keepstep.archive.writing import ArchiveRules, ArchiveRun, SegmentLimits
from keepstep.client import crypto
from keepstep.eventlog.retention import DAY_MS, RetentionRules
from keepstep.postgres.archive import PostgresArchive
from keepstep.runtime import WorkerThreads
from keepstep.telemetry import Metrics
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import FixedClock, PostgresPlace, append, create_account, enrol

if TYPE_CHECKING:
    from keepstep.archive.writing import Archived
    from keepstep.eventlog.log import StoredLog
    from keepstep.model import Principal

SECRET: Final = crypto.blake3(b"the server's key")
BUCKET: Final = "keepstep-test"
ACCESS: Final = {"access_key_id": "tester", "secret_access_key": "secret", "region": "us-east-1"}
CACHE_BYTES: Final = 1 << 20
ADA: Final = UserFixture("ada")
LATER_MS: Final = NOW_MS + 40 * DAY_MS
"""When what ``fill`` writes first is old, and last is young."""


@contextmanager
def s3_server() -> Iterator[str]:
    """An S3 API on loopback with an empty bucket: its URL."""
    from moto.server import ThreadedMotoServer  # takes a second, which only these tests have to wait

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        httpx.put(f"{url}/{BUCKET}", timeout=60).raise_for_status()
        yield url
    finally:
        server.stop()


@dataclass
class Archives:
    """One archive over one database, with a clock.

    Attributes:
        place: the database.
        url: of the archive.
        access: to S3.
    """

    place: PostgresPlace
    url: str
    access: S3Access = field(default_factory=S3Access)

    def __post_init__(self) -> None:
        """Open it."""
        self.clock = FixedClock(NOW_MS)
        self.threads = WorkerThreads()
        self.metrics = Metrics()
        self.index = PostgresArchive(self.place.connect())
        self.store: ArchiveStore = self.open_store()
        self.keys = ArchiveKeys(SECRET, [])

    def open_store(self) -> ArchiveStore:
        """A node's way to the objects."""
        return open_store(self.url, self.access, timeout_s=5.0, threads=self.threads, clock=self.clock)

    def run(
        self, *, days: int | None = None, events_max: int = 100, bytes_max: int = 1 << 20, has_turn: bool = True
    ) -> ArchiveRun:
        """What archives on one node."""

        async def take_turn() -> bool:
            return has_turn

        return ArchiveRun(
            self.index,
            self.store,
            SECRET,
            self.keys.public,
            self.clock,
            self.threads,
            lambda: ArchiveRules(days),
            SegmentLimits(events_max, bytes_max),
            take_turn=take_turn,
            metrics=self.metrics,
            logger=structlog.get_logger(),
        )

    async def archive(self, *, days: int | None = 30, now_ms: int | None = None, events_max: int = 100) -> Archived:
        """Archive what is due at some time."""
        self.clock.at_ms = self.clock.at_ms if now_ms is None else now_ms
        return await self.run(days=days, events_max=events_max).run()

    async def prune(self, *, days: int | None = 30, now_ms: int | None = None) -> int:
        """Prune what is archived; how many events."""
        events = 0
        rules = RetentionRules(days, only_archived=True)
        now_ms = self.clock.at_ms if now_ms is None else now_ms
        while (step := await self.place.retention.advance_tail(now_ms=now_ms, rules=rules, events_max=100)) is not None:
            events += step.to_seq - step.from_seq
        await self.place.retention.drop_partitions(now_ms=now_ms)
        while await self.place.retention.remove_rows(rows_max=100):
            pass
        return events

    def reader(self, *, keys: tuple[bytes, ...] | None = None, cache_bytes_max: int = CACHE_BYTES) -> StoredLog:
        """A node's log that reads through."""
        log = self.place.node(tail_bytes_max=0)
        log.past = ArchivedPast(
            self.index,
            self.store,
            self.keys.public if keys is None else keys,
            self.threads,
            cache_bytes_max=cache_bytes_max,
            metrics=self.metrics,
            logger=structlog.get_logger(),
        )
        return log

    async def verify(self) -> ArchiveReport:
        """What ``keepstep archive verify`` finds."""
        return await verify_archive(self.index, self.store, self.keys.public, self.threads)

    async def names(self) -> list[str]:
        """Of all objects that the database knows."""
        return [
            entry.name
            for tail in await self.index.streams(after=(0, 0), user_key=None)
            for entry in await self.index.segments(tail.stream, after=0)
        ]

    def metric(self, name: str) -> float:
        """A metric's value now."""
        return self.metrics.registry.get_sample_value(name) or 0.0


async def fill(archives: Archives, *, count: int = 7, user: UserFixture = ADA) -> tuple[Principal, DeviceFixture]:
    """A stream by two authors, all of it old, and one young event."""
    log = archives.place.node(tail_bytes_max=0)
    phone, laptop = DeviceFixture(user, "phone"), DeviceFixture(user, "laptop")
    principal = await create_account(archives.place, log, phone)
    on_laptop = await enrol(archives.place, log, phone, laptop)
    await append(log, principal, *phone.events("notes", count - 1))
    await append(log, on_laptop, laptop.event("notes", b"of the laptop"))
    await append(log, principal, phone.event("notes", b"young"), now_ms=LATER_MS)
    return principal, phone


def flipped(data: bytes) -> bytes:
    """One bit of the last byte but ten."""
    return data[:-10] + bytes([data[-10] ^ 1]) + data[-9:]
