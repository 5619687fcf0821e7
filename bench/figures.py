"""Figures of one run, by name, from what the generator reports and what the processes cost."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.machine import Memory
    from bench.meter import Usage

MICROSECONDS: Final = 1e6
PERCENTILES: Final = ("p50", "p90", "p99", "p999", "max")
RATES: Final = (
    "acknowledged_per_s",
    "delivered_per_s",
    "connected_per_s",
    "downloaded_per_s",
    "bad_refused",
    "opened_s",
)
"""Figures that the generator reports as they are."""
LATENCIES: Final = ("acknowledge_ms", "deliver_ms", "ready_ms", "late_ms")
COUNTS: Final = ("acknowledged", "connected", "downloaded")
"""What processor time is divided by, the first that there is."""
KIBIBYTE: Final = 1024
DISK_PERCENTILES: Final = ("p50", "p99")

LABELS: Final = {
    "acknowledged_per_s": "acknowledged events/s",
    "delivered_per_s": "delivered to others/s",
    "downloaded_per_s": "downloaded events/s",
    "bad_refused": "bad signatures refused",
    "connected_per_s": "connections/s",
    "per_server_cpu_s": "each a second of server CPU",
    "proportional_kib": "KiB a connection (PSS)",
    "resident_kib": "KiB a connection (RSS)",
    "opened_s": "seconds to open all",
    "ready_ms_p50": "ready p50 ms",
    "ready_ms_p99": "ready p99 ms",
    "acknowledge_ms_p50": "ack p50 ms",
    "acknowledge_ms_p99": "ack p99 ms",
    "deliver_ms_p50": "deliver p50 ms",
    "deliver_ms_p99": "deliver p99 ms",
    "late_ms_p99": "sent late p99 ms",
    "warm_up_s": "warm-up s",
    "unanswered": "messages unanswered after it",
    "disk_ms_p50": "disk's fsync p50 ms",
    "disk_ms_p99": "disk's fsync p99 ms",
    "deliver_ms_p50_beyond_disk": "deliver less fsync p50 ms",
    "deliver_ms_p99_beyond_disk": "deliver less fsync p99 ms",
    "server_us": "CPU µs each: server",
    "loop_us": "· its event-loop thread",
    "database_us": "CPU µs each: PostgreSQL",
    "server_and_database_us": "server and PostgreSQL",
    "generator_us": "CPU µs each: load generator",
    "loop_cores": "cores used: event-loop thread",
    "server_cores": "cores used: server",
    "database_cores": "cores used: PostgreSQL",
    "tail_found_percent": "% of pages found in memory",
    "heads_found_percent": "% of heads found in memory",
    "devices_found_percent": "% of devices found in memory",
}
"""Figures that people are shown, in this order; the JSON has all."""
FIGURES: Final = LABELS.keys() | {f"{kind}_{each}" for kind in LATENCIES for each in PERCENTILES} | {"download_s"}
"""All that there are: what a goal can be for."""


def figures_of(
    report: Mapping[str, Any], usage: Usage | None, growth: Memory | None, disk_ms: Mapping[str, float] | None
) -> dict[str, float]:
    """Everything that one run says.

    Args:
        report: the generator's.
        usage: of the processes, where they are on this machine.
        growth: of the server's memory while connections were opened, where that was measured.
        disk_ms: the disk's own fsync beside it, where it was measured.
    """
    found: dict[str, float] = {name: report[name] for name in RATES if report.get(name)}
    for kind in LATENCIES:
        if kind == "late_ms" and report.get("loop") == "closed":
            continue  # what is sent when there is room is never late
        if report.get(kind, {}).get("count"):
            found |= {f"{kind}_{each}": report[kind][each] for each in PERCENTILES}
    if (warm_up := report.get("warm_up")) is not None:
        found |= {"warm_up_s": warm_up["seconds"], "unanswered": warm_up["unanswered"]}
    if disk_ms is not None:
        for each in DISK_PERCENTILES:
            found[f"disk_ms_{each}"] = disk_ms[each]
            if f"deliver_ms_{each}" in found:
                found[f"deliver_ms_{each}_beyond_disk"] = max(0.0, found[f"deliver_ms_{each}"] - disk_ms[each])
    if growth is not None:
        connections = report["connections"]
        found["resident_kib"] = growth.resident / KIBIBYTE / connections
        found["proportional_kib"] = growth.proportional / KIBIBYTE / connections
    if report.get("download_s"):
        found["download_s"] = median(report["download_s"])
    if usage is not None:
        found |= _cost_figures(usage, report)
        found |= {f"{cache}_found_percent": percent for cache, percent in usage.found_percent.items()}
    return found


def _cost_figures(usage: Usage, report: Mapping[str, Any]) -> dict[str, float]:
    """Cores in use, and processor microseconds for each event or connection."""
    used = {"server": usage.server.server_s, "loop": usage.server.loop_s, "database": usage.server.database_s}
    found = {f"{name}_cores": seconds / usage.elapsed_s for name, seconds in used.items()}
    count = next((report[name] for name in COUNTS if report.get(name)), 0)
    if count:
        used["generator"] = usage.generator_s
        used["server_and_database"] = usage.server.server_s + usage.server.database_s
        found |= {f"{name}_us": seconds * MICROSECONDS / count for name, seconds in used.items()}
        if usage.server.server_s:
            found["per_server_cpu_s"] = count / usage.server.server_s
    return found


def headline(figures: Mapping[str, float]) -> str:
    """The figure that says most about a run, in words."""
    name = next(name for name in LABELS if name in figures)
    return f"{figures[name]:,.1f} {LABELS[name]}"
