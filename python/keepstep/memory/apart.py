"""``eventlog.store.StoredStream`` over a ``MemoryDatabase``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from keepstep.eventlog.store import ERASE_WALK_EVENTS_MAX, Found, SnapshotRow

if TYPE_CHECKING:
    from keepstep._keepstep import StreamHead
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
        events = self._database.events[self._place]
        return events[seq - 1].chain if seq <= len(events) else None

    def authored(self, device_pk: int, numbers: Sequence[int], *, from_seq: int) -> list[Found]:
        """As ``StoredStream.authored``."""
        events = self._database.events[self._place]
        found = []
        seq = from_seq
        for _ in range(ERASE_WALK_EVENTS_MAX):
            if seq == 0:
                break
            row = events[seq - 1]
            assert row.device_pk == device_pk, "an author's event names one of another author"
            if row.n in numbers:
                found.append(Found(row.seq, row.received_at_ms, row.header, row.sig, row.chain))
            seq = row.author_prev_seq
        return found

    def drop_payloads(self, places: Sequence[tuple[int, int]]) -> None:
        """As ``StoredStream.drop_payloads``."""
        self._changes.append(lambda: self._drop(places))

    def _drop(self, places: Sequence[tuple[int, int]]) -> None:
        events = self._database.events[self._place]
        for seq, _ in places:
            events[seq - 1] = replace(events[seq - 1], payload=None, expires_at_ms=None)

    def add_snapshot(self, snapshot: SnapshotRow) -> None:
        """As ``StoredStream.add_snapshot``."""
        self._changes.append(lambda: self._database.snapshots[self._place].update({snapshot.seq: snapshot}))

    def snapshot_author(self, seq: int) -> int | None:
        """As ``StoredStream.snapshot_author``."""
        snapshot = self._database.snapshots[self._place].get(seq)
        return None if snapshot is None else snapshot.device_pk

    def emptied_header(self, seq: int) -> bytes | None:
        """As ``StoredStream.emptied_header``."""
        events = self._database.events[self._place]
        row = events[seq - 1] if seq <= len(events) else None
        return row.header if row is not None and row.payload is None else None

    def confirm_snapshot(self, snapshot_seq: int, *, seq: int, device_pk: int) -> None:
        """As ``StoredStream.confirm_snapshot``."""
        snapshots = self._database.snapshots[self._place]
        if snapshots[snapshot_seq].confirmed is None:
            confirmed = replace(snapshots[snapshot_seq], confirmed=(seq, device_pk))
            self._changes.append(lambda: snapshots.update({snapshot_seq: confirmed}))
