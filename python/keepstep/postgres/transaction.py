"""One transaction that appends, up to a COMMIT whose outcome is known even when the connection is lost in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import psycopg
from psycopg.pq import TransactionStatus

from keepstep.errors import Unavailable
from keepstep.eventlog.store import COMPACTION_DELAY_MS, Loaded, StreamKey, StreamPlace
from keepstep.model import DevicePk, UserPk
from keepstep.postgres.apart import PostgresStoredStream
from keepstep.postgres.arrays import bigints, byteas, texts
from keepstep.postgres.faults import away
from keepstep.postgres.heads import load_devices, load_heads, load_stored_bytes
from keepstep.postgres.outcome import LostTransaction, collected_warnings, pass_barrier
from keepstep.postgres.queries import query
from keepstep.postgres.retention import store_beginning

if TYPE_CHECKING:
    from keepstep._keepstep import Ingested, StreamHead
    from keepstep.eventlog.store import LiveDevices, StoredStream
    from keepstep.interfaces import Genesis
    from keepstep.model import AccountChange, DeviceEntry, PrunedPrefix
    from keepstep.postgres.pool import Lease


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
    def heads(self) -> Sequence[StreamHead]:
        """Of the streams whose events are stored, as they are then."""
        return self._heads

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
        self._set_policies(ingested, created, unmoved)
        self._put_authors(ingested, unmoved)
        self._put_latest(ingested, unmoved)
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
            "policies": bigints([head.policy for head in heads]),
            "ttl_maxs": bigints([head.ttl_max_s or 0 for head in heads]),
            "bytes_maxs": _bytes_maxs(heads),
            "stored_bytes": bigints([head.stored_bytes for head in heads]),
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
            "added_bytes": bigints([new.stored_bytes - old.stored_bytes for old, new in moves]),
            "count": len(moves),
            "all_or_none": False,
        }
        xid, count, user_pks, stream_pks = self._one("move_heads", arguments)
        self._xid = xid
        if count == len(moves):
            return set()
        return {_place(new) for _, new in moves} - set(zip(user_pks or (), stream_pks or (), strict=True))

    def _set_policies(self, ingested: Ingested, created: Collection[StreamKey], unmoved: set[StreamPlace]) -> None:
        changed = [
            head
            for head in ingested.changed_policies
            if (head.user_pk, head.name) not in created and _place(head) not in unmoved
        ]
        if not changed:
            return
        arguments = {
            "user_pks": bigints([head.user_pk for head in changed]),
            "stream_pks": bigints([head.stream_pk for head in changed]),
            "policies": bigints([head.policy for head in changed]),
            "ttl_maxs": bigints([head.ttl_max_s or 0 for head in changed]),
            "bytes_maxs": _bytes_maxs(changed),
        }
        self._connection.execute(query("set_policies"), arguments)

    def _put_latest(self, ingested: Ingested, unmoved: set[StreamPlace]) -> None:
        rows = [row for row in ingested.keyed if row[:2] not in unmoved]
        if not rows:
            return
        user_pks, stream_pks, keys, seqs, hlcs, device_ids, received_ats = zip(*rows, strict=True)
        arguments = {
            "user_pks": bigints(user_pks),
            "stream_pks": bigints(stream_pks),
            "keys": byteas(keys),
            "seqs": bigints(seqs),
            "hlcs": bigints(hlcs),
            "device_ids": byteas(device_ids),
            "received_ats": bigints(received_ats),
            "due_at": max(received_ats) + COMPACTION_DELAY_MS,
        }
        self._connection.execute(query("put_latest"), arguments)

    def _put_authors(self, ingested: Ingested, unmoved: set[StreamPlace]) -> None:
        rows = [row for row in ingested.changed_authors if row[:2] not in unmoved]
        if rows:
            self._put_author_rows(rows)

    def _put_author_rows(self, rows: Sequence[tuple[int, int, int, int, int, bytes]]) -> None:
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

    def devices(self, user_pks: Collection[int]) -> dict[int, LiveDevices]:
        """As ``Transaction.devices``."""
        return load_devices(self._connection, user_pks)

    def stored_bytes(self, user_pks: Collection[int]) -> dict[int, int]:
        """As ``Transaction.stored_bytes``."""
        return load_stored_bytes(self._connection, user_pks)

    def stored(self, head: StreamHead) -> StoredStream:
        """As ``Transaction.stored``."""
        return PostgresStoredStream(self._connection, head)

    def next_device_pk(self, user_pk: int) -> DevicePk:
        """As ``Transaction.next_device_pk``."""
        (device_pk,) = self._one("next_device_pk", {"user_pk": user_pk})
        return DevicePk(device_pk)

    def apply_account_change(self, user_pk: int, change: AccountChange, *, seq: int, received_at_ms: int) -> None:
        """As ``Transaction.apply_account_change``."""
        if change.enrolled is not None:
            self._enrol(user_pk, change.enrolled, manage_from_ms=change.manage_from_ms, now_ms=received_at_ms)
        ended = {"user_pk": user_pk, "device_ids": list(change.revoked), "seq": seq, "received_at": received_at_ms}
        if change.revoked:
            self._connection.execute(query("revoke_devices"), ended)
        if change.restored:
            arguments: dict[str, object] = {"user_pk": user_pk, "device_ids": list(change.restored)}
            self._connection.execute(query("restore_devices"), arguments)
        if change.next_root_hash is not None:
            arguments = {"user_pk": user_pk, "next_root_hash": change.next_root_hash}
            self._connection.execute(query("set_next_root"), arguments)
        if change.changes_access:
            self._connection.execute(query("raise_auth_epoch"), {"user_pk": user_pk})

    def _enrol(self, user_pk: int, device: DeviceEntry, *, manage_from_ms: int, now_ms: int) -> None:
        arguments = {
            "user_pk": user_pk,
            "device_id": device.device_id,
            "device_key": device.device_key,
            "box_key": device.box_key,
            "capabilities": int(device.capabilities),
            "issued_at": device.issued_at_ms,
            "expires_at": device.expires_at_ms,
            "sealed_label": device.sealed_label,
            "manage_from": manage_from_ms,
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

    def use_invite(self, code_hash: bytes, user_key: bytes, *, now_ms: int) -> bool:
        """As ``Transaction.use_invite``."""
        arguments = {"code_hash": code_hash, "user_id": user_key, "now_ms": now_ms}
        return self._connection.execute(query("use_invite"), arguments).fetchone() is not None

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
                "stored_bytes": head.stored_bytes,
                "now_ms": now_ms,
            }
            self._connection.execute(query("create_reserved_stream"), arguments)
        self._enrol(keys_head.user_pk, device, manage_from_ms=0, now_ms=now_ms)
        self._store(ingested, [ingested.moved[0][1]], frozenset())

    def begin_after(
        self,
        head: StreamHead,
        prefix: PrunedPrefix,
        device_pks: Mapping[bytes, int],
        authors: Sequence[tuple[int, int, int, bytes]],
        *,
        now_ms: int,
    ) -> None:
        """As ``Transaction.begin_after``."""
        store_beginning(self._connection, head, prefix, device_pks, now_ms=now_ms)
        if not head.authors_packed:
            self._put_author_rows([(head.user_pk, head.stream_pk, *author) for author in authors])

    def commit(self) -> None:
        """As ``Transaction.commit``. No cancellation of the task reaches COMMIT; only its bound in time ends it."""
        self._probe("before_commit")
        try:
            with collected_warnings(self._connection) as warnings:
                tag = self._lease.execute_bounded(b"COMMIT")
        except psycopg.Error as error:
            if not self._lease.discard_if_lost(error):
                raise  # told by PostgreSQL itself: it was rolled back
            lost = LostTransaction(self._heads[0], self._xid)
            if not lost.was_committed(self._lease, pause=self._pause):
                raise away(error) from error
            pass_barrier(self._lease)
        else:
            if tag != b"COMMIT":
                raise Unavailable("the transaction had failed before it was committed")
            if warnings:
                pass_barrier(self._lease)
        self._probe("after_commit")

    def roll_back(self) -> None:
        """End the transaction if it is still open; a connection that is lost ends it by itself."""
        if self._connection.closed or self._connection.info.transaction_status is TransactionStatus.IDLE:
            return
        try:
            self._connection.execute("ROLLBACK", prepare=False)
            self._lease.forget_flights()  # psycopg drops all prepared statements after it
        except psycopg.Error:
            self._connection.close()

    def _one(self, name: str, arguments: Mapping[str, object]) -> Any:
        return self._connection.execute(query(name), arguments, binary=True).fetchone()


def _bytes_maxs(heads: Sequence[StreamHead]) -> object:
    """Bounds for SQL, -1 where there is none: 0 is one."""
    return bigints([-1 if head.bytes_max is None else head.bytes_max for head in heads])


def _place(head: StreamHead) -> StreamPlace:
    return head.user_pk, head.stream_pk
