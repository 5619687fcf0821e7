"""Presence over REST."""

from __future__ import annotations

from keepstep.model import Capability
from keepstep.protocol.messages import Ping, Presence
from keepstep.rest.account import format_device_id
from tests.support.events import NOW_MS, DeviceFixture
from tests.support.rest import site


async def test_who_is_here_is_told_to_the_users_devices_only() -> None:
    """Sealed states, by device; another user's devices see an empty list."""
    async with site() as here:
        phone, laptop = await here.parts.register("alice", "phone", "laptop")
        (tablet,) = await here.parts.register("bob", "tablet")
        async with here.parts.running() as nursery:
            for device in (phone, laptop):
                session = await here.parts.connect(nursery, device)
                await session.send(Presence(b"\x01\x02\x03"), Ping(1))
                await session.receive()
            answer = await here.http.get("/api/v1/presence", headers=await here.token(phone))
            others = await here.http.get("/api/v1/presence", headers=await here.token(tablet))
    ids = sorted(format_device_id(device.device_id) for device in (phone, laptop))
    assert answer.json() == {
        "devices": [{"device_id": each, "sealed": "AQID", "at_ms": NOW_MS} for each in ids],
    }
    assert others.json() == {"devices": []}


async def test_a_device_that_only_writes_is_not_told_who_is_here() -> None:
    """As in a session."""
    async with site() as here:
        (phone,) = await here.parts.register("alice")
        sensor = DeviceFixture(phone.user, "sensor", capabilities=Capability.PUBLISH)
        await here.parts.enrol(phone, sensor)
        answer = await here.http.get("/api/v1/presence", headers=await here.token(sensor))
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
