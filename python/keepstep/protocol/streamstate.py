"""What a device carries of a stream from page to page, as simple values (protocol.md section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from keepstep.model import Position
from keepstep.protocol.chain import chain_0
from keepstep.protocol.codec import decode_strict, encode
from keepstep.protocol.messages import U64, Bytes16, Bytes32, SignedHead, WirePosition
from keepstep.protocol.missing import MISSING_MAX, RULES_AT_START, RULES_UNKNOWN, Missing, Rules
from keepstep.protocol.witness import HEADS_MAX

if TYPE_CHECKING:
    from keepstep.protocol.primitives import Primitives

AUTHORS_MAX: Final = 4096
"""Devices that may have written into one stream."""
STATE_BYTES_MAX: Final = 8 * 1024 * 1024


class Author(Struct, frozen=True, array_like=True):
    """Where an author is in a stream.

    ``knew_ms``, ``knew_devices_ms``: when the latest event of it, and of ``$devices``, was received that the author is
    known to have read; kept where restores have set them back.
    """

    n: U64
    prev: Bytes16
    devices_seen_seq: U64
    seq: U64
    knew_ms: U64 = 0
    knew_devices_ms: U64 = 0


class StreamState(Struct, frozen=True, array_like=True, tag=1):
    """Everything a ``StreamVerifier`` carries from page to page, as simple values.

    Attributes:
        seq: up to which the stream is verified.
        chain: there.
        whole: whether it was read from its first event on, so that every author must begin at n = 1.
        received_at_ms: of the event at ``seq``; it never steps back.
        authors: by device id.
        missing: by seq.
        heads: the signed heads that are remembered.
        rules: what the stream's own events say about how to read it.
        claimed: the highest position above ``seq`` that a checkpoint names; compared when the device gets there.
    """

    seq: U64
    chain: Bytes32
    whole: bool
    received_at_ms: U64
    authors: Annotated[dict[Bytes16, Author], Meta(max_length=AUTHORS_MAX)]
    missing: Annotated[dict[U64, Missing], Meta(max_length=MISSING_MAX)]
    heads: Annotated[list[SignedHead], Meta(max_length=HEADS_MAX)]
    claimed: WirePosition | None = None
    rules: Rules = RULES_UNKNOWN

    def encode(self) -> bytes:
        """As bytes, for a store."""
        return encode(self)

    @property
    def position(self) -> Position:
        """``seq`` and ``chain``."""
        return Position(self.seq, self.chain)


_STATE: Final = msgspec.msgpack.Decoder(StreamState)


def decode_state(data: bytes) -> StreamState:
    """What ``StreamState.encode`` gave. Raises ``ProtocolError`` ``malformed``, ``too_large``."""
    return decode_strict(_STATE, data, "a reader's state", bytes_max=STATE_BYTES_MAX)


def state_at_start(primitives: Primitives, user_key: bytes, stream: str) -> StreamState:
    """Before the first event of a stream."""
    return StreamState(0, chain_0(primitives, user_key, stream), True, 0, {}, {}, [], rules=RULES_AT_START)


def state_at(position: Position) -> StreamState:
    """At a position whose past is not read: authors are taken as they are found."""
    return StreamState(position.seq, position.chain, False, 0, {}, {}, [])
