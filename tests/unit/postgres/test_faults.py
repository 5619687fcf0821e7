"""What PostgreSQL's errors mean for the log."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from keepstep.errors import KeepstepError, Unavailable
from keepstep.eventlog.store import Contended, DataFault
from keepstep.postgres.faults import away, ends_connection, fault, misses_partition


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.DeadlockDetected(), Contended),
        (errors.LockNotAvailable(), Contended),
        (errors.SerializationFailure(), Contended),
        (errors.UniqueViolation(), DataFault),
        (errors.NumericValueOutOfRange(), DataFault),
        (errors.ProgramLimitExceeded(), DataFault),
        (errors.DiskFull(), Unavailable),
        (errors.ReadOnlySqlTransaction(), Unavailable),
        (errors.AdminShutdown(), Unavailable),
        (errors.InternalError_(), Unavailable),
        (psycopg.OperationalError("connection refused"), Unavailable),
    ],
)
def test_an_error_is_of_one_kind(error: psycopg.Error, kind: type[KeepstepError]) -> None:
    """In the way, at fault, or away."""
    assert type(fault(error)) is kind


def test_data_at_fault_is_told_from_limits_of_ours() -> None:
    """The one ends the event, the other leaves it valid."""
    assert str(fault(errors.UniqueViolation())) == "unprocessable"
    assert str(fault(errors.ProgramLimitExceeded())) == "internal"


def test_what_is_said_of_it_is_for_the_operator() -> None:
    """Known states in words, others by their number; never what the server wrote, which may hold data."""
    assert away(errors.DiskFull("could not extend file")).detail == "the database's disk is full"
    assert away(errors.UndefinedTable('relation "x"')).detail == "the database answered 42P01"
    assert away(psycopg.OperationalError("host name")).detail == "the database does not answer"


def test_an_error_without_diagnostics_is_no_special_one() -> None:
    """Neither the end of a session nor a missing partition."""
    assert not ends_connection(psycopg.OperationalError())
    assert not misses_partition(errors.UniqueViolation())
