"""Array parameters, encoded in one go: what psycopg does element by element costs more than the query itself.

The format is PostgreSQL's array_send: dimensions, a flag for nulls, element type, size, lower bound, then each element
with its length.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types.numeric import Int8BinaryDumper

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.abc import Buffer

_BIGINT: Final = 20
_BYTEA: Final = 17
_TEXT: Final = 25


class BigintArray(bytes):
    """An encoded ``bigint[]``."""

    __slots__ = ()


class ByteaArray(bytes):
    """An encoded ``bytea[]``."""

    __slots__ = ()


class TextArray(bytes):
    """An encoded ``text[]``."""

    __slots__ = ()


def bigints(values: Sequence[int]) -> BigintArray:
    """An array of integers."""
    elements = [8] * (2 * len(values))
    elements[1::2] = values
    return BigintArray(struct.pack(f">5i{'iq' * len(values)}", 1, 0, _BIGINT, len(values), 1, *elements))


def byteas(values: Collection[bytes]) -> ByteaArray:
    """An array of byte strings."""
    return ByteaArray(_pack(_BYTEA, values))


def texts(values: Collection[str]) -> TextArray:
    """An array of strings."""
    return TextArray(_pack(_TEXT, [value.encode() for value in values]))


def _pack(element_type: int, values: Collection[bytes]) -> bytes:
    header = struct.pack(">5i", 1, 0, element_type, len(values), 1)
    sizes = set(map(len, values))
    if len(sizes) == 1:  # hashes and chains
        size = sizes.pop().to_bytes(4, "big")
        return header + size + size.join(values)
    parts = [header]
    for value in values:
        parts += (len(value).to_bytes(4, "big"), value)
    return b"".join(parts)


_Encoded = TypeVar("_Encoded", bound=bytes)


class _ArrayDumper(Dumper, Generic[_Encoded]):
    """Hands over what is encoded already."""

    format = Format.BINARY

    def dump(self, obj: _Encoded) -> Buffer:
        return obj


class _BigintArrayDumper(_ArrayDumper[BigintArray]):
    oid = 1016


class _ByteaArrayDumper(_ArrayDumper[ByteaArray]):
    oid = 1001


class _TextArrayDumper(_ArrayDumper[TextArray]):
    oid = 1009


def register(connection: Connection[Any]) -> None:
    """Let a connection take these arrays as parameters, and every integer as ``bigint``.

    psycopg would take the smallest type that holds the value, and the statement would be prepared anew for each.
    """
    connection.adapters.register_dumper(int, Int8BinaryDumper)
    connection.adapters.register_dumper(BigintArray, _BigintArrayDumper)
    connection.adapters.register_dumper(ByteaArray, _ByteaArrayDumper)
    connection.adapters.register_dumper(TextArray, _TextArrayDumper)
