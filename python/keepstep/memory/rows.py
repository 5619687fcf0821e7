"""Rows of the event tables, read from the binary COPY format that ingest writes (PostgreSQL: COPY, "Binary Format")."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, cast

_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0"
_HEADER_BYTES: Final = len(_SIGNATURE) + 8
"""The signature, then flags and the length of an extension, both 0."""
_END: Final = -1
_INTEGERS: Final = 8
"""The first columns are int8, the others bytea."""
_COLUMNS: Final = 12


@dataclass(frozen=True, slots=True)
class EventRow:
    """One stored event, columns as in the event tables; times in unix milliseconds."""

    user_pk: int
    stream_pk: int
    seq: int
    received_at_ms: int
    device_pk: int
    n: int
    author_prev_seq: int
    expires_at_ms: int | None
    header: bytes
    sig: bytes
    payload: bytes | None
    chain: bytes


def read_copy(data: bytes) -> list[EventRow]:
    """The rows of a whole binary COPY stream."""
    assert data.startswith(_SIGNATURE + bytes(8)), "not a binary COPY stream"
    rows = []
    offset = _HEADER_BYTES
    while (columns := struct.unpack_from(">h", data, offset)[0]) != _END:
        assert columns == _COLUMNS, columns
        offset += 2
        values: list[object] = []
        for column in range(columns):
            (size,) = struct.unpack_from(">i", data, offset)
            offset += 4
            if size < 0:
                values.append(None)
                continue
            value = data[offset : offset + size]
            assert len(value) == size, "a COPY stream that was cut off"
            values.append(int.from_bytes(value, "big", signed=True) if column < _INTEGERS else value)
            offset += size
        rows.append(EventRow(*cast("list[int]", values)))  # type: ignore[arg-type]
    assert offset + 2 == len(data), "bytes after the end of a COPY stream"
    return rows
