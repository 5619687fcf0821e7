"""``interfaces.EventLog`` over PostgreSQL: one node's log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from keepstep.eventlog.log import STREAMS_PER_USER_MAX, TAIL_BYTES_MAX, TAIL_STREAM_BYTES_MAX, StoredLog
from keepstep.postgres.commits import Commits
from keepstep.postgres.reader import PostgresReader
from keepstep.postgres.store import PostgresStore

if TYPE_CHECKING:
    from keepstep._keepstep import Ingested
    from keepstep.eventlog.store import KnownBatch, Reader, Store
    from keepstep.model import UserPk
    from keepstep.postgres.pool import Database, Lease

T = TypeVar("T")


def ignore_probe(point: str) -> None:
    """What a probe does outside tests."""
    del point


class PostgresBackend:
    """``eventlog.store.Backend`` on the pools of a database.

    Args:
        database: where the log is.
        probe: as for ``PostgresLog``.
        pause: waits that many seconds in a worker thread.
    """

    def __init__(
        self, database: Database, *, probe: Callable[[str], None] | None, pause: Callable[[float], None]
    ) -> None:
        self._database = database
        self._probe = probe or ignore_probe
        self._pause = pause
        self._commits = Commits(database, store=self._store, probe=probe)

    def _store(self, lease: Lease) -> PostgresStore:
        return PostgresStore(self._database, lease, probe=self._probe, pause=self._pause)

    def generation(self) -> int:
        """As ``Backend.generation``."""
        return self._database.generation

    def epoch(self) -> int:
        """As ``Backend.epoch``."""
        return self._database.epoch

    async def append_known(self, batch: KnownBatch) -> Ingested | None:
        """As ``Backend.append_known``."""
        return await self._commits.append(batch)

    async def write(self, work: Callable[[Store], T]) -> T:
        """As ``Backend.write``: one hop to a thread, whatever the batch takes."""
        return await self._database.append.run(lambda lease: work(self._store(lease)))

    async def read(self, user_pk: UserPk, work: Callable[[Reader], T]) -> T:
        """As ``Backend.read``."""
        return await self._database.read_as(int(user_pk), lambda connection: work(PostgresReader(connection)))


class PostgresLog(StoredLog):
    """A log in PostgreSQL. Several of them on one database are nodes of one installation.

    Args:
        database: where it is.
        streams_per_user_max: streams a user may have, ``$devices`` and ``$keys`` among them.
        bytes_per_user_max: what a user without a quota of its own may store outside those two, bytes; ``None`` for all.
        tail_bytes_max: memory for the newest events of all streams, bytes.
        tail_stream_bytes_max: the share of one stream, bytes.
        probe: called in the thread that commits with "before_commit" immediately before COMMIT is sent, and with
            "after_commit" when it has succeeded; for tests that end the process there.
        pause: waits that many seconds in a worker thread, between two looks at a transaction whose outcome is unknown.
    """

    def __init__(
        self,
        database: Database,
        *,
        streams_per_user_max: int = STREAMS_PER_USER_MAX,
        bytes_per_user_max: int | None = None,
        tail_bytes_max: int = TAIL_BYTES_MAX,
        tail_stream_bytes_max: int = TAIL_STREAM_BYTES_MAX,
        probe: Callable[[str], None] | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(
            PostgresBackend(database, probe=probe, pause=pause),
            streams_per_user_max=streams_per_user_max,
            bytes_per_user_max=bytes_per_user_max,
            tail_bytes_max=tail_bytes_max,
            tail_stream_bytes_max=tail_stream_bytes_max,
        )
