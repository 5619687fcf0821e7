"""``eventlog.store`` over a ``MemoryDatabase``, with row locks and a READ COMMITTED compare and set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from keepstep import _keepstep
from keepstep._keepstep import AUTHORS_PACKED_MAX, StreamHead
from keepstep.eventlog.store import (
    COMPACTION_DELAY_MS,
    DEVICES_STREAM_PK,
    KEYS_STREAM_PK,
    WALK_EVENTS_MAX,
    Contended,
    DataFault,
    Found,
    LiveDevices,
    Loaded,
    Lookup,
    StreamKey,
    StreamPlace,
    UserStreams,
)
from keepstep.memory.apart import MemoryStoredStream
from keepstep.memory.database import Contender, DeviceRow, MemoryDatabase, TailRow, UserRow
from keepstep.memory.rows import EventRow, read_copy
from keepstep.model import KEY_BYTES, DevicePk, UserPk, inbox_of
from keepstep.protocol.chain import start_of_devices
from keepstep.protocol.event import decode_header

if TYPE_CHECKING:
    from keepstep._keepstep import Ingested
    from keepstep.eventlog.store import StoredStream
    from keepstep.interfaces import Genesis
    from keepstep.model import AccountChange, DeviceEntry, PrunedPrefix

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

    def append(self, ingested: Ingested) -> bool:
        """As ``Store.append``: there is no shorter way."""
        del ingested
        return False

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

    def devices(self, user_pks: Collection[int]) -> dict[int, LiveDevices]:
        """As ``Store.devices``."""
        self._probe("devices")
        self._database.check_here()
        return _live_devices(self._database, user_pks)

    def stored_bytes(self, user_pks: Collection[int]) -> dict[int, int]:
        """As ``Store.stored_bytes``."""
        self._database.check_here()
        return _stored_bytes(self._database, user_pks)

    def device_chains(self, places: Collection[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        """As ``Store.device_chains``."""
        self._probe("devices")
        self._database.check_here()
        chains: dict[tuple[int, int], bytes] = {}
        for user_pk, seq in places:
            if seq == 0 and user_pk in self._database.users:
                chains[user_pk, 0] = start_of_devices(_keepstep, self._database.users[user_pk].user_key).chain
            elif (row := self._database.row((user_pk, DEVICES_STREAM_PK), seq)) is not None:
                chains[user_pk, seq] = row.chain
        return chains

    def find(self, lookups: Sequence[Lookup]) -> Mapping[Lookup, Found]:
        """As ``Store.find``."""
        self._probe("find")
        self._database.check_here()
        found = {lookup: _walk(self._database, lookup) for lookup in lookups}
        return {lookup: event for lookup, event in found.items() if event is not None}

    def confirm(self) -> None:
        """As ``Store.confirm``: there is no standby."""
        self._database.check_here()

    def user_pk(self, user_key: bytes) -> UserPk | None:
        """As ``Store.user_pk``."""
        self._database.check_here()
        user_pk = self._database.user_pk(user_key)
        return None if user_pk is None else UserPk(user_pk)

    def is_deleted(self, user_key: bytes) -> bool:
        """As ``Store.is_deleted``."""
        self._database.check_here()
        return _keepstep.blake3(user_key) in self._database.deleted_users


class MemoryTransaction:
    """One transaction: rows it locked are its own until it ends; nothing is seen of it before ``commit``."""

    def __init__(self, database: MemoryDatabase, probe: Callable[[str], None]) -> None:
        self._database = database
        self._probe = probe
        self._changes: list[Callable[[], None]] = []
        self._moved: dict[StreamPlace, StreamHead] = {}

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
        for user_pk in sorted({user_pk for user_pk, _ in created}):
            self._take((user_pk, DEVICES_STREAM_PK))  # a new stream has the auth_epoch of $devices
        for old, new in ingested.moved:
            self._take(_place(new))
            if (new.user_pk, new.name) in created:
                self._take((new.user_pk, new.name))
                moves = self._may_create(new)
            else:
                place = _place(new)
                actual = self._moved.get(place) or self._database.users[new.user_pk].heads[new.stream_pk]
                moves = _version(actual) == _version(old)
            if moves:
                self._moved[_place(new)] = new
                self._changes.append(lambda old=old, new=new: self._move(old, new))  # type: ignore[misc]
            else:
                unmoved.add(_place(new))
        for retention_class in ingested.retention_classes:
            self._store(ingested.copy_bytes(retention_class, excluding=frozenset(unmoved)))
        keyed = [row for row in ingested.keyed if row[:2] not in unmoved]
        self._changes.append(lambda: self._compete(keyed))
        return frozenset(unmoved)

    def devices(self, user_pks: Collection[int]) -> dict[int, LiveDevices]:
        """As ``Transaction.devices``."""
        return _live_devices(self._database, user_pks)

    def stored_bytes(self, user_pks: Collection[int]) -> dict[int, int]:
        """As ``Transaction.stored_bytes``: before anything is written."""
        return _stored_bytes(self._database, user_pks)

    def stored(self, head: StreamHead) -> StoredStream:
        """As ``Transaction.stored``."""
        return MemoryStoredStream(self._database, head, self._changes)

    def next_device_pk(self, user_pk: int) -> DevicePk:
        """As ``Transaction.next_device_pk``."""
        return DevicePk(len(self._database.users[user_pk].devices) + 1)

    def apply_account_change(self, user_pk: int, change: AccountChange, *, seq: int, received_at_ms: int) -> None:
        """As ``Transaction.apply_account_change``."""
        devices = self._database.users[user_pk].devices
        enrolled = change.enrolled
        if enrolled is not None and any(
            enrolled.device_id == row.entry.device_id or enrolled.device_key == row.entry.device_key
            for row in devices.values()
        ):
            raise DataFault("unprocessable")
        if change.changes_access:
            for stream_pk in sorted(self._database.users[user_pk].heads):
                self._take((user_pk, stream_pk))
        self._changes.append(lambda: _change(self._database, user_pk, change, (received_at_ms, seq)))

    def create_user(self, genesis: Genesis, *, now_ms: int) -> UserPk | None:
        """As ``Transaction.create_user``."""
        self._take(genesis.user_key)
        if self._database.user_pk(genesis.user_key) is not None:
            return None
        self._database.last_user_pk += 1
        user_pk = UserPk(self._database.last_user_pk)
        user = UserRow(genesis.user_key, genesis.next_root_hash, created_at_ms=now_ms)
        self._take((user_pk, DEVICES_STREAM_PK))
        self._changes.append(lambda: self._database.users.update({user_pk: user}))
        return user_pk

    def use_invite(self, code_hash: bytes, user_key: bytes, *, now_ms: int) -> bool:
        """As ``Transaction.use_invite``."""
        self._take(("invite", code_hash))
        invite = self._database.invites.get(code_hash)
        if invite is None or invite.used is not None or invite.expires_at_ms <= now_ms:
            return False
        used = replace(invite, used=(now_ms, user_key))
        self._changes.append(lambda: self._database.invites.update({code_hash: used}))
        return True

    def open_account(self, ingested: Ingested, keys_head: StreamHead, device: DeviceEntry, *, now_ms: int) -> None:
        """As ``Transaction.open_account``."""
        del now_ms
        user_pk = keys_head.user_pk
        for head in (ingested.moved[0][1], keys_head):
            self._changes.append(lambda head=head: self._set_head(head))  # type: ignore[misc]
        self._changes.append(lambda: self._database.users[user_pk].devices.update({1: DeviceRow(device)}))
        self._store(ingested.copy_bytes(ingested.retention_classes[0]))

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
        del authors, now_ms
        kept = tuple(
            EventRow(
                head.user_pk, head.stream_pk, seq, at_ms, device_pks[device_id], decode_header(header).n, 0, None,
                header, sig, payload, bytes(KEY_BYTES),
            )
            for seq, device_id, at_ms, header, sig, payload in prefix.kept
        )  # fmt: skip
        tail = TailRow(prefix.to.seq, prefix.to.chain, prefix.authors, kept)
        self._changes.append(lambda: self._set_head(head))
        self._changes.append(lambda: self._database.tails.update({_place(head): tail}))

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

    def _move(self, old: StreamHead, new: StreamHead) -> None:
        """What payloads took that went since ``old`` was remembered stays taken off."""
        actual = self._database.users[new.user_pk].heads.get(new.stream_pk)
        stored_bytes = (0 if actual is None else actual.stored_bytes) + new.stored_bytes - old.stored_bytes
        self._set_head(new.with_stored_bytes(stored_bytes))

    def _set_head(self, head: StreamHead) -> None:
        self._database.users[head.user_pk].heads[head.stream_pk] = head

    def _store(self, data: bytes) -> None:
        rows = read_copy(data)
        if any(self._database.refuses(row) for row in rows):
            raise DataFault("unprocessable")
        self._changes.append(lambda: self._append(rows))

    def _compete(self, keyed: Sequence[tuple[int, int, bytes, int, int, bytes, int]]) -> None:
        """Each event against the winner of its key; the loser's payload goes later."""
        for user_pk, stream_pk, key, seq, hlc, device_id, received_at_ms in keyed:
            contender = Contender(hlc, device_id, seq)
            winners = self._database.latest[user_pk, stream_pk]
            winner = winners.get(key)
            if winner is not None:
                loser, contender = sorted((winner, contender), key=lambda each: each.rank)
                self._database.removals[user_pk, stream_pk][loser.seq] = received_at_ms + COMPACTION_DELAY_MS
            winners[key] = contender

    def _append(self, rows: list[EventRow]) -> None:
        for row in rows:
            place = row.user_pk, row.stream_pk
            events, tail = self._database.events[place], self._database.tails.get(place)
            last_seq = events[-1].seq if events else 0 if tail is None else tail.seq
            assert row.seq == last_seq + 1, "a gap or a duplicate in the log"
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
            inboxes = frozenset(inbox_of(device.entry.device_id) for device in user.devices.values())
            loaded.users[user_pk] = UserStreams(
                user.user_key, devices.auth_epoch, len(user.heads), max(user.heads), inboxes, user.quota.streams_max
            )
    return loaded


def _live_devices(database: MemoryDatabase, user_pks: Collection[int]) -> dict[int, LiveDevices]:
    return {
        user_pk: LiveDevices(
            user.heads[DEVICES_STREAM_PK].auth_epoch,
            {
                device_pk: row.entry.expires_at_ms
                for device_pk, row in user.devices.items()
                if row.revoked is None and user.disabled_at_ms is None
            },
            user.quota.bytes_max,
        )
        for user_pk, user in database.users.items()
        if user_pk in user_pks
    }


def _stored_bytes(database: MemoryDatabase, user_pks: Collection[int]) -> dict[int, int]:
    return {
        user_pk: sum(head.stored_bytes for head in user.heads.values() if head.stream_pk > KEYS_STREAM_PK)
        for user_pk, user in database.users.items()
        if user_pk in user_pks
    }


def _change(database: MemoryDatabase, user_pk: int, change: AccountChange, revoked: tuple[int, int]) -> None:
    """What ``apply_account_change`` does at the commit; ``revoked`` is for the devices that end."""
    user = database.users[user_pk]
    for row in user.devices.values():
        if row.entry.device_id in change.revoked and row.revoked is None:
            row.revoked = revoked
            row.token_families.clear()
        if row.entry.device_id in change.restored:
            row.revoked = None
    if change.enrolled is not None:
        user.devices[len(user.devices) + 1] = DeviceRow(change.enrolled, change.manage_from_ms)
    if change.next_root_hash is not None:
        user.next_root_hash = change.next_root_hash
    if change.changes_access:
        raise_auth_epoch(user)


def raise_auth_epoch(user: UserRow) -> None:
    """Raise the ``auth_epoch`` of all a user's streams: what was decided upon its devices before is void."""
    user.heads = {stream_pk: _in_next_epoch(user, head) for stream_pk, head in user.heads.items()}


def _in_next_epoch(user: UserRow, head: StreamHead) -> StreamHead:
    authors = [(pk, *known) for pk in user.devices if (known := head.author(pk)) is not None]
    return StreamHead.load(
        user_pk=head.user_pk,
        stream_pk=head.stream_pk,
        name=head.name,
        retention_class=head.retention_class,
        policy=head.policy,
        ttl_max_s=head.ttl_max_s,
        bytes_max=head.bytes_max,
        stored_bytes=head.stored_bytes,
        seq=head.seq,
        chain=head.chain,
        received_at_ms=head.received_at_ms,
        auth_epoch=head.auth_epoch + 1,
        authors_packed=head.authors_packed,
        authors=authors if len(authors) > AUTHORS_PACKED_MAX else [],
    )


def _walk(database: MemoryDatabase, lookup: Lookup) -> Found | None:
    """From ``from_seq`` back along the author's events."""
    seq = lookup.from_seq
    for _ in range(WALK_EVENTS_MAX):
        row = database.row((lookup.user_pk, lookup.stream_pk), seq)
        if row is None:
            return None
        if row.n == lookup.n:
            return Found(row.seq, row.received_at_ms, row.header, row.sig, row.chain)
        seq = row.author_prev_seq
    return None


def _place(head: StreamHead) -> StreamPlace:
    return head.user_pk, head.stream_pk


def _version(head: StreamHead) -> tuple[int, bytes, int]:
    return head.seq, head.chain, head.auth_epoch
