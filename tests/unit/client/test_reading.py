"""What a device reads, keeps and gives out: positions, cursors, missing keys and payloads, ends and gaps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from keepstep.client import (
    ClientError,
    Device,
    Event,
    ProtocolError,
    Subscription,
    VerificationError,
    inbox,
    locallog,
    open_device,
    subscription,
)
from keepstep.client.store import open_store
from keepstep.model import DEVICES_STREAM, KEYS_STREAM
from keepstep.protocol.messages import (
    Ack,
    CaughtUp,
    Events,
    Head,
    Read,
    Resumed,
    Subscribe,
)
from keepstep.protocol.verified import Problem
from tests.support.device_server import DeviceServer, ServerEnd

if TYPE_CHECKING:
    from msgspec import Struct

STREAM = "notes"


async def publish(server: DeviceServer, path: Path, *texts: bytes, ttl_s: int | None = None) -> None:
    """Publish from a device, and wait until the server has it."""
    async with open_device(path, environment=server.environment) as device:
        for text in texts:
            await (await device.publish(STREAM, text, ttl_s=ttl_s)).accepted()


async def take(subscribed: Subscription, count: int) -> list[bytes | None]:
    """The next events' data."""
    return [(await anext(subscribed)).data for _ in range(count)]


async def test_several_pages_and_then_live(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, phone: Path
) -> None:
    """What was there comes first, in pages, then what comes meanwhile, without a seam."""
    server.page_events = 2
    await publish(server, laptop, *(b"%d" % number for number in range(5)))
    async with (
        open_device(phone, environment=server.environment) as reader,
        open_device(laptop, environment=server.environment) as writer,
    ):
        subscribed = await reader.subscribe(STREAM)
        assert await take(subscribed, 5) == [b"0", b"1", b"2", b"3", b"4"]
        await writer.publish_many(STREAM, [b"5", b"6"])
        assert await take(subscribed, 2) == [b"5", b"6"]
        assert reader.position(STREAM).seq == 7
        assert subscribed.waiting() == 0


async def test_what_is_here_is_given_out_without_a_wait(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, phone: Path
) -> None:
    """Who waits no longer for the server gets all that was verified before."""
    await publish(server, laptop, b"1", b"2")
    async with open_device(phone, environment=server.environment) as device:
        subscribed = await device.subscribe(STREAM)
        await device.wait_until_caught_up(STREAM)
        events = [await subscribed.take_here() for _ in range(3)]
        assert [None if event is None else event.data for event in events] == [b"1", b"2", None]


async def test_only_what_is_stored_is_acknowledged(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, phone: Path
) -> None:
    """At the time of each acknowledgement the device's file has the events."""
    await publish(server, laptop, b"1", b"2")
    kept: list[tuple[int, int]] = []

    def look(_end: ServerEnd, message: Any) -> None:
        if isinstance(message, Ack) and STREAM in message.positions:
            seqs = device._store.row("SELECT count(*) FROM events WHERE stream = ?", STREAM)
            kept.append((message.positions[STREAM][0], seqs[0]))

    server.answer = look
    async with open_device(phone, environment=server.environment) as device:
        await device.wait_until_caught_up(STREAM)
        await trio.testing.wait_all_tasks_blocked()
    assert kept == [(2, 2)]


async def test_a_crash_between_storing_and_acknowledging_repeats_nothing(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, phone: Path
) -> None:
    """The server never heard of it; the device goes on from what it has."""
    await publish(server, laptop, b"1", b"2")
    server.answer = lambda end, message: end.transport.close(None) if isinstance(message, Ack) else None
    async with open_device(phone, environment=server.environment) as device:
        subscribed = await device.subscribe(STREAM, cursor="app")
        assert await take(subscribed, 2) == [b"1", b"2"]
        await subscribed.commit(2)
    server.answer = lambda _end, _message: None
    server.received.clear()
    await publish(server, laptop, b"3")
    async with open_device(phone, environment=server.environment) as device:
        assert await take(await device.subscribe(STREAM, cursor="app"), 1) == [b"3"]
    asked = [message.streams for message in server.messages(Subscribe)]
    assert [streams[STREAM][0] for streams in asked if isinstance(streams, dict) and STREAM in streams] == [2]


async def test_a_position_may_be_named_in_three_ways(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path
) -> None:
    """From the first event, after a seq, or after what was committed under a name, with its state."""
    await publish(server, laptop, b"1", b"2", b"3")
    async with open_device(laptop, environment=server.environment) as device:
        assert await take(await device.subscribe(STREAM), 3) == [b"1", b"2", b"3"]
        assert await take(await device.subscribe(STREAM, after=2), 1) == [b"3"]
        named = await device.subscribe(STREAM, cursor="app")
        assert named.state == b""
        await named.commit(1, state=b"one")
        again = await device.subscribe(STREAM, cursor="app")
        assert (again.state, await take(again, 2)) == (b"one", [b"2", b"3"])


async def test_a_commit_needs_a_name_and_a_bounded_state(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path
) -> None:
    """What cannot be kept is refused."""
    async with open_device(laptop, environment=server.environment) as device:
        with pytest.raises(ClientError, match="without a cursor"):
            await (await device.subscribe(STREAM)).commit(1)
        with pytest.raises(ClientError, match="at most"):
            await (await device.subscribe(STREAM, cursor="app")).commit(
                1, state=bytes(subscription.STATE_BYTES_MAX + 1)
            )


async def test_a_stream_may_be_read_from_its_end(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, phone: Path
) -> None:
    """Only what comes after; and the next time, what came after that."""
    await publish(server, laptop, b"1", b"2")
    async with open_device(phone, environment=server.environment) as device:
        subscribed = await device.subscribe(STREAM, start="end")
        await device.wait_until_caught_up(STREAM)
        await publish(server, laptop, b"3")
        assert await take(subscribed, 1) == [b"3"]
        assert device.position(STREAM).seq == 3
    await publish(server, laptop, b"4")
    async with open_device(phone, environment=server.environment) as device:
        assert await take(await device.subscribe(STREAM, start="end"), 1) == [b"4"]
        with pytest.raises(ClientError, match="kept on this device from 3 on, not from 2"):
            await anext(await device.subscribe(STREAM, after=1))


async def test_the_end_of_a_stream_that_does_not_exist_is_its_beginning(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, phone: Path
) -> None:
    """It begins when somebody writes."""
    async with open_device(phone, environment=server.environment) as device:
        subscribed = await device.subscribe(STREAM, start="end")
        await device.wait_until_connected()
        await publish(server, laptop, b"1")
        assert await take(subscribed, 1) == [b"1"]


async def test_an_end_that_nobody_signed_is_not_believed(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, phone: Path
) -> None:
    """Where the end is comes with the server's signature."""
    await publish(server, laptop, b"1")

    def rewrite(message: Any) -> Sequence[Struct]:
        if isinstance(message, Resumed) and message.stream == STREAM:
            head = (message.head[0], bytes(64)) if message.head else None
            return [msgspec.structs.replace(message, head=head)]
        return [message]

    server.rewrite = rewrite
    async with open_device(phone, environment=server.environment) as device:
        with pytest.raises(VerificationError, match="does not verify"):
            await anext(await device.subscribe(STREAM, start="end"))


async def test_events_before_an_answer_are_not_believed(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, phone: Path
) -> None:
    """Where a stream is read from its end, the end is told first."""
    await publish(server, laptop, b"1")

    def rewrite(message: Any) -> Sequence[Struct]:
        if isinstance(message, Resumed) and message.stream == STREAM:
            unreadable = msgspec.structs.replace(message, answer="forbidden")
            return [unreadable]
        return [message]

    server.rewrite = rewrite
    async with open_device(phone, environment=server.environment) as device:
        with pytest.raises(ProtocolError, match="forbidden"):
            await anext(await device.subscribe(STREAM))
        with pytest.raises(ProtocolError, match="forbidden"):
            await device.wait_until_caught_up(STREAM)
        assert await device.alarms() == []


@pytest.mark.parametrize("name", ["$devices", "", "with space"])
async def test_a_name_that_is_none_is_refused(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, name: str
) -> None:
    """Reserved ones, and what is no name at all; to read and to write."""
    async with open_device(laptop, environment=server.environment) as device:
        with pytest.raises(ClientError):
            await device.subscribe(name)
        with pytest.raises(ClientError):
            await device.publish(name, b"x")


async def test_what_cannot_be_published_is_refused_at_once(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time to live of nothing, and more than an event holds."""
    monkeypatch.setattr("keepstep.client.outbox.PLAINTEXT_BYTES_MAX", 10)
    async with open_device(laptop, environment=server.environment) as device:
        with pytest.raises(ClientError, match="at least one second"):
            await device.publish(STREAM, b"x", ttl_s=0)
        with pytest.raises(ClientError, match="at most 10 bytes"):
            await device.publish(STREAM, bytes(11))


async def test_a_key_of_a_stream_is_a_mac_to_the_server(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path
) -> None:
    """The same name gives the same 16 bytes, which are not the name."""
    async with open_device(laptop, environment=server.environment) as device:
        for name in ("title", "title", "body"):
            await device.publish(STREAM, b"x", key=name)
        subscribed = await device.subscribe(STREAM)
        keys = [(await anext(subscribed)).key for _ in range(3)]
    assert keys[0] == keys[1] != keys[2]
    assert len(keys[0] or b"") == 16


# -- keys that are not there ----------------------------------------------------------------------------------------


async def test_an_event_waits_for_its_key(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, phone: Path
) -> None:
    """The key may come later than the event: the event is given out when it has come."""
    await publish(server, laptop, b"1")
    honest = server.rewrite
    server.rewrite = lambda message: [] if getattr(message, "stream", "") == KEYS_STREAM else [message]
    async with open_device(phone, environment=server.environment) as device:
        got: list[Event] = []
        subscribed = await device.subscribe(STREAM)

        async def read() -> None:
            got.append(await anext(subscribed))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await device.wait_until_caught_up(STREAM)
            await trio.sleep(5)
            assert got == []
            with pytest.raises(ClientError, match="connect it once"):
                await device.publish(STREAM, b"too early")
            server.rewrite = honest
            server.close_all(None)
        assert got[0].data == b"1"


async def test_an_event_whose_key_does_not_come_is_told(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, phone: Path
) -> None:
    """After a while; those after it are not held up for ever."""
    await publish(server, laptop, b"1", b"2")
    server.rewrite = lambda message: [] if getattr(message, "stream", "") == KEYS_STREAM else [message]
    async with open_device(phone, environment=server.environment) as device:
        subscribed = await device.subscribe(STREAM)
        began_s = trio.current_time()
        event = await anext(subscribed)
        assert (event.data, event.problem) == (None, "no_content_key")
        assert trio.current_time() - began_s == pytest.approx(subscription.DECISION_WAIT_S)
        assert (await anext(subscribed)).problem == "no_content_key"


async def test_a_payload_that_does_not_open_is_told(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An author that seals nonsense takes nothing but its own event away."""
    async with open_device(laptop, environment=server.environment) as device:
        with monkeypatch.context() as patched:
            patched.setattr("keepstep.client.outbox.seal_payload", lambda *_args, **_named: b"nonsense")
            await (await device.publish(STREAM, b"1")).accepted()
        await device.publish(STREAM, b"2")
        subscribed = await device.subscribe(STREAM)
        assert (await anext(subscribed)).problem == "not_decryptable"
        assert (await anext(subscribed)).data == b"2"


async def test_a_wrapped_key_that_does_not_open_raises_an_alarm(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, phone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the other keys go on to be taken."""
    store = open_store(phone)
    with store.transaction():
        store.execute("UPDATE device SET box_secret = ?", bytes(32))
    store.close()
    async with open_device(phone, environment=server.environment) as device:
        await device.wait_until_caught_up(KEYS_STREAM)
        assert [alarm.stream for alarm in await device.alarms()] == [KEYS_STREAM]


# -- payloads that are not there --------------------------------------------------------------------------------------


def without_payload(server: DeviceServer, seq: int) -> None:
    """The server deletes a payload."""
    rows = server.stream(STREAM).rows
    rows[seq - 1] = (*rows[seq - 1][:5], None, None)


async def test_a_payload_whose_time_is_over_is_expired(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, phone: Path
) -> None:
    """By the time of a signed head, whichever comes first, head or event."""
    await publish(server, laptop, b"1", ttl_s=60)
    server.now_ms += 61_000
    without_payload(server, 1)
    async with open_device(phone, environment=server.environment) as device:
        event = await anext(await device.subscribe(STREAM))
        assert (event.data, event.problem) == (None, Problem.EXPIRED.value)
    assert server.messages(Read) == []


async def test_a_payload_that_expires_while_it_is_looked_for_is_expired(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, phone: Path
) -> None:
    """The head that tells the time may come after the event."""
    await publish(server, laptop, b"1", ttl_s=60)
    without_payload(server, 1)

    def later(message: Any) -> Sequence[Struct]:
        if isinstance(message, CaughtUp) and message.stream == STREAM:
            server.now_ms += 61_000
            return [CaughtUp(STREAM, server.head(STREAM))]
        return [message]

    server.rewrite = later
    async with open_device(phone, environment=server.environment) as device:
        assert (await anext(await device.subscribe(STREAM))).problem == Problem.EXPIRED.value


async def test_a_missing_payload_is_read_once_more(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, phone: Path
) -> None:
    """It may come with the second reading; the event waits for that."""
    await publish(server, laptop, b"1", b"2", b"3")

    def drop(message: Any) -> Sequence[Struct]:
        if isinstance(message, Events) and message.stream == STREAM:
            rows = [(*row[:5], None, None) if row[0] < 3 else row for row in message.rows]
            return [msgspec.structs.replace(message, rows=rows)]
        return [message]

    server.rewrite = drop
    async with open_device(phone, environment=server.environment) as device:
        assert await take(await device.subscribe(STREAM), 3) == [b"1", b"2", b"3"]
    assert [(message.after, message.limit) for message in server.messages(Read)] == [(0, 2)]


async def test_a_payload_that_is_gone_without_reason_is_withheld(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, phone: Path
) -> None:
    """The second reading has not got it either."""
    await publish(server, laptop, b"1", b"2", b"3")
    without_payload(server, 1)
    without_payload(server, 3)
    async with open_device(phone, environment=server.environment) as device:
        subscribed = await device.subscribe(STREAM)
        events = [await anext(subscribed) for _ in range(3)]
    assert [(event.data, event.problem) for event in events] == [(None, "withheld"), (b"2", None), (None, "withheld")]
    assert len(server.messages(Read)) == 2


# -- $devices comes first ---------------------------------------------------------------------------------------------


async def test_an_event_of_a_device_that_is_not_known_yet_waits(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, phone: Path
) -> None:
    """Its author's enrolment is read first, on demand, and nothing is lost."""
    async with open_device(phone, environment=server.environment) as reader:
        subscribed = await reader.subscribe(STREAM)
        await reader.wait_until_connected()
        # From here on the reader is told nothing of $devices unless it asks.
        held = server.sessions[0]
        await trio.testing.wait_all_tasks_blocked()
        held.positions.pop(DEVICES_STREAM)
        async with open_device(laptop, environment=server.environment) as device:
            await device.enrol(laptop.with_name("tablet.sqlite3"), "tablet")
        async with open_device(laptop.with_name("tablet.sqlite3"), environment=server.environment) as tablet:
            await tablet.wait_until_ready()
            await tablet.publish(STREAM, b"from the tablet")
            assert await take(subscribed, 1) == [b"from the tablet"]
        assert len(await reader.devices()) == 3


@pytest.mark.parametrize("limit", ["WAITING_MESSAGES_MAX", "WAITING_BYTES_MAX"])
async def test_too_much_that_waits_ends_the_session(
    autojump_clock: MockClock,
    server: DeviceServer,
    laptop: Path,
    phone: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
) -> None:
    """A server that sends without end what its own $devices does not explain."""
    monkeypatch.setattr(inbox, limit, 1)
    server.page_events = 1
    async with open_device(laptop, environment=server.environment) as device:
        await device.enrol(laptop.with_name("tablet.sqlite3"), "tablet")
        await device.wait_until_caught_up(DEVICES_STREAM)
        await device.publish_many(STREAM, [b"1", b"2", b"3"])
        await trio.testing.wait_all_tasks_blocked()
    server.rewrite = lambda message: [] if getattr(message, "stream", "") == DEVICES_STREAM else [message]
    async with open_device(phone, environment=server.environment) as device:
        await device.subscribe(STREAM)
        assert "$devices" in await device.wait_for_problem("")


async def test_the_queue_is_bounded_in_bytes(autojump_clock: MockClock) -> None:
    """Messages of the largest size would fill the memory long before their number is reached."""
    follower: Any = SimpleNamespace(followed={STREAM: None})
    unused: Any = None
    queue = inbox.Inbox(unused, follower, unused, unused)
    page = Events(STREAM, [(1, bytes(16), 1, b"", bytes(64), bytes(inbox.QUEUE_BYTES_MAX // 2), None)], bytes(32))
    taken = 0
    with trio.move_on_after(1):
        while taken < 10:
            await queue.put(page)
            taken += 1
    assert taken == 2


@pytest.mark.parametrize("limit", ["QUEUE_MESSAGES_MAX", "QUEUE_BYTES_MAX"])
async def test_a_full_queue_is_left_in_the_socket(
    autojump_clock: MockClock,
    server: DeviceServer,
    laptop: Path,
    phone: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
) -> None:
    """However fast the server is, a device holds a bounded number of messages, and of their bytes."""
    monkeypatch.setattr(inbox, limit, 1)
    server.page_events = 1
    await publish(server, laptop, *(b"%d" % number for number in range(10)))
    async with open_device(phone, environment=server.environment) as device:
        assert len(await take(await device.subscribe(STREAM), 10)) == 10


async def test_a_head_on_the_way_is_kept(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, phone: Path
) -> None:
    """What the server signs once a minute binds it at the next connection."""
    await publish(server, laptop, b"1", b"2")
    async with open_device(phone, environment=server.environment) as device:
        await device.wait_until_caught_up(STREAM)
        await server.sessions[0].send(Head(STREAM, server.head(STREAM)))
        await trio.testing.wait_all_tasks_blocked()
        assert await device.alarms() == []


# -- keeping ----------------------------------------------------------------------------------------------------------


async def kept(device: Device) -> list[int]:
    """The seqs in the device's file."""
    return [row[0] for row in device._store.rows("SELECT seq FROM events WHERE stream = ? ORDER BY seq", STREAM)]


async def test_events_go_when_everybody_has_passed_them_and_their_time_is_over(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path
) -> None:
    """Thirty days after they came, up to the slowest cursor."""
    async with open_device(laptop, environment=server.environment) as device:
        for _ in range(4):
            await (await device.publish(STREAM, b"x")).accepted()
            server.now_ms += locallog.DAY_MS * 10
        slow, fast = await device.subscribe(STREAM, cursor="slow"), await device.subscribe(STREAM, cursor="fast")
        await take(slow, 4)
        await slow.commit(1)
        assert await kept(device) == [2, 3, 4]
        await slow.commit(2)
        assert await kept(device) == [3, 4]
        await fast.commit(4)
        server.now_ms += locallog.DAY_MS * 100
        await fast.commit(4)
        assert await kept(device) == [3, 4]
        await slow.commit(4)
        assert await kept(device) == []


async def test_events_go_when_they_are_too_many(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest first, down to the limit."""
    async with open_device(laptop, environment=server.environment) as device:
        await device.publish_many(STREAM, [b"x"] * 6)
        subscribed = await device.subscribe(STREAM, cursor="app")
        await take(subscribed, 6)
        one = device._store.row("SELECT kept_bytes FROM streams WHERE name = ?", STREAM)[0] // 6
        monkeypatch.setattr(locallog, "KEPT_BYTES_MAX", one * 3)
        await subscribed.commit(6)
        assert await kept(device) == [4, 5, 6]


async def test_a_cursor_in_a_stream_without_events_keeps_nothing(
    autojump_clock: MockClock, server: DeviceServer, laptop: Path
) -> None:
    """Nothing has come yet."""
    async with open_device(laptop, environment=server.environment) as device:
        await (await device.subscribe(STREAM, cursor="app")).commit(0, state=b"x")
        assert (await device.subscribe(STREAM, cursor="app")).state == b"x"
