"""How large the database is and how it grows: asked from time to time, not when somebody scrapes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.interfaces import Clock
    from keepstep.telemetry import Metrics

WINDOW_MS: Final = 24 * 60 * 60 * 1000
"""Growth is that of the last day, or of as much of it as was measured."""
SAMPLE_MS: Final = 15 * 60 * 1000
"""Between two sizes that are remembered, and the least that growth is told of."""


@dataclass(frozen=True, slots=True)
class TableSize:
    """A table with its partitions; rows are the database's own estimates.

    Attributes:
        name: the table's; of a partitioned one the parent's.
        rows: live ones.
        dead_rows: what vacuum has not made free yet.
        size_bytes: with indexes and side tables.
    """

    name: str
    rows: int
    dead_rows: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DatabaseSize:
    """What the database says of itself.

    Attributes:
        size_bytes: all of it.
        tables: the larger ones are not alone worth telling.
        oldest_event_ms: unix milliseconds of the first event left, ``None`` where there is none.
    """

    size_bytes: int
    tables: Sequence[TableSize]
    oldest_event_ms: int | None


class MeasuredDatabase(Protocol):
    """Asked for its size."""

    async def measure(self) -> DatabaseSize:
        """From the catalogue and by index, without reading tables. Raises Unavailable; a cancellation waits."""


class Measuring:
    """Keeps the metrics of the database.

    Args:
        database: what is measured.
        clock: the one ``received_at`` follows.
        metrics: told.
    """

    def __init__(self, database: MeasuredDatabase, clock: Clock, metrics: Metrics) -> None:
        self._database = database
        self._clock = clock
        self._metrics = metrics
        self._samples: deque[tuple[int, int]] = deque(maxlen=WINDOW_MS // SAMPLE_MS + 1)

    async def run(self) -> None:
        """Measure once. Raises Unavailable."""
        size = await self._database.measure()
        metrics, now_ms = self._metrics, self._clock.now_ms()
        metrics.database_bytes.set(size.size_bytes)
        for table in size.tables:
            metrics.table_bytes.labels(table.name).set(table.size_bytes)
            metrics.table_rows.labels(table.name).set(table.rows)
            metrics.table_dead_rows.labels(table.name).set(table.dead_rows)
        metrics.oldest_event_timestamp.set((size.oldest_event_ms or 0) / 1000)
        metrics.database_growth_bytes.set(self._growth(now_ms, size.size_bytes))

    def _growth(self, now_ms: int, size_bytes: int) -> float:
        """Bytes a day; 0 before anything can be said."""
        if not self._samples or now_ms - self._samples[-1][0] >= SAMPLE_MS:
            self._samples.append((now_ms, size_bytes))
        at_ms, before_bytes = self._samples[0]
        passed_ms = now_ms - at_ms
        return 0.0 if passed_ms < SAMPLE_MS else (size_bytes - before_bytes) * WINDOW_MS / passed_ms
