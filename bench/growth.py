"""What a full database costs: the same loads on one with many millions of events and on an empty one, in pairs.

Both servers run side by side and take turns, so that whatever else the machine does falls on both. Checkpoints and
autovacuum go on as they are configured; how many there were stands in the results.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
import trio

from bench.clients import make_account
from bench.comparison import compare_in_pairs
from bench.retention import fill, settle
from bench.server import database_url, new_directory, running_server

if TYPE_CHECKING:
    from bench.runner import Bench
    from bench.scenario import Scenario
    from bench.server import Server

FILLED_USERS: Final = 2
_USERS: Final = "SELECT user_id FROM users ORDER BY user_pk"
_EVENTS: Final = "SELECT coalesce(sum(head_seq), 0)::bigint FROM streams"
_BYTES: Final = "SELECT pg_database_size(current_database())"
_CHECKPOINTS: Final = "SELECT num_timed + num_requested FROM pg_stat_checkpointer"
_VACUUMS: Final = "SELECT coalesce(sum(autovacuum_count), 0)::bigint FROM pg_stat_all_tables"


def measure_growth(scenario: Scenario, bench: Bench, *, events: int, pairs: int, seed: int) -> dict[str, Any]:
    """Fill one of two databases, load both in turns; the results. Raises BenchError where a run has none.

    Args:
        scenario: the loads; its goals are ratios to the empty database.
        bench: starts both servers.
        events: filled in.
        pairs: of runs.
        seed: decides which of a pair runs first.
    """
    with (
        new_directory(bench.directory) as directory,
        running_server(_folder(directory, "grown"), scenario.settings) as grown,
        running_server(_folder(directory, "empty"), scenario.settings) as empty,
    ):
        bench.say(f"filling in {events:,} events")
        fill_in(grown, directory, events)
        before = stored(grown)
        results = compare_in_pairs(
            "growth",
            scenario,
            dataclasses.replace(bench, target=grown),
            dataclasses.replace(bench, target=empty),
            pairs=pairs,
            seed=seed,
        )
        return results | {"goals": _judge(scenario, results), "before": before, "after": stored(grown)}


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder


def fill_in(server: Server, directory: Path, events: int) -> None:
    """A year of events of two users, in 125 streams, as the server writes them but for what their bytes mean."""
    for number in range(FILLED_USERS):
        trio.run(make_account, server, _folder(directory, f"user-{number}"))
    url = database_url(server)
    with psycopg.connect(url, autocommit=True) as connection:
        users = [bytes(row[0]) for row in connection.execute(_USERS).fetchall()]
    fill(url, users, events)
    settle(server, url)


def stored(server: Server) -> dict[str, int]:
    """How much is stored, and how often PostgreSQL has written it out and cleaned up."""
    asked = {"events": _EVENTS, "bytes": _BYTES, "checkpoints": _CHECKPOINTS, "autovacuums": _VACUUMS}
    with psycopg.connect(database_url(server), autocommit=True) as connection:
        rows = {name: connection.execute(query).fetchone() for name, query in asked.items()}
    return {name: int(row[0]) for name, row in rows.items() if row is not None}


def _judge(scenario: Scenario, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Goals hold for the ratio of a load's figure to the same on the empty database."""
    judged = []
    for goal in scenario.goals:
        median = results["ratios"][goal.load][goal.figure]["median"]
        bounds = {"at_least": goal.at_least, "at_most": goal.at_most}
        judged.append(
            {"load": goal.load, "figure": goal.figure, "ratio_to": "an empty database", "median": median}
            | bounds
            | {"reached": goal.reached(median)}
        )
    return judged
