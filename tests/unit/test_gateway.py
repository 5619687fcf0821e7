"""Connections from the handshake to the end of the session, over a database in memory."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
import trio
import trio.testing

from keepstep.client import crypto
from keepstep.errors import ERRORS
from keepstep.gateway import RECONNECT_AFTER_MS_MAX, RECONNECT_AFTER_MS_MIN, REPLACED_MAX, REPLACED_WINDOW_S
from keepstep.model import Capability, UserPk
from keepstep.protocol.chain import verify_head
from keepstep.protocol.handshake import ClientHandshake
from keepstep.protocol.messages import Accepted, Bye, CaughtUp, Draining, Events, Ping, Pong, Resumed
from tests.support.events import NOW_MS, DeviceFixture, seed
from tests.support.logs import acks_of
from tests.support.parts import SERVER_KEY, Parts, limited
from tests.support.wire import Closed, DeviceEnd, MemoryConnection, WireDevice

PUBLISH_AND_SUBSCRIBE = Capability.PUBLISH | Capability.SUBSCRIBE


def close_of(code: str) -> tuple[int, str]:
    """What a device sees of an error that ends its connection."""
    return ERRORS[code].close_code, code


async def closed_with(connection: DeviceEnd) -> tuple[int, str]:
    """Receive until the server closes."""
    while True:
        try:
            await connection.receive_message()
        except Closed as closed:
            return closed.code, closed.reason


# -- the corridor ---------------------------------------------------------------------------------------------------


async def test_a_device_publishes_and_another_one_receives() -> None:
    """What one device of a user publishes and is acknowledged reaches the user's other device."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    async with parts.running() as nursery:
        author = await parts.connect(nursery, phone)
        reader = await parts.connect(nursery, laptop)
        await reader.subscribe("notes")
        (accepted,) = await author.publish(*phone.events("notes", 3))
        assert (accepted.first_seq, accepted.count) == (1, 3)
        rows = await reader.receive_events("notes", 3)
        assert [(row[0], row[1]) for row in rows] == [(seq, phone.device_id) for seq in (1, 2, 3)]


async def test_nothing_crosses_from_one_user_to_another() -> None:
    """Same stream names, everything subscribed: each sees its own events and its own heads only."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    (tablet,) = await parts.register("bob", "tablet")
    async with parts.running() as nursery:
        alice = await parts.connect(nursery, phone, resume="all")
        bob = await parts.connect(nursery, tablet, resume="all")
        await alice.publish(*phone.events("notes", 2))
        await bob.publish(*tablet.events("notes", 1))
        await bob.publish(*tablet.events("secret-of-bob", 1))
        await trio.testing.wait_all_tasks_blocked()
        for session, device, streams in (
            (alice, phone, {"$devices": 1, "$keys": 0, "notes": 2}),
            (bob, tablet, {"$devices": 1, "$keys": 0, "notes": 1, "secret-of-bob": 1}),
        ):
            await session.send(Ping(1))
            counts = dict.fromkeys(streams, 0)
            while not isinstance(message := await session.receive(), Pong):
                if isinstance(message, Events):
                    assert {row[1] for row in message.rows} == {device.device_id}
                    counts[message.stream] += len(message.rows)
                elif isinstance(message, (CaughtUp, Resumed)) and message.head is not None:
                    assert verify_head(crypto, SERVER_KEY, message.head).user_key == device.user.user_key
            assert counts == streams


# -- handshake ------------------------------------------------------------------------------------------------------


async def test_ready_tells_the_session_and_its_limits() -> None:
    """Session id, how many sessions there were, and what the device may do."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    async with parts.running() as nursery:
        first = await parts.connect(nursery, phone)
        second = await parts.connect(nursery, phone, nonce="again")
    assert (first.ready.session_no, second.ready.session_no) == (1, 2)
    assert first.ready.session_id != second.ready.session_id
    assert first.ready.limits == {
        "message_bytes": 2 * 1024 * 1024,
        "publish_events": 16,
        "publish_bytes": 1024 * 1024,
        "inflight_publishes": 8,
        "unacked_bytes": 1024 * 1024,
        "payload_bytes": 1024,
    }
    assert first.ready.features == []
    assert first.ready.heads == []


@pytest.mark.parametrize("resume", ["all", "position"])
async def test_a_device_that_resumes_is_shown_the_account_head(resume: str) -> None:
    """Ready carries it, and the stream goes on from the position that the device named."""
    parts = Parts()
    phone, _ = await parts.register("alice", "phone", "laptop")
    principal = await parts.principal(phone)
    known = (1, await parts.log.chain_at(principal.user_pk, "$devices", 1))
    async with parts.running() as nursery:
        session = await parts.connect(nursery, phone, resume="all" if resume == "all" else (known,))
        head = verify_head(crypto, SERVER_KEY, session.ready.heads[0])
        assert (head.stream, head.seq) == ("$devices", 2)
        resumed = await session.expect(Resumed)
        assert (resumed.stream, resumed.answer) == ("$devices", "contiguous")
        events = await session.expect(Events)
        assert [row[0] for row in events.rows] == ([1, 2] if resume == "all" else [2])


async def test_every_suite_of_ours_can_be_chosen() -> None:
    """A device with one suite gets it; none in common is unsupported."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    async with parts.running() as nursery:
        await parts.connect(nursery, phone, suites=[9, 2])
        with pytest.raises(Closed) as caught:
            await parts.connect(nursery, phone, suites=[9])
    assert (caught.value.code, caught.value.reason) == close_of("unsupported")


async def test_strangers_all_get_the_same_answer() -> None:
    """Unknown user, unknown device, a key that is not the device's: byte for byte the same close."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    (tablet,) = await parts.register("bob", "tablet")
    answers = set()
    async with parts.running() as nursery:
        lies: list[dict[str, Any]] = [
            {"user_key": seed("nobody")},
            {"device_id": bytes(16)},
            {"device_secret": tablet.device_secret},
            {"user_key": tablet.user.user_key},
        ]
        for changes in lies:
            with pytest.raises(Closed) as caught:
                await parts.connect(nursery, phone, **changes)
            answers.add((caught.value.code, caught.value.reason))
    assert answers == {close_of("auth_failed")}
    assert not parts.database.sessions


async def test_a_replayed_handshake_is_refused() -> None:
    """The recorded messages of a device that did connect open nothing: the server's part differs each time."""
    parts = Parts()
    (phone,) = await parts.register("alice")

    class Recording(MemoryConnection):
        """Remembers what the device sent."""

        def __init__(self) -> None:
            super().__init__()
            self.sent: list[bytes] = []

        async def send_message(self, message: bytes) -> None:
            self.sent.append(message)
            await super().send_message(message)

    async with parts.running() as nursery:
        recorded = Recording()
        nursery.start_soon(parts.gateway.handle, recorded)
        session = await WireDevice.connect(phone, recorded, SERVER_KEY)
        await session.send(Bye())
        assert await closed_with(recorded) == (1000, "")
        replayed = parts.serve(nursery)
        for message in recorded.sent:
            await replayed.send_message(message)
        assert await closed_with(replayed) == close_of("bad_record")
    assert len(parts.database.sessions) == 1


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"", "malformed"),
        (b"\xc1", "malformed"),
        (b"\x93\x01\x02\x03", "malformed"),
        (b"\x91\x63", "unsupported"),
        (b"\x91\x10", "unexpected"),
    ],
)
async def test_a_first_message_that_is_no_hello_is_closed(message: bytes, code: str) -> None:
    """With the code of what is wrong, and no traceback anywhere."""
    parts = Parts()
    async with parts.running() as nursery:
        connection = parts.serve(nursery)
        await connection.send_message(message)
        assert await closed_with(connection) == close_of(code)
    assert parts.metrics.registry.get_sample_value("keepstep_handshakes_total", {"result": code}) == 1
    assert parts.metrics.registry.get_sample_value("keepstep_faults_total") == 0


@pytest.mark.parametrize("messages", [0, 1])
async def test_a_stranger_has_so_many_seconds(messages: int, autojump_clock: trio.testing.MockClock) -> None:
    """One deadline up to active, from the accepted socket on, wherever the stranger stops."""
    parts = Parts(limits=limited(handshake_timeout_s=10))
    (phone,) = await parts.register("alice")
    async with parts.running() as nursery:
        connection = parts.serve(nursery)
        await trio.sleep(6)
        if messages:
            handshake = client_handshake(phone)
            await connection.send_message(handshake.hello())
        assert await closed_with(connection) == close_of("timeout")
        assert trio.current_time() == pytest.approx(connection.accepted_at_s + 10)


def client_handshake(device: DeviceFixture) -> ClientHandshake:
    """A device's side of the handshake."""
    return ClientHandshake(
        crypto,
        server_key=SERVER_KEY,
        user_key=device.user.user_key,
        device_id=device.device_id,
        device_secret=device.device_secret,
        ephemeral_secret=seed("ephemeral"),
        nonce=seed("nonce"),
        suites=[2],
        resume="none",
        options={},
    )


@pytest.mark.parametrize("when", ["before hello", "before auth"])
async def test_a_stranger_that_leaves_is_forgotten(when: str) -> None:
    """Its connection ends, and the next one is served."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    async with parts.running() as nursery:
        connection = parts.serve(nursery)
        if when == "before auth":
            await connection.send_message(client_handshake(phone).hello())
        connection.vanish()
        await trio.testing.wait_all_tasks_blocked()
        assert connection.closed == (1000, "")
        await parts.connect(nursery, phone)
    assert parts.metrics.registry.get_sample_value("keepstep_handshakes_total", {"result": "lost"}) == 1


async def test_a_device_cannot_connect_while_the_database_is_away() -> None:
    """Unavailable: reconnect later; nothing else is learned."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    parts.database.away = True
    async with parts.running() as nursery:
        with pytest.raises(Closed) as caught:
            await parts.connect(nursery, phone)
        assert (caught.value.code, caught.value.reason) == close_of("unavailable")
        parts.database.away = False
        await parts.connect(nursery, phone)


async def test_a_device_cannot_connect_while_the_log_becomes_another_one() -> None:
    """The head it would be shown is of the log that was, under the epoch of the one that is."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    number = parts.accounts.open_session

    async def meanwhile(*arguments: Any, **keywords: Any) -> Any:
        parts.accounts.open_session = number  # type: ignore[method-assign]
        parts.database.generation += 1
        await parts.log.streams(UserPk(1))  # asked once, the log knows that it is another one
        return await number(*arguments, **keywords)

    parts.accounts.open_session = meanwhile  # type: ignore[method-assign]
    async with parts.running() as nursery:
        with pytest.raises(Closed) as caught:
            await parts.connect(nursery, phone)
        assert (caught.value.code, caught.value.reason) == close_of("unavailable")
        await parts.connect(nursery, phone)


async def test_a_device_is_shown_no_head_that_was_signed_for_another_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread may learn of the other log right before the head is signed."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    sign = parts.signer.sign

    def meanwhile(*arguments: Any, **keywords: Any) -> Any:
        monkeypatch.setattr(parts.log, "generation", lambda: 1)
        return sign(*arguments, **keywords)

    monkeypatch.setattr(parts.signer, "sign", meanwhile)
    async with parts.running() as nursery:
        with pytest.raises(Closed, match="unavailable"):
            await parts.connect(nursery, phone, resume="all")


async def test_a_device_is_a_stranger_until_it_is_authenticated() -> None:
    """Its connection is told when the wider limits apply: not before the server knows who it is."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    async with parts.running() as nursery:
        connection = parts.serve(nursery)
        handshake = client_handshake(phone)
        await connection.send_message(handshake.hello())
        answer = handshake.receive_server_hello(await connection.receive_message())
        assert not connection.is_authenticated
        await connection.send_message(answer)
        await connection.receive_message()
        assert connection.is_authenticated


async def test_a_rush_of_handshakes_is_looked_up_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it never delays active sessions; all of them are served in the end."""
    monkeypatch.setattr("keepstep.gateway.HANDSHAKES_AT_ONCE", 2)
    parts = Parts()
    devices = [(await parts.register(f"user {number}"))[0] for number in range(6)]
    at_once, most = 0, 0
    ask = parts.accounts.device

    async def slow(*arguments: Any) -> Any:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        at_once -= 1
        return await ask(*arguments)

    parts.accounts.device = slow  # type: ignore[method-assign,assignment]
    async with parts.running() as nursery:
        async with trio.open_nursery() as rush:
            for device in devices:
                rush.start_soon(parts.connect, nursery, device)
        assert parts.gateway.sessions == 6
    assert most == 2


# -- sessions -------------------------------------------------------------------------------------------------------


async def test_sessions_are_recorded_from_beginning_to_end() -> None:
    """With the reason of their end."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    async with parts.running() as nursery:
        session = await parts.connect(nursery, phone)
        (row,) = parts.database.sessions.values()
        assert (row.session_no, row.opened_at_ms, row.closed) == (1, NOW_MS, None)
        parts.clock.at_ms += 5_000
        await session.send(Bye())
        with pytest.raises(Closed):
            await session.receive()
        (row,) = parts.database.sessions.values()
        assert row.closed == (NOW_MS + 5_000, "bye")
    assert parts.gateway.sessions == 0
    assert parts.relay.users == 0


async def test_an_end_that_cannot_be_recorded_is_logged() -> None:
    """The session is over all the same; the record stays open."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    with structlog.testing.capture_logs() as lines:
        async with parts.running() as nursery:
            session = await parts.connect(nursery, phone)
            parts.database.away = True
            await session.send(Bye())
            with pytest.raises(Closed):
                await session.receive()
            parts.database.away = False
    assert "session_end_not_recorded" in [line["event"] for line in lines]
    (row,) = parts.database.sessions.values()
    assert row.closed is None


async def test_acknowledged_positions_are_saved_with_the_end_and_by_the_job() -> None:
    """So that ``all`` goes on from there."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    principal = await parts.principal(phone)
    async with parts.running() as nursery:
        session = await parts.connect(nursery, phone)
        await session.subscribe("notes")
        await session.publish(*phone.events("notes", 2))
        await session.receive_events("notes", 2)
        await trio.testing.wait_all_tasks_blocked()
        await parts.gateway.save_acks()
        assert await acks_of(parts.log, principal) == {"notes": 2}
        await parts.gateway.save_acks()
        await session.publish(*phone.events("notes", 1))
        await session.receive_events("notes", 1)
        await session.send(Bye())
        assert await closed_with(session.end) == (1000, "")
    assert await acks_of(parts.log, principal) == {"notes": 3}


async def test_a_second_connection_of_a_device_replaces_the_first() -> None:
    """The first is told not to come back by itself; the second stays when the first one's end is tidied up."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    async with parts.running() as nursery:
        first = await parts.connect(nursery, phone)
        second = await parts.connect(nursery, phone, nonce="again")
        with pytest.raises(Closed) as caught:
            await first.receive()
        assert (caught.value.code, caught.value.reason) == close_of("replaced")
        assert [one.code for one in [await second.publish(phone.event("notes"))] if hasattr(one, "code")] == []
        assert parts.gateway.sessions == 1


async def test_a_session_that_was_overtaken_gives_way() -> None:
    """Its number was given first but its Ready comes second: the later session stays."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    number, overtaken = parts.accounts.open_session, trio.Event()

    async def slow_first(*arguments: Any, **keywords: Any) -> Any:
        opened = await number(*arguments, **keywords)
        assert opened is not None
        if opened.session_no == 1:
            await overtaken.wait()
        return opened

    parts.accounts.open_session = slow_first  # type: ignore[method-assign]
    async with parts.running() as nursery:
        early = parts.serve(nursery)
        handshake = client_handshake(phone)
        await early.send_message(handshake.hello())
        await early.send_message(handshake.receive_server_hello(await early.receive_message()))
        await trio.testing.wait_all_tasks_blocked()
        late = await parts.connect(nursery, phone, nonce="again")
        overtaken.set()
        assert await closed_with(early) == close_of("replaced")
        await late.publish(phone.event("notes"))
        (row,) = [row for row in parts.database.sessions.values() if row.session_no == 1]
        assert row.closed == (NOW_MS, "replaced")


async def test_a_device_that_keeps_replacing_itself_is_cloned(autojump_clock: trio.testing.MockClock) -> None:
    """More than five times in ten minutes: the newcomer is refused, the session that is there stays."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    async with parts.running() as nursery:
        session = await parts.connect(nursery, phone)
        for number in range(REPLACED_MAX):
            session = await parts.connect(nursery, phone, nonce=f"{number}")
        with pytest.raises(Closed) as caught:
            await parts.connect(nursery, phone, nonce="one more")
        assert (caught.value.code, caught.value.reason) == close_of("cloned")
        for _ in range(int(REPLACED_WINDOW_S / 100)):
            await session.send(Ping(1))
            await session.expect(Pong)
            await trio.sleep(100)
        await parts.connect(nursery, phone, nonce="later")


async def test_a_device_that_expires_is_sent_away() -> None:
    """While it is connected, with the next message from or to it."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    watch = DeviceFixture(phone.user, "watch", PUBLISH_AND_SUBSCRIBE, expires_at_ms=NOW_MS + 1_000)
    await parts.enrol(phone, watch)
    async with parts.running() as nursery:
        for step in ("sends", "is sent"):
            parts.clock.at_ms = NOW_MS
            session = await parts.connect(nursery, watch, nonce=step)
            author = await parts.connect(nursery, phone, nonce=step)
            await session.subscribe("notes")
            await session.expect(Resumed)
            parts.clock.at_ms = NOW_MS + 1_000
            if step == "sends":
                await session.send(Ping(1))
            else:
                await author.publish(phone.event("notes"))
            with pytest.raises(Closed) as caught:
                await session.receive()
            assert (caught.value.code, caught.value.reason) == close_of("auth_failed")


async def test_a_fault_of_ours_ends_one_connection_only() -> None:
    """The device may reconnect; the fault is counted and logged without anything a peer sent."""
    parts = Parts()
    (phone,) = await parts.register("alice")

    async def broken(*_arguments: Any, **_options: Any) -> Any:
        await trio.lowlevel.checkpoint()
        raise KeyError("a bug")

    follow, parts.log.follow = parts.log.follow, broken  # type: ignore[method-assign]
    with structlog.testing.capture_logs() as lines:
        async with parts.running() as nursery:
            session = await parts.connect(nursery, phone, resume="all")
            with pytest.raises(Closed) as caught:
                await session.receive()
            assert (caught.value.code, caught.value.reason) == close_of("internal")
            parts.log.follow = follow  # type: ignore[method-assign]
            again = await parts.connect(nursery, phone, nonce="again")
            await again.publish(phone.event("notes"))
    (fault,) = [line for line in lines if line["event"] == "connection_fault"]
    assert "KeyError" in fault["error"]
    assert "a bug" not in str(fault)
    assert parts.metrics.registry.get_sample_value("keepstep_faults_total") == 1
    assert parts.metrics.registry.get_sample_value("keepstep_session_ends_total", {"reason": "fault"}) == 1


# -- going down -----------------------------------------------------------------------------------------------------


async def test_draining_tells_devices_when_to_come_back_and_closes() -> None:
    """Each at its own moment, so that they do not all come at once."""
    parts = Parts()
    devices = [(await parts.register(f"user {number}"))[0] for number in range(3)]
    waits = set()
    async with parts.running() as nursery:
        sessions = [await parts.connect(nursery, device) for device in devices]
        await parts.gateway.drain()
        assert parts.gateway.is_draining()
        assert parts.gateway.sessions == 0
        for session in sessions:
            waits.add((await session.expect(Draining)).reconnect_after_ms)
            with pytest.raises(Closed) as caught:
                await session.receive()
            assert (caught.value.code, caught.value.reason) == close_of("draining")
    assert len(waits) == 3
    assert all(RECONNECT_AFTER_MS_MIN <= wait_ms < RECONNECT_AFTER_MS_MAX for wait_ms in waits)


async def test_draining_acknowledges_what_is_under_way() -> None:
    """A publish that has been handed in is committed and answered before the connection closes."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    append, go_on = parts.log.append, trio.Event()

    async def slow(*arguments: Any, **keywords: Any) -> Any:
        await go_on.wait()
        return await append(*arguments, **keywords)

    parts.log.append = slow  # type: ignore[method-assign]
    async with parts.running() as nursery:
        session = await parts.connect(nursery, phone)
        await session.start_publish(phone.event("notes"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(parts.gateway.drain)
        await session.expect(Draining)
        go_on.set()
        accepted = await session.expect(Accepted)
        assert accepted.results[0].first_seq == 1  # type: ignore[union-attr]
        with pytest.raises(Closed) as caught:
            await session.receive()
        assert caught.value.reason == "draining"


async def test_draining_sends_strangers_away() -> None:
    """Whether they are in the middle of their handshake or come now."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    async with parts.running() as nursery:
        connection = parts.serve(nursery)
        await connection.send_message(client_handshake(phone).hello())
        await trio.testing.wait_all_tasks_blocked()
        await parts.gateway.drain()
        assert await closed_with(connection) == close_of("draining")
        assert await closed_with(parts.serve(nursery)) == close_of("draining")


async def test_a_session_that_becomes_active_while_draining_drains() -> None:
    """It was let in a moment before."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    async with parts.running() as nursery:
        connection = parts.serve(nursery)
        send = connection.send

        async def drain_before_ready(messages: Any) -> None:
            if connection.is_authenticated:
                parts.gateway._draining = True
            await send(messages)

        connection.send = drain_before_ready  # type: ignore[method-assign]
        session = await WireDevice.connect(phone, connection, SERVER_KEY)
        await session.expect(Draining)
        with pytest.raises(Closed):
            await session.receive()


async def test_cancelling_ends_every_connection_at_once_and_records_it() -> None:
    """The server stops without draining: the ends are recorded, the devices see the socket close."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    async with parts.running() as nursery:
        await parts.connect(nursery, phone)
    (row,) = parts.database.sessions.values()
    assert row.closed == (NOW_MS, "stopped")
