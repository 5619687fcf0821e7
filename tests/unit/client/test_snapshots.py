"""Snapshots, against a server in memory: what is written, what counts, and what a device starts from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from trio.testing import MockClock

from keepstep.client import ClientError, Device, ProtocolError, Subscription, open_device
from keepstep.client.http import Response
from keepstep.client.outbox import PAYLOAD_BYTES_MAX, Draft
from keepstep.model import Kind, Position
from keepstep.protocol.event import decode_header
from keepstep.protocol.snapshot import decode_snapshot, encode_erase, encode_snapshot
from tests.support.device_server import DeviceServer

STREAM = "notes"


@dataclass
class Listing:
    """What REST says of snapshots."""

    covers: Position | None = None
    problem: str | None = None


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> Listing:
    """REST in memory."""
    listing = Listing()

    class MemoryRest:
        async def request(self, _method: str, path: str) -> Response:
            assert path == f"/api/v1/snapshots?stream={STREAM}"
            if listing.problem is not None:
                body = {"code": listing.problem, "status": 404, "title": "", "type": ""}
                return Response(404, "application/problem+json", msgspec.json.encode(body))
            found: list[Any] = [{"covers": {"seq": 9, "chain": "00" * 32}, "confirmed": None}]
            if listing.covers is not None:
                at = {"seq": listing.covers.seq, "chain": listing.covers.chain.hex()}
                found.append({"covers": at, "confirmed": {"seq": 1}})
            return Response(200, "application/json", msgspec.json.encode({"snapshots": found}))

    monkeypatch.setattr(Device, "_rest_client", lambda _device: MemoryRest())
    return listing


@asynccontextmanager
async def opened(server: DeviceServer, path: Path) -> AsyncIterator[Device]:
    """A device that is connected and ready."""
    async with open_device(path, environment=server.environment) as device:
        await device.wait_until_ready()
        yield device


async def write(device: Device, *texts: bytes) -> None:
    """Publish, and wait until it is stored and read back."""
    receipts = [await each.accepted() for each in await device.publish_many(STREAM, texts)]
    await device.wait_until_caught_up(STREAM)
    await device._until(lambda: device.position(STREAM).seq >= (receipts[-1].seq or 0))


async def snapshot(device: Device, state: bytes, *, seq: int | None = None) -> int:
    """Write one and read it back; its seq."""
    receipt = await (await device.snapshot(STREAM, state, seq=seq)).accepted()
    await device._until(lambda: device.position(STREAM).seq >= (receipt.seq or 0))
    assert receipt.seq is not None
    return receipt.seq


async def confirm(device: Device, seq: int) -> None:
    """Confirm one and read it back."""
    receipt = await (await device.confirm(STREAM, seq)).accepted()
    await device._until(lambda: device.position(STREAM).seq >= (receipt.seq or 0))


async def rest(subscription: Subscription, count: int) -> list[bytes | None]:
    """What is given out next."""
    return [(await anext(subscription)).data for _ in range(count)]


async def test_a_snapshot_names_what_it_covers(autojump_clock: MockClock, server: DeviceServer, tmp_path: Path) -> None:
    """A position that this device has verified, and each author's last number there; the state is sealed."""
    async with opened(server, server.new_user(tmp_path)) as laptop:
        await laptop.enrol(tmp_path / "phone.sqlite3", "phone")
        await write(laptop, b"1", b"2")
        async with opened(server, tmp_path / "phone.sqlite3") as phone:
            await write(phone, b"3")
        await write(laptop, b"4")
        mine, theirs = laptop.identity.device_id, phone.identity.device_id
        whole, early = await snapshot(laptop, b"all of it"), await snapshot(laptop, b"two", seq=2)
        newest, older = await laptop.snapshots(STREAM)
        assert (newest.seq, newest.covers.seq, newest.state, newest.authors) == (early, 2, b"two", {mine: 2})
        assert (older.seq, older.covers.seq, older.authors) == (whole, 4, {mine: 3, theirs: 1})
        row = server.streams[STREAM].rows[whole - 1]
        assert decode_header(row[3]).kind == Kind.SNAPSHOT
        assert b"all of it" not in decode_snapshot(row[5] or b"").sealed


async def test_what_cannot_be_covered_is_refused(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """Nothing, what is not here, what is too large, and what this device began to read at its end."""
    async with opened(server, server.new_user(tmp_path)) as laptop:
        await laptop.enrol(tmp_path / "phone.sqlite3", "phone")
        with pytest.raises(ClientError, match="has read nothing"):
            await laptop.snapshot(STREAM, b"")
        await write(laptop, b"1")
        with pytest.raises(ClientError, match="does not hold notes at 7"):
            await laptop.snapshot(STREAM, b"", seq=7)
        with pytest.raises(ClientError, match="at most 262144 fit"):
            await laptop.snapshot(STREAM, server.environment.random_bytes(PAYLOAD_BYTES_MAX - 100))
        with pytest.raises(ClientError, match="no snapshot of notes at 1"):
            await laptop.confirm(STREAM, 1)
        async with opened(server, tmp_path / "phone.sqlite3") as phone:
            subscription = await phone.subscribe(STREAM, start="end")
            await phone.wait_until_caught_up(STREAM)
            await write(laptop, b"2")
            assert await rest(subscription, 1) == [b"2"]
            with pytest.raises(ClientError, match="from its beginning, nor from a snapshot"):
                await phone.snapshot(STREAM, b"")
            with pytest.raises(ClientError, match="stands for the beginning of notes"):
                await phone.subscribe(STREAM, start="snapshot")


async def test_a_snapshot_that_waits_is_sealed_anew(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """When an event before it is refused it gets another number, under which it opens."""
    async with opened(server, server.new_user(tmp_path)) as laptop:
        await write(laptop, b"1")
        server.unreachable = True
        server.close_all(None)
        await laptop.wait_until_disconnected()
        await laptop.publish(STREAM, b"2")
        waiting = await laptop.snapshot(STREAM, b"one")
        laptop._outbox.refuse(laptop._outbox.pending(skip=(), held=(), entries_max=1)[0])
        server.unreachable = False
        await waiting.accepted()
        await laptop._until(lambda: laptop.position(STREAM).seq == 2)
        assert [each.state for each in await laptop.snapshots(STREAM)] == [b"one"]


async def test_a_new_device_starts_from_a_confirmed_snapshot(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, listing: Listing
) -> None:
    """It reads from there only, then writes snapshots that know all authors."""
    async with opened(server, server.new_user(tmp_path)) as laptop:
        await laptop.enrol(tmp_path / "phone.sqlite3", "phone")
        await write(laptop, b"1", b"2")
        seq = await snapshot(laptop, b"two")
        await laptop.enrol(tmp_path / "watch.sqlite3", "watch")  # its enroller hands over how far it has read
        async with opened(server, tmp_path / "phone.sqlite3") as phone:
            await phone.wait_until_caught_up(STREAM)
            await confirm(phone, seq)
            begun = await phone.subscribe(STREAM, start="snapshot")
            assert begun.snapshot is not None  # one that holds the stream needs no server for that
            assert begun.snapshot.seq == seq
        await write(laptop, b"3")
        (made,) = await laptop.snapshots(STREAM)
        listing.covers = made.covers
        async with opened(server, tmp_path / "watch.sqlite3") as watch:
            subscription = await watch.subscribe(STREAM, start="snapshot", cursor="mine")
            assert subscription.snapshot == made
            assert made.confirmed_by == phone.identity.device_id
            assert await rest(subscription, 1) == [b"3"]
            await subscription.commit(5)
            await write(watch, b"4")
            assert (await watch.subscribe(STREAM, start="snapshot", cursor="mine")).snapshot is None
            assert (await watch.subscribe(STREAM, start="snapshot")).snapshot == made
            await snapshot(watch, b"four")
            mine = watch.identity.device_id
            authors = {laptop.identity.device_id: 4, phone.identity.device_id: 1, mine: 1}
            assert (await watch.snapshots(STREAM))[0].authors == authors


@pytest.mark.parametrize("problem", [None, "unknown_stream"])
async def test_without_a_confirmed_snapshot_reading_begins_with_the_first_event(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, listing: Listing, problem: str | None
) -> None:
    """As where there is no such stream yet."""
    listing.problem = problem
    async with opened(server, server.new_user(tmp_path)) as laptop:
        subscription = await laptop.subscribe(STREAM, start="snapshot")
        await write(laptop, b"1")
        assert (subscription.snapshot, await rest(subscription, 1)) == (None, [b"1"])


async def test_another_refusal_of_the_list_is_raised(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, listing: Listing
) -> None:
    """And nothing is followed."""
    listing.problem = "forbidden"
    async with opened(server, server.new_user(tmp_path)) as laptop:
        with pytest.raises(ProtocolError, match="forbidden"):
            await laptop.subscribe(STREAM, start="snapshot")
        assert STREAM not in laptop._follower.followed


async def test_the_server_alone_makes_no_snapshot(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, listing: Listing
) -> None:
    """It names a true position, where no confirmed snapshot begins: nothing is given out, also the next time."""
    async with opened(server, server.new_user(tmp_path)) as laptop:
        await laptop.enrol(tmp_path / "phone.sqlite3", "phone")
        await write(laptop, b"1")
        at = listing.covers = laptop.position(STREAM)
        seq = await snapshot(laptop, b"one", seq=at.seq)
        await confirm(laptop, seq)  # of its own: it counts only where there is no other device
        assert [each.confirmed_by for each in await laptop.snapshots(STREAM)] == [None]
    for _ in range(2):
        async with opened(server, tmp_path / "phone.sqlite3") as phone:
            with pytest.raises(ClientError, match="stands for the beginning of notes"):
                await phone.subscribe(STREAM, start="snapshot")


async def test_what_does_not_open_or_is_erased_is_no_snapshot(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """Nor what covers another history than this device's."""
    async with opened(server, server.new_user(tmp_path)) as laptop:
        await write(laptop, b"1")
        at = laptop.position(STREAM)
        authors = {laptop.identity.device_id: 1}
        for payload in (
            encode_snapshot(at, authors, b"not sealed"),
            encode_snapshot(Position(1, bytes(32)), authors, laptop._outbox._seal(STREAM, 3, b"state")),
        ):
            (publication,) = await laptop._publish([Draft(STREAM, payload, kind=Kind.SNAPSHOT)])
            await publication.accepted()
        seq = await snapshot(laptop, b"erased", seq=1)
        erasure = Draft(STREAM, encode_erase({laptop.identity.device_id: [seq]}), kind=Kind.ERASE)
        (publication,) = await laptop._publish([erasure])
        await publication.accepted()
        await laptop._until(lambda: laptop.position(STREAM).seq == seq + 1)
        assert await laptop.snapshots(STREAM) == []
