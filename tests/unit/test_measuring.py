"""What is told of the database's size."""

from __future__ import annotations

from dataclasses import dataclass, field

from keepstep.measuring import SAMPLE_MS, WINDOW_MS, DatabaseSize, Measuring, TableSize
from keepstep.telemetry import Metrics
from tests.support.events import NOW_MS
from tests.support.logs import FixedClock

MIB = 1024 * 1024


@dataclass
class Bench:
    """A database that is as large as a test says."""

    size_bytes: int = 100 * MIB
    oldest_event_ms: int | None = None
    clock: FixedClock = field(default_factory=FixedClock)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.measuring = Measuring(self, self.clock, self.metrics)

    async def measure(self) -> DatabaseSize:
        """As ``MeasuredDatabase.measure``."""
        return DatabaseSize(self.size_bytes, [TableSize("streams", 9, 4, 8_192)], self.oldest_event_ms)

    def value(self, name: str, **labels: str) -> float | None:
        """A metric's value."""
        return self.metrics.registry.get_sample_value(f"keepstep_{name}", labels)


async def test_sizes_are_told_by_table() -> None:
    """Rows and dead rows as estimated; an age only where there is an event."""
    bench = Bench()
    await bench.measuring.run()
    assert bench.value("database_bytes") == 100 * MIB
    names = ("table_bytes", "table_rows", "table_dead_rows")
    assert [bench.value(name, table="streams") for name in names] == [8_192, 9, 4]
    assert bench.value("oldest_event_timestamp_seconds") == 0
    bench.oldest_event_ms = NOW_MS
    await bench.measuring.run()
    assert bench.value("oldest_event_timestamp_seconds") == NOW_MS / 1000


async def test_growth_is_that_of_a_day() -> None:
    """Nothing before a quarter of an hour is over; then scaled to a day, and in the end that of the last one."""
    bench = Bench()
    await bench.measuring.run()
    bench.size_bytes += MIB
    bench.clock.at_ms += SAMPLE_MS - 1
    await bench.measuring.run()
    assert bench.value("database_growth_bytes") == 0
    bench.clock.at_ms += 1
    await bench.measuring.run()
    assert bench.value("database_growth_bytes") == MIB * WINDOW_MS / SAMPLE_MS
    for _ in range(2 * WINDOW_MS // SAMPLE_MS):
        bench.clock.at_ms += SAMPLE_MS
        bench.size_bytes += 10
        await bench.measuring.run()
    assert bench.value("database_growth_bytes") == 10 * WINDOW_MS / SAMPLE_MS
