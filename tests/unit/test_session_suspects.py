"""A session whose device sends bad signatures: it waits, what others send does not."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
import trio
import trio.testing

from keepstep.protocol.messages import Accepted, Draining, Error, Ping, Pong, Publish
from keepstep.suspects import DEVICE_BURST, DEVICE_PER_S, REMEMBERED_S, WAIT_MAX_S
from tests.support.alice import Alice
from tests.support.events import DeviceFixture, SignedEvent, wire_events
from tests.support.parts import Parts
from tests.support.wire import WireDevice, closing_reason

EVENTS = 16
"""In one publish."""


def forged(device: DeviceFixture, count: int = EVENTS) -> list[SignedEvent]:
    """Events with bad signatures, which take no number."""
    return [replace(device.sign("notes", b"x", n=1, prev=bytes(16)), sig=bytes(64))] * count


def forged_publish(device: DeviceFixture, rid: int, count: int = EVENTS) -> Publish:
    """A publish of them."""
    return Publish(rid, msgspec.Raw(wire_events(*forged(device, count))))


async def use_up(session: WireDevice, device: DeviceFixture) -> None:
    """Send what is free, and no more."""
    for _ in range(int(DEVICE_BURST) // EVENTS):
        refused = await session.publish(*forged(device))
        assert {each.code for each in refused} == {"bad_signature"}


async def test_after_its_burst_each_publish_waits_for_what_the_last_cost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """So a flood is verified at the rate of a trickle; each publish is answered, in order."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await use_up(session, alice.phone)
        started_s = trio.current_time()
        await session.send(*(forged_publish(alice.phone, rid) for rid in (101, 102, 103)))
        answers = [await session.expect(Accepted) for _ in range(3)]
        assert [answer.rid for answer in answers] == [101, 102, 103]
        # One for the first to go at all, then what the first and the second cost.
        assert trio.current_time() - started_s == pytest.approx((1 + 2 * EVENTS) / DEVICE_PER_S, abs=0.1)


async def test_another_device_does_not_wait_for_it(autojump_clock: trio.testing.MockClock) -> None:
    """Also not one of the same user."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    async with parts.running() as nursery:
        flooding, honest = await parts.connect(nursery, phone), await parts.connect(nursery, laptop)
        await use_up(flooding, phone)
        await flooding.send(forged_publish(phone, 101))
        started_s = trio.current_time()
        for _ in range(20):
            (accepted,) = await honest.publish(laptop.event("notes"))
            assert accepted.count == 1
        assert trio.current_time() == started_s


async def test_another_connection_is_the_same_device(autojump_clock: trio.testing.MockClock) -> None:
    """Reconnecting does not fill its bucket."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        await use_up(await alice.connect(nursery), alice.phone)
        again = await alice.parts.connect(nursery, alice.phone)
        started_s = trio.current_time()
        await again.publish(*forged(alice.phone))
        assert trio.current_time() - started_s == pytest.approx(1 / DEVICE_PER_S, abs=0.01)


async def test_a_suspect_has_one_publish_verified_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    """What it sent at once is charged before the next of it costs anything; a device that is not sends on."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await session.publish(*forged(alice.phone, 1))
        append, opened, batches = alice.parts.log.append, trio.Event(), []

        async def watched(batch, **keywords):  # type: ignore[no-untyped-def]
            batches.append(len(batch))
            await opened.wait()
            return await append(batch, **keywords)

        alice.parts.log.append = watched  # type: ignore[method-assign]
        await session.send(*(forged_publish(alice.phone, rid, 1) for rid in range(101, 105)))
        await trio.testing.wait_all_tasks_blocked()
        opened.set()
        for rid in range(101, 105):
            assert (await session.expect(Accepted)).rid == rid
        assert batches == [1, 1, 1, 1]


async def test_what_a_suspect_signs_well_is_accepted(autojump_clock: trio.testing.MockClock) -> None:
    """It waits, and then it is as anybody's."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await use_up(session, alice.phone)
        started_s = trio.current_time()
        for _ in range(10):
            (accepted,) = await session.publish(alice.phone.event("notes"))
            assert accepted.count == 1
        assert trio.current_time() - started_s == pytest.approx(1 / DEVICE_PER_S, abs=0.01)


async def test_a_device_that_mends_its_ways_is_as_any_other(autojump_clock: trio.testing.MockClock) -> None:
    """Within its session, after a while."""
    alice = Alice(idle_timeout_s=2 * REMEMBERED_S)
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await session.publish(*forged(alice.phone, 1))
        served = next(iter(alice.parts.gateway._sessions))
        await session.publish(alice.phone.event("notes"))
        assert served._suspect
        await trio.sleep(REMEMBERED_S)
        await session.publish(alice.phone.event("notes"))
        assert not served._suspect


async def test_a_device_that_waits_is_not_idle(autojump_clock: trio.testing.MockClock) -> None:
    """Nothing is read of it meanwhile, so what it says is not missed."""
    alice = Alice(idle_timeout_s=1)
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        for _ in range(20):
            await session.send(forged_publish(alice.phone, 101))
        await session.send(Ping(7))
        while not isinstance(answer := await session.receive(), Pong):
            assert isinstance(answer, Accepted)
        assert answer == Pong(7)
        assert trio.current_time() > 1


async def test_a_server_that_goes_down_does_not_wait_for_it(autojump_clock: trio.testing.MockClock) -> None:
    """The session ends at once."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await use_up(session, alice.phone)
        await session.publish(*forged(alice.phone))
        await session.send(forged_publish(alice.phone, 101))
        await trio.testing.wait_all_tasks_blocked()
        started_s = trio.current_time()
        await alice.parts.gateway.drain()
        assert isinstance(await session.receive(), Draining)
        assert await closing_reason(session.receive) == "draining"
        assert trio.current_time() - started_s < WAIT_MAX_S / 4


async def test_a_refusal_after_a_wait_is_told(autojump_clock: trio.testing.MockClock) -> None:
    """As without one: events that are none."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await use_up(session, alice.phone)
        oversized = msgspec.Raw(wire_events(*forged(alice.phone, EVENTS + 1)))
        await session.send(Publish(101, oversized), Ping(1))
        refused = await session.receive()
        assert isinstance(refused, Error)
        assert (refused.rid, refused.code) == (101, "too_large")
        assert await session.receive() == Pong(1)
