"""The rows that ingest writes, as the documented COPY format has them."""

from __future__ import annotations

import struct

import pytest

from keepstep._keepstep import StreamHead, ingest
from keepstep.memory.rows import EventRow, read_copy
from keepstep.model import DevicePk, Principal, UserPk
from tests.support.events import NOW_MS, DeviceFixture, UserFixture, submission

ADA = UserFixture("ada")


def test_rows_hold_what_was_signed_and_decided() -> None:
    """Column by column, with a payload that expires and one that does not."""
    device = DeviceFixture(ADA, "phone")
    principal = Principal(
        UserPk(7), ADA.user_key, DevicePk(5), device.device_id, device.device_key, device.capabilities, None
    )
    head = StreamHead.create(
        user_pk=7, user_key=ADA.user_key, stream_pk=3, name="notes", retention_class=1, auth_epoch=0
    )
    first, second = device.event("notes", b"goes", ttl_s=60), device.event("notes", b"stays")

    ingested = ingest([submission(principal, first, second)], {(7, "notes"): head}, now_ms=NOW_MS)
    rows = read_copy(ingested.copy_bytes(1))

    chain = ingested.moved[0][1].chain
    expected = [
        EventRow(7, 3, 1, NOW_MS, 5, 1, 0, NOW_MS + 60_000, first.header, first.sig, b"goes", rows[0].chain),
        EventRow(7, 3, 2, NOW_MS, 5, 2, 1, None, second.header, second.sig, b"stays", chain),
    ]
    assert rows == expected
    assert read_copy(ingested.copy_bytes(1, excluding=frozenset({(7, 3)}))) == []
    assert read_copy(ingested.copy_bytes(0)) == []


@pytest.mark.parametrize(
    "data",
    [
        b"PGCOPY\n\xff\r\n\1" + bytes(8) + b"\xff\xff",
        b"PGCOPY\n\xff\r\n\0" + bytes(8) + b"\xff\xff\0",
        b"PGCOPY\n\xff\r\n\0" + bytes(8) + struct.pack(">h", 11),
        b"PGCOPY\n\xff\r\n\0" + bytes(8) + struct.pack(">hi", 12, 8) + b"short",
    ],
)
def test_another_format_is_our_own_fault(data: bytes) -> None:
    """A wrong signature, bytes after the end, another number of columns, a row that was cut off."""
    with pytest.raises(AssertionError):
        read_copy(data)
