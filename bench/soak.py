"""A load for hours: latency and memory window by window; it fails where the server's memory grows.

Each window is a load of its own with new users, checked like every other: what a server keeps of users that are gone
shows as well as what a connection leaves behind.
"""

from __future__ import annotations

import dataclasses
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import msgspec

from bench.machine import memory
from bench.runner import ORIGIN, run_scenario
from bench.server import BenchError, new_directory, running_server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.runner import Bench
    from bench.scenario import Scenario

WINDOWS_MIN: Final = 6
WINDOWS_MAX: Final = 10_000
GROWTH_MAX: Final = 1.05
"""Memory of the last third of the windows, as a part of the second third's. The first third fills caches."""
GROWTH_BYTES_MIN: Final = 8 * 1024 * 1024
"""Less than this is no growth, however small the server is."""
SHOWN: Final = (
    "acknowledged_per_s",
    "acknowledge_ms_p50",
    "acknowledge_ms_p99",
    "deliver_ms_p99",
    "server_us",
    "loop_us",
)
MIB: Final = 1024 * 1024


def soak(scenario: Scenario, bench: Bench, *, windows: int, window_s: int) -> dict[str, Any]:
    """Run the scenario's loads window after window on one server; the results with the verdict.

    Args:
        scenario: its loads are run in each window.
        bench: starts the server, whose memory must be readable: no target.
        windows: at least six.
        window_s: measured seconds of each.

    Raises:
        BenchError: too few or too many windows, or one of them has no result.
    """
    if not WINDOWS_MIN <= windows <= WINDOWS_MAX:
        raise BenchError(f"{WINDOWS_MIN} to {WINDOWS_MAX} windows, not {windows}")
    once = msgspec.structs.replace(scenario, repetitions=1, duration_s=window_s)
    seen: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    with (
        new_directory(bench.directory) as directory,
        running_server(directory, scenario.settings, python_path=bench.python_path) as server,
    ):
        here = dataclasses.replace(bench, target=server)
        for number in range(windows):
            results = run_scenario(f"soak, window {number + 1} of {windows}", once, here)
            used = memory(server.process.pid)
            seen.append(
                {"resident": used.resident, "proportional": used.proportional}
                | {load: _shown(found["figures"]) for load, found in results["loads"].items()}
            )
            bench.say(f"  {used.resident / MIB:,.1f} MiB resident")
    flat, verdict = judge_memory([window["resident"] for window in seen])
    return {key: results[key] for key in ORIGIN} | {
        "scenario": "soak",
        "window_s": window_s,
        "windows": seen,
        "flat": flat,
        "verdict": verdict,
    }


def _shown(figures: dict[str, Any]) -> dict[str, float]:
    return {name: figures[name]["median"] for name in SHOWN if name in figures}


def judge_memory(resident: Sequence[int]) -> tuple[bool, str]:
    """Whether a server's memory is flat, and the sentence that says so.

    Args:
        resident: bytes after each window, at least six.
    """
    third = len(resident) // 3
    middle, last = median(resident[third : 2 * third]), median(resident[-third:])
    grown = last > middle * GROWTH_MAX and last - middle > GROWTH_BYTES_MIN
    said = f"{middle / MIB:,.1f} MiB in the second third of {len(resident)} windows, {last / MIB:,.1f} in the last"
    return not grown, f"memory {'GROWS' if grown else 'is flat'}: {said}"
