"""The hot transaction in one flight, on the socket of a connection while libpq has nothing on its way (docs/adr/0270).

The heads move by compare and set, all of them or the statement fails, the events are copied, the transaction commits:
all of it is sent at once and answered at once, and no Python runs in between. What else a transaction may do goes
through psycopg, as everything does where the connection is encrypted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import psycopg
from psycopg import errors
from psycopg.pq import ExecStatus

from keepstep import _keepstep
from keepstep.postgres.queries import EVENT_TABLES, numbered, query

if TYPE_CHECKING:
    from keepstep._keepstep import Flight, Ingested
    from keepstep.postgres.pool import Connection

PARAMETERS: Final = (
    "user_pks",
    "stream_pks",
    "old_seqs",
    "old_chains",
    "auth_epochs",
    "new_seqs",
    "new_chains",
    "new_received_ats",
    "new_authors",
    "added_bytes",
    "count",
    "all_or_none",
)
"""Those of ``move_heads``, in the order in which the extension sends them."""
MOVE_HEADS: Final = "keepstep_move_heads"
COPIES: Final = {int(retention_class): f"keepstep_copy_{table}" for retention_class, table in EVENT_TABLES.items()}
"""Names of the prepared statements, the second by retention class."""
_NOT_MOVED: Final = "22P02"
"""invalid_text_representation: what ``move_heads`` ends with where not every head moved; it reads no text otherwise."""
_NOT_PREPARED: Final = "26000"
"""invalid_sql_statement_name."""


@dataclass(frozen=True, slots=True)
class Flown:
    """What became of a flight.

    Attributes:
        xid: number of the transaction, empty where PostgreSQL had not said it.
        warned: the commit warned: its wait for a standby was cut short.
        error: as psycopg would raise it, ``None`` where the transaction was committed. Where the connection is closed
            since, or PostgreSQL ended it, the outcome is not known; else it was rolled back.
    """

    xid: str
    warned: bool
    error: psycopg.Error | None

    @property
    def is_not_moved(self) -> bool:
        """Whether it was rolled back since another transaction had moved a head."""
        return self.error is not None and self.error.sqlstate == _NOT_MOVED

    @property
    def is_not_prepared(self) -> bool:
        """Whether it was rolled back since the session has lost its prepared statements."""
        return self.error is not None and self.error.sqlstate == _NOT_PREPARED


@dataclass(frozen=True, slots=True)
class Flights:
    """A connection that takes them.

    Attributes:
        backend_pid: the server process behind it: once that is gone, no flight is on its way any more.
    """

    backend_pid: int

    def fly(self, connection: Connection, ingested: Ingested, *, timeout_s: float) -> Flown:
        """Commit what a batch became, or nothing of it. Blocks.

        After ``timeout_s`` seconds the server is told to give it up, as in ``commit.execute_bounded``. Whatever else
        goes wrong is told by what is returned; a connection that may be out of step is closed.
        """
        copies = {retention_class: COPIES[retention_class] for retention_class in ingested.retention_classes}
        flight = _keepstep.Flight(ingested, move_heads=MOVE_HEADS, copies=copies)
        return self.land(connection, flight, remaining_s=timeout_s, timeout_s=timeout_s)

    def land(self, connection: Connection, flight: Flight, *, remaining_s: float, timeout_s: float) -> Flown:
        """As ``fly``, with a flight that may have begun, and has so many seconds left. Blocks."""
        failure: psycopg.Error | None = None
        try:
            if not flight.fly(connection.pgconn.socket, remaining_s):
                connection.cancel_safe(timeout=timeout_s)
                flight.fly(connection.pgconn.socket, None)  # it answers now
        except ConnectionError as error:
            failure = psycopg.OperationalError(str(error))
        except psycopg.Error as error:
            failure = error  # it could not be told to give up
        if not flight.in_step:
            connection.close()
        return Flown(flight.xid or "", flight.warned, _error(flight) or failure)


def flights_on(connection: Connection) -> Flights | None:
    """Prepare a connection for flights; ``None`` where it is not a plain socket. Raises psycopg.Error."""
    if connection.pgconn.ssl_in_use or not hasattr(_keepstep, "Flight"):
        return None
    row = connection.execute(query("flight_session")).fetchone()
    backend_pid, is_encrypted, prepared = cast("tuple[int, bool, list[str]]", row)
    if is_encrypted:
        return None
    move, names = numbered("move_heads")
    assert names == PARAMETERS, names
    statements = {MOVE_HEADS: move}
    statements |= {name: query("copy_events", retention_class) for retention_class, name in COPIES.items()}
    for name, statement in statements.items():
        if name not in prepared:
            result = connection.pgconn.prepare(name.encode(), statement)
            if result.status != ExecStatus.COMMAND_OK:
                raise errors.error_from_result(result)
    return Flights(backend_pid)


def _error(flight: Flight) -> psycopg.Error | None:
    """The error that PostgreSQL answered, as psycopg would raise it."""
    fields = flight.error
    if fields is None:
        return None
    state = fields.get(ord("C"), b"").decode("ascii", "replace")
    try:
        kind = errors.lookup(state)
    except KeyError:
        kind = psycopg.DatabaseError
    return kind(fields.get(ord("M"), b"").decode("utf-8", "replace"), info=cast("dict[int, bytes | None]", fields))
