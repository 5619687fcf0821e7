"""What a peer's processes used, as the kernel counts it, and the figures that follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bench.machine import memory, process_tree

if TYPE_CHECKING:
    from collections.abc import Mapping

MICROSECONDS: Final = 1e6
KIBIBYTE: Final = 1024


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters of a server and everything below it, or of a load generator.

    Attributes:
        cpu_s: processor seconds.
        memory_bytes: held now, shared pages divided among those that share them.
    """

    cpu_s: float
    memory_bytes: int


def read(pid: int) -> Reading:
    """The counters of a process and its descendants, zeros where it ended."""
    tree = process_tree(pid)
    held = 0
    for process in tree:
        try:
            held += memory(process.pid).proportional
        except OSError:
            continue  # it ended meanwhile
    return Reading(sum(each.cpu_s for each in tree), held)


def figures(
    report: Mapping[str, Any], workload: str, server: tuple[Reading, Reading] | None, generator: tuple[Reading, Reading]
) -> dict[str, float]:
    """What one run says.

    Args:
        report: the generator's.
        workload: of the generator.
        server: as the measured phase began and ended; ``None`` where its processes are not known.
        generator: likewise.
    """
    if workload == "idle":
        return _idle(report["connections"], server)
    found: dict[str, float] = {}
    count = report["acknowledged"]
    if workload == "catch-up":
        count = report["delivered"]
    else:
        found["acknowledged_per_s"] = report["acknowledged_per_s"]
        for kind in ("acknowledge_ms", "deliver_ms", "late_ms"):
            if report[kind]["count"]:
                found |= {f"{kind}_{each}": report[kind][each] for each in ("p50", "p99")}
    if workload != "publish":
        found["delivered_per_s"] = report["delivered_per_s"]
        found |= {kind: report[kind] for kind in ("lost", "duplicates", "out_of_order") if kind in report}
    if not count:
        return found
    found["generator_us"] = (generator[1].cpu_s - generator[0].cpu_s) * MICROSECONDS / count
    if server is not None:
        found["server_us"] = (server[1].cpu_s - server[0].cpu_s) * MICROSECONDS / count
    return found


def disk_figures(report: Mapping[str, Any], before: int | None, after: int | None) -> dict[str, float]:
    """Bytes to the disk for each event that was stored, warm-up included.

    Args:
        report: the generator's.
        before: bytes written to the disk before it ran; ``None`` where that is not known.
        after: likewise, after it.
    """
    stored = report["acknowledged_in_all"]
    return {} if before is None or after is None or not stored else {"written_bytes": (after - before) / stored}


def _idle(connections: int, server: tuple[Reading, Reading] | None) -> dict[str, float]:
    if server is None:
        return {}
    return {"connection_kib": (server[1].memory_bytes - server[0].memory_bytes) / KIBIBYTE / connections}
