"""What k6 and Artillery report becomes figures, and a run with failures becomes none."""

from __future__ import annotations

from typing import Any

import pytest

from bench.external_reports import artillery_figures, k6_figures, markdown
from bench.machine import command_line
from bench.server import BenchError

TREND = {"med": 1.5, "p(90)": 2.0, "p(99)": 3.0, "max": 4.0}
SUMMARY = {"p50": 1.0, "p99": 2.0, "max": 3.0}


def report(**counters: int) -> dict[str, Any]:
    """As Artillery writes it."""
    counts = {"keepstep.sessions": 5, "keepstep.sessions_closed": 5, "keepstep.acknowledged_events": 50, **counters}
    names = ("register_ms", "upgrade_ms", "handshake_ms", "acknowledge_ms")
    return {"aggregate": {"counters": counts, "summaries": {f"keepstep.{name}": SUMMARY for name in names}}}


def test_k6_counts_and_latencies_are_figures() -> None:
    """What a script does not have is left out."""
    metrics = {"checks": {"passes": 7, "fails": 0}, "deliver_ms": TREND, "received_events": {"count": 40}}
    assert k6_figures({"metrics": metrics}) == {
        "received_events": 40,
        "deliver_ms p50": 1.5,
        "deliver_ms p99": 3.0,
        "deliver_ms max": 4.0,
        "checks passed": 7,
        "checks failed": 0,
    }


def test_artillery_counts_and_latencies_are_figures() -> None:
    """Sessions, events and how long each step took."""
    found = artillery_figures(report())
    assert (found["sessions"], found["acknowledged_events"], found["handshake_ms p99"]) == (5, 50, 2.0)


@pytest.mark.parametrize("name", ["errors.ECONNREFUSED", "vusers.failed"])
def test_a_run_in_which_a_device_failed_has_no_result(name: str) -> None:
    """However many others did not."""
    with pytest.raises(BenchError, match="devices failed"):
        artillery_figures(report(**{name: 1}))


def test_the_table_says_where_the_figures_come_from() -> None:
    """Machine, versions, durability and command."""
    shown = markdown(
        {
            "tool": "Artillery 2",
            "version": "0.1.0",
            "commit": "0123456789abcdef",
            "at": "2026-01-01",
            "command": "python -m bench.external artillery",
            "durability": "fsync on",
            "machine": {"processor": "P", "cores": 2, "kernel": "K"},
            "runs": {"devices": {"sessions": 1_234.0}},
        }
    )
    assert "| sessions | 1,234.0 |" in shown
    assert all(part in shown for part in ("Artillery 2", "0123456789ab", "fsync on", "bench.external artillery"))


def test_the_command_is_kept_without_the_place_of_its_results() -> None:
    """Which is nobody else's."""
    arguments = ["k6", "--script", "rest", "--output", "/somewhere", "--directory", "a b"]
    assert command_line("bench.external", arguments) == "python -m bench.external k6 --script rest --directory 'a b'"
