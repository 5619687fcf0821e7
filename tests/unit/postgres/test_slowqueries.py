"""What is said of the slow-query log of an operator's own PostgreSQL."""

from __future__ import annotations

import pytest

from keepstep.postgres.slowqueries import embedded_settings, interpret

VALUES = "; users' values may be in the log: set log_parameter_max_length to 0"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ((-1, None, -1, None), "not logged: set log_min_duration_statement"),
        ((500, None, -1, None), f"logged from 500 ms on, without plans: load auto_explain{VALUES}"),
        ((500, None, 0, None), "logged from 500 ms on, without plans: load auto_explain"),
        ((500, -1, 0, -1), "logged from 500 ms on, without plans: load auto_explain"),
        ((500, 700, 0, 0), "logged from 500 ms on, with plans from 700 ms on"),
        ((500, 700, 0, 1_000), f"logged from 500 ms on, with plans from 700 ms on{VALUES}"),
        ((-1, 700, -1, 0), "not logged: set log_min_duration_statement"),
    ],
)
def test_what_is_missing_is_told_with_what_to_set(
    settings: tuple[int, int | None, int, int | None], words: str
) -> None:
    """Duration and length of statements and plans, as PostgreSQL has them: -1 is never, and of a length all."""
    statements_ms, plans_ms, statements_length, plans_length = settings
    assert interpret(statements_ms, plans_ms, statements_length, plans_length).text == words


def test_the_embedded_one_writes_nobodys_values() -> None:
    """Neither as parameters nor as constants in a plan."""
    lines = embedded_settings(250).splitlines()
    values = dict(line.split("#")[0].strip().split(" = ") for line in lines)
    assert values["log_min_duration_statement"] == values["auto_explain.log_min_duration"] == "250"
    assert values["log_parameter_max_length"] == values["auto_explain.log_parameter_max_length"] == "0"
    assert values["plan_cache_mode"] == "force_generic_plan"
