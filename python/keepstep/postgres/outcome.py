"""What became of a transaction whose COMMIT got no answer: found out, never guessed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg

from keepstep.eventlog.store import OutcomeUnknown
from keepstep.postgres.queries import query

if TYPE_CHECKING:
    from keepstep._keepstep import StreamHead
    from keepstep.postgres.pool import Connection, Lease

OUTCOME_LOOKS_MAX: Final = 40
"""How often a lost transaction is looked for."""
OUTCOME_PAUSE_S: Final = 0.25
"""Seconds between two looks: with ``OUTCOME_LOOKS_MAX`` as long as PostgreSQL leaves a lost client's rows locked."""
OUTCOME_TIMEOUT_S: Final = OUTCOME_LOOKS_MAX * OUTCOME_PAUSE_S
"""Seconds after which no new look begins: one at a database that says nothing takes as long as connecting may."""


@dataclass(frozen=True, slots=True)
class LostTransaction:
    """A transaction that is looked for.

    Attributes:
        witness: a head that it moved; it is committed whole, so one row of it tells of all.
        xid: its number; empty where PostgreSQL had not told it.
        backend_pid: the server process that works on it, where there is no number.
    """

    witness: StreamHead
    xid: str
    backend_pid: int = 0

    def was_committed(self, lease: Lease, *, pause: Callable[[float], None]) -> bool:
        """Look until its outcome is known, ``pause`` between two looks. Blocks.

        Raises:
            OutcomeUnknown: the database did not come back in time, or still has the transaction in progress.
        """
        give_up_at_s = time.monotonic() + OUTCOME_TIMEOUT_S
        for look in range(OUTCOME_LOOKS_MAX):
            if look:
                if time.monotonic() >= give_up_at_s:
                    break
                pause(OUTCOME_PAUSE_S)
            try:
                outcome = self._look(lease.connection)
            except psycopg.Error as error:
                lease.discard_if_lost(error)
                continue
            if outcome is not None:
                return outcome
        raise OutcomeUnknown("the outcome of a transaction is not known yet")

    def _look(self, connection: Connection) -> bool | None:
        """Whether it was committed; ``None`` while it is in progress. On another timeline it is in none."""
        in_progress = self.is_in_progress(connection)
        # Looked for only then: what was over and is not stored was never committed.
        if self._is_stored(connection):
            return True
        return None if in_progress else False

    def is_in_progress(self, connection: Connection) -> bool:
        """Whether it may still be committed. Raises psycopg.Error."""
        if not self.xid:
            # It may not even have begun. The process number of another server may be taken there: a look too many.
            row = connection.execute(query("backend_lives"), {"pid": self.backend_pid}).fetchone()
            return row == (True,)
        try:
            row = connection.execute(query("transaction_status"), {"xid": self.xid}).fetchone()
        except psycopg.errors.InvalidParameterValue:
            return False  # a number that was never given out: the transaction went with a crash
        return row is not None and row[0] == "in progress"

    def _is_stored(self, connection: Connection) -> bool:
        head = self.witness
        arguments = {"user_pk": head.user_pk, "stream_pk": head.stream_pk, "seq": head.seq, "chain": head.chain}
        row = connection.execute(query("find_witness", head.retention_class), arguments).fetchone()
        return row == (True,)


def pass_barrier(lease: Lease) -> None:
    """Where a standby is required, commit something small: when that is replicated, what was committed before is too.

    Raises:
        OutcomeUnknown: it is committed here, and may be lost if a standby takes over.
    """
    try:
        with collected_warnings(lease.connection) as warnings:
            lease.execute_bounded(query("write_barrier"))
    except psycopg.Error as error:
        lease.discard_if_lost(error)
        raise OutcomeUnknown("a transaction may not have reached the standby") from error
    if warnings:
        raise OutcomeUnknown("a transaction may not have reached the standby")


@contextmanager
def collected_warnings(connection: Connection) -> Iterator[list[str]]:
    """Collects warnings: of a COMMIT they say that its wait for a standby was cut short."""
    warnings: list[str] = []

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            warnings.append(diagnostic.message_primary or "")

    connection.add_notice_handler(note)
    try:
        yield warnings
    finally:
        connection.remove_notice_handler(note)
