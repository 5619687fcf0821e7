"""``eventlog.store.StoredStream`` over PostgreSQL; its methods raise psycopg.Error."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

from keepstep.eventlog.retention import decode_authors
from keepstep.eventlog.store import ERASE_WALK_EVENTS_MAX, Found, SnapshotRow
from keepstep.postgres.arrays import bigints, byteas
from keepstep.postgres.queries import query

if TYPE_CHECKING:
    from keepstep._keepstep import StreamHead
    from keepstep.eventlog.retention import TailAuthors
    from keepstep.postgres.pool import Connection


class PostgresStoredStream:
    """One locked stream.

    Args:
        connection: of the transaction.
        head: the stream's.
    """

    def __init__(self, connection: Connection, head: StreamHead) -> None:
        self._connection = connection
        self._retention_class = head.retention_class
        self._place = {"user_pk": head.user_pk, "stream_pk": head.stream_pk}

    def device_pks(self, device_ids: Collection[bytes]) -> dict[bytes, int]:
        """As ``StoredStream.device_pks``."""
        arguments = {"user_pk": self._place["user_pk"], "device_ids": byteas(list(device_ids))}
        rows = self._connection.execute(query("find_device_pks"), arguments, binary=True).fetchall()
        return {cast("bytes", device_id): cast("int", device_pk) for device_id, device_pk in rows}

    def chain(self, seq: int) -> bytes | None:
        """As ``StoredStream.chain``."""
        rows = self._of_class("read_chain", seq=seq)
        return cast("bytes", rows[0][0]) if rows else None

    def authored(self, device_pk: int, numbers: Sequence[int], *, from_seq: int) -> list[Found]:
        """As ``StoredStream.authored``."""
        del device_pk  # the walk stays with the author of the event where it starts
        rows = self._of_class(
            "find_authored",
            from_seq=from_seq,
            numbers=bigints(numbers),
            low_n=min(numbers),
            steps_max=ERASE_WALK_EVENTS_MAX,
        )
        return [Found(*row) for row in rows]

    def drop_payloads(self, places: Sequence[tuple[int, int]]) -> None:
        """As ``StoredStream.drop_payloads``."""
        seqs, received_ats = zip(*places, strict=True)
        arguments = self._place | {"seqs": bigints(seqs), "received_ats": bigints(received_ats)}
        self._connection.execute(query("drop_payloads", self._retention_class), arguments)

    def pruned_authors(self) -> TailAuthors:
        """As ``StoredStream.pruned_authors``."""
        row = self._connection.execute(query("read_author_tail"), self._place, binary=True).fetchone()
        assert row is not None
        return decode_authors(cast("bytes | None", row[0]))

    def drop_kept(self, device_pk: int, numbers: Sequence[int]) -> None:
        """As ``StoredStream.drop_kept``."""
        arguments = self._place | {"device_pk": device_pk, "numbers": bigints(numbers)}
        self._connection.execute(query("drop_kept"), arguments)

    def erase_archived(self, device_pk: int, numbers: Sequence[int]) -> None:
        """As ``StoredStream.erase_archived``."""
        arguments = self._place | {"device_pk": device_pk, "numbers": bigints(numbers)}
        self._connection.execute(query("erase_archived"), arguments)

    def add_snapshot(self, snapshot: SnapshotRow) -> None:
        """As ``StoredStream.add_snapshot``."""
        arguments = {
            **self._place,
            "seq": snapshot.seq,
            "covers_seq": snapshot.covers_seq,
            "covers_chain": snapshot.covers_chain,
            "device_pk": snapshot.device_pk,
            "received_at": snapshot.received_at_ms,
        }
        self._connection.execute(query("add_snapshot"), arguments)

    def snapshot_author(self, seq: int) -> int | None:
        """As ``StoredStream.snapshot_author``."""
        row = self._connection.execute(query("find_snapshot"), self._place | {"seq": seq}).fetchone()
        return None if row is None else cast("int", row[0])

    def emptied_header(self, seq: int) -> bytes | None:
        """As ``StoredStream.emptied_header``."""
        rows = self._of_class("find_emptied", seq=seq)
        return cast("bytes", rows[0][0]) if rows else None

    def confirm_snapshot(self, snapshot_seq: int, *, seq: int, device_pk: int) -> None:
        """As ``StoredStream.confirm_snapshot``."""
        arguments = self._place | {"seq": snapshot_seq, "confirmed_seq": seq, "confirmed_by": device_pk}
        self._connection.execute(query("confirm_snapshot"), arguments)

    def _of_class(self, statement: str, /, **arguments: object) -> list[Any]:
        sent = query(statement, self._retention_class)
        return self._connection.execute(sent, {**self._place, **arguments}, binary=True).fetchall()
