"""Strict and lenient MessagePack: every failure to decode is a ``ProtocolError``, never anything else.

What is hashed or signed is decoded strictly: minimal encoding, exactly one value, no trailing bytes, no extra fields
(protocol.md, preamble). That is checked by encoding the value again and comparing: each value has one encoding only.
Messages are decoded leniently: trailing fields are ignored (protocol.md section 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from keepstep.errors import ProtocolError
from keepstep.validation import parse_size

T = TypeVar("T")

_ENCODER: Final = msgspec.msgpack.Encoder()


class _Tag(msgspec.Struct, array_like=True, frozen=True):
    """The first element of a message, whatever follows it."""

    type: int


_TAG_DECODER: Final = msgspec.msgpack.Decoder(_Tag)


encode: Final[Callable[[Any], bytes]] = _ENCODER.encode
"""The one encoding of a value: minimal, fields in order. The encoder's own: a Python call costs as much again."""


def decode_lenient(decoder: msgspec.msgpack.Decoder[T], data: bytes, what: str) -> T:
    """Decode one value; fields beyond the known ones are ignored.

    Args:
        decoder: the typed decoder.
        data: the peer's bytes; the caller has bounded their number.
        what: what the bytes should be, for the error.

    Raises:
        ProtocolError: ``malformed``.
    """
    try:
        return decoder.decode(data)
    except (ValueError, RecursionError) as exc:  # msgspec's errors and UnicodeDecodeError are ValueErrors
        raise ProtocolError("malformed", f"{what} is not the documented MessagePack form") from exc


def decode_strict(decoder: msgspec.msgpack.Decoder[T], data: bytes, what: str, *, bytes_max: int) -> T:
    """Decode bytes that are hashed or signed: they must be the one encoding of the value.

    Args:
        decoder: the typed decoder.
        data: the peer's bytes.
        what: what the bytes should be, for the error.
        bytes_max: the limit.

    Raises:
        ProtocolError: ``too_large`` or ``malformed``.
    """
    parse_size(len(data), bytes_max=bytes_max, what=what)
    value = decode_lenient(decoder, data, what)
    if _ENCODER.encode(value) != data:
        raise ProtocolError("malformed", f"{what} is not minimally encoded or has extra fields")
    return value


def message_type(data: bytes) -> int | None:
    """The integer a message begins with, or ``None`` where the bytes are no ``[type, ...]`` array at all."""
    try:
        return _TAG_DECODER.decode(data).type
    except (ValueError, RecursionError):
        return None
