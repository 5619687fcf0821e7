"""Events: their headers, what is signed, and which kind may go where (protocol.md section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from keepstep.errors import ProtocolError
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, Kind, is_inbox
from keepstep.protocol.codec import decode_strict, encode, message_type
from keepstep.protocol.messages import INTEGER_MAX, U64, Bytes16, Bytes32, StreamName, WirePosition
from keepstep.validation import parse_event_id

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keepstep.protocol.primitives import Primitives

HEADER_BYTES_MAX: Final = 512
"""Largest header, bytes: every field at its largest makes less."""
VERSION: Final = 1
"""The first element of a header."""
EVENT_PREFIX: Final = b"keepstep/v1/event\0"
NO_PREV: Final = bytes(16)
"""``prev`` of an author's first event in a stream."""

TIME_MS_MAX: Final = 2**48 - 1
"""Largest time of reception, unix milliseconds: what a UUID of version 7 can hold."""
TTL_S_MAX: Final = 100 * 365 * 24 * 60 * 60
"""A hundred years of 365 days: with it no sum of a time and a ttl is above ``INTEGER_MAX``."""
TtlSeconds = Annotated[int, Meta(ge=1, le=TTL_S_MAX)]
AuthorNumber = Annotated[int, Meta(ge=1, le=INTEGER_MAX)]


class Header(Struct, frozen=True, array_like=True, tag=VERSION, kw_only=True):
    """The signed part of an event: ``[1, kind, id, stream, n, prev, base, seen, devices_seen, key, hlc, ttl_s, ...]``.

    Attributes:
        kind: what the event is; a ``model.Kind`` or one of a later version.
        id: UUIDv7, 16 bytes; a label for people and logs only.
        stream: the stream's name.
        n: the author's number in this stream: 1, 2, 3 ...
        prev: first 16 bytes of the hash of the author's event n - 1 in this stream; zeros for n = 1.
        base: ``None``, ``(seq, chain)``, or n - 1 for 'my own previous event'; for the policies that ask.
        seen: ``(seq, chain)`` of this stream that the author had verified; ``(0, chain_0)`` where nothing.
        devices_seen: the same of ``$devices``.
        key: 16 bytes that name what is written, in streams of the policy ``latest``.
        hlc: unix milliseconds times 2^16, plus a counter.
        ttl_s: seconds after received_at at which the payload goes, 1 to ``TTL_S_MAX``, or ``None`` for never.
        payload_len: bytes.
        payload_hash: BLAKE3 of the payload.
    """

    kind: U64
    id: Bytes16
    stream: StreamName
    n: AuthorNumber
    prev: Bytes16
    base: WirePosition | int | None  # no bound here: msgspec 0.22 crashes on a tuple beside a bounded integer
    seen: WirePosition
    devices_seen: WirePosition
    key: Bytes16 | None
    hlc: U64
    ttl_s: TtlSeconds | None
    payload_len: U64
    payload_hash: Bytes32

    def encode(self) -> bytes:
        """The bytes that are signed, stored, and travel."""
        return encode(self)


_HEADER: Final = msgspec.msgpack.Decoder(Header)


def decode_header(data: bytes) -> Header:
    """Decode a header strictly; which kind may go where is ``check_placement``'s.

    Raises:
        ProtocolError: ``unsupported`` for another version of the header, ``malformed`` or ``too_large``.
    """
    if message_type(data) not in (None, VERSION):
        raise ProtocolError("unsupported", "this version does not have that form of header")
    header = decode_strict(_HEADER, data, "an event header", bytes_max=HEADER_BYTES_MAX)
    if isinstance(header.base, int) and not 0 <= header.base <= INTEGER_MAX:
        raise ProtocolError("malformed", "the base of an event is not an author number")
    parse_event_id(header.id)
    return header


def signing_input(user_key: bytes, device_id: bytes, header: bytes) -> bytes:
    """What an event's author signs."""
    return EVENT_PREFIX + user_key + device_id + header


def sign_event(primitives: Primitives, *, secret: bytes, user_key: bytes, device_id: bytes, header: bytes) -> bytes:
    """The author's signature over an encoded header, 64 bytes."""
    return primitives.ed25519_sign(secret, signing_input(user_key, device_id, header))


def verify_event(
    primitives: Primitives, *, device_key: bytes, user_key: bytes, device_id: bytes, header: bytes, sig: bytes
) -> None:
    """Raises ``ProtocolError`` ``bad_signature`` (or ``malformed`` for a key that is none)."""
    primitives.ed25519_verify(device_key, signing_input(user_key, device_id, header), sig)


def encode_events(events: Iterable[tuple[bytes, bytes, bytes | None]]) -> bytes:
    """(header, sig, payload) as a publish message holds them: ``[[header, sig, payload | nil, nil]...]``, no trace."""
    return encode([(header, sig, payload, None) for header, sig, payload in events])


_RESERVED_KINDS: Final = {DEVICES_STREAM: frozenset({Kind.ACCOUNT}), KEYS_STREAM: frozenset({Kind.KEYS})}
_INBOX_KINDS: Final = frozenset({Kind.APPLICATION})
_APPLICATION_KINDS: Final = frozenset({Kind.APPLICATION, Kind.POLICY, Kind.SNAPSHOT, Kind.CONFIRM, Kind.ERASE})
_KINDS: Final = frozenset().union(_INBOX_KINDS, _APPLICATION_KINDS, *_RESERVED_KINDS.values())


def check_placement(header: Header) -> None:
    """Check that this version has the event's kind, and that it goes into its stream.

    Raises:
        ProtocolError: ``unsupported`` for a kind that this version does not have; ``unknown_stream`` for reserved names
            other than ``$devices``, ``$keys`` and inboxes; ``malformed`` where the kind does not belong into the
            stream, and for a ttl in any event but one of kind 0 in an application stream.
    """
    if header.kind not in _KINDS:
        raise ProtocolError("unsupported", "this version does not have that kind of event")
    if header.kind not in _kinds_of(header.stream):
        raise ProtocolError("malformed", "that kind of event does not go into that stream")
    if header.ttl_s is not None and (header.kind != Kind.APPLICATION or header.stream.startswith("$")):
        raise ProtocolError("malformed", "only an application event of an application stream has a ttl")


def _kinds_of(stream: str) -> frozenset[Kind]:
    """What may go into a stream. Raises ``unknown_stream``."""
    if not stream.startswith("$"):
        return _APPLICATION_KINDS
    if is_inbox(stream):
        return _INBOX_KINDS
    if stream not in _RESERVED_KINDS:
        raise ProtocolError("unknown_stream", "this version does not have that reserved stream")
    return _RESERVED_KINDS[stream]
