"""COMMIT with a bound: PostgreSQL applies no timeout of its own while a commit waits for a standby."""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import ExecStatus

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

    from keepstep.postgres.pool import Connection


def execute_bounded(connection: Connection, statement: bytes, *, timeout_s: float) -> bytes:
    """Execute one statement without parameters. Blocks.

    After ``timeout_s`` seconds the server is told to give it up: what is not committed then is rolled back, what only
    waits for a standby ends committed, with a warning.

    Returns:
        The command tag.

    Raises:
        psycopg.Error: as PostgreSQL tells it; where it tells nothing, or cannot be told to give up, the connection is
            closed, and the outcome is not known.
    """
    try:
        result = _outcome(connection, statement, timeout_s)
    except psycopg.Error:
        connection.close()
        raise
    if result.status == ExecStatus.FATAL_ERROR:
        raise psycopg.errors.error_from_result(result)
    return result.command_status or b""


def _outcome(connection: Connection, statement: bytes, timeout_s: float) -> PGresult:
    """The statement's first error, or what it answered last."""
    pgconn = connection.pgconn
    pgconn.send_query(statement)
    give_up_at_s: float | None = time.monotonic() + timeout_s
    outcome = None
    while True:
        while pgconn.flush() or pgconn.is_busy():
            remaining_s = None if give_up_at_s is None else max(0.0, give_up_at_s - time.monotonic())
            if is_readable(pgconn, remaining_s):
                pgconn.consume_input()
            else:
                connection.cancel_safe(timeout=timeout_s)
                give_up_at_s = None  # it answers now
        result = pgconn.get_result()
        if result is None:
            assert outcome is not None, "a statement has a result"
            return outcome
        if outcome is None or outcome.status != ExecStatus.FATAL_ERROR:
            outcome = result


def is_readable(pgconn: PGconn, timeout_s: float | None) -> bool:
    """Whether something arrived, waiting for it so many seconds at most; ``None``: for as long as it takes."""
    poller = select.poll()
    poller.register(pgconn.socket, select.POLLIN)
    return bool(poller.poll(None if timeout_s is None else timeout_s * 1000))
