"""The durable outbox: numbered, sealed, signed and on the disk before anything is sent (protocol.md section 3).

An event gets its author number ``n`` and ``prev`` when it enters. The bytes as signed are what is sent, as often as
it takes. They change in three cases only: an event before it was refused for good (a refused event consumes no n),
an earlier signing turned out to be the stored one, or the store was set back to an older state.

Every call blocks on the disk and belongs to the store's one worker thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from keepstep.client import crypto
from keepstep.client.environment import uuid7
from keepstep.client.payload import NONCE_BYTES, PLAINTEXT_BYTES_MAX, Place, key_name, seal_payload
from keepstep.client.safekeeping import Safekeeping
from keepstep.errors import ClientError, ProtocolError, VerificationError
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, Capability, Kind, Position, is_inbox
from keepstep.protocol.chain import event_hash
from keepstep.protocol.event import NO_PREV, Header, decode_header, sign_event
from keepstep.protocol.snapshot import decode_snapshot, encode_snapshot
from keepstep.validation import parse_stream_name

if TYPE_CHECKING:
    from keepstep.client.environment import Environment
    from keepstep.client.keys import Keyring
    from keepstep.client.safekeeping import KeptEvent
    from keepstep.client.store import Store

PAYLOAD_BYTES_MAX: Final = 262_144
"""Largest sealed payload of an event, bytes: what servers take unless configured otherwise."""
NO_HASH: Final = bytes(32)
HLC_COUNTER_BITS: Final = 16
PREV_BYTES: Final = 16
ENTRY_MIN: Final = -(2**62)
"""Below every number in the outbox: what is published again after a restore comes before what waits, below 0."""
FRAMING_BYTES: Final = 16
"""What an event adds to a publish beside header, signature and payload, bytes at most."""


@dataclass(frozen=True, slots=True)
class Covers:
    """What a snapshot stands for: everything up to a position, and each author's last number there."""

    position: Position
    authors: Mapping[bytes, int]


@dataclass(frozen=True, slots=True)
class Draft:
    """What to publish.

    Attributes:
        stream: its name.
        data: plaintext for ``Kind.APPLICATION`` and ``Kind.SNAPSHOT``, else the payload itself.
        kind: what the event is.
        key: in streams of the policy ``latest``, the name of what is written; the server sees a MAC of it.
        ttl_s: seconds after which the payload may go; ``None`` for never.
        expects: in streams of the policies ``expect`` and ``fork``, what it builds on: a position, ``"own"`` for this
            device's event before it, or ``None`` for nothing.
        covers: of a snapshot, and only of one.
    """

    stream: str
    data: bytes
    kind: Kind = Kind.APPLICATION
    key: str | None = None
    ttl_s: int | None = None
    expects: Position | Literal["own"] | None = None
    covers: Covers | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """An event in the outbox, as signed.

    Attributes:
        entry: its number in the outbox; stays when the event is signed anew.
        stream: its stream.
        n: the author number.
        hash: what identifies the signed bytes.
        header: as signed.
        sig: 64 bytes.
        payload: sealed.
        sent: whether a send was recorded before; ``False`` on the way to the first one.
    """

    entry: int
    stream: str
    n: int
    hash: bytes
    header: bytes
    sig: bytes
    payload: bytes
    sent: bool

    @property
    def size_bytes(self) -> int:
        """What it takes in a publish, at most."""
        return len(self.header) + len(self.sig) + len(self.payload) + FRAMING_BYTES


@dataclass(frozen=True, slots=True)
class Own:
    """This device as an author in one stream.

    Attributes:
        last_n: the last number given out; 0 where none was.
        last_hash: that event's hash; zeros where there is none.
        accepted_n: up to which the server has acknowledged.
        accepted_hash: that event's hash.
        receipt: the last place the server said it gave to one of them.
    """

    last_n: int
    last_hash: bytes
    accepted_n: int
    accepted_hash: bytes
    receipt: Position


_KINDS: Final = frozenset({Kind.APPLICATION, Kind.POLICY, Kind.SNAPSHOT, Kind.CONFIRM, Kind.ERASE})
"""What an application's streams take from this library."""
_KINDS_INBOX: Final = frozenset({Kind.APPLICATION})
_KINDS_RESERVED: Final = {DEVICES_STREAM: frozenset({Kind.ACCOUNT}), KEYS_STREAM: frozenset({Kind.KEYS})}
_NOTHING_WRITTEN: Final = Own(0, NO_HASH, 0, NO_HASH, Position(0, b""))
_NEXT_ENTRIES: Final = (
    "SELECT entry, stream, n, hash, header, sig, payload, sent FROM outbox WHERE entry > ? ORDER BY entry LIMIT ?"
)
_STREAM_ENTRIES: Final = (
    "SELECT entry, stream, n, hash, header, sig, payload, sent FROM outbox WHERE stream = ? ORDER BY n"
)


class Outbox:
    """This device as an author.

    Args:
        store: the device's file.
        keyring: what to encrypt under.
        environment: clock and randomness.
        position: how far a stream has been verified, for ``seen`` and ``devices_seen``.
        is_read: whether a stream is read, and so its events are in the log; others are kept (``safekeeping``).
    """

    def __init__(
        self,
        store: Store,
        keyring: Keyring,
        environment: Environment,
        position: Callable[[str], Position],
        is_read: Callable[[str], bool] = lambda _stream: True,
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._environment = environment
        self._position = position
        self._is_read = is_read
        self._kept = Safekeeping(store)
        self._accepted: dict[str, tuple[Entry, Position, int]] = {}

    # -- in -----------------------------------------------------------------------------------------------------

    def add(self, drafts: Sequence[Draft], *, sending: bool) -> list[Entry]:
        """Number, seal and sign events; all of them are on the disk when this returns, or none.

        Args:
            drafts: in the order they shall have.
            sending: the caller sends them at once, so that 'sent' is recorded in the same transaction.

        Raises:
            ClientError: an event is too large, the device has no content key, or the disk is full.
        """
        if Capability.PUBLISH not in self._store.identity.capabilities:
            raise ClientError("this device may not publish")
        for draft in drafts:
            _check(draft)
        entries: list[Entry] = []
        with self._store.transaction():
            self.settle_within()
            own: dict[str, Own] = {}
            hlc = self._store.hlc()
            for draft in drafts:
                mine = own.get(draft.stream) or self._own(draft.stream)
                hlc = max(self._environment.now_ms() << HLC_COUNTER_BITS, hlc + 1)
                entry = self._insert(self._sign_draft(draft, mine, hlc), sent=sending)
                own[draft.stream] = replace(mine, last_n=entry.n, last_hash=entry.hash)
                entries.append(entry)
            for stream, mine in own.items():
                self._save_own(stream, mine)
            self._store.raise_hlc(hlc)
        return entries

    def _sign_draft(self, draft: Draft, mine: Own, hlc: int) -> Entry:
        key = None
        payload = draft.data
        n = mine.last_n + 1
        if draft.kind is Kind.APPLICATION:
            payload = self._seal(draft.stream, n, draft.data)
            if draft.key is not None:
                key = key_name(self._keyring.current().index_key, draft.stream, draft.key)
        elif draft.covers is not None:
            payload = self._seal_snapshot(draft.stream, n, draft.covers, draft.data)
        header = Header(
            kind=int(draft.kind),
            id=uuid7(self._environment),
            stream=draft.stream,
            n=n,
            prev=_prev(n, mine.last_hash),
            base=_base(draft.expects, n),
            seen=(0, b""),
            devices_seen=(0, b""),
            key=key,
            hlc=hlc,
            ttl_s=draft.ttl_s,
            payload_len=len(payload),
            payload_hash=crypto.blake3(payload),
        )
        return self._sign(header, payload)

    def _seal(self, stream: str, n: int, plaintext: bytes) -> bytes:
        identity = self._store.identity
        place = Place(identity.user_key, stream, identity.device_id, n)
        nonce = self._environment.random_bytes(NONCE_BYTES)
        payload = seal_payload(self._keyring.current(), place, plaintext, nonce=nonce)
        return _within(stream, payload)

    def _seal_snapshot(self, stream: str, n: int, covers: Covers, state: bytes) -> bytes:
        return _within(stream, encode_snapshot(covers.position, covers.authors, self._seal(stream, n, state)))

    def _sign(self, header: Header, payload: bytes) -> Entry:
        """Sign a header as of what this device has verified now; the entry has no number yet."""
        identity = self._store.identity
        seen, devices_seen = self._position(header.stream), self._position(DEVICES_STREAM)
        placed = msgspec.structs.replace(
            header, seen=(seen.seq, seen.chain), devices_seen=(devices_seen.seq, devices_seen.chain)
        )
        encoded = placed.encode()
        sig = sign_event(
            crypto,
            secret=identity.device_secret,
            user_key=identity.user_key,
            device_id=identity.device_id,
            header=encoded,
        )
        return Entry(0, header.stream, header.n, event_hash(crypto, encoded, sig), encoded, sig, payload, sent=False)

    def _insert(self, signed: Entry, *, sent: bool) -> Entry:
        number = self._store.execute(
            "INSERT INTO outbox (entry, stream, n, hash, header, sig, payload, sent) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            signed.entry or None, signed.stream, signed.n, signed.hash, signed.header, signed.sig, signed.payload,
            int(sent),
        )  # fmt: skip
        return replace(signed, entry=number)

    @property
    def unsettled(self) -> bool:
        """Whether something was accepted that is not written down."""
        return bool(self._accepted)

    def count(self) -> int:
        """Events that wait for the server."""
        return int(self._store.row("SELECT count(*) FROM outbox")[0])

    # -- out ----------------------------------------------------------------------------------------------------

    def pending(self, *, skip: Container[int], held: Container[str], entries_max: int) -> list[Entry]:
        """The next unaccepted events, in order of their entry.

        Args:
            skip: entries already on their way.
            held: streams to leave out.
            entries_max: how many at most.
        """
        with self._store.transaction():
            self.settle_within()
        found: list[Entry] = []
        after = ENTRY_MIN
        while len(found) < entries_max:
            rows = self._store.rows(_NEXT_ENTRIES, after, entries_max)
            if not rows:
                break
            entries = [_entry(row) for row in rows]
            found += [each for each in entries if each.entry not in skip and each.stream not in held]
            after = entries[-1].entry
        return found[:entries_max]

    def mark_sent(self, entries: Iterable[Entry]) -> None:
        """Record that these are about to be sent; on the disk when this returns."""
        with self._store.transaction():
            self._store.execute_many("UPDATE outbox SET sent = 1 WHERE entry = ?", ((each.entry,) for each in entries))

    def accept(self, entry: Entry, place: Position | None, received_at_ms: int | None) -> None:
        """The server holds ``entry``, and so everything before it in its stream.

        Written with the next transaction: if that is lost, the event is sent again and answered as a duplicate.

        Args:
            entry: as it was sent.
            place: where the server says it is; ``None`` where it does not say.
            received_at_ms: when the server says that it received it, unix milliseconds; ``None`` likewise.
        """
        known, receipt, at_ms = self._accepted.get(entry.stream, (entry, _NOTHING_WRITTEN.receipt, 0))
        at_ms = max(at_ms, self._environment.now_ms() if received_at_ms is None else received_at_ms)
        if place is not None and place.seq > receipt.seq:
            receipt = place
        self._accepted[entry.stream] = (entry if entry.n > known.n else known, receipt, at_ms)

    def settle(self) -> None:
        """Write down what was accepted.

        Raises:
            VerificationError: the server has shown another history than the one it acknowledged.
        """
        if self._accepted:
            with self._store.transaction():
                self.settle_within()

    def settle_within(self) -> None:
        """The same, as part of a transaction. Raises likewise."""
        while self._accepted:
            stream, (entry, receipt, received_at_ms) = self._accepted.popitem()
            self._keep(stream, entry.n, received_at_ms)
            self._set_accepted(stream, entry.n, entry.hash)
            mine = self._own(stream)
            if receipt.seq > mine.receipt.seq:
                self._save_own(stream, replace(mine, receipt=receipt))
                shown = self._store.row("SELECT chain FROM events WHERE stream = ? AND seq = ?", stream, receipt.seq)
                if shown is not None and shown[0] != receipt.chain:
                    raise VerificationError(
                        "not the history that the server acknowledged", stream=stream, seq=receipt.seq
                    )

    def _keep(self, stream: str, up_to_n: int, received_at_ms: int) -> None:
        if not self._is_read(stream):
            now_ms = self._environment.now_ms()
            self._kept.keep(stream, up_to_n, received_at_ms=received_at_ms, now_ms=now_ms)

    def _set_accepted(self, stream: str, n: int, hash_: bytes) -> None:
        self._store.execute("DELETE FROM outbox WHERE stream = ? AND n <= ?", stream, n)
        self._store.execute("DELETE FROM superseded WHERE stream = ? AND n <= ?", stream, n)
        mine = self._own(stream)
        if n > mine.accepted_n:
            self._save_own(stream, replace(mine, accepted_n=n, accepted_hash=hash_))
        self._confirm_epoch(stream)

    # -- when the server answers otherwise ------------------------------------------------------------------------

    def refuse(self, entry: Entry) -> None:
        """An event was refused for good: it goes, and what follows it in its stream is signed anew."""
        with self._store.transaction():
            self.settle_within()
            self._store.execute("DELETE FROM outbox WHERE entry = ?", entry.entry)
            self._supersede([entry])
            mine = self._own(entry.stream)
            self._renumber(entry.stream, mine.accepted_n, mine.accepted_hash)

    def stored_instead(self, stream: str, n: int, hash_: bytes) -> list[Entry] | None:
        """The server's event ``n`` of this device is the one with this hash.

        Returns:
            if it is an earlier signing of this device, the entries that are accepted by that: what follows was signed
            anew. Otherwise ``None``: nothing changed, and somebody else writes as this device.
        """
        with self._store.transaction():
            self.settle_within()
            row = self._store.row(
                "SELECT entry FROM superseded WHERE stream = ? AND n = ? AND hash = ?", stream, n, hash_
            )
            if row is None:
                return None
            # Each signing names the one before it, so what stood before it in the outbox is stored as well.
            accepted = [each for each in self._waiting(stream) if each.entry <= row[0]]
            # Not kept: what the server stored is an earlier signing, of which this device has the hash only.
            self._store.execute("DELETE FROM outbox WHERE stream = ? AND entry <= ?", stream, row[0])
            self._save_own(stream, replace(self._own(stream), accepted_n=n, accepted_hash=hash_))
            self._renumber(stream, n, hash_)
        return accepted

    def own(self, stream: str) -> Own:
        """This device as an author in a stream."""
        self.settle()
        return self._own(stream)

    def hash_of(self, stream: str, n: int) -> bytes | None:
        """The hash of this device's event ``n`` as it stands, where it is still known."""
        mine = self._own(stream)
        if n in (mine.last_n, mine.accepted_n):
            return mine.last_hash if n == mine.last_n else mine.accepted_hash
        row = self._store.row("SELECT hash FROM outbox WHERE stream = ? AND n = ?", stream, n)
        return None if row is None else bytes(row[0])

    def adopt(self, stream: str, last_n: int, last_hash: bytes) -> None:
        """This store was set back: go on after the server's last event of this device, with what waits signed anew."""
        with self._store.transaction():
            self.settle_within()
            mine = self._own(stream)
            self._save_own(stream, replace(mine, accepted_n=last_n, accepted_hash=last_hash))
            self._renumber(stream, last_n, last_hash)

    def publish_again(self, stream: str, before: tuple[int, bytes], lost: Sequence[Entry]) -> int:
        """A restore took events of this device away: they are published again, before what waits.

        So is what was kept of the stream since it was read last; returns how many there are in all.

        Args:
            stream: theirs.
            before: number and hash of this device's last event that is not among them.
            lost: as they were signed, in order.
        """
        with self._store.transaction():
            self.settle_within()
            again = {each.n: each for each in lost}
            again |= {each.n: _as_entry(stream, each) for each in self._kept.take_after(stream, before[0])}
            self._put_before(stream, [again[n] for n in sorted(again)])
            self._set_back_to(stream, *before)
            if not _joins_on(self._waiting(stream), *before):
                self._renumber(stream, *before)
        return len(again)

    def _put_before(self, stream: str, lost: Sequence[Entry]) -> None:
        """Put what was accepted before what waits, in all streams. Part of a transaction."""
        waiting = {each.n for each in self._waiting(stream)}
        again = [each for each in lost if each.n not in waiting]
        lowest = min(self._store.row("SELECT coalesce(min(entry), 0) FROM outbox")[0], 0) - len(again)
        for number, each in enumerate(again):
            self._insert(replace(each, entry=lowest + number), sent=True)

    def set_back_within(self, stream: str, last_n: int, last_hash: bytes) -> tuple[Own, int]:
        """A restore took events of this device away that its log does not have: go on after the server's last one.

        What was kept of them is published again, as it was signed where it joins on.

        Part of a transaction; returns what was known before, and how many are published again.
        """
        self.settle_within()
        before = self._own(stream)
        again = [_as_entry(stream, each) for each in self._kept.take_after(stream, last_n)]
        self._put_before(stream, again)
        self._set_back_to(stream, last_n, last_hash)
        if not _joins_on(self._waiting(stream), last_n, last_hash):
            self._renumber(stream, last_n, last_hash)
        self._confirm_epoch(stream)
        return before, len(again)

    def confirm(self, stream: str) -> None:
        """The server has all that it acknowledged to this device, in the log's epoch as it is now."""
        with self._store.transaction():
            self.settle_within()
            self._confirm_epoch(stream)

    def _set_back_to(self, stream: str, n: int, hash_: bytes) -> None:
        mine = self._own(stream)
        self._save_own(stream, replace(mine, accepted_n=n, accepted_hash=hash_, receipt=_NOTHING_WRITTEN.receipt))

    def _confirm_epoch(self, stream: str) -> None:
        """The server has what this device knows to be accepted, in the log's epoch as it is now."""
        self._store.execute("UPDATE own SET epoch = (SELECT epoch FROM device) WHERE stream = ?", stream)

    def _renumber(self, stream: str, last_n: int, last_hash: bytes) -> None:
        """Sign every waiting event of a stream anew, numbered from ``last_n + 1``. Part of a transaction."""
        waiting = self._waiting(stream)
        self._store.execute("DELETE FROM outbox WHERE stream = ?", stream)
        self._supersede(each for each in waiting if each.sent)
        for each in waiting:
            old = decode_header(each.header)
            payload = each.payload
            n = last_n + 1
            identity = self._store.identity
            place = Place(identity.user_key, stream, identity.device_id, old.n)
            if old.kind == Kind.APPLICATION:
                payload = self._seal(stream, n, self._keyring.open(place, each.payload))
            elif old.kind == Kind.SNAPSHOT:
                known = decode_snapshot(each.payload)
                covers = Covers(Position(known.covers_seq, known.covers_chain), known.authors)
                payload = self._seal_snapshot(stream, n, covers, self._keyring.open(place, known.sealed))
            header = msgspec.structs.replace(
                old,
                base=n - 1 if isinstance(old.base, int) else old.base,
                n=n,
                prev=_prev(n, last_hash),
                payload_len=len(payload),
                payload_hash=crypto.blake3(payload),
            )
            signed = self._insert(replace(self._sign(header, payload), entry=each.entry), sent=False)
            last_n, last_hash = n, signed.hash
        self._save_own(stream, replace(self._own(stream), last_n=last_n, last_hash=last_hash))

    def _supersede(self, entries: Iterable[Entry]) -> None:
        """Remember signings that may still be on their way to the server. Part of a transaction."""
        self._store.execute_many(
            "INSERT OR REPLACE INTO superseded VALUES (?, ?, ?, ?)",
            ((each.stream, each.n, each.hash, each.entry) for each in entries),
        )

    def _waiting(self, stream: str) -> list[Entry]:
        """What of a stream is not accepted, in order."""
        return [_entry(row) for row in self._store.rows(_STREAM_ENTRIES, stream)]

    def _own(self, stream: str) -> Own:
        row = self._store.row(
            "SELECT last_n, last_hash, accepted_n, accepted_hash, receipt_seq, receipt_chain FROM own WHERE stream = ?",
            stream,
        )
        if row is None:
            return _NOTHING_WRITTEN
        last_n, last_hash, accepted_n, accepted_hash, *receipt = row
        return Own(last_n, last_hash, accepted_n, accepted_hash, Position(*receipt))

    def _save_own(self, stream: str, own: Own) -> None:
        self._store.execute(
            "INSERT INTO own VALUES (?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT (stream) DO UPDATE SET"
            " last_n = excluded.last_n, last_hash = excluded.last_hash, accepted_n = excluded.accepted_n,"
            " accepted_hash = excluded.accepted_hash,"
            " receipt_seq = excluded.receipt_seq, receipt_chain = excluded.receipt_chain",
            stream, own.last_n, own.last_hash, own.accepted_n, own.accepted_hash, own.receipt.seq, own.receipt.chain,
        )  # fmt: skip


def _entry(row: tuple[int, str, int, bytes, bytes, bytes, bytes, int]) -> Entry:
    entry, stream, n, hash_, header, sig, payload, sent = row
    return Entry(entry, stream, n, hash_, header, sig, payload, sent=bool(sent))


def _as_entry(stream: str, kept: KeptEvent) -> Entry:
    """What the server had acknowledged, as the outbox had it."""
    hash_ = event_hash(crypto, kept.header, kept.sig)
    return Entry(0, stream, kept.n, hash_, kept.header, kept.sig, kept.payload, sent=True)


def _joins_on(waiting: Sequence[Entry], last_n: int, last_hash: bytes) -> bool:
    """Whether events follow each other and the last one that the server has, as they are signed."""
    n, hash_ = last_n, last_hash
    for each in waiting:
        if (each.n, decode_header(each.header).prev) != (n + 1, _prev(n + 1, hash_)):
            return False
        n, hash_ = each.n, each.hash
    return bool(waiting)


def _prev(n: int, last_hash: bytes) -> bytes:
    # protocol.md section 3: "the first 16 bytes of `hash` of the author's event n-1 in this stream (zeros for n = 1)"
    return NO_PREV if n == 1 else last_hash[:PREV_BYTES]


def _base(expects: Position | Literal["own"] | None, n: int) -> tuple[int, bytes] | int | None:
    """As the header names it (protocol.md section 3, Policies)."""
    if expects is None:
        return None
    return n - 1 if isinstance(expects, str) else (expects.seq, expects.chain)


def _within(stream: str, payload: bytes) -> bytes:
    """The payload; raises ClientError for one that servers do not take."""
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise ClientError(f"an event for {stream} has {len(payload)} bytes sealed, at most {PAYLOAD_BYTES_MAX} fit")
    return payload


def _check(draft: Draft) -> None:
    """What the server would refuse for good is refused before it takes a number."""
    reserved = _KINDS_INBOX if is_inbox(draft.stream) else _KINDS_RESERVED.get(draft.stream)
    kinds = _KINDS if reserved is None else reserved
    if draft.stream.startswith("$") and (reserved is None or draft.kind not in kinds):
        raise ClientError(f"{draft.stream} is reserved, as every name that begins with $")
    if draft.kind not in kinds:
        raise ClientError(f"{draft.stream} does not take that kind of event")
    if draft.kind in (Kind.APPLICATION, Kind.SNAPSHOT) and len(draft.data) > PLAINTEXT_BYTES_MAX:
        raise ClientError(f"an event holds at most {PLAINTEXT_BYTES_MAX} bytes, this one has {len(draft.data)}")
    if draft.ttl_s is not None and draft.ttl_s < 1:
        raise ClientError("a time to live has at least one second")
    if draft.ttl_s is not None and is_inbox(draft.stream):
        raise ClientError("an inbox takes no time to live: what its device has read goes by itself")
    try:
        parse_stream_name(draft.stream)
    except ProtocolError as exc:
        raise ClientError(f"{draft.stream!r} is no name for a stream: {exc.detail}") from exc
