"""The rows of one stream in order, wherever they come from: seqs, chain, signatures, authors, payloads.

After a fault the walk goes on as well as it can, so that one fault is not told again for every row behind it: what
cannot be known after it is not judged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from keepstep import _keepstep
from keepstep.errors import ProtocolError
from keepstep.model import PREV_BYTES, Position
from keepstep.protocol.chain import chain_next, event_hash
from keepstep.protocol.event import NO_PREV, Header, check_placement, decode_header, signing_input

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from keepstep._keepstep import DeviceKey
    from keepstep.verification.faults import Faults


class SignedRow(NamedTuple):
    """An event as it is kept somewhere.

    Attributes:
        seq: its place.
        received_at_ms: unix milliseconds.
        device_id: of its author; ``None`` where that is not known.
        header: as signed.
        sig: 64 bytes.
        payload: ``None`` where it was dropped.
        chain: the chain at ``seq``, where it is kept with the row.
    """

    seq: int
    received_at_ms: int
    device_id: bytes | None
    header: bytes
    sig: bytes
    payload: bytes | None
    chain: bytes | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Where a walk begins: at the beginning of a stream, or behind what was pruned of it.

    Attributes:
        position: the last event that is not walked.
        received_at_ms: of that event, or earlier.
        authors: per device its last author number there, and the hash of that event, or the first 16 bytes of it.
    """

    position: Position
    received_at_ms: int = 0
    authors: Mapping[bytes, tuple[int, bytes]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Author:
    """The last event of a device in a stream.

    Attributes:
        n: its author number.
        hash: of the event, 32 bytes or the first 16.
        seq: of the event; ``None`` where it was before the walk.
        doubts: how many rows there were by then whose author is not certain.
    """

    n: int
    hash: bytes
    seq: int | None
    doubts: int


class Walked(NamedTuple):
    """A row that was walked over.

    Attributes:
        row: as it was fed.
        header: decoded; ``None`` where it cannot be.
        before: the author's event before it: ``None`` for none.
        follows: whether it follows ``before`` without doubt.
        chain: the chain after it.
    """

    row: SignedRow
    header: Header | None
    before: Author | None
    follows: bool
    chain: bytes | None


class RowWalk:
    """Walks over one stream.

    Args:
        user_key: the user id, 32 bytes.
        stream: its name.
        start: where it begins.
        key_of: the key of a device of the user, ``None`` for one that is none.
        faults: where faults go.
    """

    def __init__(
        self,
        *,
        user_key: bytes,
        stream: str,
        start: Start,
        key_of: Callable[[bytes], DeviceKey | None],
        faults: Faults,
    ) -> None:
        self._user_key = user_key
        self._stream = stream
        self._key_of = key_of
        self._faults = faults
        self._seq = start.position.seq
        self._chain: bytes | None = start.position.chain
        self._other_chain: bytes | None = None
        self._received_at_ms = start.received_at_ms
        self._doubts = 0
        self.is_whole = True
        """Whether there was no gap."""
        self.authors: dict[bytes, Author] = {
            device_id: Author(n, hash_, None, 0) for device_id, (n, hash_) in start.authors.items()
        }

    @property
    def seq(self) -> int:
        """Of the last row."""
        return self._seq

    @property
    def chain(self) -> bytes | None:
        """After the last row; ``None`` behind a gap where rows carry no chain."""
        return self._chain

    @property
    def position(self) -> Position | None:
        """After the last row; ``None`` where its chain is not known."""
        return None if self._chain is None else Position(self._seq, self._chain)

    def reaches(self, chain: bytes) -> bool:
        """Whether ``chain`` may be the one after the last row, as far as is known."""
        return self._chain is None or chain in (self._chain, self._other_chain)

    @property
    def received_at_ms(self) -> int:
        """Of the last row."""
        return self._received_at_ms

    @property
    def is_certain(self) -> bool:
        """Whether every row was there and is of the author that it is said to be of."""
        return self._doubts == 0

    def feed(self, rows: Sequence[SignedRow]) -> list[Walked]:
        """The next rows, in ascending order of seq; those that were there before are left out of the answer."""
        signed = self._verify(rows)
        walked: list[Walked] = []
        for row, is_signed in zip(rows, signed, strict=True):
            if row.seq <= self._seq:
                self._faults.add("seq_repeated", row.seq, "another row with this seq comes before it")
                continue
            if row.seq > self._seq + 1:
                self.miss(row.seq - 1)
            self._seq = row.seq
            self._check_time(row)
            header = self._decode(row)
            hash_ = event_hash(_keepstep, row.header, row.sig)
            self._check_chain(row, hash_)
            before, follows = self._check_author(row, header, hash_, is_signed=is_signed)
            self._check_payload(row, header)
            walked.append(Walked(row, header, before, follows, self._chain))
        return walked

    def miss(self, last_seq: int) -> None:
        """The rows up to ``last_seq`` are not there."""
        first = self._seq + 1
        which = f"the row {first} is" if first == last_seq else f"the rows {first} to {last_seq} are"
        self._faults.add("seq_missing", first, f"{which} missing")
        self._seq = last_seq
        self._chain = self._other_chain = None
        self._doubts += 1
        self.is_whole = False

    def _verify(self, rows: Sequence[SignedRow]) -> list[bool]:
        """Whether each is signed by its author; all signatures are verified together."""
        keys = [None if row.device_id is None else self._key_of(row.device_id) for row in rows]
        items = [
            (key, signing_input(self._user_key, row.device_id or b"", row.header), row.sig)
            for row, key in zip(rows, keys, strict=True)
            if key is not None
        ]
        verdicts = iter(_keepstep.ed25519_verify_many(items))
        signed = []
        for row, key in zip(rows, keys, strict=True):
            if key is None:
                who = "" if row.device_id is None else f" {row.device_id.hex()}"
                self._faults.add("unknown_author", row.seq, f"its author{who} is no device of this user")
                signed.append(False)
                continue
            signed.append(next(verdicts))
            if not signed[-1]:
                author = (row.device_id or b"").hex()
                self._faults.add("bad_signature", row.seq, f"it is not signed by the device {author}")
        return signed

    def _check_time(self, row: SignedRow) -> None:
        if row.received_at_ms < self._received_at_ms:
            self._faults.add(
                "received_at_back",
                row.seq,
                f"received at {row.received_at_ms}, after an event received at {self._received_at_ms}",
            )
        self._received_at_ms = row.received_at_ms

    def _decode(self, row: SignedRow) -> Header | None:
        try:
            header = decode_header(row.header)
            if header.stream != self._stream:
                self._faults.add("wrong_stream", row.seq, f"its header names the stream {header.stream}")
            check_placement(header)
        except ProtocolError as error:
            self._faults.add("header_malformed", row.seq, error.detail)
            return None
        return header

    def _check_chain(self, row: SignedRow, hash_: bytes) -> None:
        """Where the stored chain of one row is wrong, the next may follow from the right one or from the stored one."""
        before = [chain for chain in (self._chain, self._other_chain) if chain is not None]
        follow = [chain_next(_keepstep, chain, row.seq, row.received_at_ms, hash_) for chain in before]
        if row.chain is None or not follow or row.chain in follow:
            self._chain = row.chain or (follow[0] if follow else None)
            self._other_chain = None
            return
        self._faults.add("chain_differs", row.seq, "its chain does not follow from the row before and this one")
        self._chain, self._other_chain = row.chain, follow[0]

    def _check_author(
        self, row: SignedRow, header: Header | None, hash_: bytes, *, is_signed: bool
    ) -> tuple[Author | None, bool]:
        """The author's event before it, and whether this one follows it without doubt."""
        before = None if row.device_id is None else self.authors.get(row.device_id)
        if row.device_id is None or header is None or not is_signed:
            self._doubts += 1
            return before, False
        is_certain = self._doubts == (0 if before is None else before.doubts)
        last_n = 0 if before is None else before.n
        if header.n <= last_n or (is_certain and header.n != last_n + 1):
            self._faults.add("author_number", row.seq, f"its author number is {header.n}, after {last_n}")
            is_certain = False
        elif header.n == last_n + 1:
            hash_before = NO_PREV if before is None else before.hash
            if header.prev != hash_before[:PREV_BYTES]:
                self._faults.add("author_number", row.seq, "its prev is not the hash of its author's event before it")
                is_certain = False
        self.authors[row.device_id] = Author(header.n, hash_, row.seq, self._doubts)
        return before, is_certain

    def _check_payload(self, row: SignedRow, header: Header | None) -> None:
        if row.payload is None or header is None:
            return
        if len(row.payload) != header.payload_len or _keepstep.blake3(row.payload) != header.payload_hash:
            self._faults.add("payload_differs", row.seq, "its payload is not the one that its header names")
