"""``interfaces.EventLog`` in memory: one node on a ``MemoryDatabase``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import trio

from keepstep.eventlog.log import STREAMS_PER_USER_MAX, TAIL_BYTES_MAX, TAIL_STREAM_BYTES_MAX, StoredLog
from keepstep.memory.reader import MemoryReader
from keepstep.memory.store import MemoryStore

if TYPE_CHECKING:
    from keepstep._keepstep import Ingested
    from keepstep.eventlog.store import KnownBatch, Reader, Store
    from keepstep.memory.database import MemoryDatabase
    from keepstep.model import UserPk

T = TypeVar("T")


class MemoryBackend:
    """``eventlog.store.Backend`` without threads: work runs at once, in the Trio thread."""

    def __init__(self, database: MemoryDatabase, probe: Callable[[str], None]) -> None:
        self._database = database
        self._probe = probe
        self._generation = database.generation

    def generation(self) -> int:
        """As ``Backend.generation``: of the database as it was when it was last asked."""
        return self._generation

    def epoch(self) -> int:
        """As ``Backend.epoch``."""
        return self._database.epoch

    async def append_known(self, batch: KnownBatch) -> Ingested | None:
        """As ``Backend.append_known``: nothing goes this way."""
        del batch
        return None

    async def write(self, work: Callable[[Store], T]) -> T:
        """As ``Backend.write``. A checkpoint comes first; after it the work is done without another."""
        await trio.lowlevel.checkpoint()
        try:
            return work(MemoryStore(self._database, self._probe))
        finally:
            self._generation = self._database.generation

    async def read(self, user_pk: UserPk, work: Callable[[Reader], T]) -> T:
        """As ``Backend.read``; a checkpoint comes first."""
        del user_pk  # its rows are under its key: there is no statement that could forget to name it
        await trio.lowlevel.checkpoint()
        self._database.check_here()
        self._generation = self._database.generation
        return work(MemoryReader(self._database))


class MemoryLog(StoredLog):
    """A log in memory.

    Args:
        database: the tables; logs over the same ones are nodes of one installation.
        streams_per_user_max: streams a user may have, ``$devices`` and ``$keys`` among them.
        bytes_per_user_max: what a user without a quota of its own may store outside those two, bytes; ``None`` for all.
        tail_bytes_max: memory for the newest events of all streams, bytes.
        tail_stream_bytes_max: the share of one stream, bytes.
        probe: called with the name of each step of an append, among them "before_commit" and "after_commit".
    """

    def __init__(
        self,
        database: MemoryDatabase,
        *,
        streams_per_user_max: int = STREAMS_PER_USER_MAX,
        bytes_per_user_max: int | None = None,
        tail_bytes_max: int = TAIL_BYTES_MAX,
        tail_stream_bytes_max: int = TAIL_STREAM_BYTES_MAX,
        probe: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(
            MemoryBackend(database, probe),
            streams_per_user_max=streams_per_user_max,
            bytes_per_user_max=bytes_per_user_max,
            tail_bytes_max=tail_bytes_max,
            tail_stream_bytes_max=tail_stream_bytes_max,
        )
