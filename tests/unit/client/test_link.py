"""Sessions one after the other: when a device connects again, when it does not, and what it waits for."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from keepstep.client import ClientError, ProtocolError, StoreError, connection, inbox, link, open_device
from keepstep.client.store import Store
from keepstep.errors import ERRORS
from keepstep.model import DEVICES_STREAM
from keepstep.protocol.messages import Error, Ping, Subscribe
from keepstep.protocol.session import ServerSession
from tests.support.device_server import DeviceServer


@pytest.fixture
async def path(server: DeviceServer, tmp_path: Path) -> Path:
    """A device's file."""
    return server.new_user(tmp_path)


async def test_waiting_times_double_up_to_a_limit(autojump_clock: MockClock, server: DeviceServer, path: Path) -> None:
    """So that many devices do not come back all at once, and none waits for ever."""
    server.unreachable = True
    times: list[float] = []
    honest = server.open_transport

    def note(url: str, tls: Any) -> Any:
        times.append(trio.current_time())
        return honest(url, tls)

    server.open_transport = note  # type: ignore[method-assign]
    async with open_device(path, environment=server.environment):
        await trio.sleep(400)
    waits = [round(later - earlier, 3) for earlier, later in pairwise(times)]
    assert waits[:7] == [1, 2, 4, 8, 16, 32, 60]
    assert set(waits[7:]) == {60}


async def test_a_good_session_makes_the_waiting_short_again(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """After failures and then a long session the next wait is the first one again."""
    server.unreachable = True
    async with open_device(path, environment=server.environment) as device:
        await trio.sleep(20)
        server.unreachable = False
        await device.wait_until_connected()
        await trio.sleep(60)
        server.close_all(None)
        began_s = trio.current_time()
        await device.wait_until_disconnected()
        await device.wait_until_connected()
        assert trio.current_time() - began_s == pytest.approx(1)


@pytest.mark.parametrize("code", sorted(row.close_code for row in ERRORS.values()))
async def test_a_close_code_says_whether_to_come_back(
    autojump_clock: MockClock, server: DeviceServer, path: Path, code: int
) -> None:
    """Below 4500 the device reconnects, from there on it does not soon, and says why.

    Where it is told that it was revoked it comes back once, to be shown the signed revocation.
    """
    async with open_device(path, environment=server.environment) as device:
        await device.wait_until_connected()
        server.close_all(code)
        await device.wait_until_disconnected()
        if code == ERRORS["revoked"].close_code:
            await device.wait_until_connected()
            server.close_all(code)
            await device.wait_until_disconnected()
        if code < link.FINAL_CLOSE_CODE:
            await device.wait_until_connected()
            assert device.failure is None
        else:
            with pytest.raises(ProtocolError) as caught:
                await device.wait_until_connected()
            assert caught.value.row.close_code == code
            with pytest.raises(ProtocolError):
                await device.publish("notes", b"1")


@pytest.mark.parametrize("code", sorted(row.close_code for row in ERRORS.values() if row.close_code >= 4500))
async def test_a_forged_close_code_keeps_nobody_away_for_good(
    autojump_clock: MockClock, server: DeviceServer, path: Path, code: int
) -> None:
    """It tries again within the next two hours, and goes on; a device that was replaced does not by itself."""
    async with open_device(path, environment=server.environment) as device:
        await device.wait_until_connected()
        for _ in range(2):  # revoked: the second time nothing has proved it
            server.close_all(code)
            await device.wait_until_disconnected()
            if code == ERRORS["revoked"].close_code and device.failure is None:
                await device.wait_until_connected()
                continue
            break
        told = device.failure
        assert isinstance(told, ProtocolError)
        began_s = trio.current_time()
        with trio.move_on_after(2 * link.FINAL_RETRY_S):
            while not device.connected:
                await device._source.changed().wait()
        if code == ERRORS["replaced"].close_code:
            assert (device.connected, device.failure, told.row.close_code) == (False, told, code)
        else:
            waited_s = trio.current_time() - began_s
            assert link.FINAL_RETRY_S <= waited_s <= link.FINAL_RETRY_S + link.FINAL_RETRY_JITTER_S
            assert device.failure is None
            await (await device.publish("notes", b"1")).accepted()
            assert device._keeper._look_again_s > began_s + waited_s  # and what it owes other devices is looked after


async def test_a_server_may_say_when_to_come_back(autojump_clock: MockClock, server: DeviceServer, path: Path) -> None:
    """In an error that is about no publish, before it closes."""
    async with open_device(path, environment=server.environment) as device:
        await device.wait_until_connected()
        began_s = trio.current_time()
        await server.sessions[0].send(Error(None, "rate_limited", 20_000))
        await trio.testing.wait_all_tasks_blocked()
        server.close_all(1000)
        await device.wait_until_disconnected()
        await device.wait_until_connected()
        assert trio.current_time() - began_s == pytest.approx(21)


async def test_a_quiet_session_is_kept_alive(autojump_clock: MockClock, server: DeviceServer, path: Path) -> None:
    """By pings, well within what the server allows."""
    async with open_device(path, environment=server.environment) as device:
        await device.wait_until_connected()
        await trio.sleep(100)
        assert len(server.messages(Ping)) == 3
        assert device.connected


async def test_a_dead_connection_is_noticed(autojump_clock: MockClock, server: DeviceServer, path: Path) -> None:
    """Nothing comes although pings went out."""
    server.answer = lambda _end, message: [] if isinstance(message, Ping) else None
    async with open_device(path, environment=server.environment) as device:
        assert "silent" in await device.wait_for_problem("")
        assert trio.current_time() >= connection.SILENCE_MAX_S


async def test_a_server_that_takes_nothing_is_left(
    autojump_clock: MockClock, server: DeviceServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that cannot be sent ends the session."""
    async with open_device(path, environment=server.environment) as device:
        await device.wait_until_caught_up(DEVICES_STREAM)

        async def stuck(_self: object, _message: bytes) -> None:
            await trio.sleep_forever()

        with monkeypatch.context() as patched:
            patched.setattr("tests.support.device_server.MemoryTransport.send", stuck)
            assert "took nothing" in await device.wait_for_problem("")


async def test_a_handshake_that_does_not_end_is_given_up(
    autojump_clock: MockClock, server: DeviceServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server says nothing to the hello."""

    async def silent(_self: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("tests.support.device_server.ServerEnd._shake_hands", silent)
    async with open_device(path, environment=server.environment) as device:
        assert "handshake" in await device.wait_for_problem("")


async def test_messages_of_a_later_version_are_passed_over(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """Unknown types change nothing; the session goes on."""
    async with open_device(path, environment=server.environment) as device:
        await device.wait_until_connected()
        session = server.sessions[0]._session
        assert isinstance(session, ServerSession)
        for record in session.send([b"\x91\xcc\xc8"], now_s=trio.current_time()):
            await server.sessions[0].transport.to_device.send(record)
        assert (await (await device.publish("notes", b"1")).accepted()).seq == 1


async def test_rekeying_changes_nothing(autojump_clock: MockClock, server: DeviceServer, path: Path) -> None:
    """Sessions go on for hours; both directions change their keys on the way."""
    async with open_device(path, environment=server.environment) as device:
        await device.wait_until_connected()
        session = server.sessions[0]
        for n in range(1, 4):
            await trio.sleep(4000)
            assert (await (await device.publish("notes", b"x")).accepted()).n == n
        assert server.sessions == [session]


async def test_a_broken_record_ends_the_session_and_not_the_device(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """Somebody on the way can cut a connection, and no more than that."""
    async with open_device(path, environment=server.environment) as device:
        await device.wait_until_connected()
        await server.sessions[0].transport.to_device.send(b"not a record of this session")
        await device.wait_until_disconnected()
        await device.wait_until_connected()


async def test_a_full_disk_stops_the_device(
    autojump_clock: MockClock, server: DeviceServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in memory would be ahead of the disk; nothing is acknowledged."""
    async with open_device(path, environment=server.environment) as device:
        await (await device.publish("notes", b"1")).accepted()
        await trio.sleep(2)

        def full(_self: Store, *_: object) -> None:
            raise StoreError("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(Store, "execute_many", full)
            with pytest.raises(StoreError, match="full"):
                await anext(await device.subscribe("notes"))
        with pytest.raises(StoreError, match="full"):
            await device.wait_until_connected()


async def test_streams_are_subscribed_to_in_bounded_messages(
    autojump_clock: MockClock, server: DeviceServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, and again after a reconnection."""
    monkeypatch.setattr(inbox, "SUBSCRIBE_STREAMS_MAX", 3)
    async with open_device(path, environment=server.environment) as device:
        for number in range(5):
            await device.subscribe(f"stream-{number}")
        await server.until(lambda: len({name for each in server.messages(Subscribe) for name in each.streams}) == 7)
        server.received.clear()
        server.close_all(None)
        await device.wait_until_disconnected()
        await device.wait_until_connected()
        await server.until(lambda: len(server.messages(Subscribe)) == 3)
    assert [len(message.streams) for message in server.messages(Subscribe)] == [3, 3, 1]


async def test_following_twice_asks_once(autojump_clock: MockClock, server: DeviceServer, path: Path) -> None:
    """Two subscriptions of one stream share what arrives."""
    async with open_device(path, environment=server.environment) as device:
        await device.wait_until_connected()
        first, second = await device.subscribe("notes"), await device.subscribe("notes")
        await device.publish("notes", b"1")
        assert (await anext(first)).seq == (await anext(second)).seq == 1
    asked = [message for message in server.messages(Subscribe) if "notes" in message.streams]
    assert len(asked) == 1


async def test_closing_tells_everybody_who_waits(autojump_clock: MockClock, server: DeviceServer, path: Path) -> None:
    """A device that was closed waits for nothing any more."""
    async with open_device(path, environment=server.environment) as device:
        subscription = await device.subscribe("notes")
    with pytest.raises(ClientError, match="closed"):
        await anext(subscription)
    with pytest.raises(ClientError, match="closed"):
        await device.publish("notes", b"1")
    with pytest.raises(ClientError, match="closed"):
        await device.wait_until_caught_up(DEVICES_STREAM)
