"""The slow-query log: which statements PostgreSQL writes down with their plans, and never with anybody's values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import psycopg

from keepstep.errors import StartupError

SLOW_QUERY_MS: Final = 1_000
"""Milliseconds from which a statement is slow, where nothing else is set."""
_OFF: Final = -1
"""What PostgreSQL calls never, of a duration; of a length it means all."""
_READ: Final = """
SELECT (SELECT setting::int FROM pg_settings WHERE name = 'log_min_duration_statement'),
       (SELECT setting::int FROM pg_settings WHERE name = 'auto_explain.log_min_duration'),
       (SELECT setting::int FROM pg_settings WHERE name = 'log_parameter_max_length'),
       (SELECT setting::int FROM pg_settings WHERE name = 'auto_explain.log_parameter_max_length')
"""


@dataclass(frozen=True, slots=True)
class SlowQueryLog:
    """What a PostgreSQL writes of slow statements.

    Attributes:
        statements_ms: from how many milliseconds on it writes statements; None where it does not.
        plans_ms: the same, of plans; None also where ``auto_explain`` is not loaded.
        has_values: whether it may write parameters, which are users' events.
    """

    statements_ms: int | None
    plans_ms: int | None
    has_values: bool

    @property
    def text(self) -> str:
        """In words, with what to set where something is missing."""
        if self.statements_ms is None:
            logged = "not logged: set log_min_duration_statement"
        elif self.plans_ms is None:
            logged = f"logged from {self.statements_ms} ms on, without plans: load auto_explain"
        else:
            logged = f"logged from {self.statements_ms} ms on, with plans from {self.plans_ms} ms on"
        values = "; users' values may be in the log: set log_parameter_max_length to 0" if self.has_values else ""
        return logged + values


def read_slow_query_log(url: str, *, connect_timeout_s: int) -> SlowQueryLog:
    """What the connections of that role write. Blocks. Raises StartupError where it cannot be asked."""
    try:
        with psycopg.connect(url, connect_timeout=connect_timeout_s) as connection:
            row = connection.execute(_READ).fetchone()
    except psycopg.Error as error:
        raise StartupError(f"the database cannot be asked: {type(error).__name__}") from error
    assert row is not None
    return interpret(*row)


def interpret(
    statements_ms: int, plans_ms: int | None, statements_length: int, plans_length: int | None
) -> SlowQueryLog:
    """What such settings mean, as PostgreSQL has them; those of plans are None where ``auto_explain`` is not loaded."""
    has_statements, has_plans = statements_ms != _OFF, plans_ms not in {None, _OFF}
    return SlowQueryLog(
        statements_ms if has_statements else None,
        plans_ms if has_plans else None,
        has_values=(has_statements and statements_length != 0) or (has_plans and plans_length != 0),
    )


def embedded_settings(slow_query_ms: int) -> str:
    """Lines for the configuration of the embedded PostgreSQL, whose log is bounded by its rotation."""
    return f"""\
log_min_duration_statement = {slow_query_ms} # the slow-query log, milliseconds: statements,
shared_preload_libraries = 'auto_explain' # and the plans of those that have one,
auto_explain.log_min_duration = {slow_query_ms}
log_parameter_max_length = 0              # and nobody's events in it,
auto_explain.log_parameter_max_length = 0
log_parameter_max_length_on_error = 0
log_error_verbosity = terse               # nor in an error's details,
plan_cache_mode = force_generic_plan      # nor in a plan, which names parameters by their numbers
"""
