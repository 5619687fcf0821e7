"""What PostgreSQL's errors mean for the log, in one table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keepstep.errors import KeepstepError, Unavailable
from keepstep.eventlog.store import Contended, DataFault
from keepstep.postgres.durability import NotDurableError

if TYPE_CHECKING:
    import psycopg

_CONTENDED: Final = {"40001", "40P01", "55P03"}
"""serialization_failure, deadlock_detected, lock_not_available."""
_AWAY: Final = {
    "25006": "the database is read-only",
    "53100": "the database's disk is full",
    "53200": "the database is out of memory",
    "53300": "the database has too many connections",
    "55000": "the database is a standby",
    "55P03": "a lock was not free in time",
    "57014": "a statement took longer than its timeout",
    "57P01": "the database is shutting down",
    "57P02": "the database crashed",
    "57P03": "the database is starting up",
    "58030": "the database's disk reported an error",
}
"""What is said of the states that operators meet; what is not listed is told by its number."""
_DATA_CLASSES: Final = ("22", "23")
"""data exception, integrity constraint violation: the same bytes will never be taken."""
_LIMITS_CLASS: Final = "54"
"""program limit exceeded: our own limits should have kept it away."""
_CHECK_VIOLATION: Final = "23514"
_FATAL: Final = ("FATAL", "PANIC")


def fault(error: psycopg.Error) -> KeepstepError:
    """The error of ours that a transaction ended with, rolled back as a whole."""
    state = error.sqlstate or ""
    if state in _CONTENDED:
        return Contended(state)
    if state.startswith(_DATA_CLASSES):
        return DataFault("unprocessable")
    if state.startswith(_LIMITS_CLASS):
        return DataFault("internal")
    return away(error)


def away(error: psycopg.Error) -> Unavailable:
    """The same where neither data nor other transactions can be at fault."""
    if isinstance(error, NotDurableError):
        return Unavailable(str(error))
    state = error.sqlstate
    return Unavailable(_AWAY.get(state, f"the database answered {state}") if state else "the database does not answer")


def ends_connection(error: psycopg.Error) -> bool:
    """Whether the server ended the session with this error."""
    return error.diag.severity_nonlocalized in _FATAL


def misses_partition(error: psycopg.Error) -> bool:
    """Whether a row found no partition: a check violation of no constraint."""
    return error.sqlstate == _CHECK_VIOLATION and error.diag.constraint_name is None
