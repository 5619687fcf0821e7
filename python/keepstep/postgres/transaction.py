"""One transaction that appends, up to a COMMIT whose outcome is known even when the connection is lost in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import psycopg
from psycopg.pq import TransactionStatus

from keepstep.errors import Unavailable
from keepstep.eventlog.store import Loaded, OutcomeUnknown, StreamKey, StreamPlace
from keepstep.model import UserPk
from keepstep.postgres.arrays import bigints, byteas, texts
from keepstep.postgres.faults import away
from keepstep.postgres.heads import load_heads
from keepstep.postgres.queries import query

if TYPE_CHECKING:
    from keepstep._keepstep import Ingested, StreamHead
    from keepstep.interfaces import Genesis
    from keepstep.model import DeviceEntry
    from keepstep.postgres.pool import Connection, Lease

OUTCOME_LOOKS_MAX: Final = 40
"""How often a lost transaction is looked for."""
OUTCOME_PAUSE_S: Final = 0.25
"""Seconds between two looks: with ``OUTCOME_LOOKS_MAX`` as long as PostgreSQL leaves a lost client's rows locked."""


class PostgresTransaction:
    """As ``eventlog.store.Transaction``; its methods raise psycopg.Error, which ``PostgresStore.begin`` translates.

    Args:
        lease: the connection, on which BEGIN was sent.
        probe: as in ``PostgresStore``.
        pause: as in ``PostgresStore``.
    """

    def __init__(self, lease: Lease, *, probe: Callable[[str], None], pause: Callable[[float], None]) -> None:
        self._lease = lease
        self._connection = lease.connection
        self._probe = probe
        self._pause = pause
        self._heads: list[StreamHead] = []
        self._xid = ""

    @property
    def needs(self) -> set[tuple[int, int]]:
        """(retention class, received_at in unix ms) of the rows that are stored."""
        return {(head.retention_class, head.received_at_ms) for head in self._heads}

    def lock(self, keys: Collection[StreamKey]) -> Loaded:
        """As ``Transaction.lock``."""
        user_pks = bigints(sorted({user_pk for user_pk, _ in keys}))
        self._connection.execute(query("lock_devices_streams"), {"user_pks": user_pks})
        arguments = {"user_pks": bigints([key[0] for key in keys]), "names": texts([key[1] for key in keys])}
        self._connection.execute(query("lock_streams"), arguments)
        return load_heads(self._connection, keys)

    def write(self, ingested: Ingested, *, created: Collection[StreamKey]) -> frozenset[StreamPlace]:
        """As ``Transaction.write``."""
        moved = ingested.moved
        moves: Sequence[tuple[StreamHead, StreamHead]] = moved
        unmoved: set[StreamPlace] = set()
        if created:
            unmoved |= self._create([new for _, new in moved if (new.user_pk, new.name) in created])
            moves = [(old, new) for old, new in moved if (new.user_pk, new.name) not in created]
        if moves:
            unmoved |= self._move(moves)
        self._put_authors(ingested, unmoved)
        heads = [new for _, new in moved if not unmoved or _place(new) not in unmoved]
        if heads:
            self._store(ingested, heads, frozenset(unmoved))
        return frozenset(unmoved)

    def _store(self, ingested: Ingested, heads: list[StreamHead], excluded: frozenset[StreamPlace]) -> None:
        """Store the events that made ``heads``."""
        self._heads = heads
        for retention_class in ingested.retention_classes:
            with self._connection.cursor() as cursor, cursor.copy(query("copy_events", retention_class)) as copy:
                copy.write(memoryview(ingested.copy_bytes(retention_class, excluding=excluded)))

    def _create(self, heads: Sequence[StreamHead]) -> set[StreamPlace]:
        """Insert new streams; returns those that could not be."""
        arguments = {
            "user_pks": bigints([head.user_pk for head in heads]),
            "stream_pks": bigints([head.stream_pk for head in heads]),
            "names": texts([head.name for head in heads]),
            "retention_classes": bigints([head.retention_class for head in heads]),
            "seqs": bigints([head.seq for head in heads]),
            "chains": byteas([head.chain for head in heads]),
            "received_ats": bigints([head.received_at_ms for head in heads]),
            "auth_epochs": bigints([head.auth_epoch for head in heads]),
            "authors": byteas([head.authors_packed for head in heads]),
        }
        xid, user_pks, stream_pks = self._one("create_streams", arguments)
        self._xid = xid
        return {_place(head) for head in heads} - set(zip(user_pks or (), stream_pks or (), strict=True))

    def _move(self, moves: Sequence[tuple[StreamHead, StreamHead]]) -> set[StreamPlace]:
        """Compare and set; returns the streams that did not move."""
        arguments = {
            "user_pks": bigints([old.user_pk for old, _ in moves]),
            "stream_pks": bigints([old.stream_pk for old, _ in moves]),
            "old_seqs": bigints([old.seq for old, _ in moves]),
            "old_chains": byteas([old.chain for old, _ in moves]),
            "auth_epochs": bigints([old.auth_epoch for old, _ in moves]),
            "new_seqs": bigints([new.seq for _, new in moves]),
            "new_chains": byteas([new.chain for _, new in moves]),
            "new_received_ats": bigints([new.received_at_ms for _, new in moves]),
            "new_authors": byteas([new.authors_packed for _, new in moves]),
            "count": len(moves),
        }
        xid, count, user_pks, stream_pks = self._one("move_heads", arguments)
        self._xid = xid
        if count == len(moves):
            return set()
        return {_place(new) for _, new in moves} - set(zip(user_pks or (), stream_pks or (), strict=True))

    def _put_authors(self, ingested: Ingested, unmoved: set[StreamPlace]) -> None:
        rows = [row for row in ingested.changed_authors if row[:2] not in unmoved]
        if not rows:
            return
        user_pks, stream_pks, device_pks, last_ns, last_seqs, last_hashes = zip(*rows, strict=True)
        self._connection.execute(
            query("put_authors"),
            {
                "user_pks": bigints(user_pks),
                "stream_pks": bigints(stream_pks),
                "device_pks": bigints(device_pks),
                "last_ns": bigints(last_ns),
                "last_seqs": bigints(last_seqs),
                "last_hashes": byteas(last_hashes),
            },
        )

    def enrol(self, user_pk: int, device: DeviceEntry, *, now_ms: int) -> None:
        """As ``Transaction.enrol``."""
        arguments = {
            "user_pk": user_pk,
            "device_id": device.device_id,
            "device_key": device.device_key,
            "box_key": device.box_key,
            "capabilities": int(device.capabilities),
            "issued_at": device.issued_at_ms,
            "expires_at": device.expires_at_ms,
            "sealed_label": device.sealed_label,
            "now_ms": now_ms,
        }
        self._connection.execute(query("enrol_device"), arguments)

    def create_user(self, genesis: Genesis, *, now_ms: int) -> UserPk | None:
        """As ``Transaction.create_user``."""
        arguments = {"user_id": genesis.user_key, "next_root_hash": genesis.next_root_hash, "now_ms": now_ms}
        row = self._connection.execute(query("create_user"), arguments).fetchone()
        if row is None:
            return None
        user_pk, self._xid = cast("tuple[int, str]", row)
        return UserPk(user_pk)

    def open_account(self, ingested: Ingested, keys_head: StreamHead, device: DeviceEntry, *, now_ms: int) -> None:
        """As ``Transaction.open_account``."""
        for head in (ingested.moved[0][1], keys_head):
            arguments = {
                "user_pk": head.user_pk,
                "stream_pk": head.stream_pk,
                "name": head.name,
                "retention_class": head.retention_class,
                "seq": head.seq,
                "chain": head.chain,
                "received_at": head.received_at_ms,
                "auth_epoch": head.auth_epoch,
                "authors": head.authors_packed,
                "now_ms": now_ms,
            }
            self._connection.execute(query("create_reserved_stream"), arguments)
        self.enrol(keys_head.user_pk, device, now_ms=now_ms)
        self._store(ingested, [ingested.moved[0][1]], frozenset())

    def commit(self) -> None:
        """As ``Transaction.commit``. COMMIT itself is never cancelled."""
        self._probe("before_commit")
        try:
            with _warnings(self._connection) as warnings:
                tag = self._connection.execute("COMMIT", prepare=False).statusmessage
        except psycopg.Error as error:
            if not self._lease.discard_if_lost(error):
                raise  # told by PostgreSQL itself: it was rolled back
            if not self._learn_outcome():
                raise away(error) from error
            self._pass_barrier()
        else:
            if tag != "COMMIT":
                raise Unavailable("the transaction had failed before it was committed")
            if warnings:
                self._pass_barrier()
        self._probe("after_commit")

    def roll_back(self) -> None:
        """End the transaction if it is still open; a connection that is lost ends it by itself."""
        if self._connection.closed or self._connection.info.transaction_status is TransactionStatus.IDLE:
            return
        try:
            self._connection.execute("ROLLBACK", prepare=False)
        except psycopg.Error:
            self._connection.close()

    def _learn_outcome(self) -> bool:
        """Whether the transaction whose COMMIT got no answer was committed.

        Raises:
            OutcomeUnknown: the database did not come back in time, or still has the transaction in progress.
        """
        for look in range(OUTCOME_LOOKS_MAX):
            if look:
                self._pause(OUTCOME_PAUSE_S)
            try:
                outcome = self._look()
            except psycopg.Error as error:
                self._lease.discard_if_lost(error)
                continue
            if outcome is not None:
                return outcome
        raise OutcomeUnknown("the outcome of a transaction is not known yet")

    def _look(self) -> bool | None:
        """Whether it was committed; ``None`` while it is in progress. On another timeline it is in none."""
        connection = self._lease.connection
        in_progress = self._in_progress(connection)
        # Looked for only then: what was over and is not stored was never committed.
        if self._is_stored(connection):
            return True
        return None if in_progress else False

    def _in_progress(self, connection: Connection) -> bool:
        try:
            row = connection.execute(query("transaction_status"), {"xid": self._xid}).fetchone()
        except psycopg.errors.InvalidParameterValue:
            return False  # a number that was never given out: the transaction went with a crash
        return row is not None and row[0] == "in progress"

    def _is_stored(self, connection: Connection) -> bool:
        head = self._heads[0]  # a transaction is committed whole, so one row of it tells of all
        arguments = {"user_pk": head.user_pk, "stream_pk": head.stream_pk, "seq": head.seq, "chain": head.chain}
        row = connection.execute(query("find_witness", head.retention_class), arguments).fetchone()
        return row == (True,)

    def _pass_barrier(self) -> None:
        """Commit something small: once that is replicated as configured, what was committed before it is too.

        Raises:
            OutcomeUnknown: it is committed here, and may be lost if a standby takes over.
        """
        try:
            connection = self._lease.connection
            with _warnings(connection) as warnings:
                connection.execute(query("write_barrier"))
        except psycopg.Error as error:
            self._lease.discard_if_lost(error)
            raise OutcomeUnknown("a transaction may not have reached the standby") from error
        if warnings:
            raise OutcomeUnknown("a transaction may not have reached the standby")

    def _one(self, name: str, arguments: Mapping[str, object]) -> Any:
        return self._connection.execute(query(name), arguments, binary=True).fetchone()


@contextmanager
def _warnings(connection: Connection) -> Iterator[list[str]]:
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


def _place(head: StreamHead) -> StreamPlace:
    return head.user_pk, head.stream_pk
