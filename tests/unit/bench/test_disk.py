"""The disk's own fsync is measured while something else is, and nothing is left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.disk import DiskProbe

if TYPE_CHECKING:
    from pathlib import Path


def test_syncs_are_measured_and_the_file_is_removed(tmp_path: Path) -> None:
    """At least one, however short the time."""
    with DiskProbe(tmp_path) as probe:
        pass
    found = probe.latencies_ms()
    assert found["count"] >= 1
    assert 0 < found["p50"] <= found["p99"] <= found["max"]
    assert list(tmp_path.iterdir()) == []
