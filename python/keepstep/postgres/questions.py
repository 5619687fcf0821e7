"""Single statements that are asked without a thread: libpq never waits, Trio watches its socket (docs/adr/0370)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import trio
from psycopg import errors, generators
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ExecStatus, Format
from psycopg.waiting import Ready, Wait

from keepstep.postgres.queries import numbered

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg
    from psycopg.pq.abc import PGresult

    from keepstep.postgres.pool import Connection

_GOOD: Final = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)
_FORGOTTEN: Final = {"26000", "0A000"}
"""invalid_sql_statement_name, feature_not_supported ("cached plan must not change result type")."""


class Questions:
    """What is asked on one connection, each statement prepared once. No two at the same time.

    Args:
        connection: any of its kind; it is not kept.
    """

    def __init__(self, connection: Connection) -> None:
        self._transformer = Transformer(connection.adapters)
        self._prepared: set[str] = set()

    async def ask(self, connection: Connection, name: str, arguments: Mapping[str, object]) -> list[tuple[Any, ...]]:
        """The rows that a statement of ``queries`` answers, none where it has none.

        The connection has nothing under way. The caller shields it: cancelled, what is on its way would be lost, and
        the connection with it. Raises psycopg.Error.
        """
        statement, parameters = numbered(name)
        transformer, prepared = self._transformer, f"keepstep_{name}".encode()
        values = transformer.dump_sequence([arguments[each] for each in parameters], [PyFormat.AUTO] * len(parameters))
        if name not in self._prepared:
            connection.pgconn.send_prepare(prepared, statement, transformer.types)
            await _answer(connection)
            self._prepared.add(name)
        connection.pgconn.send_query_prepared(prepared, values, transformer.formats, result_format=Format.BINARY)
        result = await _answer(connection)
        transformer.set_pgresult(result)
        return transformer.load_rows(0, result.ntuples, tuple)


def is_forgotten(error: psycopg.Error) -> bool:
    """Whether what was prepared on a session is not there any more, or not of use."""
    return error.sqlstate in _FORGOTTEN


async def _answer(connection: Connection) -> PGresult:
    """What is answered to what has been sent. Raises psycopg.Error."""
    pgconn = connection.pgconn
    answering = generators.execute(pgconn)
    ready = Ready.NONE
    results: list[PGresult] | None = None
    while results is None:
        try:
            wanted = answering.send(ready) if ready else next(answering)
        except StopIteration as stop:
            results = stop.value
        else:
            ready = await _wait(pgconn.socket, wanted)
    (result,) = results
    if result.status not in _GOOD:
        raise errors.error_from_result(result, encoding=connection.info.encoding)
    return result


async def _wait(descriptor: int, wanted: Wait) -> Ready:
    if wanted is Wait.R:
        await trio.lowlevel.wait_readable(descriptor)
        return Ready.R
    # Something is still to be sent, and a server that has not read all of a question has nothing to say yet.
    await trio.lowlevel.wait_writable(descriptor)
    return Ready.W
