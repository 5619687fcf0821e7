"""Figures are named, and processor time is divided by what was acknowledged."""

from __future__ import annotations

import pytest

from bench.figures import LABELS, figures_of, headline
from bench.machine import Cost, Memory
from bench.meter import Usage
from tests.support.pretended_generator import LATENCY, REPORT


def test_processor_time_is_given_an_event_and_in_cores() -> None:
    """24 events in 2 seconds; the event loop's part is in the server's."""
    found = figures_of(REPORT, Usage(Cost(0.24, 0.12, 0.048), 0.024, 2.0, {}), None, None)
    assert found["server_us"] == pytest.approx(10_000)
    assert found["loop_us"] == pytest.approx(5_000)
    assert found["database_us"] == pytest.approx(2_000)
    assert found["server_and_database_us"] == pytest.approx(12_000)
    assert found["generator_us"] == pytest.approx(1_000)
    assert found["loop_cores"] == pytest.approx(0.06)


def test_what_the_disk_takes_by_itself_is_shown_and_taken_off() -> None:
    """Never below nothing."""
    found = figures_of(REPORT, None, None, {"p50": 0.5, "p99": 9.0})
    assert (found["disk_ms_p50"], found["disk_ms_p99"]) == (0.5, 9.0)
    assert (found["deliver_ms_p50_beyond_disk"], found["deliver_ms_p99_beyond_disk"]) == (1.0, 0.0)


def test_how_an_open_loop_began_is_shown() -> None:
    """A closed loop has no rate that it could be behind."""
    warm_up = {"seconds": 2.5, "unanswered": 40, "steady": True}
    found = figures_of(dict(REPORT) | {"warm_up": warm_up}, None, None, None)
    assert (found["warm_up_s"], found["unanswered"]) == (2.5, 40)
    assert "warm_up_s" not in figures_of(dict(REPORT) | {"warm_up": None}, None, None, None)


def test_a_closed_loop_is_never_late() -> None:
    """It sends when there is room."""
    found = [figures_of(dict(REPORT) | {"loop": loop}, None, None, None) for loop in ("open", "closed")]
    assert ["late_ms_p99" in figures for figures in found] == [True, False]


def test_what_was_not_measured_is_no_figure() -> None:
    """Nobody subscribed: there are no deliveries, and no latency of none."""
    report = dict(REPORT) | {"delivered_per_s": 0.0, "deliver_ms": {"p50": 0.0, "count": 0}}
    found = figures_of(report, None, None, {"p50": 0.5, "p99": 9.0})
    assert not {name for name in found if name.startswith("deliver")}


def test_every_figure_that_is_shown_is_one_that_some_run_has() -> None:
    """A label that nothing has would be a misspelling."""
    usage = Usage(Cost(1, 1, 1), 1, 1, {"tail": 90.0, "heads": 99.0, "devices": 100.0})
    connected = {"connected_per_s": 5, "connected": 10, "ready_ms": LATENCY}
    downloaded = {"downloaded_per_s": 5, "downloaded": 10, "download_s": [2.0]}
    found: set[str] = set()
    for figures in (
        figures_of(REPORT, usage, None, {"p50": 0.5, "p99": 9.0}),
        figures_of(dict(REPORT) | {"bad_refused": 7}, None, None, None),
        figures_of(dict(REPORT) | {"warm_up": {"seconds": 2.0, "unanswered": 0, "steady": True}}, None, None, None),
        figures_of({"connections": 2, "opened_s": 1.0}, usage, Memory(2048, 1024), None),
        figures_of(connected, usage, None, None),
        figures_of(downloaded, usage, None, None),
    ):
        found |= figures.keys()
    assert not LABELS.keys() - found


def test_memory_is_given_a_connection() -> None:
    """In KiB; what is idle has no events to divide processor time by."""
    found = figures_of(
        {"connections": 2, "opened_s": 1.0}, Usage(Cost(1, 1, 1), 1, 1, {}), Memory(20_480, 10_240), None
    )
    assert (found["resident_kib"], found["proportional_kib"]) == (10.0, 5.0)
    assert "server_us" not in found


def test_connections_are_counted_against_the_servers_processor_time() -> None:
    """However long they waited."""
    report = {"connected_per_s": 5.0, "connected": 10, "ready_ms": LATENCY}
    found = figures_of(report, Usage(Cost(0.5, 0.4, 0.1), 0.1, 2.0, {}), None, None)
    assert found["per_server_cpu_s"] == pytest.approx(20)
    assert headline(found) == "5.0 connections/s"
