"""The hash chain of a stream, and the heads the server signs (protocol.md sections 3 and 4).

Integers in hashed bytes are big-endian u64; a stream name is its UTF-8 bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from keepstep.model import DEVICES_STREAM, Position
from keepstep.protocol.codec import decode_strict, encode
from keepstep.protocol.messages import HEAD_BYTES_MAX, U64, Bytes32, StreamName

if TYPE_CHECKING:
    from keepstep.protocol.primitives import Primitives, Signing

EVENT_HASH_CONTEXT: Final = "keepstep/v1/event-hash"
CHAIN_0_CONTEXT: Final = "keepstep/v1/chain-0"
CHAIN_CONTEXT: Final = "keepstep/v1/chain"
HEAD_PREFIX: Final = b"keepstep/v1/head\0"


def event_hash(primitives: Primitives, header: bytes, sig: bytes) -> bytes:
    """What identifies an event, 32 bytes; its first 16 are the ``prev`` of the author's next one."""
    return primitives.blake3_derive(EVENT_HASH_CONTEXT, header + sig)


def chain_0(primitives: Primitives, user_key: bytes, stream: str) -> bytes:
    """The chain of a stream before its first event."""
    return primitives.blake3_derive(CHAIN_0_CONTEXT, user_key + stream.encode())


def chain_next(primitives: Primitives, chain: bytes, seq: int, received_at_ms: int, hash_: bytes) -> bytes:
    """The chain at ``seq``, from the chain at ``seq - 1`` and the hash of the event at ``seq``."""
    return primitives.blake3_derive(
        CHAIN_CONTEXT, chain + seq.to_bytes(8, "big") + received_at_ms.to_bytes(8, "big") + hash_
    )


def start_of_devices(primitives: Primitives, user_key: bytes) -> Position:
    """The position before genesis."""
    return Position(0, chain_0(primitives, user_key, DEVICES_STREAM))


class Head(Struct, frozen=True, array_like=True, tag=1):
    """``[1, user_key, stream, epoch, seq, chain, time_ms]``: what the server states with its signature.

    Attributes:
        user_key: the user id.
        stream: the stream's name.
        epoch: of the log; raised by a restore.
        seq: the last event's.
        chain: at ``seq``.
        time_ms: unix milliseconds, the server's clock when it signed.
    """

    user_key: Bytes32
    stream: StreamName
    epoch: U64
    seq: U64
    chain: Bytes32
    time_ms: U64


_HEAD: Final = msgspec.msgpack.Decoder(Head)


def encode_head(head: Head) -> bytes:
    """The bytes that are signed."""
    return encode(head)


def decode_head(data: bytes) -> Head:
    """Decode a head strictly.

    Raises:
        ProtocolError: ``malformed`` or ``too_large``.
    """
    return decode_strict(_HEAD, data, "a stream head", bytes_max=HEAD_BYTES_MAX)


def head_signing_input(data: bytes) -> bytes:
    """What the server signs, from an encoded head."""
    return HEAD_PREFIX + data


def sign_head(identity: Signing, head: Head) -> tuple[bytes, bytes]:
    """A ``messages.SignedHead``, by the server's identity key."""
    data = encode_head(head)
    return data, identity.sign(head_signing_input(data))


def verify_head(primitives: Primitives, server_key: bytes, signed: tuple[bytes, bytes]) -> Head:
    """The head, if the server signed it.

    Raises:
        ProtocolError: ``bad_signature``, ``malformed``, ``too_large``.
    """
    data, sig = signed
    primitives.ed25519_verify(server_key, head_signing_input(data), sig)
    return decode_head(data)
