"""``eventlog.store`` over a ``MemoryDatabase``, with row locks and a READ COMMITTED compare and set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from keepstep.eventlog.store import (
    DEVICES_STREAM_PK,
    WALK_EVENTS_MAX,
    Contended,
    DataFault,
    Found,
    Loaded,
    Lookup,
    StreamKey,
    StreamPlace,
    UserStreams,
)
from keepstep.memory.database import DeviceRow, MemoryDatabase, UserRow
from keepstep.memory.rows import EventRow, read_copy
from keepstep.model import UserPk

if TYPE_CHECKING:
    from keepstep._keepstep import Ingested, StreamHead
    from keepstep.interfaces import Genesis
    from keepstep.model import DeviceEntry

LOCK_WAITS_MAX: Final = 1_000
"""How often a transaction looks again for a lock that another one holds."""


class MemoryStore:
    """The writing side.

    Args:
        database: the tables.
        probe: called with the name of each step before it is made, with "wait" while another transaction holds a lock,
            and with "after_commit"; what it raises takes the place of the step.
    """

    def __init__(self, database: MemoryDatabase, probe: Callable[[str], None]) -> None:
        self._database = database
        self._probe = probe

    def generation(self) -> int:
        """As ``Store.generation``."""
        return self._database.generation

    def load(self, keys: Collection[StreamKey]) -> Loaded:
        """As ``Store.load``."""
        self._probe("load")
        self._database.check_here()
        return _load(self._database, keys)

    @contextmanager
    def begin(self) -> Iterator[MemoryTransaction]:
        """As ``Store.begin``."""
        self._probe("begin")
        self._database.check_here()
        transaction = MemoryTransaction(self._database, self._probe)
        try:
            yield transaction
        finally:
            transaction.release()

    def find(self, lookups: Sequence[Lookup]) -> Mapping[Lookup, Found]:
        """As ``Store.find``."""
        self._probe("find")
        self._database.check_here()
        found = {lookup: _walk(self._database, lookup) for lookup in lookups}
        return {lookup: event for lookup, event in found.items() if event is not None}

    def user_pk(self, user_key: bytes) -> UserPk | None:
        """As ``Store.user_pk``."""
        self._database.check_here()
        user_pk = self._database.user_pk(user_key)
        return None if user_pk is None else UserPk(user_pk)


class MemoryTransaction:
    """One transaction: rows it locked are its own until it ends; nothing is seen of it before ``commit``."""

    def __init__(self, database: MemoryDatabase, probe: Callable[[str], None]) -> None:
        self._database = database
        self._probe = probe
        self._changes: list[Callable[[], None]] = []

    def lock(self, keys: Collection[StreamKey]) -> Loaded:
        """As ``Transaction.lock``."""
        self._probe("lock")
        for user_pk in sorted({user_pk for user_pk, _ in keys if user_pk in self._database.users}):
            self._take((user_pk, DEVICES_STREAM_PK))
        for head in sorted(_load(self._database, keys).heads.values(), key=_place):
            self._take(_place(head))
        return _load(self._database, keys)

    def write(self, ingested: Ingested, *, created: Collection[StreamKey]) -> frozenset[StreamPlace]:
        """As ``Transaction.write``."""
        self._probe("write")
        unmoved = set()
        for old, new in ingested.moved:
            self._take(_place(new))
            if (new.user_pk, new.name) in created:
                self._take((new.user_pk, new.name))
                moves = self._may_create(new)
            else:
                actual = self._database.users[new.user_pk].heads[new.stream_pk]
                moves = _version(actual) == _version(old)
            if moves:
                self._changes.append(lambda head=new: self._set_head(head))  # type: ignore[misc]
            else:
                unmoved.add(_place(new))
        for retention_class in ingested.retention_classes:
            self._store(ingested.copy_bytes(retention_class, excluding=frozenset(unmoved)))
        return frozenset(unmoved)

    def enrol(self, user_pk: int, device: DeviceEntry, *, now_ms: int) -> None:
        """As ``Transaction.enrol``."""
        del now_ms
        devices = self._database.users[user_pk].devices
        if any(
            device.device_id == row.entry.device_id or device.device_key == row.entry.device_key
            for row in devices.values()
        ):
            raise DataFault("unprocessable")
        self._changes.append(lambda: devices.update({len(devices) + 1: DeviceRow(device)}))

    def create_user(self, genesis: Genesis, *, now_ms: int) -> UserPk | None:
        """As ``Transaction.create_user``."""
        del now_ms
        self._take(genesis.user_key)
        if self._database.user_pk(genesis.user_key) is not None:
            return None
        user_pk = UserPk(len(self._database.users) + 1)
        self._take((user_pk, DEVICES_STREAM_PK))
        self._changes.append(lambda: self._database.users.update({user_pk: UserRow(genesis.user_key)}))
        return user_pk

    def open_account(self, ingested: Ingested, keys_head: StreamHead, device: DeviceEntry, *, now_ms: int) -> None:
        """As ``Transaction.open_account``."""
        del now_ms
        user_pk = keys_head.user_pk
        for head in (ingested.moved[0][1], keys_head):
            self._changes.append(lambda head=head: self._set_head(head))  # type: ignore[misc]
        self._changes.append(lambda: self._database.users[user_pk].devices.update({1: DeviceRow(device)}))
        self._store(ingested.copy_bytes(ingested.retention_classes[0]))

    def commit(self) -> None:
        """As ``Transaction.commit``."""
        self._probe("before_commit")
        self._database.check_here()
        for change in self._changes:
            change()
        self.release()
        self._probe("after_commit")

    def release(self) -> None:
        """Give back the locks; what was not committed is forgotten."""
        locks = self._database.locks
        for lock in [lock for lock, owner in locks.items() if owner is self]:
            del locks[lock]

    def _take(self, lock: Hashable) -> None:
        for _ in range(LOCK_WAITS_MAX):
            if self._database.locks.setdefault(lock, self) is self:
                return
            self._probe("wait")
        raise Contended

    def _may_create(self, head: StreamHead) -> bool:
        user = self._database.users[head.user_pk]
        devices = user.heads[DEVICES_STREAM_PK]
        free = head.stream_pk not in user.heads and user.head(head.name) is None
        return free and devices.auth_epoch == head.auth_epoch

    def _set_head(self, head: StreamHead) -> None:
        self._database.users[head.user_pk].heads[head.stream_pk] = head

    def _store(self, data: bytes) -> None:
        rows = read_copy(data)
        if any(self._database.refuses(row) for row in rows):
            raise DataFault("unprocessable")
        self._changes.append(lambda: self._append(rows))

    def _append(self, rows: list[EventRow]) -> None:
        for row in rows:
            events = self._database.events[row.user_pk, row.stream_pk]
            assert row.seq == len(events) + 1, "a gap or a duplicate in the log"
            events.append(row)


def _load(database: MemoryDatabase, keys: Collection[StreamKey]) -> Loaded:
    loaded = Loaded()
    for user_pk, name in keys:
        user = database.users.get(user_pk)
        head = user.head(name) if user is not None else None
        if head is not None:
            loaded.heads[user_pk, name] = head
        elif user is not None:
            devices = user.heads[DEVICES_STREAM_PK]
            loaded.users[user_pk] = UserStreams(user.user_key, devices.auth_epoch, len(user.heads), max(user.heads))
    return loaded


def _walk(database: MemoryDatabase, lookup: Lookup) -> Found | None:
    """From ``from_seq`` back along the author's events."""
    events = database.events[lookup.user_pk, lookup.stream_pk]
    seq = lookup.from_seq
    for _ in range(WALK_EVENTS_MAX):
        if not 1 <= seq <= len(events):
            return None
        row = events[seq - 1]
        if row.n == lookup.n:
            return Found(row.seq, row.received_at_ms, row.header, row.sig, row.chain)
        seq = row.author_prev_seq
    return None


def _place(head: StreamHead) -> StreamPlace:
    return head.user_pk, head.stream_pk


def _version(head: StreamHead) -> tuple[int, bytes, int]:
    return head.seq, head.chain, head.auth_epoch
