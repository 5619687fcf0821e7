"""Results as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from bench.figures import LABELS

WHOLE_FROM = 100.0
"""Figures from here on are shown without a fraction."""


def figure_table(results: dict[str, Any]) -> Table:
    """A column for each load; medians, and their range where there was more than one repetition."""
    rendered = Table(
        title=results["title"],
        caption="each: event or connection; every ack waited for its fsync; every run was checked",
    )
    rendered.add_column("")
    for name in results["loads"]:
        rendered.add_column(name, justify="right")
    for figure, label in LABELS.items():
        cells = [cell(load["figures"].get(figure)) for load in results["loads"].values()]
        if any(cells):
            rendered.add_row(label, *cells)
    return rendered


def goal_table(goals: list[dict[str, Any]]) -> Table:
    """A row for each goal."""
    rendered = Table(title="goals")
    for column in ("load", "figure", "goal", "median", ""):
        rendered.add_column(column)
    for goal in goals:
        text = number if goal["ratio_to"] is None else ratio
        reached = "reached" if goal["reached"] else "NOT reached"
        rendered.add_row(goal["load"], goal_figure(goal), goal_bound(goal), text(goal["median"]), reached)
    return rendered


def goal_figure(goal: dict[str, Any]) -> str:
    """What a goal is about, in words."""
    label = LABELS.get(goal["figure"], goal["figure"]).removeprefix("· ")
    return label if goal["ratio_to"] is None else f"{label}, of {goal['ratio_to']}"


def goal_bound(goal: dict[str, Any]) -> str:
    """What it has to be."""
    text = number if goal["ratio_to"] is None else ratio
    return f"≥ {text(goal['at_least'])}" if goal["at_least"] is not None else f"≤ {text(goal['at_most'])}"


def ratio_table(results: dict[str, Any], base: str) -> Table:
    """A row for each figure of each load, with the confidence interval of the ratio."""
    rendered = Table(
        title=results["title"], caption=f"this checkout as a part of {base}, {results['pairs']} pairs, 95 %"
    )
    for column in ("load", "figure", "ratio", "interval", ""):
        rendered.add_column(column)
    for load, figures in results["ratios"].items():
        for figure, found in figures.items():
            interval = f"{ratio(found['low'])} … {ratio(found['high'])}"
            differs = "differs" if not found["low"] <= 1 <= found["high"] else ""
            rendered.add_row(load, LABELS[figure].removeprefix("· "), ratio(found["median"]), interval, differs)
    return rendered


def ratio(value: float) -> str:
    """One figure as a part of another."""
    return f"{value:.3f}"


def number(value: float) -> str:
    """A figure with as many digits as it deserves."""
    return f"{value:,.0f}" if abs(value) >= WHOLE_FROM else f"{value:.1f}"


def cell(figure: dict[str, Any] | None) -> str:
    """A figure's median, with its range where there was more than one repetition."""
    if figure is None:
        return ""
    if len(figure["values"]) == 1:
        return number(figure["median"])
    return f"{number(figure['median'])} ({number(figure['low'])} … {number(figure['high'])})"
