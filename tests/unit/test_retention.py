"""Runs of the clean-up of events: bounded steps with rests in between, and what metrics say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
import structlog
import trio
from structlog.testing import capture_logs

from keepstep import retention as retention_module
from keepstep.errors import Unavailable
from keepstep.eventlog.retention import (
    DAY_MS,
    EVENTS_PER_STEP_MIN,
    PARTITIONS_PER_RUN_MAX,
    ROWS_PER_STEP_MIN,
    Advanced,
    RetentionRules,
    RetentionState,
)
from keepstep.model import UserPk
from keepstep.retention import Pruned, RetentionRun
from keepstep.telemetry import Metrics
from tests.support.events import NOW_MS
from tests.support.logs import FixedClock

if TYPE_CHECKING:
    from trio.testing import MockClock

STEP_S: Final = 0.5


class ScriptedRetention:
    """Has so much to do, and takes half a second for each step."""

    def __init__(self, *, events: int = 0, rows: int = 0, partitions: tuple[str, ...] = ()) -> None:
        self.events = events
        self.rows = rows
        self.partitions = list(partitions)
        self.steps: list[str] = []
        self.is_away = False
        self.rules: list[RetentionRules] = []

    async def advance_tail(self, *, now_ms: int, rules: RetentionRules, events_max: int) -> Advanced | None:
        """As ``Retention.advance_tail``."""
        assert now_ms == NOW_MS
        self.rules.append(rules)
        await self._take("advance")
        if not self.events:
            return None
        count = min(self.events, events_max)
        self.events -= count
        return Advanced(UserPk(1), 3, 0, count)

    async def drop_partitions(self, *, now_ms: int, partitions_max: int = PARTITIONS_PER_RUN_MAX) -> list[str]:
        """As ``Retention.drop_partitions``."""
        assert now_ms == NOW_MS
        await self._take("drop")
        dropped, self.partitions = self.partitions[:partitions_max], self.partitions[partitions_max:]
        return dropped

    async def remove_rows(self, *, rows_max: int) -> int:
        """As ``Retention.remove_rows``."""
        await self._take("remove")
        count = min(self.rows, rows_max)
        self.rows -= count
        return count

    async def state(self, *, now_ms: int, rules: RetentionRules) -> RetentionState:
        """As ``Retention.state``."""
        del now_ms, rules
        await trio.lowlevel.checkpoint()
        return RetentionState(NOW_MS - DAY_MS if self.events else None, 60_000 if self.events else 0, self.rows, 0)

    async def _take(self, name: str) -> None:
        await trio.sleep(STEP_S)
        if self.is_away:
            raise Unavailable
        self.steps.append(name)


def run_of(retention: ScriptedRetention, metrics: Metrics | None = None, *, days: int | None = 90) -> RetentionRun:
    """Runs with a rule."""
    return RetentionRun(
        retention,
        FixedClock(),
        lambda: RetentionRules(days),
        metrics=metrics or Metrics(),
        logger=structlog.get_logger(),
    )


def value(metrics: Metrics, name: str) -> float | None:
    """Of a metric."""
    return metrics.registry.get_sample_value(f"keepstep_{name}")


async def test_a_run_does_everything_in_steps(autojump_clock: MockClock) -> None:
    """Tails first, then partitions, then rows; it is counted and told of."""
    del autojump_clock
    retention = ScriptedRetention(events=2_500, rows=1_500, partitions=("events_standard_20250101",))
    metrics = Metrics()

    with capture_logs() as logs:
        done = await run_of(retention, metrics).run()

    assert done == Pruned(2_500, 1_500, ("events_standard_20250101",), is_done=True)
    assert set(retention.steps[:-1]) == {"advance", "drop", "remove"}
    assert retention.steps == sorted(retention.steps, key=["advance", "drop", "remove"].index)
    assert {rules.days for rules in retention.rules} == {90}
    counted = ("pruned_events_total", "pruned_rows_total", "dropped_partitions_total")
    assert [value(metrics, name) for name in counted] == [2_500, 1_500, 1]
    assert [entry["event"] for entry in logs] == ["events_pruned"]


async def test_there_is_a_rest_after_each_step(autojump_clock: MockClock) -> None:
    """Nine times as long as the step took: the rest of the time is everybody else's."""
    del autojump_clock
    began_s = trio.current_time()
    await run_of(ScriptedRetention(events=2 * EVENTS_PER_STEP_MIN, partitions=("a", "b"))).run()
    # two steps and one that finds nothing, two partitions and none, one look for rows
    assert trio.current_time() - began_s == pytest.approx(7 * 10 * STEP_S)


async def test_partitions_go_one_by_one(autojump_clock: MockClock) -> None:
    """Nobody who publishes has to look up all of them anew at once; a run has an end."""
    del autojump_clock
    retention = ScriptedRetention(partitions=tuple(f"week {number}" for number in range(5)))
    assert (await run_of(retention).run()).partitions == tuple(f"week {number}" for number in range(5))
    assert retention.steps.count("drop") == 6


async def test_a_run_drops_so_many_partitions(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one goes on."""
    del autojump_clock
    monkeypatch.setattr(retention_module, "PARTITIONS_PER_RUN_MAX", 2)
    retention = ScriptedRetention(partitions=("a", "b", "c"))
    run = run_of(retention)
    assert [(await run.run()).partitions for _ in range(2)] == [("a", "b"), ("c",)]


async def test_a_run_ends_although_there_is_more(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one goes on; the metrics say how far behind it is."""
    del autojump_clock
    monkeypatch.setattr(retention_module, "STEPS_MAX", 2)
    metrics = Metrics()
    retention = ScriptedRetention(events=2 * EVENTS_PER_STEP_MIN + 1, rows=2 * ROWS_PER_STEP_MIN + 1)
    run = run_of(retention, metrics)

    assert not (await run.run()).is_done

    waiting = ("oldest_event_seconds", "retention_overdue_seconds", "pruned_rows_waiting")
    assert [value(metrics, name) for name in waiting] == [DAY_MS / 1000, 60, 1]
    await run.clean_up()
    assert [value(metrics, name) for name in waiting] == [0, 0, 0]


async def test_a_run_that_finds_nothing_says_nothing(autojump_clock: MockClock) -> None:
    """There is one every minute."""
    del autojump_clock
    with capture_logs() as logs:
        assert await run_of(ScriptedRetention(), days=None).run() == Pruned(0, 0, (), is_done=True)
    assert logs == []


async def test_a_database_that_is_away_ends_the_run(autojump_clock: MockClock) -> None:
    """Whoever calls tries again."""
    del autojump_clock
    retention = ScriptedRetention(events=1)
    retention.is_away = True
    with pytest.raises(Unavailable):
        await run_of(retention).run()


@pytest.mark.parametrize(
    ("server", "user", "days"), [(None, None, None), (90, None, 90), (None, 30, 30), (90, 30, 30), (30, 90, 30)]
)
def test_the_shortest_rule_counts(server: int | None, user: int | None, days: int | None) -> None:
    """Of those that are set."""
    expected = None if days is None else NOW_MS - days * DAY_MS
    assert RetentionRules(server).cutoff_ms(NOW_MS, user) == expected
