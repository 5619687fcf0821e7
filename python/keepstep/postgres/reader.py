"""``eventlog.store.Reader`` over PostgreSQL. Everything here may be asked twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from keepstep._keepstep import StreamHead
from keepstep.eventlog.retention import decode_authors
from keepstep.eventlog.store import ROW_BYTES_MAX, FollowedRow, StreamRow
from keepstep.interfaces import SnapshotInfo
from keepstep.model import Policy, Position, PrunedPrefix, RetentionClass, StreamPk, UserPk
from keepstep.postgres.arrays import texts
from keepstep.postgres.heads import load_heads
from keepstep.postgres.queries import query

if TYPE_CHECKING:
    from collections.abc import Collection

    from keepstep.model import DevicePk, Principal
    from keepstep.postgres.pool import Connection


class PostgresReader:
    """The reading side; its methods raise psycopg.Error.

    Args:
        connection: in autocommit: each statement has a snapshot of its own.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def stream(self, user_pk: UserPk, name: str) -> StreamRow | None:
        """As ``Reader.stream``."""
        rows = self._rows("read_stream", None, user_pk=int(user_pk), name=name)
        return _stream_row(rows[0]) if rows else None

    def streams(self, user_pk: UserPk) -> list[StreamRow]:
        """As ``Reader.streams``."""
        return [_stream_row(row) for row in self._rows("read_streams", None, user_pk=int(user_pk))]

    def follow(self, principal: Principal, names: Collection[str] | None) -> list[FollowedRow]:
        """As ``Reader.follow``."""
        device = {"user_pk": int(principal.user_pk), "device_pk": int(principal.device_pk)}
        if names is None:
            rows = self._rows("follow_all_streams", None, **device)
        else:
            rows = self._rows("follow_streams", None, **device, names=texts(names))
        return [_followed_row(row, principal.device_pk) for row in rows]

    def page(
        self, stream: StreamRow, *, after: int, events_max: int, bytes_max: int, now_ms: int
    ) -> tuple[list[tuple[int, bytes, int, bytes, bytes, bytes | None]], bytes]:
        """As ``Reader.page``."""
        rows = self._rows(
            "read_page",
            stream.retention_class,
            user_pk=int(stream.user_pk),
            stream_pk=int(stream.stream_pk),
            after=after,
            events_max=events_max,
            bytes_max=bytes_max,
            now_ms=now_ms,
            row_bytes=ROW_BYTES_MAX,
        )
        return [row[:6] for row in rows], rows[-1][6] if rows else b""

    def chain(self, stream: StreamRow, seq: int) -> bytes | None:
        """As ``Reader.chain``."""
        rows = self._rows(
            "read_chain", stream.retention_class, user_pk=int(stream.user_pk), stream_pk=int(stream.stream_pk), seq=seq
        )
        return cast("bytes", rows[0][0]) if rows else None

    def author(self, stream: StreamRow, device_pk: DevicePk) -> tuple[int, bytes] | None:
        """As ``Reader.author``."""
        head = load_heads(self._connection, [(stream.user_pk, stream.name)]).heads[stream.user_pk, stream.name]
        return _last_of(head, device_pk)

    def pruned(self, stream: StreamRow) -> PrunedPrefix | None:
        """As ``Reader.pruned``."""
        place = {"user_pk": int(stream.user_pk), "stream_pk": int(stream.stream_pk)}
        rows = self._rows("read_pruned", None, **place)
        tail_seq, chain, authors = rows[0][:3]
        kept = tuple(tuple(row[3:]) for row in rows if row[3] is not None)
        return PrunedPrefix(Position(tail_seq, chain), decode_authors(authors), kept) if tail_seq else None

    def snapshots(self, stream: StreamRow, *, rows_max: int) -> list[SnapshotInfo]:
        """As ``Reader.snapshots``."""
        place = {"user_pk": int(stream.user_pk), "stream_pk": int(stream.stream_pk)}
        return [_snapshot(row) for row in self._rows("read_snapshots", None, **place, rows_max=rows_max)]

    def _rows(self, statement: str, retention_class: int | None, /, **arguments: object) -> list[Any]:
        return self._connection.execute(query(statement, retention_class), arguments, binary=True).fetchall()


def _snapshot(row: Any) -> SnapshotInfo:
    seq, covers_seq, covers_chain, device_id, received_at_ms, *confirmed = row
    covers = Position(covers_seq, covers_chain)
    return SnapshotInfo(seq, covers, device_id, received_at_ms, tuple(confirmed) if confirmed[0] else None)


def _followed_row(row: Any, device_pk: DevicePk) -> FollowedRow:
    stream = _stream_row(row[:13])
    acked_seq, received_at_ms, auth_epoch, packed, *author = row[13:]
    known = tuple(author) if author[0] is not None else None
    if packed:
        head = StreamHead.load(
            user_pk=stream.user_pk,
            stream_pk=stream.stream_pk,
            name=stream.name,
            retention_class=stream.retention_class,
            seq=stream.head_seq,
            chain=stream.head_chain,
            received_at_ms=received_at_ms,
            auth_epoch=auth_epoch,
            authors_packed=packed,
        )
        known = _last_of(head, device_pk)
    return FollowedRow(stream, known, acked_seq)


def _last_of(head: StreamHead, device_pk: DevicePk) -> tuple[int, bytes] | None:
    known = head.author(device_pk)
    return (known[0], known[2]) if known is not None else None


def _stream_row(row: Any) -> StreamRow:
    user_pk, user_key, stream_pk, name, retention_class, policy, ttl_max_s, head_seq, head_chain, *more = row
    bytes_max, stored_bytes, tail_seq, tail_chain = more
    return StreamRow(
        UserPk(user_pk),
        user_key,
        StreamPk(stream_pk),
        name,
        RetentionClass(retention_class),
        Policy(policy),
        ttl_max_s,
        head_seq,
        head_chain,
        bytes_max,
        stored_bytes,
        Position(tail_seq, tail_chain) if tail_seq else None,
    )
