"""A projection is bounded by the event-loop thread or by all cores, and says which."""

from __future__ import annotations

import pytest

from bench.scaling import EventCost, cost_of, processes_needed, project

COST = EventCost(loop_us=10, threads_us=15, database_us=15)


def test_few_cores_are_used_up_before_the_event_loop_is() -> None:
    """40 µs an event on two cores; the loop would do 100,000."""
    found = project(COST, 2)
    assert found.events_per_s == pytest.approx(50_000)
    assert found.bound_by == "cores"


def test_one_process_is_bounded_by_its_event_loop_however_many_cores_there_are() -> None:
    """More of them change nothing."""
    found = [project(COST, cores) for cores in (16, 64)]
    assert [each.events_per_s for each in found] == [pytest.approx(100_000)] * 2
    assert {each.bound_by for each in found} == {"event-loop thread"}


def test_so_many_processes_are_needed_that_no_loop_is_the_bound() -> None:
    """A quarter of the cores, for the loop is a quarter of an event."""
    assert processes_needed(COST, 16) == 4
    assert project(COST, 16, 4).events_per_s == pytest.approx(400_000)
    assert project(COST, 16, 3).bound_by == "event-loop thread"


def test_what_is_all_event_loop_needs_a_process_a_core() -> None:
    """No more of them help."""
    assert processes_needed(EventCost(10, 0, 0), 8) == 8


def test_a_loop_that_costs_nothing_bounds_nothing() -> None:
    """Then it is the cores."""
    assert project(EventCost(0, 10, 10), 64).bound_by == "cores"


def test_costs_are_read_from_figures() -> None:
    """The loop's part is taken out of the server's; without processes there are none."""
    figures = {"loop_us": {"median": 4.0}, "server_us": {"median": 10.0}, "database_us": {"median": 3.0}}
    cost = cost_of(figures)
    assert cost is not None
    assert cost == EventCost(4.0, 6.0, 3.0)
    assert cost.total_us == 13.0
    assert cost_of({"acknowledged_per_s": {"median": 1.0}}) is None
