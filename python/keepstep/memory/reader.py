"""``eventlog.store.Reader`` over a ``MemoryDatabase``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep.eventlog.store import KEYS_STREAM_PK, ROW_BYTES_MAX, FollowedRow, StreamRow
from keepstep.interfaces import SnapshotInfo
from keepstep.model import Policy, Position, PrunedPrefix, RetentionClass, StreamPk, UserPk, has_expired

if TYPE_CHECKING:
    from collections.abc import Collection

    from keepstep._keepstep import StreamHead
    from keepstep.memory.database import MemoryDatabase, TailRow, UserRow
    from keepstep.model import DevicePk, Principal


class MemoryReader:
    """The reading side.

    Args:
        database: the tables.
    """

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    def stream(self, user_pk: UserPk, name: str) -> StreamRow | None:
        """As ``Reader.stream``."""
        user = self._database.users.get(user_pk)
        head = user.head(name) if user is not None else None
        return _row(user, head, self._tail_of(head)) if user is not None and head is not None else None

    def streams(self, user_pk: UserPk) -> list[StreamRow]:
        """As ``Reader.streams``."""
        user = self._database.users.get(user_pk)
        if user is None:
            return []
        return [_row(user, head, self._tail_of(head)) for head in sorted(user.heads.values(), key=_order)]

    def follow(self, principal: Principal, names: Collection[str] | None) -> list[FollowedRow]:
        """As ``Reader.follow``."""
        user = self._database.users.get(principal.user_pk)
        device = None if user is None else user.devices.get(principal.device_pk)
        acks = {} if device is None else device.acks
        return [
            FollowedRow(row, self.author(row, principal.device_pk), acks.get(row.stream_pk, (0, b""))[0])
            for row in self.streams(principal.user_pk)
            if names is None or row.name in names
        ]

    def _tail_of(self, head: StreamHead) -> TailRow | None:
        return self._database.tails.get((head.user_pk, head.stream_pk))

    def page(
        self, stream: StreamRow, *, after: int, events_max: int, bytes_max: int, now_ms: int
    ) -> tuple[list[tuple[int, bytes, int, bytes, bytes, bytes | None]], bytes]:
        """As ``Reader.page``."""
        devices = self._database.users[stream.user_pk].devices
        rows: list[tuple[int, bytes, int, bytes, bytes, bytes | None]] = []
        size_bytes, chain = 0, b""
        for row in self._database.rows_after((stream.user_pk, stream.stream_pk), after)[:events_max]:
            expired = has_expired(row.expires_at_ms, now_ms)
            payload = None if expired else row.payload
            size_bytes += ROW_BYTES_MAX + len(row.header) + len(payload or b"")
            if rows and size_bytes > bytes_max:
                break
            device_id = devices[row.device_pk].entry.device_id
            rows.append((row.seq, device_id, row.received_at_ms, row.header, row.sig, payload))
            chain = row.chain
        return rows, chain

    def chain(self, stream: StreamRow, seq: int) -> bytes | None:
        """As ``Reader.chain``."""
        row = self._database.row((stream.user_pk, stream.stream_pk), seq)
        return None if row is None else row.chain

    def author(self, stream: StreamRow, device_pk: DevicePk) -> tuple[int, bytes] | None:
        """As ``Reader.author``."""
        known = self._database.users[stream.user_pk].heads[stream.stream_pk].author(device_pk)
        return (known[0], known[2]) if known is not None else None

    def pruned(self, stream: StreamRow) -> PrunedPrefix | None:
        """As ``Reader.pruned``."""
        tail = self._database.tails.get((stream.user_pk, stream.stream_pk))
        if tail is None:
            return None
        devices = self._database.users[stream.user_pk].devices
        return PrunedPrefix(
            Position(tail.seq, tail.chain),
            tail.authors,
            tuple(
                (row.seq, devices[row.device_pk].entry.device_id, row.received_at_ms, row.header, row.sig, row.payload)
                for row in tail.kept
            ),
        )

    def snapshots(self, stream: StreamRow, *, rows_max: int) -> list[SnapshotInfo]:
        """As ``Reader.snapshots``."""
        devices = self._database.users[stream.user_pk].devices
        rows = sorted(self._database.snapshots[stream.user_pk, stream.stream_pk].items(), reverse=True)[:rows_max]
        rows = [(seq, row) for seq, row in rows if stream.tail is None or seq > stream.tail.seq]
        return [
            SnapshotInfo(
                seq,
                Position(row.covers_seq, row.covers_chain),
                devices[row.device_pk].entry.device_id,
                row.received_at_ms,
                None if row.confirmed is None else (row.confirmed[0], devices[row.confirmed[1]].entry.device_id),
            )
            for seq, row in rows
        ]


def _row(user: UserRow, head: StreamHead, tail: TailRow | None) -> StreamRow:
    return StreamRow(
        UserPk(head.user_pk),
        user.user_key,
        StreamPk(head.stream_pk),
        head.name,
        RetentionClass(head.retention_class),
        Policy(head.policy),
        head.ttl_max_s,
        head.seq,
        head.chain,
        head.bytes_max,
        head.stored_bytes,
        None if tail is None else Position(tail.seq, tail.chain),
    )


def _order(head: StreamHead) -> tuple[bool, int, str]:
    """``$devices``, ``$keys``, then by name."""
    from_genesis = head.stream_pk <= KEYS_STREAM_PK
    return (not from_genesis, head.stream_pk if from_genesis else 0, head.name)
