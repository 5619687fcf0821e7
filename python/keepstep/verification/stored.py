"""One stream of a database: its rows, and every column and table that follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from keepstep import _keepstep
from keepstep.eventlog.retention import decode_authors
from keepstep.model import Policy, Position
from keepstep.protocol.chain import chain_0
from keepstep.verification.contents import Contents
from keepstep.verification.walk import RowWalk, SignedRow, Start

if TYPE_CHECKING:
    from keepstep._keepstep import DeviceKey
    from keepstep.protocol.policy import PolicyPayload
    from keepstep.verification.contents import KeyedEvent
    from keepstep.verification.faults import Faults
    from keepstep.verification.walk import Author, Walked

AUTHOR_BYTES: Final = 56
"""Of one author in a stream's row: device_pk, last_n, last_seq as big-endian int8, last_hash."""


class StoredEvent(NamedTuple):
    """A row of a table of events, as its columns are named there; times in unix milliseconds."""

    seq: int
    received_at: int
    device_pk: int
    n: int
    author_prev_seq: int
    expires_at: int | None
    header: bytes
    sig: bytes
    payload: bytes | None
    chain: bytes


class StoredSnapshot(NamedTuple):
    """A row of the table of snapshots."""

    seq: int
    covers_seq: int
    covers_chain: bytes
    device_pk: int
    received_at: int
    confirmed_seq: int | None
    confirmed_by: int | None


class Winner(NamedTuple):
    """A row of the table of winners, without its key."""

    seq: int
    hlc: int
    device_id: bytes


@dataclass(frozen=True, slots=True)
class StoredStream:
    """A row of the table of streams, and the rows of small tables that belong to it.

    Attributes:
        authors: rows of the table of authors: (device_pk, last_n, last_seq, last_hash).
        snapshots: of the table of snapshots, ascending.
        positions: (device_pk, acked_seq, emptied_seq).
        rewinds: (epoch, seq, chain).
        policy: of the kept policy event where the beginning is gone; the others as the columns are named.
    """

    stream_pk: int
    name: str
    retention_class: int
    policy_number: int
    ttl_max_s: int | None
    bytes_max: int | None
    stored_bytes: int
    head_seq: int
    head_chain: bytes
    head_received_at: int
    auth_epoch: int
    authors_packed: bytes
    tail_seq: int
    tail_chain: bytes | None
    tail_authors: bytes | None
    authors: Sequence[tuple[int, int, int, bytes]] = ()
    snapshots: Sequence[StoredSnapshot] = ()
    positions: Sequence[tuple[int, int, int]] = ()
    rewinds: Sequence[tuple[int, int, bytes]] = ()
    policy: PolicyPayload | None = None


@dataclass(frozen=True, slots=True)
class Devices:
    """Who may have written: device ids by device_pk, and keys by device id."""

    ids: Mapping[int, bytes]
    keys: Mapping[bytes, DeviceKey] = field(default_factory=dict)


class StreamCheck:
    """Verifies one stream.

    Args:
        user_key: whose it is.
        stream: as stored.
        devices: of the user.
        winners: the rows of the table of winners for some keys of this stream.
        winners_count: how many rows of that table have a seq above the tail.
        now_ms: unix milliseconds.
        faults: where the stream's faults go.
    """

    def __init__(
        self,
        user_key: bytes,
        stream: StoredStream,
        devices: Devices,
        *,
        winners: Callable[[Sequence[bytes]], Mapping[bytes, Winner]],
        winners_count: Callable[[], int],
        now_ms: int,
        faults: Faults,
    ) -> None:
        self._stream = stream
        self._devices = devices
        self._winners = winners
        self._winners_count = winners_count
        self._faults = faults
        first_chain = chain_0(_keepstep, user_key, stream.name)
        tail_authors = self._tail_authors()
        start = Start(Position(stream.tail_seq, stream.tail_chain or first_chain), authors=tail_authors)
        self._walk = RowWalk(user_key=user_key, stream=stream.name, start=start, key_of=devices.keys.get, faults=faults)
        self._contents = Contents(stream.name, policy=stream.policy, now_ms=now_ms, faults=faults)
        self._stored_bytes = 0
        self._won = 0
        self._expected_chains: dict[int, list[tuple[str, int | None, bytes]]] = {}
        for snapshot in stream.snapshots:
            self._expect("snapshot_differs", snapshot.seq, snapshot.covers_seq, snapshot.covers_chain)
        for epoch, seq, chain in stream.rewinds:
            if seq > stream.head_seq:
                faults.add("rewind_differs", seq, f"the restore of {epoch} set it back to a place behind its head")
            elif seq == 0 and chain != first_chain:
                faults.add("rewind_differs", 0, f"the restore of {epoch} set it back to another beginning")
            self._expect("rewind_differs", seq, seq, chain)

    def feed(self, rows: Sequence[StoredEvent]) -> None:
        """The next rows with a seq above the tail, ascending."""
        ids = self._devices.ids
        signed = [
            SignedRow(row.seq, row.received_at, ids.get(row.device_pk), row.header, row.sig, row.payload, row.chain)
            for row in rows
        ]
        walked = self._walk.feed(signed)
        columns = {id(each): row for each, row in zip(signed, rows, strict=True)}
        for each in walked:
            self._check_columns(columns[id(each.row)], each)
            for code, about, chain in self._expected_chains.get(each.row.seq, ()):
                if each.chain != chain:
                    self._faults.add(code, about, f"it names another chain at {each.row.seq}")
        self._check_winners(self._contents.take(walked))

    def finish(self) -> None:
        """After the last row: what the stream's own row and the other tables say of all of them."""
        stream = self._stream
        if self._walk.seq < stream.head_seq:
            self._walk.miss(stream.head_seq)
        self._contents.finish()
        self._check_head()
        self._check_authors()
        self._check_policy()
        self._check_snapshots()
        for device_pk, acked_seq, emptied_seq in stream.positions:
            if max(acked_seq, emptied_seq) > stream.head_seq:
                who = self._devices.ids.get(device_pk, b"").hex()
                self._faults.add("position_differs", acked_seq, f"the device {who} has it, behind the stream's head")
        count = self._winners_count()
        if count != self._won:
            self._faults.add(
                "latest_differs", None, f"{count} keys are said to have a winner above the tail, and {self._won} have"
            )
        if stream.stored_bytes != self._stored_bytes:
            self._faults.add(
                "stored_bytes_differ",
                None,
                f"{stream.stored_bytes} bytes are counted, the rows have {self._stored_bytes}",
            )

    def _expect(self, code: str, about: int, seq: int, chain: bytes) -> None:
        self._expected_chains.setdefault(seq, []).append((code, about, chain))

    def _tail_authors(self) -> dict[bytes, tuple[int, bytes]]:
        stream = self._stream
        try:
            authors = decode_authors(stream.tail_authors)
        except ValueError:
            self._faults.add("tail_differs", stream.tail_seq, "what is kept of its authors cannot be read")
            return {}
        written = sum(n for n, _ in authors.values())
        if written != stream.tail_seq:
            self._faults.add(
                "tail_differs",
                stream.tail_seq,
                f"its authors wrote {written} events up to there by what is kept of them",
            )
        return authors

    def _check_columns(self, row: StoredEvent, walked: Walked) -> None:
        self._stored_bytes += len(row.header) + len(row.sig) + len(row.payload or b"")
        header = walked.header
        if header is None:
            return
        if row.n != header.n:
            self._faults.add("author_number", row.seq, f"the column n is {row.n}, its header says {header.n}")
        if walked.follows:
            before = 0 if walked.before is None else walked.before.seq
            fits = (
                1 <= row.author_prev_seq <= self._stream.tail_seq if before is None else row.author_prev_seq == before
            )
            if not fits:
                where = "one up to the tail" if before is None else before
                self._faults.add(
                    "author_prev_seq", row.seq, f"the column is {row.author_prev_seq}, and should be {where}"
                )
        ends_at = None if header.ttl_s is None else row.received_at + header.ttl_s * 1000
        if row.expires_at != ends_at and (row.payload is not None or row.expires_at is not None):
            self._faults.add("expiry_differs", row.seq, f"expires_at is {row.expires_at}, and should be {ends_at}")

    def _check_winners(self, keyed: Sequence[KeyedEvent]) -> None:
        if not keyed:
            return
        winners = self._winners(sorted({event.key for event in keyed}))
        for event in keyed:
            winner = winners.get(event.key)
            mine = (event.hlc, event.device_id, event.seq)
            if winner is None:
                self._faults.add("latest_differs", event.seq, f"its key {event.key.hex()} has no winner")
            elif winner.seq == event.seq:
                self._won += 1
                if (winner.hlc, winner.device_id, winner.seq) != mine:
                    self._faults.add(
                        "latest_differs", event.seq, f"the winner of the key {event.key.hex()} is told otherwise"
                    )
            elif (winner.hlc, winner.device_id, winner.seq) < mine:
                self._faults.add(
                    "latest_differs", event.seq, f"it wins its key {event.key.hex()}, and {winner.seq} is said to"
                )
            if winner is None or winner.seq != event.seq:
                self._contents.loses_key(event)

    def _check_head(self) -> None:
        stream, walk = self._stream, self._walk
        if walk.seq > stream.head_seq:
            self._faults.add(
                "head_differs", stream.head_seq, f"the head is {stream.head_seq}, the rows end at {walk.seq}"
            )
            return
        if not walk.reaches(stream.head_chain):
            self._faults.add("head_differs", stream.head_seq, "the chain of the head is not that of the last row")
        if walk.seq > stream.tail_seq and walk.chain is not None and walk.received_at_ms != stream.head_received_at:
            self._faults.add(
                "head_differs",
                stream.head_seq,
                f"the head was received at {stream.head_received_at}, the last row at {walk.received_at_ms}",
            )

    def _check_authors(self) -> None:
        if not self._walk.is_certain or self._walk.seq != self._stream.head_seq:
            return
        stored = self._stored_authors()
        pks = {device_id: device_pk for device_pk, device_id in self._devices.ids.items()}
        walked = {pks.get(device_id): author for device_id, author in self._walk.authors.items()}
        for device_pk in sorted({*stored, *(each for each in walked if each is not None)}):
            said, is_ = stored.get(device_pk), walked.get(device_pk)
            if said is None or is_ is None or not _agree(said, is_, self._stream.tail_seq):
                who = self._devices.ids.get(device_pk, b"").hex()
                wrote = "nothing" if is_ is None else f"{is_.n} events"
                kept = "nothing" if said is None else f"{said[0]}, the last at {said[1]}"
                self._faults.add("authors_differ", None, f"the device {who} wrote {wrote}, and the head keeps {kept}")

    def _stored_authors(self) -> dict[int, tuple[int, int, bytes]]:
        packed = self._stream.authors_packed
        authors = {device_pk: (n, seq, hash_) for device_pk, n, seq, hash_ in self._stream.authors}
        for place in range(0, len(packed) - AUTHOR_BYTES + 1, AUTHOR_BYTES):
            device_pk, n, seq = (int.from_bytes(packed[at : at + 8], "big") for at in range(place, place + 24, 8))
            authors[device_pk] = (n, seq, packed[place + 24 : place + AUTHOR_BYTES])
        return authors

    def _check_policy(self) -> None:
        stream, policy = self._stream, self._contents.policy
        if not self._walk.is_whole:
            return
        said = (stream.policy_number, stream.ttl_max_s, stream.bytes_max)
        if policy is None:
            is_: tuple[int, int | None, int | None] = (int(Policy.APPEND), None, None)
        else:
            is_ = (policy.policy, policy.ttl_max_s, policy.stream_bytes_max)
            if policy.retention_class != stream.retention_class:
                self._faults.add(
                    "policy_differs",
                    None,
                    f"it is of the retention class {stream.retention_class}, its policy of {policy.retention_class}",
                )
        if said != is_:
            self._faults.add("policy_differs", None, f"(policy, ttl_max_s, bytes_max) is {said}, and should be {is_}")

    def _check_snapshots(self) -> None:
        if not self._walk.is_whole:
            return
        rows = {row.seq: row for row in self._stream.snapshots if row.seq > self._stream.tail_seq}
        for seq in sorted({*rows, *self._contents.snapshots}):
            row, said = rows.get(seq), self._contents.snapshots.get(seq)
            if row is None or said is None:
                what = "no row of the table names it" if row is None else "it is no snapshot"
                self._faults.add("snapshot_differs", seq, what)
                continue
            confirmed = self._contents.confirmations.get(seq)
            by = None if row.confirmed_by is None else self._devices.ids.get(row.confirmed_by)
            is_ = None if row.confirmed_seq is None else (row.confirmed_seq, by)
            covers = (row.covers_seq, row.covers_chain)
            made = (self._devices.ids.get(row.device_pk), row.received_at)
            if said.covers not in (None, covers) or made != (said.device_id, said.received_at_ms) or is_ != confirmed:
                self._faults.add("snapshot_differs", seq, "the row of the table is not what the events say")


def _agree(said: tuple[int, int, bytes], is_: Author, tail_seq: int) -> bool:
    """Whether what a head keeps of an author is what was found; the seq of an event below the tail is not known."""
    n, seq, hash_ = said
    if n != is_.n or (is_.seq is not None and seq != is_.seq) or (is_.seq is None and seq > tail_seq):
        return False
    return hash_[: len(is_.hash)] == is_.hash
