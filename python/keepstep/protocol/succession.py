"""How a server changes its identity key: the successor, announced with both keys' signatures (protocol.md section 1).

A device that pins the old key believes the new one because the old one names it, and the new one's signature shows
that the server holds it. Between ``from_ms`` and ``until_ms`` a device accepts both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from keepstep.errors import ProtocolError
from keepstep.protocol.codec import decode_strict, encode
from keepstep.protocol.messages import U64, Bytes32, Bytes64

if TYPE_CHECKING:
    from keepstep.protocol.primitives import Primitives

SERVER_KEY_PREFIX: Final = b"keepstep/v1/server-key\0"
SUCCESSION_BYTES_MAX: Final = 128
"""Largest signed part of an announcement, bytes: every field at its largest makes less."""

Announcement = tuple[Annotated[bytes, Meta(max_length=SUCCESSION_BYTES_MAX)], Bytes64, Bytes64]
"""``[bytes of [1, old_key, new_key, from_ms, until_ms], signature by old, signature by new]``."""


class Succession(Struct, frozen=True, array_like=True, tag=1):
    """``[1, old_key, new_key, from_ms, until_ms]``.

    Attributes:
        old_key: the identity key so far.
        new_key: the one that takes its place.
        from_ms: unix milliseconds from which the server may show the new key.
        until_ms: unix milliseconds from which it does not show the old key any more.
    """

    old_key: Bytes32
    new_key: Bytes32
    from_ms: U64
    until_ms: U64


_SUCCESSION: Final = msgspec.msgpack.Decoder(Succession)
_ANNOUNCEMENT: Final[msgspec.msgpack.Decoder[Announcement]] = msgspec.msgpack.Decoder(Announcement)
ANNOUNCEMENT_BYTES_MAX: Final = SUCCESSION_BYTES_MAX + 2 * 64 + 16
"""Largest encoded announcement, bytes."""


def announce(
    primitives: Primitives, *, old_secret: bytes, new_secret: bytes, from_ms: int, until_ms: int
) -> Announcement:
    """The announcement of a successor, signed by both keys."""
    succession = Succession(
        primitives.ed25519_public(old_secret), primitives.ed25519_public(new_secret), from_ms, until_ms
    )
    signed = encode(succession)
    old_sig, new_sig = (
        primitives.ed25519_sign(secret, SERVER_KEY_PREFIX + signed) for secret in (old_secret, new_secret)
    )
    return signed, old_sig, new_sig


def verify_announcement(primitives: Primitives, announcement: Announcement) -> Succession:
    """What an announcement says, if both keys signed it. Whether its old key is the pinned one is the caller's to ask.

    Raises:
        ProtocolError: ``malformed``, ``too_large``, ``bad_signature``.
    """
    signed, old_sig, new_sig = announcement
    succession = decode_strict(_SUCCESSION, signed, "a server key's succession", bytes_max=SUCCESSION_BYTES_MAX)
    if succession.old_key == succession.new_key:
        raise ProtocolError("malformed", "a server key does not succeed itself")
    if succession.from_ms >= succession.until_ms:
        raise ProtocolError("malformed", "a server key's succession has no overlap")
    primitives.ed25519_verify(succession.old_key, SERVER_KEY_PREFIX + signed, old_sig)
    primitives.ed25519_verify(succession.new_key, SERVER_KEY_PREFIX + signed, new_sig)
    return succession


def encode_announcement(announcement: Announcement) -> bytes:
    """An announcement as bytes, for a file or a document."""
    return encode(announcement)


def decode_announcement(data: bytes) -> Announcement:
    """What ``encode_announcement`` gave, not verified. Raises ``ProtocolError`` ``malformed``, ``too_large``."""
    return decode_strict(_ANNOUNCEMENT, data, "a server key's announcement", bytes_max=ANNOUNCEMENT_BYTES_MAX)
