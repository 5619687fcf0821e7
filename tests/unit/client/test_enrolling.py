"""A device enrols another: what it needs for that, and what is left where the server refuses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from trio.testing import MockClock

from keepstep.client import Capability, ClientError, ProtocolError, open_device
from keepstep.protocol.messages import Accepted, Publish, ResultError
from tests.support.device_server import DeviceServer, ServerEnd

if TYPE_CHECKING:
    from msgspec import Struct

STREAM = "notes"


async def test_enrolment_needs_the_right_and_gives_reading(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, phone: Path
) -> None:
    """A device that may not manage cannot, and none is made that could not read the account."""
    other = laptop.with_name("other.sqlite3")
    async with open_device(phone, environment=server.environment) as device:
        with pytest.raises(ClientError, match="may not enrol"):
            await device.enrol(other, "other")
    async with open_device(laptop, environment=server.environment) as device:
        with pytest.raises(ClientError, match="has to read"):
            await device.enrol(other, "other", capabilities=Capability.PUBLISH)
        with pytest.raises(ClientError, match="exists already"):
            await device.enrol(phone, "phone")
        await device.enrol(other, "reader", capabilities=Capability.SUBSCRIBE)
    async with open_device(other, environment=server.environment) as device:
        await device.wait_until_ready()
        with pytest.raises(ClientError, match="may not publish"):
            await device.publish(STREAM, b"x")


async def test_a_refused_enrolment_leaves_no_file(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path
) -> None:
    """The server says no: there is no device that would never connect."""

    def refuse(end: ServerEnd, message: Any) -> list[Struct] | None:
        if not isinstance(message, Publish):
            return None
        events = msgspec.msgpack.decode(message.events)
        return [Accepted(message.rid, [ResultError("unsupported", []), *server.publish(end.device_id, events[1:])])]

    server.answer = refuse
    other = laptop.with_name("other.sqlite3")
    async with open_device(laptop, environment=server.environment) as device:
        with pytest.raises(ProtocolError, match="unsupported"):
            await device.enrol(other, "other")
    assert not other.exists()
