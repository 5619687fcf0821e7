"""What is left of sessions that are over."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from keepstep.errors import Unavailable
from keepstep.protocol.messages import Bye, DevicesChanged, encode
from tests.support.events import NOW_MS
from tests.support.logs import acks_of
from tests.support.parts import SERVER_KEY, Parts
from tests.support.wire import WireDevice, closing_reason


async def test_a_device_that_left_before_it_came_back_replaced_nobody() -> None:
    """Its session that is over is still being cleared away: bad networks do not make a device a clone."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    async with parts.running() as nursery:
        await parts.connect(nursery, phone)
        (session,) = parts.gateway._sessions
        session.end(None)
        parts.gateway._take_place(session.principal, 2)
    assert not parts.gateway._replaced


@pytest.mark.parametrize("rests", [True, False])
async def test_a_session_that_ends_while_ready_is_on_its_way_is_cleared_away(rests: bool) -> None:
    """It may be long: a device that takes nothing does not keep its connection by that."""
    parts = Parts(rests=rests)
    (phone,) = await parts.register("alice")
    async with parts.running() as nursery:
        connection = parts.serve(nursery)
        send = connection.send

        async def end_before_ready(messages: Sequence[bytes]) -> None:
            for session in parts.gateway._sessions:
                session.revoke(encode(DevicesChanged(1)))
            await send(messages)

        connection.send = end_before_ready  # type: ignore[method-assign]
        session = await WireDevice.connect(phone, connection, SERVER_KEY)
        assert await session.receive() == DevicesChanged(1)
        assert await closing_reason(session.receive) == "revoked"
        await trio.testing.wait_all_tasks_blocked()
        assert parts.gateway.sessions == 0
    (row,) = parts.database.sessions.values()
    assert row.closed == (NOW_MS, "revoked")


async def test_a_ready_that_waits_for_the_device_has_the_time_of_the_handshake() -> None:
    """Nothing was sent before it whose time could be over."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    async with parts.running() as nursery:
        connection = parts.serve(nursery)
        send = connection.send

        async def look_before_ready(messages: Sequence[bytes]) -> None:
            connection.backlog_bytes = 1
            for session in parts.gateway._sessions:
                session.check_timeouts()
                assert not session.is_over
            connection.backlog_bytes = 0
            await send(messages)

        connection.send = look_before_ready  # type: ignore[method-assign]
        session = await WireDevice.connect(phone, connection, SERVER_KEY)
        await session.send(Bye())
        assert await closing_reason(session.receive) == ""


async def test_the_memory_of_replacements_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it the devices that replaced themselves longest ago are forgotten."""
    monkeypatch.setattr("keepstep.gateway.REPLACED_DEVICES_MAX", 1)
    parts = Parts()
    async with parts.running() as nursery:
        for name in ("alice", "bob"):
            (phone,) = await parts.register(name)
            await parts.connect(nursery, phone)
            await parts.connect(nursery, phone, nonce="again")
    assert len(parts.gateway._replaced) == 1


async def test_an_end_is_recorded_where_positions_cannot_be_saved() -> None:
    """Else the session would be remembered as open for as long as the server runs."""
    parts = Parts()
    (phone,) = await parts.register("alice")

    async def refuse(*_arguments: object) -> None:
        await trio.lowlevel.checkpoint()
        raise Unavailable

    parts.accounts.save_acks = refuse  # type: ignore[method-assign,assignment]
    async with parts.running() as nursery:
        session = await parts.connect(nursery, phone)
        await session.subscribe("notes")
        await session.publish(phone.event("notes"))
        await session.receive_events("notes", 1)
        await session.send(Bye())
        assert await closing_reason(session.receive) == ""
    (row,) = parts.database.sessions.values()
    assert row.closed == (NOW_MS, "bye")


async def test_positions_in_a_log_that_was_are_not_saved_in_the_one_that_is() -> None:
    """The device would be told to go on above what was restored."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    principal = await parts.principal(phone)
    async with parts.running() as nursery:
        session = await parts.connect(nursery, phone)
        await session.subscribe("notes")
        await session.publish(phone.event("notes"))
        await session.receive_events("notes", 1)
        await trio.testing.wait_all_tasks_blocked()
        parts.database.generation += 1
        await parts.log.streams(principal.user_pk)  # asked once, the log knows that it is another one
        await parts.gateway.save_acks()
    assert await acks_of(parts.log, principal) == {}
