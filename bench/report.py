"""Results as one page: ``python -m bench.report build/bench/*.json`` writes HTML with its pictures, and these as PNG.

Needs the group ``bench`` of ``pyproject.toml``. Flame graphs that ``python -m bench flames`` wrote beside the results
are put in.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2

from bench.figures import LABELS
from bench.plots import cost_by_component, latency_over_load, ratios_by_figure, soak_over_time
from bench.runner import FORMAT
from bench.scaling import CORES, cost_of, processes_needed, project
from bench.tables import cell, goal_bound, goal_figure, number, ratio

PLOTS: Final[dict[str, tuple[tuple[str, Callable[[dict[str, Any]], bytes | None]], ...]]] = {
    "loads": (("latency", latency_over_load), ("cost", cost_by_component)),
    "windows": (("soak", soak_over_time),),
    "ratios": (("ratios", ratios_by_figure),),
}
"""By the part that results of a kind have: the pictures of it, by name."""
TEMPLATE: Final = Path(__file__).with_name("report.html")


class InvalidResultsError(Exception):
    """A file holds no results of this suite; the message says which."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description="results as HTML and PNG")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    parser.add_argument("--output", type=Path, default=Path("build/bench/report.html"), help="PNGs go beside it")
    options = parser.parse_args(arguments)
    try:
        results = [read_results(path) for path in options.results]
    except InvalidResultsError as exc:
        print(exc, file=sys.stderr)
        return 1
    flames = sorted(path for folder in {path.parent for path in options.results} for path in folder.glob("*.svg"))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(render(results, flames, options.output.parent))
    print(f"written to {options.output}")
    return 0


def read_results(path: Path) -> dict[str, Any]:
    """Results that the suite wrote. Raises InvalidResultsError."""
    try:
        results: Any = json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise InvalidResultsError(f"{path}: {exc}") from exc
    if not isinstance(results, dict) or results.get("format") != FORMAT or not PLOTS.keys() & results.keys():
        raise InvalidResultsError(f"{path} holds no results of this version of the suite")
    return dict(results)


def render(results: Sequence[dict[str, Any]], flames: Sequence[Path], pictures: Path) -> str:
    """The page; pictures are in it and also written into a folder."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals |= {
        "cell": cell,
        "goal_bound": goal_bound,
        "goal_figure": goal_figure,
        "labels": LABELS,
        "number": number,
        "ratio": ratio,
        "scaling": scaling,
        "cores": CORES,
    }
    drawn = [draw(each, pictures) for each in results]
    return environment.from_string(TEMPLATE.read_text()).render(
        results=list(zip(results, drawn, strict=True)),
        goals=[(each, goal) for each in results for goal in each.get("goals", ())],
        flames=[(path.stem, base64.b64encode(path.read_bytes()).decode()) for path in flames],
    )


def draw(results: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    """The pictures of results, each as a name and base64; also written as PNG."""
    drawn = []
    for kind, plots in PLOTS.items():
        for name, plot in plots if kind in results else ():
            picture = plot(results)
            if picture is not None:
                (folder / f"{results['scenario']}-{name}.png").write_bytes(picture)
                drawn.append((name, base64.b64encode(picture).decode()))
    return drawn


def scaling(figures: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """What one server process and as many as needed would do on more cores; empty where costs were not measured."""
    cost = cost_of(figures)
    if cost is None or not cost.total_us:
        return []
    return [
        {"one": project(cost, cores), "many": project(cost, cores, processes_needed(cost, cores))} for cores in CORES
    ]


if __name__ == "__main__":
    sys.exit(main())
