"""Figures in the documents: ``python -m bench.documents build/bench/*.json`` writes them, so that nobody types any.

Keeps the results, without the reports of single runs, in ``bench/results``, writes ``figures.md`` beside them from all
that are kept there, and goals and projection between two marks of ``docs/explanation/performance.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.figures import LABELS
from bench.report import InvalidResultsError, read_results
from bench.scaling import CORES, cost_of, processes_needed, project
from bench.server import REPOSITORY
from bench.tables import cell, goal_bound, goal_figure, interval, markdown_table, number, ratio

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KEPT: Final = REPOSITORY / "bench" / "results"
FIGURES: Final = "figures.md"
PAGE: Final = REPOSITORY / "docs" / "explanation" / "performance.md"
BEGIN: Final = "<!-- figures: written by `python -m bench.documents` -->"
END: Final = "<!-- figures: end -->"
PROJECTION: Final = """\
The processor time of an event at saturation, by component, and what it would allow on more cores: a bound, and no
measurement. A server process has one event-loop thread; “processes” are as many as keep those threads from being the
bound, on one database. The load generator runs elsewhere."""


class InvalidPageError(Exception):
    """The page has no place for figures; the message says which page."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep the results and write the documents; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.documents", description="results in the documents")
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT.json", help="none: of what is kept already")
    parser.add_argument("--kept", type=Path, default=KEPT, help="folder of the results that are kept (bench/results)")
    parser.add_argument("--page", type=Path, default=PAGE, help="with the marks (docs/explanation/performance.md)")
    options = parser.parse_args(arguments)
    try:
        for path in options.results:
            keep(read_any(path), options.kept)
        results = list(kept(options.kept))
        (options.kept / FIGURES).write_text(figures_document(results))
        options.page.write_text(replaced(options.page, goals_and_projection(results)))
    except (InvalidResultsError, InvalidPageError, OSError) as exc:
        print(exc, file=sys.stderr)
        return 1
    print(f"written to {options.kept / FIGURES} and {options.page}")
    return 0


def read_any(path: Path) -> dict[str, Any]:
    """Results of a scenario, or of a benchmark that is a command of its own. Raises InvalidResultsError."""
    try:
        found: Any = json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise InvalidResultsError(f"{path}: {exc}") from exc
    is_own = isinstance(found, dict) and {"benchmark", "results"} <= found.keys()
    return dict(found) if is_own else read_results(path)


def keep(results: dict[str, Any], folder: Path) -> None:
    """Write results without the generator's report of every run and the pairs' figures: those are for the report."""
    loads = {
        name: {"load": load["load"], "figures": load["figures"]} for name, load in results.get("loads", {}).items()
    }
    short = {name: value for name, value in results.items() if name not in {"figures", "loads"}}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{results.get('scenario') or results['benchmark']}.json"
    path.write_text(json.dumps(short | ({"loads": loads} if loads else {}), indent=2) + "\n")


def kept(folder: Path) -> Iterator[dict[str, Any]]:
    """What scenarios and benchmarks gave, by name; a folder also has what other tools wrote."""
    for path in sorted(folder.glob("*.json")):
        try:
            yield read_any(path)
        except InvalidResultsError:
            continue


def figures_document(results: Sequence[dict[str, Any]]) -> str:
    """Every figure of every scenario that people are shown."""
    lines = ["# Figures", "", "Medians of the repetitions, with their range. Written by `python -m bench.documents`."]
    for each in results:
        title = each["title"] if "title" in each else f"`bench.{each['benchmark']}`"
        lines += ["", f"## {title[0].upper()}{title[1:]}", "", _origin(each), ""]
        if "benchmark" in each:
            lines += _benchmark_table(each["results"])
        if "loads" in each:
            lines += _figure_table(each["loads"])
        if "ratios" in each:
            lines += _ratio_table(each)
        if "verdict" in each:
            lines.append(each["verdict"])
    return "\n".join(lines) + "\n"


def _origin(results: dict[str, Any]) -> str:
    """Where the figures come from: without this they say nothing."""
    parts = [f"{results['at']}, keepstep {results['version']} at {results['commit'][:12]}"]
    if "machine" in results:
        machine = results["machine"]
        parts.append(f"{machine['processor']}, {machine['cores']} cores, {machine['kernel']}, {machine['file_system']}")
    if "durability" in results:
        found = results["durability"]
        modes = ", ".join(f"{name} {found[name]}" for name in ("fsync", "full_page_writes", "synchronous_commit"))
        parts.append(f"PostgreSQL {found['version'] // 10_000}.{found['version'] % 10_000}: {modes}")
    repeated = f" x {results['repetitions']}" if "repetitions" in results else ""
    parts.append(f"{results['duration_s']} s of each load{repeated}" if "duration_s" in results else "")
    parts.append(f"`{results['command']}`" if "command" in results else "")
    return "; ".join(part for part in parts if part) + "."


def _figure_table(loads: dict[str, Any]) -> list[str]:
    rows = [
        [label, *(cell(load["figures"].get(name)) for load in loads.values())]
        for name, label in LABELS.items()
        if any(name in load["figures"] for load in loads.values())
    ]
    return markdown_table(["", *loads], rows)


def _benchmark_table(results: dict[str, dict[str, float]]) -> list[str]:
    """A row for each figure, a column for each result, as the command shows them."""
    rows = [
        [label.replace("_", " "), *(number(figures[label]) for figures in results.values())]
        for label in next(iter(results.values()))
    ]
    return markdown_table(["", *results], rows)


def _ratio_table(results: dict[str, Any]) -> list[str]:
    rows = [
        [load, LABELS[name].removeprefix("· "), ratio(found["median"]), interval(found)]
        for load, figures in results["ratios"].items()
        for name, found in figures.items()
    ]
    stored = ", ".join(f"{name} {count:,}" for name, count in results.get("after", {}).items())
    table = markdown_table(["load", "figure", "ratio", "95 % interval"], rows)
    return [*table, "", f"Afterwards: {stored}."] if stored else table


def goals_and_projection(results: Sequence[dict[str, Any]]) -> str:
    """What was meant to be reached and what was; and what the costs of an event would allow on more cores."""
    goals = [(each, goal) for each in results for goal in each.get("goals", ())]
    rows = [
        [f"`{each['scenario']}`", goal["load"], goal_figure(goal), goal_bound(goal), _seen(each, goal), _verdict(goal)]
        for each, goal in goals
    ]
    lines = [*markdown_table(["scenario", "load", "figure", "goal", "seen", ""], rows), ""]
    lines += sorted({f"`{each['scenario']}`: {_origin(each)}" + "\\" for each, _ in goals})
    lines[-1] = lines[-1].removesuffix("\\")
    lines += ["", PROJECTION, ""]
    head = ["load", "loop µs", "threads µs", "PostgreSQL µs"]
    for cores in CORES[2:]:
        head += [f"{cores} cores, one process", f"{cores} cores, processes"]
    lines += markdown_table(head, list(_projections(results)))
    for each in results:
        if "benchmark" in each:
            lines += ["", f"`python -m bench.{each['benchmark']}`: {_origin(each)}", ""]
            lines += _benchmark_table(each["results"])
    return "\n".join(lines)


def _seen(results: dict[str, Any], goal: dict[str, Any]) -> str:
    """The median that was judged; with its range where it is a figure of the results."""
    if goal["ratio_to"] is not None:
        return ratio(goal["median"])
    return cell(results["loads"][goal["load"]]["figures"][goal["figure"]])


def _verdict(goal: dict[str, Any]) -> str:
    return "reached" if goal["reached"] else "**not reached**"


def _projections(results: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for each in results:
        for name, load in each.get("loads", {}).items():
            asked = load["load"]
            cost = cost_of(load["figures"])
            is_full = asked["workload"] in {"publish", "relay"} and not asked["rate"] and not asked["rate_share"]
            if not is_full or cost is None or not cost.total_us:
                continue
            row = [f"`{each['scenario']}`, {name}"]
            row += [number(part) for part in (cost.loop_us, cost.threads_us, cost.database_us)]
            for cores in CORES[2:]:
                processes = processes_needed(cost, cores)
                one, many = project(cost, cores), project(cost, cores, processes)
                row += [f"{number(one.events_per_s)} ({one.bound_by})", f"{number(many.events_per_s)} ({processes})"]
            yield row


def replaced(page: Path, text: str) -> str:
    """A page with this between its marks. Raises InvalidPageError."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InvalidPageError(f"{page} has no {BEGIN} … {END}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


if __name__ == "__main__":
    sys.exit(main())
