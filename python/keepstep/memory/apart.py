"""``eventlog.store.StoredStream`` over a ``MemoryDatabase``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from keepstep.eventlog.store import ERASE_WALK_EVENTS_MAX, Found, SnapshotRow

if TYPE_CHECKING:
    from keepstep._keepstep import StreamHead
    from keepstep.eventlog.retention import TailAuthors
    from keepstep.memory.database import MemoryDatabase


class MemoryStoredStream:
    """One locked stream.

    Args:
        database: the tables.
        head: the stream's.
        changes: what the transaction does at its commit.
    """

    def __init__(self, database: MemoryDatabase, head: StreamHead, changes: list[Callable[[], None]]) -> None:
        self._database = database
        self._place = head.user_pk, head.stream_pk
        self._changes = changes

    def device_pks(self, device_ids: Collection[bytes]) -> dict[bytes, int]:
        """As ``StoredStream.device_pks``."""
        devices = self._database.users[self._place[0]].devices
        pks = {row.entry.device_id: device_pk for device_pk, row in devices.items()}
        return {device_id: pks[device_id] for device_id in device_ids if device_id in pks}

    def chain(self, seq: int) -> bytes | None:
        """As ``StoredStream.chain``."""
        row = self._database.row(self._place, seq)
        return None if row is None else row.chain

    def authored(self, device_pk: int, numbers: Sequence[int], *, from_seq: int) -> list[Found]:
        """As ``StoredStream.authored``."""
        found = []
        seq = from_seq
        for _ in range(ERASE_WALK_EVENTS_MAX):
            row = self._database.row(self._place, seq)
            if row is None:
                break
            assert row.device_pk == device_pk, "an author's event names one of another author"
            if row.n in numbers:
                found.append(Found(row.seq, row.received_at_ms, row.header, row.sig, row.chain))
            seq = row.author_prev_seq
        return found

    def drop_payloads(self, places: Sequence[tuple[int, int]]) -> None:
        """As ``StoredStream.drop_payloads``."""
        self._changes.append(lambda: self._drop(places))

    def _drop(self, places: Sequence[tuple[int, int]]) -> None:
        for seq, _ in places:
            self._database.drop_payload(self._place, seq)

    def pruned_authors(self) -> TailAuthors:
        """As ``StoredStream.pruned_authors``."""
        tail = self._database.tails.get(self._place)
        return {} if tail is None else tail.authors

    def drop_kept(self, device_pk: int, numbers: Sequence[int]) -> None:
        """As ``StoredStream.drop_kept``."""
        self._changes.append(lambda: self._drop_kept(device_pk, numbers))

    def _drop_kept(self, device_pk: int, numbers: Sequence[int]) -> None:
        tail = self._database.tails[self._place]
        kept = tuple(
            replace(row, payload=None) if row.device_pk == device_pk and row.n in numbers else row for row in tail.kept
        )
        self._database.tails[self._place] = replace(tail, kept=kept)

    def erase_archived(self, device_pk: int, numbers: Sequence[int]) -> None:
        """As ``StoredStream.erase_archived``: nothing in memory is archived."""

    def add_snapshot(self, snapshot: SnapshotRow) -> None:
        """As ``StoredStream.add_snapshot``."""
        self._changes.append(lambda: self._database.snapshots[self._place].update({snapshot.seq: snapshot}))

    def snapshot_author(self, seq: int) -> int | None:
        """As ``StoredStream.snapshot_author``."""
        snapshot = self._database.snapshots[self._place].get(seq)
        return None if snapshot is None else snapshot.device_pk

    def emptied_header(self, seq: int) -> bytes | None:
        """As ``StoredStream.emptied_header``."""
        row = self._database.row(self._place, seq)
        return row.header if row is not None and row.payload is None else None

    def confirm_snapshot(self, snapshot_seq: int, *, seq: int, device_pk: int) -> None:
        """As ``StoredStream.confirm_snapshot``."""
        snapshots = self._database.snapshots[self._place]
        if snapshots[snapshot_seq].confirmed is None:
            confirmed = replace(snapshots[snapshot_seq], confirmed=(seq, device_pk))
            self._changes.append(lambda: snapshots.update({snapshot_seq: confirmed}))
