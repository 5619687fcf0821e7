"""The periodic jobs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from keepstep.errors import Unavailable
from keepstep.jobs import ACK_SAVE_INTERVAL_S, DROP_BATCHES_MAX, DROP_ROWS_MAX, KEEP_SESSIONS_S, Jobs
from keepstep.runtime import OffsetClock
from keepstep.telemetry import Metrics
from tests.support.events import NOW_MS
from tests.support.parts import TestClock


@dataclass
class ScriptedMaintenance:
    """Housekeeping that answers what a test says and remembers what it was asked."""

    clock: TestClock
    ahead_ms: int = 0
    round_trip_ms: int = 0
    missing_partitions: int = 0
    droppable: int = 0
    is_away: bool = False
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    async def _arrive(self, *call: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.calls.append(call)
        if self.is_away:
            raise Unavailable

    async def ping(self) -> None:
        """Not asked by jobs."""
        raise AssertionError

    async def safe_at_ms(self) -> int:
        """Not asked by jobs."""
        raise AssertionError

    async def now_ms(self) -> int:
        """Half the round trip there, half of it back."""
        await self._arrive("now_ms")
        self.clock.at_ms += self.round_trip_ms // 2
        answer = self.clock.at_ms + self.ahead_ms
        self.clock.at_ms += self.round_trip_ms // 2
        return answer

    async def make_partitions(self, *, now_ms: int, ahead: int) -> int:
        """What was missing, once."""
        await self._arrive("make_partitions", now_ms, ahead)
        made, self.missing_partitions = self.missing_partitions, 0
        return made

    async def expire_payloads(self, *, now_ms: int, rows_max: int) -> int:
        """As many as there are, at most ``rows_max``."""
        return await self._drop("expire_payloads", now_ms, rows_max)

    async def compact(self, *, now_ms: int, rows_max: int) -> int:
        """As many as there are, at most ``rows_max``."""
        return await self._drop("compact", now_ms, rows_max)

    async def empty_inboxes(self, *, now_ms: int, rows_max: int) -> int:
        """As many as there are, at most ``rows_max``."""
        return await self._drop("empty_inboxes", now_ms, rows_max)

    async def _drop(self, name: str, now_ms: int, rows_max: int) -> int:
        await self._arrive(name, now_ms, rows_max)
        done = min(self.droppable, rows_max)
        self.droppable -= done
        return done


class Bench:
    """Jobs with everything around them."""

    def __init__(self) -> None:
        self.machine_clock = TestClock()
        self.clock = OffsetClock(self.machine_clock)
        self.maintenance = ScriptedMaintenance(self.machine_clock)
        self.metrics = Metrics()
        self.saves = 0
        self.keeps = 0
        self.clean_ups = 0
        self.measurements = 0
        self.jobs = Jobs(
            self.maintenance,
            self.machine_clock,
            self.clock,
            self.save_acks,
            self.keep_sessions,
            {"clean_up": self.clean_up, "measure": self.measure},
            partitions_ahead=3,
            metrics=self.metrics,
            logger=structlog.get_logger(),
        )

    async def save_acks(self) -> None:
        """Counts."""
        await trio.lowlevel.checkpoint()
        self.saves += 1

    async def keep_sessions(self) -> None:
        """Counts."""
        await trio.lowlevel.checkpoint()
        self.keeps += 1

    async def clean_up(self) -> None:
        """Counts."""
        await trio.lowlevel.checkpoint()
        self.clean_ups += 1

    async def measure(self) -> None:
        """Counts."""
        await trio.lowlevel.checkpoint()
        self.measurements += 1

    def value(self, name: str, **labels: str) -> float | None:
        """A metric's value."""
        return self.metrics.registry.get_sample_value(name, labels)


async def test_the_clock_follows_the_database_half_the_round_trip_taken_off() -> None:
    """A database 1.5 s ahead, with 40 ms there and back."""
    bench = Bench()
    bench.maintenance.ahead_ms, bench.maintenance.round_trip_ms = 1_500, 40
    await bench.jobs.measure_clock()
    assert bench.clock.offset_ms == 1_500
    assert bench.clock.now_ms() == NOW_MS + 40 + 1_500
    assert bench.value("keepstep_clock_offset_seconds") == 1.5


async def test_partitions_are_made_for_the_databases_time() -> None:
    """By the clock that follows it, and counted."""
    bench = Bench()
    bench.clock.offset_ms, bench.maintenance.missing_partitions = 5_000, 8
    with structlog.testing.capture_logs() as lines:
        await bench.jobs.make_partitions()
        await bench.jobs.make_partitions()
    assert bench.maintenance.calls == [("make_partitions", NOW_MS + 5_000, 3)] * 2
    assert bench.value("keepstep_partitions_made_total") == 8
    assert [line["count"] for line in lines if line["event"] == "partitions_made"] == [8]


DROPS = [("expire_payloads", "expired"), ("compact", "compacted"), ("empty_inboxes", "acked")]
"""Jobs that drop payloads, and what their metric begins with."""


@pytest.mark.parametrize(("job", "metric"), DROPS)
@pytest.mark.parametrize(("count", "batches"), [(0, 1), (5, 1), (DROP_ROWS_MAX, 2), (2 * DROP_ROWS_MAX + 1, 3)])
async def test_payloads_are_dropped_until_a_batch_is_not_full(job: str, metric: str, count: int, batches: int) -> None:
    """Each batch a short transaction."""
    bench = Bench()
    bench.maintenance.droppable = count
    await getattr(bench.jobs, job)()
    assert bench.maintenance.calls == [(job, NOW_MS, DROP_ROWS_MAX)] * batches
    assert bench.maintenance.droppable == 0
    assert bench.value(f"keepstep_{metric}_payloads_total") == count


async def test_dropping_payloads_stops_after_some_batches() -> None:
    """What is left waits for the next run, so that nothing else has to wait for it."""
    bench = Bench()
    bench.maintenance.droppable = (DROP_BATCHES_MAX + 1) * DROP_ROWS_MAX
    await bench.jobs.expire_payloads()
    assert bench.maintenance.droppable == DROP_ROWS_MAX


async def test_preparing_measures_the_clock_before_making_partitions() -> None:
    """So that they are made for the right time."""
    bench = Bench()
    bench.maintenance.ahead_ms = 86_400_000
    await bench.jobs.prepare()
    assert bench.maintenance.calls == [("now_ms",), ("make_partitions", NOW_MS + 86_400_000, 3)]


async def test_every_job_runs_at_its_interval(autojump_clock: trio.testing.MockClock) -> None:
    """For a quarter of an hour."""
    bench = Bench()
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: _run(bench, task_status))
        await trio.sleep(900.5)
        nursery.cancel_scope.cancel()
    names = [call[0] for call in bench.maintenance.calls]
    assert {name: names.count(name) for name in names} == {
        "now_ms": 15,
        "make_partitions": 9,
        "expire_payloads": 9,
        "compact": 9,
        "empty_inboxes": 9,
    }
    assert bench.saves == 900 / ACK_SAVE_INTERVAL_S
    assert bench.keeps == 900 // KEEP_SESSIONS_S
    assert bench.clean_ups == bench.measurements == 9
    assert bench.value("keepstep_jobs_total", job="clock_offset", result="ok") == 15


async def test_a_database_that_is_away_costs_a_run_only(autojump_clock: trio.testing.MockClock) -> None:
    """The failed run is counted and logged; the next one is on time."""
    bench = Bench()
    bench.maintenance.is_away = True
    with structlog.testing.capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: _run(bench, task_status))
            await trio.sleep(60.5)
            bench.maintenance.is_away = False
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
    assert bench.value("keepstep_jobs_total", job="clock_offset", result="unavailable") == 1
    assert bench.value("keepstep_jobs_total", job="clock_offset", result="ok") == 1
    assert {"event": "job_failed", "log_level": "warning", "job": "clock_offset", "code": "unavailable"} in lines


async def _run(bench: Bench, task_status: trio.TaskStatus[None]) -> None:
    await bench.jobs.run(clock_offset_interval_s=60, cleanup_interval_s=100, task_status=task_status)
