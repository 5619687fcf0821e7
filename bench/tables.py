"""Results as tables, for a terminal and for documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from bench.figures import LABELS

if TYPE_CHECKING:
    from collections.abc import Sequence

WHOLE_FROM = 100.0
"""Figures from here on are shown without a fraction."""


def figure_table(results: dict[str, Any]) -> Table:
    """A column for each load; medians, and their range where there was more than one repetition."""
    acks = "every ack waited for its fsync" if "durability" in results else "what an ack means there is not known"
    rendered = Table(title=results["title"], caption=f"each: event or connection; {acks}; every run was checked")
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
            differs = "differs" if not found["low"] <= 1 <= found["high"] else ""
            label = LABELS[figure].removeprefix("· ")
            rendered.add_row(load, label, ratio(found["median"]), interval(found), differs)
    return rendered


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Its lines."""
    return [f"| {' | '.join(each)} |" for each in (head, ["---"] * len(head), *rows)]


def interval(found: dict[str, Any]) -> str:
    """Where a ratio lies with 95 % confidence."""
    return f"{ratio(found['low'])} … {ratio(found['high'])}"


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
