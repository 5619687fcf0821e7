"""What the tests of ingest share: a device as the server knows it, heads, and the rows of a COPY stream."""

from __future__ import annotations

from typing import Final

from keepstep import _keepstep
from keepstep.model import Capability, DevicePk, Principal, UserPk
from tests.support.events import FULL, NOW_MS, DeviceFixture, UserFixture

USER_PK: Final = 7
STREAM_PK: Final = 3


def principal(device: DeviceFixture, number: int = 1, capabilities: Capability = FULL) -> Principal:
    """The device as the server knows it once it proved itself."""
    return Principal(
        user_pk=UserPk(USER_PK),
        user_key=device.user.user_key,
        device_pk=DevicePk(number),
        device_id=device.device_id,
        device_key=device.device_key,
        capabilities=capabilities,
        expires_at_ms=None,
    )


def new_head(
    user: UserFixture, name: str, *, stream_pk: int = STREAM_PK, retention_class: int = 1
) -> _keepstep.StreamHead:
    """A stream without events."""
    return _keepstep.StreamHead.create(
        user_pk=USER_PK,
        user_key=user.user_key,
        stream_pk=stream_pk,
        name=name,
        retention_class=retention_class,
        auth_epoch=0,
    )


def ingest(
    *submissions: _keepstep.Submission, heads: list[_keepstep.StreamHead], now_ms: int = NOW_MS
) -> _keepstep.Ingested:
    """Ingest a batch of user ``USER_PK``."""
    return _keepstep.ingest(submissions, {(USER_PK, head.name): head for head in heads}, now_ms=now_ms)


def copied_rows(stream: bytes) -> list[list[bytes | None]]:
    """The rows of a binary COPY stream, column by column."""
    assert stream.startswith(b"PGCOPY\n\xff\r\n\0" + bytes(8))
    at = 19
    rows = []
    while (columns := int.from_bytes(stream[at : at + 2], "big", signed=True)) != -1:
        at += 2
        row: list[bytes | None] = []
        for _ in range(columns):
            length = int.from_bytes(stream[at : at + 4], "big", signed=True)
            at += 4
            row.append(stream[at : at + length] if length >= 0 else None)
            at += max(length, 0)
        rows.append(row)
    assert stream[at:] == b"\xff\xff"
    return rows
