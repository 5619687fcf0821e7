"""The archive of the settings, and its parts in a running server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keepstep import _keepstep
from keepstep.archive.reading import ArchivedPast
from keepstep.archive.store import S3Access, open_store
from keepstep.archive.writing import TURN, TURN_MS, ArchiveRules, ArchiveRun, SegmentLimits
from keepstep.postgres.archive import PostgresArchive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keepstep.archive.store import ArchiveStore
    from keepstep.cleanup import Housekeeping
    from keepstep.config import Settings
    from keepstep.eventlog.log import StoredLog
    from keepstep.interfaces import Clock, Threads
    from keepstep.postgres.pool import Database
    from keepstep.telemetry import Log, Metrics


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive, and the database whose events are in it.

    Attributes:
        index: what the database knows of it.
        store: where the objects are.
        log: the events that are still in the database.
    """

    index: PostgresArchive
    store: ArchiveStore
    log: StoredLog


def open_archive(
    settings: Settings, database: Database, log: StoredLog, *, threads: Threads, clock: Clock
) -> Archive | None:
    """The archive of the settings; ``None`` where there is none. Asks nothing of it yet."""
    store = store_of(settings, threads, clock)
    return None if store is None else Archive(PostgresArchive(database), store, log)


def store_of(settings: Settings, threads: Threads, clock: Clock) -> ArchiveStore | None:
    """Where the archive's objects are; ``None`` where there is none. Asks nothing of it yet."""
    if settings.archive_url is None:
        return None
    secret = settings.archive_s3_secret_access_key
    access = S3Access(
        endpoint=settings.archive_s3_endpoint,
        region=settings.archive_s3_region,
        access_key_id=settings.archive_s3_access_key_id,
        secret_access_key=None if secret is None else secret.get_secret_value(),
    )
    return open_store(settings.archive_url, access, timeout_s=settings.archive_timeout_s, threads=threads, clock=clock)


@dataclass(frozen=True, slots=True)
class ArchiveKeys:
    """What signs segments, and what they may be signed with.

    Attributes:
        secret: the seed of the server's identity key.
        predecessors: public keys that the server had before.
    """

    secret: bytes
    predecessors: Sequence[bytes]

    @property
    def public(self) -> tuple[bytes, ...]:
        """All keys with which segments are signed, the one of now first."""
        return (_keepstep.ed25519_public(self.secret), *self.predecessors)


def read_through(
    settings: Settings, archive: Archive, keys: ArchiveKeys, threads: Threads, metrics: Metrics, logger: Log
) -> None:
    """Have the log answer out of the archive for what is gone from the database."""
    archive.log.past = ArchivedPast(
        archive.index,
        archive.store,
        keys.public,
        threads,
        cache_bytes_max=settings.archive_cache_bytes_max,
        metrics=metrics,
        logger=logger,
    )


def archive_run(
    settings: Callable[[], Settings],
    archive: Archive,
    keys: ArchiveKeys,
    housekeeping: Housekeeping,
    holder: bytes,
    clock: Clock,
    threads: Threads,
    *,
    metrics: Metrics,
    logger: Log,
) -> ArchiveRun:
    """Runs of the archive as the settings say.

    Args:
        settings: as they are now.
        archive: where events go.
        keys: the server's.
        housekeeping: where the lease is.
        holder: this node, 16 random bytes.
        clock: the one ``received_at`` follows.
        threads: where segments are made.
        metrics: counted into.
        logger: told of runs that did something.
    """

    async def take_turn() -> bool:
        now_ms = clock.now_ms()
        return await housekeeping.take_turn(TURN, holder, now_ms=now_ms, until_ms=now_ms + TURN_MS)

    at_start = settings()
    return ArchiveRun(
        archive.index,
        archive.store,
        keys.secret,
        keys.public,
        clock,
        threads,
        lambda: ArchiveRules(settings().retention_days),
        SegmentLimits(at_start.archive_segment_events_max, at_start.archive_segment_bytes_max),
        take_turn=take_turn,
        metrics=metrics,
        logger=logger,
    )
