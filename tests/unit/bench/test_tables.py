"""Results are shown with their spread and their goals."""

from __future__ import annotations

import io

from rich.console import Console

from bench.tables import figure_table, goal_table, number, ratio_table

ONE = {"median": 2_400.4, "low": 2_400.4, "high": 2_400.4, "values": [2_400.4]}
THREE = {"median": 15.25, "low": 14.0, "high": 16.5, "values": [14.0, 15.25, 16.5]}


def cells(table: object) -> list[list[str]]:
    """The rows of a table as it is printed."""
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(table)
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in console.export_text().splitlines()]


def test_a_figure_has_a_row_and_a_load_has_a_column() -> None:
    """Spread is shown where there is one; what a load does not have stays empty."""
    loads = {"first": {"figures": {"acknowledged_per_s": ONE, "server_us": THREE}}, "second": {"figures": {}}}
    rows = cells(figure_table({"title": "t", "loads": loads}))
    assert ["acknowledged events/s", "2,400", ""] in rows
    assert ["CPU µs each: server", "15.2 (14.0 … 16.5)", ""] in rows
    assert not [row for row in rows if row[0].startswith("deliver")]


def test_goals_say_whether_they_are_reached() -> None:
    """With the bound and the median."""
    goal = {
        "load": "one",
        "figure": "acknowledged_per_s",
        "ratio_to": None,
        "at_least": 60_000,
        "at_most": None,
        "median": 61_000.0,
    }
    rows = cells(goal_table([goal | {"reached": True}, goal | {"at_least": None, "at_most": 8.0, "reached": False}]))
    assert ["one", "acknowledged events/s", "≥ 60,000", "61,000", "reached"] in rows
    assert ["one", "acknowledged events/s", "≤ 8.0", "61,000", "NOT reached"] in rows


def test_a_goal_that_is_a_ratio_says_of_what() -> None:
    """With enough digits."""
    goal = {"load": "two", "figure": "acknowledged_per_s", "ratio_to": "one", "at_least": 0.95, "at_most": None}
    rows = cells(goal_table([goal | {"median": 0.9512, "reached": True}]))
    assert ["two", "acknowledged events/s, of one", "≥ 0.950", "0.951", "reached"] in rows


def test_ratios_have_their_interval() -> None:
    """Those whose interval leaves 1 out are marked."""
    found = {"median": 1.2, "low": 1.1, "high": 1.3}
    figures = {"acknowledged_per_s": found, "server_us": found | {"low": 0.9}}
    rows = cells(ratio_table({"title": "t", "pairs": 6, "ratios": {"one": figures}}, "v1"))
    assert ["one", "acknowledged events/s", "1.200", "1.100 … 1.300", "differs"] in rows
    assert ["one", "CPU µs each: server", "1.200", "0.900 … 1.300", ""] in rows


def test_small_numbers_keep_a_fraction() -> None:
    """Large ones do not."""
    assert [number(value) for value in (0.25, 99.94, 100.0, 12_345.6)] == ["0.2", "99.9", "100", "12,346"]
