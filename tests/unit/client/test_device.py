"""A device against a server in memory: publishing, reading, enrolling."""

from __future__ import annotations

from pathlib import Path

from trio.testing import MockClock

from keepstep.client import open_device
from tests.support.device_server import DeviceServer


async def test_an_event_travels_from_one_device_to_another(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """What one device publishes another one has, with its place and its author."""
    first = server.new_user(tmp_path)
    async with open_device(first, environment=server.environment) as laptop:
        await laptop.enrol(tmp_path / "phone.sqlite3", "phone")
        receipt = await (await laptop.publish("notes", b"hello")).accepted()
        assert (receipt.stream, receipt.n, receipt.seq, receipt.received_at_ms) == ("notes", 1, 1, server.now_ms)
        async with open_device(tmp_path / "phone.sqlite3", environment=server.environment) as phone:
            event = await anext(await phone.subscribe("notes"))
    assert (event.seq, event.data, event.problem, event.device_id) == (1, b"hello", None, laptop.identity.device_id)
