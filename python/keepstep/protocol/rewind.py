"""The server's signed word that a restore set a stream back, so that nobody else can (protocol.md section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from keepstep.protocol.codec import decode_strict, encode
from keepstep.protocol.messages import REWIND_BYTES_MAX, U64, Bytes32, StreamName

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keepstep.protocol.event import Header
    from keepstep.protocol.messages import SignedRewind
    from keepstep.protocol.primitives import Primitives

REWIND_PREFIX: Final = b"keepstep/v1/rewind\0"


class Rewind(Struct, frozen=True, array_like=True, tag=1):
    """``[1, user_key, stream, epoch, seq, chain]``.

    Attributes:
        user_key: the user id.
        stream: the stream's name.
        epoch: that began with the restore.
        seq: the stream's last event right after it; what comes above it in earlier epochs may be lost.
        chain: at ``seq``.
    """

    user_key: Bytes32
    stream: StreamName
    epoch: U64
    seq: U64
    chain: Bytes32


CLOCKS_APART_MS_MAX: Final = 10 * 60 * 1000
"""How far the clock that named an epoch may have been behind those that events were signed and received by."""
HLC_COUNTER_BITS: Final = 16

_REWIND: Final = msgspec.msgpack.Decoder(Rewind)


def explains(rewinds: Iterable[Rewind], seq: int, *, knew_ms: int) -> bool:
    """Whether a position that an author names, and that is not in the log, may be of a branch that a restore ended.

    Args:
        rewinds: of the stream.
        seq: of the position.
        knew_ms: when the latest event of the stream was received that the author is known to have read before, unix
            milliseconds: who has read what came after a restore has left the branch that it ended.
    """
    return any(each.seq < seq and knew_ms <= each.epoch + CLOCKS_APART_MS_MAX for each in rewinds)


def lifts_base(rewinds: Iterable[Rewind], header: Header, seq: int) -> bool:
    """Whether an event at a seq may stand on another one than its ``base`` names: a restore took its place away.

    protocol.md section 4: "appended anew as signed, by author order, `base` ignored". It was signed before the restore
    and does not build on what came before the place that the restore went back to.
    """
    signed_ms, base = header.hlc >> HLC_COUNTER_BITS, header.base
    return any(
        each.seq < seq
        and signed_ms <= each.epoch + CLOCKS_APART_MS_MAX
        and (not isinstance(base, tuple) or base[0] >= each.seq)
        for each in rewinds
    )


def sign_rewind(primitives: Primitives, server_secret: bytes, rewind: Rewind) -> SignedRewind:
    """The rewind as bytes, and the server's signature over them."""
    data = encode(rewind)
    return data, primitives.ed25519_sign(server_secret, REWIND_PREFIX + data)


def decode_rewind(data: bytes) -> Rewind:
    """A rewind's bytes; says nothing of its signature. Raises ``ProtocolError`` ``malformed``, ``too_large``."""
    return decode_strict(_REWIND, data, "a rewind", bytes_max=REWIND_BYTES_MAX)


def verify_rewind(primitives: Primitives, server_key: bytes, signed: SignedRewind) -> Rewind:
    """The rewind, if the server signed it.

    Raises:
        ProtocolError: ``bad_signature``, ``malformed``, ``too_large``.
    """
    data, signature = signed
    primitives.ed25519_verify(server_key, REWIND_PREFIX + data, signature)
    return decode_rewind(data)
