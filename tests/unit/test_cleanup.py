"""Clean-up: steps in turn, bounded, by one node at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from keepstep.cleanup import (
    DAY_MS,
    ROWS_MAX,
    STEPS_MAX,
    TURN,
    TURN_MS,
    CleanUp,
    devices_step,
    invites_step,
    sessions_step,
)
from keepstep.errors import Unavailable
from keepstep.memory import MemoryDatabase, MemoryHousekeeping
from keepstep.telemetry import Metrics
from tests.support.events import NOW_MS
from tests.support.logs import FixedClock

HERE, THERE = b"h" * 16, b"t" * 16


@dataclass
class Leftovers:
    """So many rows that can be dropped."""

    rows: int
    is_away: bool = False
    asked: list[tuple[int, int]] = field(default_factory=list)

    async def drop(self, *, now_ms: int, rows_max: int) -> int:
        """At most ``rows_max``."""
        if self.is_away:
            raise Unavailable
        self.asked.append((now_ms, rows_max))
        dropped = min(self.rows, rows_max)
        self.rows -= dropped
        return dropped


@dataclass
class Bench:
    """Clean-up of two kinds of leftovers."""

    first: Leftovers
    second: Leftovers
    database: MemoryDatabase = field(default_factory=MemoryDatabase)
    clock: FixedClock = field(default_factory=FixedClock)
    metrics: Metrics = field(default_factory=Metrics)

    def node(self, holder: bytes = HERE) -> CleanUp:
        """One node's."""
        steps = {"first": self.first.drop, "second": self.second.drop}
        return CleanUp(MemoryHousekeeping(self.database), holder, steps, self.clock, self.metrics)

    def value(self, name: str, step: str) -> float | None:
        """A metric of a step."""
        return self.metrics.registry.get_sample_value(f"keepstep_{name}", {"step": step})


async def test_every_step_goes_on_until_nothing_is_left() -> None:
    """In transactions of so many rows; counted, with the time at which nothing was left."""
    bench = Bench(Leftovers(ROWS_MAX + 1), Leftovers(0))
    await bench.node().run()
    assert bench.first.asked == [(NOW_MS, ROWS_MAX)] * 3
    assert bench.second.asked == [(NOW_MS, ROWS_MAX)]
    assert bench.value("cleaned_up_rows_total", "first") == ROWS_MAX + 1
    assert bench.value("clean_up_done_timestamp_seconds", "first") == NOW_MS / 1000


async def test_a_step_with_very_much_to_do_leaves_the_rest_for_the_next_run() -> None:
    """So that the others have their turn; it is seen to lag behind."""
    bench = Bench(Leftovers((STEPS_MAX + 1) * ROWS_MAX), Leftovers(1))
    await bench.node().run()
    assert (bench.first.rows, bench.second.rows) == (ROWS_MAX, 0)
    assert bench.value("clean_up_done_timestamp_seconds", "first") is None
    await bench.node().run()
    assert bench.first.rows == 0


async def test_another_node_waits_for_its_turn() -> None:
    """Until the one that has it says nothing for a while; in between it goes on where the other one stopped."""
    bench = Bench(Leftovers(1), Leftovers(1))
    await bench.node().run()
    bench.first.rows = 1
    await bench.node(THERE).run()
    assert bench.first.rows == 1
    bench.clock.at_ms += TURN_MS
    await bench.node(THERE).run()
    assert bench.first.rows == 0
    assert bench.database.turns[TURN] == (THERE, NOW_MS + 2 * TURN_MS)


async def test_a_database_that_goes_away_ends_the_run() -> None:
    """What was done stays done, and the next run begins anew."""
    bench = Bench(Leftovers(1), Leftovers(1, is_away=True))
    with pytest.raises(Unavailable):
        await bench.node().run()
    assert (bench.first.rows, bench.second.rows) == (0, 1)


async def test_steps_ask_for_what_is_older_than_the_days_that_count_now() -> None:
    """Days are asked each time; inactive devices are left alone where no days are set."""

    class Recorded(MemoryHousekeeping):
        """What was asked."""

        def __init__(self) -> None:
            super().__init__(MemoryDatabase())
            self.asked: list[tuple[str, int]] = []

        async def drop_sessions(self, *, before_ms: int, rows_max: int) -> int:
            self.asked.append(("sessions", before_ms))
            return await super().drop_sessions(before_ms=before_ms, rows_max=rows_max)

        async def drop_invites(self, *, before_ms: int, rows_max: int) -> int:
            self.asked.append(("invites", before_ms))
            return await super().drop_invites(before_ms=before_ms, rows_max=rows_max)

        async def clean_devices(self, *, before_ms: int, now_ms: int, rows_max: int) -> int:
            self.asked.append(("devices", before_ms))
            return await super().clean_devices(before_ms=before_ms, now_ms=now_ms, rows_max=rows_max)

    housekeeping = Recorded()
    days: dict[str, int | None] = {"inactive": None}
    steps = [
        sessions_step(housekeeping, lambda: 1),
        invites_step(housekeeping, lambda: 2),
        devices_step(housekeeping, lambda: days["inactive"]),
    ]
    for step in steps:
        assert await step(now_ms=NOW_MS, rows_max=9) == 0
    days["inactive"] = 400
    await steps[2](now_ms=NOW_MS, rows_max=9)
    expected = [("sessions", 1), ("invites", 2), ("devices", 400)]
    assert housekeeping.asked == [(name, NOW_MS - count * DAY_MS) for name, count in expected]
