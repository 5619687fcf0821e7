"""The events a device has received and verified, in its store, and how far its application is with them.

A page's events, the verifier's state after them and the position they reach are one transaction, so that a crash
between receiving and acknowledging loses nothing and repeats nothing. Calls block on the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keepstep.model import DEVICES_STREAM, KEYS_STREAM, Kind
from keepstep.protocol.event import decode_header
from keepstep.protocol.streamstate import StreamState, decode_state
from keepstep.protocol.verified import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from keepstep.client.store import Store
    from keepstep.model import Position
    from keepstep.protocol.event import Header
    from keepstep.protocol.messages import EventRow
    from keepstep.protocol.verified import VerifiedEvent

KEPT_BYTES_MAX: Final = 256 * 1024 * 1024
KEPT_DAYS: Final = 30
"""How long and how much of a stream stays after every cursor has passed it: other devices may need it to heal a log."""
PRUNE_EVENTS: Final = 1000
"""Rows removed in one transaction."""
WITHDRAW_EVENTS: Final = 1000
"""Rows looked at together for the events of a revoked device."""
SEQ_MAX: Final = 2**63 - 1
SNAPSHOT_EVENTS_MAX: Final = 64
"""Snapshots and confirmations of one stream that are looked at, the newest: at most 16 MiB of them."""
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
    concurrent_from: int | None


@dataclass(frozen=True, slots=True)
class FirstEvent:
    """The first kept event of a stream, as far as the chain is made of it; ``chain`` is the one after it."""

    seq: int
    received_at_ms: int
    header: bytes
    sig: bytes
    chain: bytes


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far an application is in a stream, and the state that it committed with that.

    ``rewound_from``: where it was before a restore of the server set it back: the state knows of events that are gone.
    """

    seq: int
    state: bytes
    rewound_from: int | None = None


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
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    stream, each.seq, each.device_id, each.received_at_ms, each.header_bytes, each.sig, each.payload,
                    each.problem and each.problem.value, each.chain,
                    None if each.concurrent_with is None else each.concurrent_with[0],
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

    def withdraw(self, device_id: bytes, accepted: Mapping[str, int]) -> None:
        """A device was revoked: its events above what is accepted of it are given out no more. Part of a transaction.

        The payloads stay in the file: a recovery may make the device live again (``reinstate``).
        """
        streams = self._store.rows("SELECT DISTINCT stream FROM events WHERE device_id = ?", device_id)
        for (stream,) in streams:
            if stream not in (DEVICES_STREAM, KEYS_STREAM):
                self._withdraw(stream, device_id, accepted.get(stream, 0))

    def _withdraw(self, stream: str, device_id: bytes, accepted_n: int) -> None:
        for page in self._backwards(stream, device_id, above_n=accepted_n):
            self._store.execute_many(
                "UPDATE events SET problem = ? WHERE stream = ? AND seq = ? AND problem IS NULL",
                ((Problem.AFTER_REVOCATION.value, stream, seq) for seq, _ in page),
            )

    def _backwards(self, stream: str, device_id: bytes, *, above_n: int) -> Iterator[list[tuple[int, Header]]]:
        """A device's kept events with author numbers above one, the newest first, page by page."""
        before = SEQ_MAX
        while True:
            rows = self._store.rows(
                "SELECT seq, header FROM events WHERE stream = ? AND device_id = ? AND seq < ?"
                " ORDER BY seq DESC LIMIT ?",
                stream, device_id, before, WITHDRAW_EVENTS,
            )  # fmt: skip
            found = [(seq, decode_header(header)) for seq, header in rows]
            above = [(seq, header) for seq, header in found if header.n > above_n]
            yield above
            if len(above) < WITHDRAW_EVENTS:
                return
            before = above[-1][0]

    def erase(self, stream: str, device_id: bytes, numbers: Collection[int]) -> None:
        """Drop the payloads of a device's events, as an erasure says. Part of a transaction."""
        for page in self._backwards(stream, device_id, above_n=min(numbers) - 1):
            self._store.execute_many(
                "UPDATE events SET payload = NULL, problem = ? WHERE stream = ? AND seq = ?",
                (
                    (Problem.ERASED.value, stream, seq)
                    for seq, header in page
                    if header.n in numbers and header.kind in (Kind.APPLICATION, Kind.SNAPSHOT)
                ),
            )

    def reinstate(self, device_id: bytes) -> None:
        """A recovery made a device live again: what ``withdraw`` took is there again. Part of a transaction."""
        self._store.execute(
            "UPDATE events SET problem = NULL WHERE device_id = ? AND problem = ? AND payload IS NOT NULL",
            device_id, Problem.AFTER_REVOCATION.value,
        )  # fmt: skip

    def chain_at(self, stream: str, seq: int) -> bytes | None:
        """The chain at ``seq``, where the event is kept, or a gap ends."""
        row = self._store.row(
            "SELECT chain FROM events WHERE stream = ?1 AND seq = ?2"
            " UNION ALL SELECT chain FROM gaps WHERE stream = ?1 AND to_seq = ?2 LIMIT 1",
            stream, seq,
        )  # fmt: skip
        return None if row is None else bytes(row[0])

    def add_gap(self, stream: str, after: int, to: Position) -> None:
        """The events after ``after`` up to a position were gone before this device had them. Part of a transaction."""
        self._store.execute("INSERT OR REPLACE INTO gaps VALUES (?, ?, ?, ?)", stream, after, to.seq, to.chain)

    def gap(self, stream: str, *, after: int) -> tuple[int, int] | None:
        """The first gap that ends above a seq: (seq before it, its last one)."""
        row = self._store.row(
            "SELECT after_seq, to_seq FROM gaps WHERE stream = ? AND to_seq > ? ORDER BY to_seq LIMIT 1", stream, after
        )
        return None if row is None else (row[0], row[1])

    def unread_to(self, stream: str, *, before: int, whole: bool) -> int | None:
        """The seq up to which events below ``before`` were never read, the last such; ``None``: all were.

        Args:
            stream: its name.
            before: a seq.
            whole: whether the stream was read from its first event on, or from a gap.
        """
        row = self._store.row("SELECT max(to_seq) FROM gaps WHERE stream = ? AND to_seq < ?", stream, before)
        if row is not None and row[0] is not None:
            return int(row[0])
        if whole:
            return None
        first = self._store.row("SELECT min(seq) FROM events WHERE stream = ?", stream)
        return None if first is None or first[0] is None or first[0] <= 1 else first[0] - 1

    def exact_rows(self, stream: str, *, after: int, events_max: int) -> list[EventRow]:
        """Kept events with seq > ``after`` as they were signed and received, in order."""
        return [
            (seq, device_id, received_at_ms, header, sig, payload, None)
            for seq, device_id, received_at_ms, header, sig, payload in self._store.rows(
                "SELECT seq, device_id, received_at_ms, header, sig, payload FROM events"
                " WHERE stream = ? AND seq > ? ORDER BY seq LIMIT ?",
                stream, after, events_max,
            )
        ]  # fmt: skip

    def received_at_ms(self, stream: str, seq: int) -> int:
        """When a kept event was received, unix milliseconds; 0 where it is not kept."""
        row = self._store.row("SELECT received_at_ms FROM events WHERE stream = ? AND seq = ?", stream, seq)
        return 0 if row is None else int(row[0])

    def last_of(self, stream: str, device_id: bytes, *, up_to: int) -> tuple[bytes, bytes] | None:
        """Header and signature of a device's last kept event that is not above a seq."""
        row = self._store.row(
            "SELECT header, sig FROM events WHERE stream = ? AND device_id = ? AND seq <= ? ORDER BY seq DESC LIMIT 1",
            stream, device_id, up_to,
        )  # fmt: skip
        return None if row is None else (bytes(row[0]), bytes(row[1]))

    def last_policy(self, stream: str, *, up_to: int) -> bytes | None:
        """The payload of the last kept policy of a stream that is not above a seq."""
        row = self._store.row(
            "SELECT payload FROM events WHERE stream = ? AND seq <= ? AND substr(header, 3, 1) = x'01'"
            " AND problem IS NULL ORDER BY seq DESC LIMIT 1",
            stream, up_to,
        )  # fmt: skip
        return None if row is None else bytes(row[0])

    def set_back(self, stream: str, state: StreamState) -> None:
        """Drop what is beyond an earlier state; cursors go back to it and remember that. Part of a transaction."""
        self._store.execute("DELETE FROM events WHERE stream = ? AND seq > ?", stream, state.seq)
        self._store.execute("DELETE FROM gaps WHERE stream = ? AND to_seq > ?", stream, state.seq)
        self._store.execute(
            "UPDATE cursors SET rewound_from = coalesce(rewound_from, seq), seq = ? WHERE stream = ? AND seq > ?",
            state.seq, stream, state.seq,
        )  # fmt: skip
        self._store.execute(
            "UPDATE streams SET seq = ?1, chain = ?2, reader = ?3, kept_bytes = coalesce((SELECT sum(length(header)"
            " + coalesce(length(payload), 0) + ?4) FROM events WHERE stream = ?5), 0) WHERE name = ?5",
            state.seq, state.chain, state.encode(), ROW_OVERHEAD_BYTES, stream,
        )  # fmt: skip

    def read(self, stream: str, *, after: int, events_max: int) -> list[StoredEvent]:
        """Kept events with seq > ``after``, in order."""
        return [
            StoredEvent(stream, seq, device_id, received_at_ms, header, payload, problem and Problem(problem), fork)
            for seq, device_id, received_at_ms, header, payload, problem, fork in self._store.rows(
                "SELECT seq, device_id, received_at_ms, header, payload, problem, concurrent_from FROM events"
                " WHERE stream = ? AND seq > ? ORDER BY seq LIMIT ?",
                stream, after, events_max,
            )
        ]  # fmt: skip

    def key_events(self) -> list[tuple[Header, bytes]]:
        """Header and payload of every event of ``$keys``, which is small, in order."""
        rows = self._store.rows(
            "SELECT header, payload FROM events WHERE stream = ? AND payload IS NOT NULL ORDER BY seq", KEYS_STREAM
        )
        return [(decode_header(header), payload) for header, payload in rows]

    def snapshot_events(self, stream: str) -> list[StoredEvent]:
        """Kept snapshots and confirmations, the newest first."""
        # These words are also those of the index `snapshot_events`.
        return [
            StoredEvent(stream, seq, device_id, received_at_ms, header, payload, problem and Problem(problem), None)
            for seq, device_id, received_at_ms, header, payload, problem in self._store.rows(
                "SELECT seq, device_id, received_at_ms, header, payload, problem FROM events"
                " WHERE stream = ? AND substr(header, 3, 1) IN (x'02', x'03') ORDER BY seq DESC LIMIT ?",
                stream, SNAPSHOT_EVENTS_MAX,
            )
        ]  # fmt: skip

    def counts(self, stream: str, *, after: int) -> dict[bytes, int]:
        """How many kept events each device has in a stream with seq > ``after``."""
        return dict(
            self._store.rows(
                "SELECT device_id, count(*) FROM events WHERE stream = ? AND seq > ? GROUP BY device_id", stream, after
            )
        )

    def first(self, stream: str) -> FirstEvent:
        """The first kept event of a stream of which there is one."""
        row = self._store.row(
            "SELECT seq, received_at_ms, header, sig, chain FROM events WHERE stream = ? ORDER BY seq LIMIT 1", stream
        )
        assert row is not None
        return FirstEvent(*row)

    # -- cursors ------------------------------------------------------------------------------------------------

    def cursor(self, name: str, stream: str) -> Cursor | None:
        """What was last committed under a name."""
        row = self._store.row(
            "SELECT seq, state, rewound_from FROM cursors WHERE name = ? AND stream = ?", name, stream
        )
        return None if row is None else Cursor(*row)

    def commit(self, name: str, stream: str, cursor: Cursor, *, now_ms: int) -> None:
        """Move a cursor, its state with it, and let go of what nobody needs any more; one transaction."""
        with self._store.transaction():
            self._store.execute(
                "INSERT OR REPLACE INTO cursors VALUES (?, ?, ?, ?, NULL)", name, stream, cursor.seq, cursor.state
            )
            self._prune(stream, now_ms)

    def _prune(self, stream: str, now_ms: int) -> None:
        """Remove the oldest events that every cursor has passed, where they are above the limits.

        Those that are in no verified backup of the server are counted (protocol.md section 4, "safe").
        """
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
        safe_ms = self._store.safe_at_ms() or 0
        freed, last, fallen = 0, 0, 0
        for seq, received_at_ms, size in oldest:
            if freed >= above and received_at_ms > oldest_ms:
                break
            freed += size + ROW_OVERHEAD_BYTES
            fallen += received_at_ms > safe_ms
            last = seq
        if last:
            self._store.count_fallen(stream, fallen, now_ms=now_ms)
            self._store.execute("DELETE FROM events WHERE stream = ? AND seq <= ?", stream, last)
            self._store.execute("UPDATE streams SET kept_bytes = kept_bytes - ? WHERE name = ?", freed, stream)


def _size(event: VerifiedEvent) -> int:
    return len(event.header_bytes) + len(event.payload or b"") + ROW_OVERHEAD_BYTES
