"""The comparison as Markdown: what each peer promises first, then what it reached."""

from __future__ import annotations

from typing import Any, Final

from bench.peers.works import CATCH_UP, IDLE, LATENCY, PUBLISH, PUBLISH_TENS, RELAY, RELAY_TENS
from bench.statistics import spread
from bench.tables import markdown_table

WORKS: Final = (PUBLISH, PUBLISH_TENS, RELAY, RELAY_TENS, LATENCY, CATCH_UP, IDLE)
COLUMNS: Final = {
    "acknowledged_per_s": "acknowledged events/s",
    "delivered_per_s": "delivered events/s",
    "acknowledge_ms": "ack p50 / p99 ms",
    "deliver_ms": "deliver p50 / p99 ms",
    "server_us": "CPU µs an event",
    "generator_us": "of the load generator",
    "written_bytes": "bytes to disk an event",
    "lost": "lost",
    "connection_kib": "KiB a connection",
}
LATENCIES: Final = ("acknowledge_ms", "deliver_ms")
WHOLE_FROM: Final = 100.0
"""Figures from here on are shown without a fraction."""
NOTHING: Final = "-"


def markdown(results: dict[str, Any]) -> str:
    """All of the results, for people."""
    lines = [
        "# keepstep beside its peers",
        "",
        _circumstances(results),
        "",
        *markdown_table(
            ("peer", "who verifies an event", "what an acknowledgement means"),
            [(each["title"], each["verifies"], each["acknowledges"]) for each in results["peers"].values()],
        ),
    ]
    for work in WORKS:
        lines += _work(work.name, work.title, results["peers"])
    return "\n".join(lines) + "\n"


def _circumstances(results: dict[str, Any]) -> str:
    machine = results["machine"]
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['kernel']}, {machine['file_system']}; keepstep at "
        f"{results['commit'][:12]}; load generator on the same cores; 256-byte events; {results['duration_s']} s a "
        "run, each on a new server. Medians of all runs, with their range where there is more than one. "
        f"Made with `{'`, `'.join(dict.fromkeys(results['commands']))}`."
    )


def _work(name: str, title: str, peers: dict[str, Any]) -> list[str]:
    figures = {each["title"]: each["works"][name] for each in peers.values() if name in each["works"]}
    if not figures:
        return []
    columns = [key for key in COLUMNS if any(_has(each["figures"], key) for each in figures.values())]
    if all(each.get("rate") is None for each in figures.values()):
        head: tuple[str, ...] = ("peer", *(COLUMNS[key] for key in columns))
        rows = [(title, *(_cell(each["figures"], key) for key in columns)) for title, each in figures.items()]
    else:
        head = ("peer", "events/s asked for", *(COLUMNS[key] for key in columns))
        rows = [
            (title, f"{each['rate']:,.0f}", *(_cell(each["figures"], key) for key in columns))
            for title, each in figures.items()
        ]
    return ["", f"## {title[0].upper()}{title[1:]}", "", *markdown_table(head, rows)]


def _has(figures: dict[str, list[float]], key: str) -> bool:
    return f"{key}_p50" in figures if key in LATENCIES else key in figures


def _cell(figures: dict[str, list[float]], key: str) -> str:
    if not _has(figures, key):
        return NOTHING
    if key in LATENCIES:
        return " / ".join(_number(spread(figures[f"{key}_{each}"]).median) for each in ("p50", "p99"))
    found = spread(figures[key])
    if found.low == found.high:
        return _number(found.median)
    return f"{_number(found.median)} ({_number(found.low)} … {_number(found.high)})"


def _number(value: float) -> str:
    if value == 0 or abs(value) >= WHOLE_FROM:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 1 else f"{value:.1f}"
