"""The payload of a ``$keys`` event: a content key, wrapped for each device (protocol.md section 5).

The server reads the shape only: what is wrapped opens nowhere but on the device it is wrapped for.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from keepstep.protocol.codec import decode_strict, encode
from keepstep.protocol.messages import U64, Bytes16

WRAPPED_BYTES: Final = 112
"""A libsodium sealed box (48 bytes more than what it holds) of content key (32) and index key (32)."""
WRAPS_MAX: Final = 1024
"""Most devices that one event wraps a key for."""
KEYS_PAYLOAD_BYTES_MAX: Final = 256 * 1024

Wrapped = Annotated[bytes, Meta(min_length=WRAPPED_BYTES, max_length=WRAPPED_BYTES)]


class KeysPayload(Struct, frozen=True, array_like=True):
    """``[content_epoch, after, {device_id: sealed box}]``.

    Attributes:
        content_epoch: names the content key without showing it, 16 bytes.
        after: seq in ``$devices`` from which authors use it.
        wraps: for each device the sealed box of content key and index key.
    """

    content_epoch: Bytes16
    after: U64
    wraps: Annotated[dict[Bytes16, Wrapped], Meta(min_length=1, max_length=WRAPS_MAX)]


_DECODER: Final = msgspec.msgpack.Decoder(KeysPayload)


def encode_keys(payload: KeysPayload) -> bytes:
    """The payload's bytes."""
    return encode(payload)


def decode_keys(payload: bytes) -> KeysPayload:
    """Decode the payload of a keys event strictly.

    Raises:
        ProtocolError: ``malformed``, ``too_large``.
    """
    return decode_strict(_DECODER, payload, "a keys payload", bytes_max=KEYS_PAYLOAD_BYTES_MAX)
