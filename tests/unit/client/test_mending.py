"""Answers after which an event is signed anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import msgspec
from trio.testing import MockClock

from keepstep.client import open_device
from keepstep.protocol.event import decode_header
from keepstep.protocol.messages import Accepted, Publish, ResultError
from tests.support.device_server import DeviceServer

if TYPE_CHECKING:
    from msgspec import Struct

STREAM = "notes"


def is_note(message: object) -> TypeGuard[Publish]:
    """Whether a message publishes into the tests' stream."""
    if not isinstance(message, Publish):
        return False
    events: list[Any] = msgspec.msgpack.decode(message.events)
    return decode_header(events[0][0]).stream == STREAM


async def test_an_event_that_knows_more_than_the_server_is_signed_anew(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """The server was set back behind what its author had seen: the same bytes would never be taken."""
    refused: list[Publish] = []

    def refuse_once(_end: object, message: object) -> list[Struct] | None:
        if not is_note(message) or refused:
            return None
        refused.append(message)
        return [Accepted(message.rid, [ResultError("unknown_position", [])])]

    server.answer = refuse_once
    async with open_device(server.new_user(tmp_path), environment=server.environment) as device:
        receipt = await (await device.publish(STREAM, b"1")).accepted()
        assert (receipt.n, receipt.seq, len(refused)) == (1, 1, 1)
        assert await device.alarms() == []


async def test_a_server_that_never_knows_what_its_devices_know_ends_the_session(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """The event stays in the outbox, and goes out once the server knows them."""

    def refuse(_end: object, message: object) -> list[Struct] | None:
        return [Accepted(message.rid, [ResultError("unknown_position", [])])] if is_note(message) else None

    server.answer = refuse
    async with open_device(server.new_user(tmp_path), environment=server.environment) as device:
        await device.wait_until_ready()
        publication = await device.publish(STREAM, b"1")
        while "does not know the streams" not in device.last_problem:
            await device.wait_for_problem(device.last_problem)
        assert device.failure is None
        server.answer = lambda _end, _message: None
        assert (await publication.accepted()).seq == 1
