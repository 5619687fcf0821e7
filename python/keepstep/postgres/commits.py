"""Batches of what is remembered, decided and committed by threads of the extension (docs/adr/0368).

Such a thread takes the interpreter's lock for nothing, so it neither waits for the event loop nor holds it up. What
does not end as it does in general is concluded in a worker thread, with the connection and the flight as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from keepstep import _keepstep
from keepstep.eventlog.store import Contended
from keepstep.postgres.breaker import BreakerState
from keepstep.postgres.flight import COPIES, MOVE_HEADS

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepstep._keepstep import Committer, Flight, Ingested
    from keepstep.eventlog.store import KnownBatch
    from keepstep.postgres.pool import Database, Lease, LentFlights
    from keepstep.postgres.store import PostgresStore


class Commits:
    """The threads, at most as many as there are connections for appending; made as they are needed.

    Args:
        database: where batches go.
        store: what concludes a flight on a connection.
        probe: as for ``PostgresLog``; ``None`` where nobody wants to know.
    """

    def __init__(
        self, database: Database, *, store: Callable[[Lease], PostgresStore], probe: Callable[[str], None] | None
    ) -> None:
        self._database = database
        self._store = store
        self._probe = probe
        self._idle: list[Committer] = []
        self._concluding = trio.CapacityLimiter(database.append.limiter.total_tokens)

    async def append(self, batch: KnownBatch) -> Ingested | None:
        """As ``Backend.append_known``. A batch that does not go this way has met no checkpoint, perhaps."""
        breaker, pool = self._database.breaker, self._database.append
        if breaker.state is not BreakerState.CLOSED or self._database.generation != batch.generation:
            return None
        lent = pool.lend_nowait()
        if lent is None:
            return None
        breaker.enter()
        try:
            with trio.CancelScope(shield=True):  # whoever has the connection next would take its answers
                ingested = await self._append(batch, lent)
        finally:
            breaker.leave(failed=lent.lease.lost)
            pool.take_back(lent)
        return ingested

    async def _append(self, batch: KnownBatch, lent: LentFlights) -> Ingested | None:
        try:
            committer = self._idle.pop() if self._idle else _keepstep.Committer()
        except OSError:  # no descriptors, or no memory for one more thread
            return None
        committer.start(
            batch.submissions,
            batch.heads,
            batch.accounts,
            now_ms=batch.now_ms,
            received_at_ms_max=batch.received_at_ms_max,
            generation=batch.generation,
            connection=lent.connection,
            descriptor=lent.connection.pgconn.socket,
            timeout_s=self._database.statement_timeout_s,
            move_heads=MOVE_HEADS,
            copies=COPIES,
            probe=self._probe,
        )
        await trio.lowlevel.wait_readable(committer.fileno())
        try:
            committed = committer.take()
        except BaseException:
            lent.connection.close()  # nobody knows what is on its way there
            raise
        self._idle.append(committer)
        if committed is None:
            return None
        ingested, flight = committed
        if flight is not None:
            await self._conclude(lent, flight, ingested)
            batch.heads.keep(ingested, generation=batch.generation)
        return ingested

    async def _conclude(self, lent: LentFlights, flight: Flight, ingested: Ingested) -> None:
        """See that it was committed after all. Raises as ``Backend.append_known``."""

        def conclude() -> bool:
            return self._store(lent.lease).conclude(lent.flights, flight, ingested)

        if not await self._database.threads.run(conclude, limiter=self._concluding):
            raise Contended
