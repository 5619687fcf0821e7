"""One session: the streams it follows, and reading by position."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from keepstep.errors import ProtocolError, Unavailable
from keepstep.model import Capability
from keepstep.protocol.messages import (
    SUBSCRIBE_STREAMS_MAX,
    Accepted,
    Ack,
    DevicesChanged,
    Error,
    Events,
    Ping,
    Pong,
    Read,
    ReadResult,
    Resumed,
    Subscribe,
    Unsubscribe,
)
from keepstep.session import REPLIES_MAX
from tests.support.alice import Alice
from tests.support.events import NOW_MS, DeviceFixture
from tests.support.following import verified
from tests.support.parts import Parts
from tests.support.wire import Closed, closing_reason

# -- following ------------------------------------------------------------------------------------------------------


async def test_unsubscribing_stops_events() -> None:
    """Of that stream only."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await session.subscribe("notes", "other")
        await session.send(Unsubscribe(["notes"]), Ping(1))
        await session.expect(Pong)
        await session.publish(*alice.phone.events("notes", 1), *alice.phone.events("other", 1))
        assert (await session.expect(Events)).stream == "other"


async def test_acks_reach_the_subscriber() -> None:
    """An ack above what was sent ends the session."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await session.send(Ack({"notes": (1, bytes(16))}))
        assert await closing_reason(session.receive) == "malformed"


async def test_a_session_that_does_not_follow_the_account_hears_that_it_moved() -> None:
    """With the new head's seq."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await alice.parts.enrol(alice.phone, DeviceFixture(alice.phone.user, "watch", Capability.PUBLISH))
        assert await session.receive() == DevicesChanged(2)


async def test_a_session_ends_where_the_log_is_another_one(autojump_clock: trio.testing.MockClock) -> None:
    """Positions in a restored or promoted log mean nothing: the device resumes, and is told what is still there."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        restore(alice.parts)
        assert await closing_reason(session.receive) == "unavailable"
        session = await alice.parts.connect(nursery, alice.phone, resume="all")
        (head,) = session.ready.heads
        assert verified(head).epoch == NOW_MS


async def test_nothing_of_another_log_is_sent_in_a_session() -> None:
    """Not the page during whose reading it shows: its signed head would prove the server a liar."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await session.publish(alice.phone.event("notes"))
        read = alice.parts.log.read

        async def restored(*arguments: Any, **keywords: Any) -> Any:
            page = await read(*arguments, **keywords)
            restore(alice.parts)
            await alice.parts.log.stream(arguments[0], "$devices")  # by which the node learns of it
            return page

        alice.parts.log.read = restored  # type: ignore[method-assign]
        alice.parts.log.tail.clear()
        await session.subscribe("notes")
        await session.expect(Resumed)
        with pytest.raises(Closed) as caught:
            await session.receive()
        assert caught.value.reason == "unavailable"


async def test_where_an_author_is_comes_before_the_answers_to_what_it_wrote_since() -> None:
    """A device that hears of fewer events than were acknowledged to it takes that for a loss."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        follow = alice.parts.log.follow
        was_read, may_answer = trio.Event(), trio.Event()

        async def slow(*arguments: Any, **options: Any) -> Any:
            found = await follow(*arguments, **options)
            was_read.set()
            await may_answer.wait()
            return found

        await session.publish(alice.phone.event("notes"))
        alice.parts.log.follow = slow  # type: ignore[method-assign]
        await session.subscribe("notes")
        await was_read.wait()
        rid = await session.start_publish(alice.phone.event("notes"))
        await trio.testing.wait_all_tasks_blocked()
        may_answer.set()
        resumed = await session.receive()
        assert isinstance(resumed, Resumed)
        assert resumed.author[0] == 1
        assert (await session.expect(Accepted)).rid == rid


def restore(parts: Parts) -> None:
    """The database is another one than it was."""
    parts.database.epoch = NOW_MS
    parts.database.generation += 1


async def test_reading_goes_on_when_the_log_is_back(autojump_clock: trio.testing.MockClock) -> None:
    """No event is lost, and answers do not wait for the log."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        read = alice.parts.log.read
        attempts = []

        async def away(*_arguments: Any, **_keywords: Any) -> Any:
            await trio.lowlevel.checkpoint()
            attempts.append(trio.current_time())
            raise Unavailable(retry_after_ms=2_000 if len(attempts) == 1 else None)

        await session.subscribe("notes")
        await session.expect(Resumed)
        alice.parts.log.read = away  # type: ignore[method-assign]
        alice.parts.log.read_in_memory = lambda *_, **__: None  # type: ignore[method-assign]
        await session.publish(alice.phone.event("notes"))
        await session.send(Ping(1))
        assert await session.expect(Pong) == Pong(1)
        await trio.sleep(3.5)
        assert [attempt - attempts[0] for attempt in attempts] == pytest.approx([0, 2, 3])
        alice.parts.log.read = read  # type: ignore[method-assign]
        assert [row[0] for row in (await session.expect(Events)).rows] == [1]


async def test_a_fault_found_while_reading_ends_the_session_after_its_answers() -> None:
    """What was already acknowledged still goes out."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await session.subscribe("notes")
        await session.expect(Resumed)

        async def broken(*_arguments: Any, **_keywords: Any) -> Any:
            await trio.lowlevel.checkpoint()
            raise ProtocolError("internal")

        alice.parts.log.read = broken  # type: ignore[method-assign]
        await session.start_publish(alice.phone.event("notes"))
        assert isinstance(await session.receive(), Accepted)
        assert await closing_reason(session.receive) == "internal"


async def test_refused_subscriptions_do_not_pile_up() -> None:
    """A session whose refusals wait to be sent is not read; all of them arrive."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        alice.end.stuck = True
        names = [f"${number}" for number in range(SUBSCRIBE_STREAMS_MAX)]
        for _ in range(3):
            await session.send(Subscribe(dict.fromkeys(names, "start")))
        await trio.testing.wait_all_tasks_blocked()
        (live,) = alice.parts.gateway._sessions
        assert len(live.subscriber.refusals) < 2 * SUBSCRIBE_STREAMS_MAX
        nursery.cancel_scope.cancel()


async def test_answers_do_not_pile_up() -> None:
    """A device that asks and does not listen is not read."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        alice.end.stuck = True
        for number in range(REPLIES_MAX + 50):
            await session.send(Ping(number))
        await trio.testing.wait_all_tasks_blocked()
        (live,) = alice.parts.gateway._sessions
        assert len(live._replies) == REPLIES_MAX
        nursery.cancel_scope.cancel()


# -- read -----------------------------------------------------------------------------------------------------------


async def test_read_answers_a_page_and_the_head() -> None:
    """After a seq, at most so many."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await session.publish(*alice.phone.events("notes", 5))
        await session.send(Read(3, "notes", 1, 2))
        result = await session.expect(ReadResult)
        assert (result.rid, result.stream, result.head_seq) == (3, "notes", 5)
        assert [row[0] for row in result.rows] == [2, 3]
        principal = await alice.parts.principal(alice.phone)
        assert result.chain == await alice.parts.log.chain_at(principal.user_pk, "notes", 3)
        await session.send(Read(4, "notes", 5, 2))
        result = await session.expect(ReadResult)
        assert (result.rows, result.head_seq) == ([], 5)


@pytest.mark.parametrize(
    ("stream", "after", "code"),
    [("never", 0, "unknown_stream"), ("notes", 2, "unknown_position"), ("$inbox/x", 0, "unknown_stream")],
)
async def test_a_read_that_cannot_be_answered_says_why(stream: str, after: int, code: str) -> None:
    """By its number; the session goes on."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await session.publish(alice.phone.event("notes"))
        await session.send(Read(3, stream, after, 2))
        assert await session.receive() == Error(3, code, None)


async def test_a_read_while_the_log_is_away_is_unavailable() -> None:
    """With the time to wait."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        alice.parts.database.away = True
        await session.send(Read(3, "notes", 0, 2))
        assert await session.receive() == Error(3, "unavailable", Unavailable().retry_after_ms)
        alice.parts.database.away = False


async def test_a_device_without_subscribe_may_not_read() -> None:
    """Not by this way either."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    sensor = DeviceFixture(phone.user, "sensor", Capability.PUBLISH)
    await parts.enrol(phone, sensor)
    async with parts.running() as nursery:
        session = await parts.connect(nursery, sensor)
        await session.send(Read(3, "$devices", 0, 2))
        assert await session.receive() == Error(3, "forbidden", None)
