"""Strict and lenient decoding."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from keepstep.errors import ProtocolError
from keepstep.protocol.codec import decode_lenient, decode_strict, encode, message_type


class Pair(msgspec.Struct, array_like=True, frozen=True):
    """Anything that can be signed."""

    number: int
    options: dict[str, Any]


PAIR: msgspec.msgpack.Decoder[Pair] = msgspec.msgpack.Decoder(Pair)
GOOD = b"\x92\x05\x81\xa1a\x01"


def test_the_one_encoding_of_a_value_is_read() -> None:
    """Strict decoding takes what encoding gives."""
    assert decode_strict(PAIR, GOOD, "a pair", bytes_max=6) == Pair(5, {"a": 1})
    assert encode(Pair(5, {"a": 1})) == GOOD


@pytest.mark.parametrize(
    "data",
    [
        b"\x92\xcc\x05\x81\xa1a\x01",
        b"\x92\xd0\x05\x81\xa1a\x01",
        b"\xdc\x00\x02\x05\x81\xa1a\x01",
        b"\x92\x05\xde\x00\x01\xa1a\x01",
        b"\x92\x05\x81\xd9\x01a\x01",
        b"\x93\x05\x81\xa1a\x01\xc0",
        b"\x92\x05\x82\xa1a\x01\xa1a\x01",
        b"\x92\x05\x81\xa1a\xca\x40\xa0\x00\x00",
    ],
    ids=["uint8", "int8", "array16", "map16", "str8", "extra field", "key twice", "float32 inside"],
)
def test_another_encoding_of_the_same_value_is_malformed(data: bytes) -> None:
    """Otherwise two byte strings would mean the same and have different hashes."""
    assert decode_lenient(PAIR, data, "a pair").number == 5
    with pytest.raises(ProtocolError, match="malformed"):
        decode_strict(PAIR, data, "a pair", bytes_max=100)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:-1],
        GOOD + b"\0",
        b"\x92\x05\x81\xa1\xff\x01",
        b"\x92\x05\x81\xa1a" + b"\x91" * 5000 + b"\x01",
        b"\x92\x05\x81\xa1a\x81\x80\x01",
        b"\x92\x05\x81\xa1a\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x92\x05\x81\xa1a\xdd\xff\xff\xff\xff",
    ],
    ids=["nothing", "cut", "longer", "no UTF-8", "deep", "odd key", "odd time", "huge array"],
)
def test_bytes_that_are_no_such_value_are_malformed(data: bytes) -> None:
    """Whatever the decoder stumbles over, the caller sees one error."""
    with pytest.raises(ProtocolError, match="malformed"):
        decode_lenient(PAIR, data, "a pair")


def test_the_limit_is_checked_first() -> None:
    """Too many bytes are not even looked at."""
    with pytest.raises(ProtocolError, match="too_large"):
        decode_strict(PAIR, GOOD, "a pair", bytes_max=5)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x91\x05", 5),
        (b"\x93\xcd\x01\x00\xc0\xc0", 256),
        (b"\x90", None),
        (b"\x91\xa1a", None),
        (b"\x05", None),
        (b"", None),
        (b"\x92\x05" + b"\x91" * 100_000, None),
    ],
)
def test_the_type_of_a_message_is_its_first_integer(data: bytes, expected: int | None) -> None:
    """Whatever follows is not decoded, only skipped."""
    assert message_type(data) == expected
