"""The events a device has received and verified, in its store, and how far its application is with them.

A page's events, the verifier's state after them and the position they reach are one transaction, so that a crash
between receiving and acknowledging loses nothing and repeats nothing. Calls block on the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keepstep.model import DEVICES_STREAM, KEYS_STREAM
from keepstep.protocol.reader import Problem, StreamState, decode_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from keepstep.client.store import Store
    from keepstep.protocol.reader import VerifiedEvent

KEPT_BYTES_MAX: Final = 256 * 1024 * 1024
KEPT_DAYS: Final = 30
"""How long and how much of a stream stays after every cursor has passed it: other devices may need it to heal a log."""
PRUNE_EVENTS: Final = 1000
"""Rows removed in one transaction."""
ROW_OVERHEAD_BYTES: Final = 128
DAY_MS: Final = 24 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as it was received and verified."""

    stream: str
    seq: int
    device_id: bytes
    received_at_ms: int
    header: bytes
    payload: bytes | None
    problem: Problem | None


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far an application is in a stream, and the state that it committed with that."""

    seq: int
    state: bytes


class LocalLog:
    """Streams, events and cursors of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def streams(self) -> dict[str, StreamState]:
        """The verifier's state of every stream this device has read."""
        return {name: decode_state(reader) for name, reader in self._store.rows("SELECT name, reader FROM streams")}

    def save(self, stream: str, state: StreamState, events: Sequence[VerifiedEvent]) -> None:
        """Keep verified events and the state after them. Part of a transaction."""
        self._store.execute_many(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    stream, each.seq, each.device_id, each.received_at_ms, each.header_bytes, each.sig, each.payload,
                    each.problem and each.problem.value, each.chain,
                )
                for each in events
            ),
        )  # fmt: skip
        self._store.execute(
            "INSERT INTO streams VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET seq = excluded.seq,"
            " chain = excluded.chain, reader = excluded.reader, kept_bytes = kept_bytes + excluded.kept_bytes",
            stream, state.seq, state.chain, state.encode(), sum(_size(each) for each in events),
        )  # fmt: skip

    def fill(self, stream: str, state: StreamState, events: Sequence[VerifiedEvent]) -> None:
        """Keep the outcome of a second reading of missing payloads. Part of a transaction."""
        self._store.execute_many(
            "UPDATE events SET payload = ?, problem = ? WHERE stream = ? AND seq = ?",
            ((each.payload, each.problem and each.problem.value, stream, each.seq) for each in events),
        )
        self.save(stream, state, ())

    def expire(self, stream: str, seqs: Iterable[int]) -> None:
        """These payloads are gone because their time was over. Part of a transaction."""
        self._store.execute_many(
            "UPDATE events SET problem = ? WHERE stream = ? AND seq = ?",
            ((Problem.EXPIRED.value, stream, seq) for seq in seqs),
        )

    def chain_at(self, stream: str, seq: int) -> bytes | None:
        """The chain at ``seq``, where the event is kept."""
        row = self._store.row("SELECT chain FROM events WHERE stream = ? AND seq = ?", stream, seq)
        return None if row is None else bytes(row[0])

    def read(self, stream: str, *, after: int, events_max: int) -> list[StoredEvent]:
        """Kept events with seq > ``after``, in order."""
        return [
            StoredEvent(stream, seq, device_id, received_at_ms, header, payload, problem and Problem(problem))
            for seq, device_id, received_at_ms, header, payload, problem in self._store.rows(
                "SELECT seq, device_id, received_at_ms, header, payload, problem FROM events"
                " WHERE stream = ? AND seq > ? ORDER BY seq LIMIT ?",
                stream, after, events_max,
            )
        ]  # fmt: skip

    def first_seq(self, stream: str) -> int | None:
        """The first kept event of a stream."""
        seq: int | None = self._store.row("SELECT min(seq) FROM events WHERE stream = ?", stream)[0]
        return seq

    # -- cursors ------------------------------------------------------------------------------------------------

    def cursor(self, name: str, stream: str) -> Cursor | None:
        """What was last committed under a name."""
        row = self._store.row("SELECT seq, state FROM cursors WHERE name = ? AND stream = ?", name, stream)
        return None if row is None else Cursor(*row)

    def commit(self, name: str, stream: str, cursor: Cursor, *, now_ms: int) -> None:
        """Move a cursor, its state with it, and let go of what nobody needs any more; one transaction."""
        with self._store.transaction():
            self._store.execute(
                "INSERT OR REPLACE INTO cursors VALUES (?, ?, ?, ?)", name, stream, cursor.seq, cursor.state
            )
            self._prune(stream, now_ms)

    def _prune(self, stream: str, now_ms: int) -> None:
        """Remove the oldest events that every cursor has passed, where they are above the limits."""
        if stream in (DEVICES_STREAM, KEYS_STREAM):
            return
        kept = self._store.row("SELECT kept_bytes FROM streams WHERE name = ?", stream)
        first = self._store.row("SELECT received_at_ms FROM events WHERE stream = ? ORDER BY seq LIMIT 1", stream)
        oldest_ms = now_ms - KEPT_DAYS * DAY_MS
        if first is None or (kept[0] <= KEPT_BYTES_MAX and first[0] > oldest_ms):
            return
        passed = self._store.row("SELECT min(seq) FROM cursors WHERE stream = ?", stream)[0]
        oldest = self._store.rows(
            "SELECT seq, received_at_ms, length(header) + coalesce(length(payload), 0) FROM events"
            " WHERE stream = ? AND seq <= ? ORDER BY seq LIMIT ?",
            stream, passed, PRUNE_EVENTS,
        )  # fmt: skip
        above = kept[0] - KEPT_BYTES_MAX
        freed, last = 0, 0
        for seq, received_at_ms, size in oldest:
            if freed >= above and received_at_ms > oldest_ms:
                break
            freed += size + ROW_OVERHEAD_BYTES
            last = seq
        if last:
            self._store.execute("DELETE FROM events WHERE stream = ? AND seq <= ?", stream, last)
            self._store.execute("UPDATE streams SET kept_bytes = kept_bytes - ? WHERE name = ?", freed, stream)


def _size(event: VerifiedEvent) -> int:
    return len(event.header_bytes) + len(event.payload or b"") + ROW_OVERHEAD_BYTES
