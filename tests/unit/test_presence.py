"""Presence and signals between the sessions of one user, over the parts of a server."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
import trio.testing

from keepstep import presence
from keepstep.errors import ProtocolError
from keepstep.model import Capability
from keepstep.presence import PRESENCE_INTERVAL_S, PRESENCES_PER_MESSAGE_MAX, SIGNALS_BURST, SIGNALS_PER_S
from keepstep.protocol.messages import (
    Bye,
    Error,
    Ping,
    Pong,
    Presence,
    PresenceFrom,
    Signal,
    SignalFrom,
    Signalled,
)
from keepstep.session import REPLIES_MAX
from tests.support.events import NOW_MS, DeviceFixture
from tests.support.parts import Parts
from tests.support.wire import MemoryConnection, WireDevice, closing_reason

if TYPE_CHECKING:
    from keepstep.presence import PresentDevice

HERE: Final = b"here"
BACK: Final = b"back"


async def settled(session: WireDevice) -> list[Any]:
    """What a session is sent until an answer to a ping comes back."""
    await trio.testing.wait_all_tasks_blocked()
    await session.send(Ping(99))
    messages = []
    while (message := await session.receive()) != Pong(99):
        messages.append(message)
    return messages


async def present(parts: Parts, device: DeviceFixture) -> list[PresentDevice]:
    """Who of a user is here."""
    return parts.presences.present((await parts.principal(device)).user_key)


async def leave(session: WireDevice) -> None:
    """Say bye, and wait until the server has closed."""
    await session.send(Bye())
    assert await closing_reason(session.receive) == ""


# -- presence -------------------------------------------------------------------------------------------------------


async def test_a_state_is_told_to_the_users_other_devices() -> None:
    """Not to the one that told it."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    async with parts.running() as nursery:
        one, other = await parts.connect(nursery, phone), await parts.connect(nursery, laptop)
        await one.send(Presence(HERE))
        assert await settled(one) == []
        assert await settled(other) == [PresenceFrom([(phone.device_id, HERE, NOW_MS)])]


async def test_a_new_session_is_told_who_is_there() -> None:
    """The latest state of each, without asking; nothing of those that told none."""
    parts = Parts()
    phone, laptop, _watch = await parts.register("alice", "phone", "laptop", "watch")
    async with parts.running() as nursery:
        one = await parts.connect(nursery, phone)
        await one.send(Presence(HERE))
        await settled(one)
        other = await parts.connect(nursery, laptop)
        assert await settled(other) == [PresenceFrom([(phone.device_id, HERE, NOW_MS)])]


async def test_states_that_follow_fast_are_told_once_a_second(autojump_clock: trio.testing.MockClock) -> None:
    """The first at once; of the others the last one, when the second is over."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    async with parts.running() as nursery:
        one, other = await parts.connect(nursery, phone), await parts.connect(nursery, laptop)
        await one.send(Presence(b"1"))
        assert await other.receive() == PresenceFrom([(phone.device_id, b"1", NOW_MS)])
        told_s = trio.current_time()
        for state in (b"2", b"3", b"4"):
            await one.send(Presence(state))
        assert await other.receive() == PresenceFrom([(phone.device_id, b"4", NOW_MS)])
        assert trio.current_time() == pytest.approx(told_s + PRESENCE_INTERVAL_S)
        await trio.sleep(10 * PRESENCE_INTERVAL_S)
        assert await settled(other) == []


async def test_a_device_whose_session_ends_is_away(autojump_clock: trio.testing.MockClock) -> None:
    """The others are told, and nobody finds it there any more."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    async with parts.running() as nursery:
        one, other = await parts.connect(nursery, phone), await parts.connect(nursery, laptop)
        await one.send(Presence(HERE))
        await other.receive()
        await leave(one)
        assert await other.receive() == PresenceFrom([(phone.device_id, None, NOW_MS)])
        assert await present(parts, phone) == []


async def test_a_device_that_connects_again_begins_without_a_state(autojump_clock: trio.testing.MockClock) -> None:
    """What its earlier session told is gone; that session's end takes nothing from the new one."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    async with parts.running() as nursery:
        first, other = await parts.connect(nursery, phone), await parts.connect(nursery, laptop)
        await first.send(Presence(HERE))
        await other.receive()
        second = await parts.connect(nursery, phone)
        assert await closing_reason(first.receive) == "replaced"
        assert await other.receive() == PresenceFrom([(phone.device_id, None, NOW_MS)])
        await second.send(Presence(BACK))
        assert await other.receive() == PresenceFrom([(phone.device_id, BACK, NOW_MS)])
        assert [device.sealed for device in await present(parts, phone)] == [BACK]


async def test_a_session_that_was_replaced_announces_nothing() -> None:
    """The device's place is its new session's."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    principal = await parts.principal(phone)
    old = parts.presences.join(principal, wake=lambda: None, offer=lambda _: True)
    new = parts.presences.join(principal, wake=lambda: None, offer=lambda _: True)
    old.announce(HERE)
    assert await present(parts, phone) == []
    parts.presences.leave(old)
    new.announce(BACK)
    assert [device.sealed for device in await present(parts, phone)] == [BACK]
    parts.presences.leave(new)
    assert parts.presences.users == 0


async def test_presence_stays_within_its_user() -> None:
    """Same names, same moment: bob is told nothing of alice's devices."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    (tablet,) = await parts.register("bob", "tablet")
    async with parts.running() as nursery:
        one, other = await parts.connect(nursery, phone), await parts.connect(nursery, tablet)
        await one.send(Presence(HERE))
        await settled(one)
        assert await settled(other) == []
        assert await present(parts, tablet) == []


@pytest.mark.parametrize(("capabilities", "sees", "tells"), [(Capability.PUBLISH, 0, 1), (Capability.SUBSCRIBE, 1, 0)])
async def test_telling_takes_publish_and_being_told_takes_subscribe(
    capabilities: Capability, sees: int, tells: int
) -> None:
    """As with events."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    sensor = DeviceFixture(phone.user, "sensor", capabilities=capabilities)
    await parts.enrol(phone, sensor)
    async with parts.running() as nursery:
        one, other = await parts.connect(nursery, phone), await parts.connect(nursery, sensor)
        await one.send(Presence(HERE))
        await settled(one)
        assert len([each for each in await settled(other) if isinstance(each, PresenceFrom)]) == sees
        await other.send(Presence(HERE))
        answers = await settled(other)
        assert len([each for each in await settled(one) if isinstance(each, PresenceFrom)]) == tells
        assert answers == ([] if tells else [Error(None, "forbidden", None)])


async def test_many_states_come_in_several_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that each message stays small."""
    monkeypatch.setattr(presence, "PRESENCES_PER_MESSAGE_MAX", 2)
    assert PRESENCES_PER_MESSAGE_MAX > 2
    parts = Parts()
    devices = await parts.register("alice", "phone", "laptop", "watch", "tablet")
    async with parts.running() as nursery:
        for device in devices[:3]:
            session = await parts.connect(nursery, device)
            await session.send(Presence(HERE))
            await settled(session)
        sizes = [len(each.devices) for each in await settled(await parts.connect(nursery, devices[3]))]
        assert sizes == [2, 1]


async def test_what_is_due_for_a_user_who_left_is_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    """Also where the user has come back before it was due."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    principal = await parts.principal(phone)

    def visit() -> None:
        session = parts.presences.join(principal, wake=lambda: None, offer=lambda _: True)
        session.announce(b"1")
        session.announce(b"2")
        parts.presences.leave(session)

    async with parts.running():
        visit()
        await trio.sleep(2 * PRESENCE_INTERVAL_S)
        visit()
        session = parts.presences.join(principal, wake=lambda: None, offer=lambda _: True)
        await trio.sleep(2 * PRESENCE_INTERVAL_S)
        assert await present(parts, phone) == []
        parts.presences.leave(session)
    assert parts.presences.users == 0


# -- signals --------------------------------------------------------------------------------------------------------


async def test_a_signal_reaches_the_named_device_only() -> None:
    """And the one that sent it is told that it was handed on."""
    parts = Parts()
    devices = await parts.register("alice", "phone", "laptop", "watch")
    async with parts.running() as nursery:
        one, other, third = [await parts.connect(nursery, device) for device in devices]
        await one.send(Signal(7, devices[1].device_id, b"sealed"))
        assert await one.receive() == Signalled(7)
        assert await other.receive() == SignalFrom(devices[0].device_id, b"sealed")
        assert await settled(third) == []


async def test_a_signal_to_nobody_who_is_here_is_answered_device_away() -> None:
    """Not connected, unknown, another user's, or not one that reads: the answer tells none from the others."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    sensor = DeviceFixture(phone.user, "sensor", capabilities=Capability.PUBLISH)
    await parts.enrol(phone, sensor)
    (tablet,) = await parts.register("bob", "tablet")
    async with parts.running() as nursery:
        one = await parts.connect(nursery, phone)
        await parts.connect(nursery, tablet)
        await parts.connect(nursery, sensor)
        for rid, to in enumerate([laptop.device_id, bytes(16), tablet.device_id, sensor.device_id]):
            await one.send(Signal(rid, to, b"sealed"))
            assert await one.receive() == Error(rid, "device_away", None)


async def test_a_device_without_publish_sends_no_signals() -> None:
    """As with events."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    reader = DeviceFixture(phone.user, "reader", capabilities=Capability.SUBSCRIBE)
    await parts.enrol(phone, reader)
    async with parts.running() as nursery:
        session = await parts.connect(nursery, reader)
        await session.send(Signal(1, phone.device_id, b"sealed"))
        assert await session.receive() == Error(1, "forbidden", None)


async def test_a_session_that_signals_too_often_is_told_when_to_go_on(autojump_clock: trio.testing.MockClock) -> None:
    """A burst, then so many a second."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    async with parts.running() as nursery:
        one, other = await parts.connect(nursery, phone), await parts.connect(nursery, laptop)
        signal = Signal(1, laptop.device_id, b"")
        for _ in range(SIGNALS_BURST):
            await one.send(signal)
            assert await one.receive() == Signalled(1)
        await one.send(signal)
        refused = await one.receive()
        assert refused == Error(1, "rate_limited", int(1000 / SIGNALS_PER_S) + 1)
        await trio.sleep(1 / SIGNALS_PER_S)
        await one.send(signal)
        assert await one.receive() == Signalled(1)
        assert len([each for each in await settled(other) if isinstance(each, SignalFrom)]) == SIGNALS_BURST + 1


async def test_a_device_that_takes_nothing_is_not_sent_signals_without_end() -> None:
    """What waits for it is bounded; then it counts as away, as does one whose session is over."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    async with parts.running() as nursery:
        device = await parts.connect(nursery, laptop)
        assert isinstance(device.end, MemoryConnection)
        device.end.stuck = True
        session = parts.presences.session_of((await parts.principal(phone)).user_key, laptop.device_id)
        assert session is not None
        taken = 0
        while session.offer(b"message"):
            taken += 1
            if taken == 1:
                await trio.testing.wait_all_tasks_blocked()  # the writer has taken it, and is stuck with it
        assert taken == REPLIES_MAX + 1
        parts.gateway.sessions_of((await parts.principal(phone)).user_pk)[0].end(None)
        assert not session.offer(b"message")


async def test_a_session_of_a_log_that_was_is_nothing_to_the_users_of_the_one_that_is() -> None:
    """Row numbers are given out again there, so they do not say who is whose."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    before = [await parts.principal(device) for device in (phone, laptop)]
    was, is_now = before[0], replace(before[1], user_key=bytes(32))
    sessions = [parts.presences.join(each, wake=lambda: None, offer=lambda _: True) for each in (was, is_now)]
    for session in sessions:
        session.announce(HERE)
    assert [session.pull() for session in sessions] == [[], []]
    assert [each.device_id for each in parts.presences.present(phone.user.user_key)] == [phone.device_id]
    with pytest.raises(ProtocolError, match="device_away"):
        sessions[1].signal(phone.device_id, HERE)
    for session in sessions:
        parts.presences.leave(session)
    assert parts.presences.users == 0
