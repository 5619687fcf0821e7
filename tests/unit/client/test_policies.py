"""What an application asks of a stream beyond adding to it, against a server in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from trio.testing import MockClock

from keepstep.client import ClientError, Device, Event, open_device
from keepstep.model import Kind, Policy
from keepstep.protocol.event import Header, decode_header
from keepstep.protocol.policy import decode_policy
from tests.support.device_server import DeviceServer

STREAM = "notes"


@asynccontextmanager
async def opened(server: DeviceServer, path: Path) -> AsyncIterator[Device]:
    """A device that is connected and ready."""
    async with open_device(path, environment=server.environment) as device:
        await device.wait_until_ready()
        yield device


def header(server: DeviceServer, seq: int) -> Header:
    """As signed."""
    return decode_header(server.streams[STREAM].rows[seq - 1][3])


async def read(device: Device, count: int) -> list[Event]:
    """The first events."""
    subscription = await device.subscribe(STREAM)
    return [await anext(subscription) for _ in range(count)]


async def test_what_an_event_builds_on_is_signed(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """Nothing, a position, or the device's own event before it."""
    async with opened(server, server.new_user(tmp_path)) as laptop:
        await (await laptop.publish(STREAM, b"1")).accepted()
        await laptop.wait_until_caught_up(STREAM)
        at = laptop.position(STREAM)
        await (await laptop.publish(STREAM, b"2", expects=at)).accepted()
        await (await laptop.publish(STREAM, b"3", expects="own")).accepted()
        assert [header(server, seq).base for seq in (1, 2, 3)] == [None, (1, at.chain), 2]


async def test_a_policy_is_an_event_that_subscriptions_pass_over(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """Seqs go on: what an application reads has a gap there."""
    async with opened(server, server.new_user(tmp_path)) as laptop:
        await (await laptop.set_policy(STREAM, Policy.FORK, ttl_max_s=60, stream_bytes_max=9_000)).accepted()
        await (await laptop.publish(STREAM, b"1", ttl_s=60)).accepted()
        payload = decode_policy(server.streams[STREAM].rows[0][5] or b"")
        assert (payload.policy, payload.ttl_max_s, header(server, 1).kind) == (Policy.FORK, 60, Kind.POLICY)
        assert payload.stream_bytes_max == 9_000
        (event,) = await read(laptop, 1)
        assert (event.seq, event.data, event.concurrent_with) == (2, b"1", (1, 1))


async def test_only_a_device_that_manages_sets_a_policy(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """The others are told who may."""
    async with opened(server, server.new_user(tmp_path)) as laptop:
        await laptop.enrol(tmp_path / "phone.sqlite3", "phone")
    async with opened(server, tmp_path / "phone.sqlite3") as phone:
        with pytest.raises(ClientError, match="phone may not set policies: laptop may"):
            await phone.set_policy(STREAM, Policy.LATEST)


async def test_what_is_erased_is_gone_from_this_device_too(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """Its place stays, and says why there is nothing."""
    async with opened(server, server.new_user(tmp_path)) as laptop:
        for publication in await laptop.publish_many(STREAM, [b"1", b"2", b"3"]):
            await publication.accepted()
        events = await read(laptop, 3)
        await (await laptop.erase(STREAM, events[:2])).accepted()
        await laptop._until(lambda: laptop.position(STREAM).seq == 4)
        assert [(event.data, event.problem) for event in await read(laptop, 3)] == [
            (None, "erased"),
            (None, "erased"),
            (b"3", None),
        ]
        stored = laptop._store.rows("SELECT payload FROM events WHERE stream = ? AND seq < 3", STREAM)
        assert stored == [(None,), (None,)]


async def test_an_erasure_that_cannot_be_is_refused(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """Before it takes a number."""
    async with opened(server, server.new_user(tmp_path)) as laptop:
        await (await laptop.publish(STREAM, b"1")).accepted()
        events = await read(laptop, 1)
        with pytest.raises(ClientError, match="names 1 to 1024 events, not 0"):
            await laptop.erase(STREAM, [])
        with pytest.raises(ClientError, match="names 1 to 1024 events, not 1025"):
            await laptop.erase(STREAM, events * 1025)
        with pytest.raises(ClientError, match="an event of notes is not erased in others"):
            await laptop.erase("others", events)


@pytest.mark.parametrize("name", ["$devices", "$inbox/00", "$mine"])
async def test_reserved_names_are_not_published_into(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, name: str
) -> None:
    """Whatever the event is."""
    async with opened(server, server.new_user(tmp_path)) as laptop:
        with pytest.raises(ClientError, match="is reserved"):
            await laptop.publish(name, b"1")
        with pytest.raises(ClientError, match="is reserved"):
            await laptop.set_policy(name, Policy.LATEST)
