"""What k6 and Artillery report, as figures by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bench.server import BenchError

if TYPE_CHECKING:
    from collections.abc import Mapping

PERCENTILES: Final = {"med": "p50", "p(99)": "p99", "max": "max"}
K6_TRENDS: Final = (
    *("http_req_duration{work:publish}", "http_req_duration{work:read}", "http_req_duration{work:token}"),
    *("deliver_ms", "first_byte_ms", "ws_connecting"),
)
K6_COUNTERS: Final = (
    *("http_reqs{work:publish}", "http_reqs{work:read}", "http_reqs{work:token}"),
    *("published_events", "read_events", "received_events", "refused_upgrades", "ws_sessions"),
)
ARTILLERY_SUMMARIES: Final = ("register_ms", "upgrade_ms", "handshake_ms", "acknowledge_ms")
ARTILLERY_COUNTERS: Final = ("sessions", "sessions_closed", "acknowledged_events")


def k6_figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """Of ``--summary-export``: counts, and latencies in milliseconds."""
    metrics = summary["metrics"]
    found: dict[str, float] = {}
    for name in K6_COUNTERS:
        if metrics.get(name, {}).get("count"):
            found[name] = metrics[name]["count"]
    for name in K6_TRENDS:
        if name in metrics:
            found |= {f"{name} {label}": metrics[name][key] for key, label in PERCENTILES.items()}
    checks = metrics.get("checks", {})
    return found | {"checks passed": checks.get("passes", 0), "checks failed": checks.get("fails", 0)}


def artillery_figures(report: Mapping[str, Any]) -> dict[str, float]:
    """Of ``--output``: counts, and latencies in milliseconds.

    Raises:
        BenchError: a device failed, so that there is no result.
    """
    whole = report["aggregate"]
    counters, summaries = whole["counters"], whole["summaries"]
    failed = {name: count for name, count in counters.items() if name.startswith("errors.")}
    if failed or counters.get("vusers.failed", 0):
        raise BenchError(f"devices failed: {failed}")
    found: dict[str, float] = {name: counters[f"keepstep.{name}"] for name in ARTILLERY_COUNTERS}
    for name in ARTILLERY_SUMMARIES:
        found |= {f"{name} {each}": summaries[f"keepstep.{name}"][each] for each in ("p50", "p99", "max")}
    return found


def markdown(results: Mapping[str, Any]) -> str:
    """All of the results, for people."""
    machine = results["machine"]
    circumstances = (
        f"keepstep {results['version']} at {results['commit'][:12]}, {results['at']}; {machine['processor']}, "
        f"{machine['cores']} cores, {machine['kernel']}; {results['durability']}; the tool on the same cores. "
        f"Made with `{results['command']}`."
    )
    lines = [f"# {results['tool']}", "", circumstances]
    for script, figures in results["runs"].items():
        lines += ["", f"## {script}", "", "| figure | value |", "| --- | --- |"]
        lines += [f"| {name} | {value:,.1f} |" for name, value in figures.items()]
    return "\n".join(lines) + "\n"
