"""A device's records on raw sockets: what it seals, and what the server opens them with."""

from __future__ import annotations

from typing import Final

from keepstep._keepstep import RecordOpener, RecordReader, RecordSealer
from keepstep.interfaces import Records
from keepstep.protocol.session import REKEY_RECORDS
from tests.support.events import DeviceFixture, UserFixture, seed
from tests.support.websocket import frame

SECRET: Final = seed("a device's records")
OVERHEAD: Final = 16
"""Bytes that a record is longer than its message."""


def record_reader(
    device: DeviceFixture | None = None, *, opener: object = None, records_max: int = REKEY_RECORDS
) -> RecordReader:
    """A reader of a device with the row number 2 of user 1, at its first record under ``SECRET`` or with ``opener``."""
    device = device or DeviceFixture(UserFixture("alice"), "phone")
    opener = opener or RecordOpener(2, SECRET, b"")
    assert isinstance(opener, RecordOpener)
    return RecordReader(
        opener,
        user_pk=1,
        user_key=device.user.user_key,
        device_pk=2,
        device_id=device.device_id,
        device_key=device.device_key,
        capabilities=1,
        events_max=16,
        payload_bytes_max=1024,
        records_max=records_max,
    )


class Sealing:
    """Both ends' records of one connection; what the server writes goes as it is where ``sealer`` is ``None``.

    Attributes:
        records: the server's.
    """

    def __init__(self, sealer: RecordSealer | None = None) -> None:
        self._sealer = RecordSealer(2, SECRET, b"")
        self.records = Records(record_reader(), sealer)

    def seal(self, *messages: bytes) -> list[bytes]:
        """The device's next records."""
        return self._sealer.seal_many(messages)

    def frames(self, *messages: bytes) -> bytes:
        """The same, each in a frame."""
        return b"".join(frame(2, record) for record in self.seal(*messages))
