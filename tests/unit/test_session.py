"""One session: reader, writer, backpressure, and every message a device may send."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from keepstep.model import Capability
from keepstep.protocol.messages import (
    PUBLISH_BYTES_MAX,
    Accepted,
    Bye,
    CaughtUp,
    Draining,
    Error,
    Events,
    Heal,
    Ping,
    Pong,
    Publish,
    Rekey,
    Resumed,
)
from keepstep.protocol.results import encode_results
from keepstep.publish import Submitter
from keepstep.sessionservices import FAREWELL_TIMEOUT_S
from tests.support.alice import Alice
from tests.support.events import DeviceFixture, wire_events
from tests.support.parts import Parts
from tests.support.wire import Closed, closing_reason

NO_RESULTS = encode_results([])

# -- messages -------------------------------------------------------------------------------------------------------


async def test_ping_is_answered_with_its_number() -> None:
    """In order."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await session.send(Ping(1), Ping(2))
        assert [await session.receive(), await session.receive()] == [Pong(1), Pong(2)]


@pytest.mark.parametrize(
    ("message", "rid"),
    [
        (Heal(6, "notes", None, [], None, 0), 6),
        (b"\x92\x7f\x01", None),
    ],
)
async def test_what_later_versions_have_is_unsupported(message: Any, rid: int | None) -> None:
    """A typed answer; the session goes on."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await session.send(message, Ping(1))
        assert await session.receive() == Error(rid, "unsupported", None)
        assert await session.receive() == Pong(1)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\xc0", "malformed"),
        (b"\x91\x19", "malformed"),
        (b"\x91\x40", "unexpected"),
        (b"\x91\x01", "unexpected"),
        (Publish(1, msgspec.Raw(msgspec.msgpack.encode([bytes(PUBLISH_BYTES_MAX)]))), "too_large"),
    ],
)
async def test_a_message_that_breaks_the_protocol_ends_the_session(message: Any, code: str) -> None:
    """With the code of what is wrong."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await session.send(message)
        assert await closing_reason(session.receive) == code


@pytest.mark.parametrize("fault", ["replayed", "reordered", "changed", "plain"])
async def test_a_record_that_does_not_open_ends_the_session(fault: str) -> None:
    """Lost, replayed, reordered, forged: there is no going on after it."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        first, second = session.session.send([Ping(1), Ping(2)], now_s=0)
        records = {
            "replayed": [first, first],
            "reordered": [second, first],
            "changed": [first[:-1] + bytes([first[-1] ^ 1])],
            "plain": [b"\x92\x19\x01"],
        }[fault]
        for record in records:
            await session.end.send_message(record)
        assert await closing_reason(session.receive) == "bad_record"


async def test_a_rekeyed_device_is_understood() -> None:
    """The next record is under the next secret."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        hour_later = session.session.send([Ping(1)], now_s=3_600)
        for record in hour_later:
            await session.end.send_message(record)
        assert len(hour_later) == 2
        assert await session.receive() == Pong(1)
    received = alice.parts.metrics.registry.get_sample_value
    assert received("keepstep_messages_received_total", {"type": Rekey.__name__}) == 1


async def test_bye_ends_a_session_without_a_fault() -> None:
    """After what was under way is answered."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await session.start_publish(alice.phone.event("notes"))
        await session.send(Bye())
        assert isinstance(await session.receive(), Accepted)
        with pytest.raises(Closed) as caught:
            await session.receive()
        assert caught.value.code == 1000
    assert alice.parts.metrics.registry.get_sample_value("keepstep_session_ends_total", {"reason": "bye"}) == 1


async def test_a_device_that_said_bye_is_not_told_that_the_server_drains() -> None:
    """It is about to close anyway."""
    alice = Alice()
    submitted: list[Any] = []

    def hold(_principal: object, _submission: object, submitter: Submitter, rid: int, *_: object) -> bool:
        submitted.append(partial(submitter.answered, rid, NO_RESULTS, suspect=False))
        return True

    alice.parts.publisher.submit_nowait = hold  # type: ignore[method-assign,assignment]
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await session.start_publish(alice.phone.event("notes"))
        await session.send(Bye())
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(alice.parts.gateway.drain)
        await trio.testing.wait_all_tasks_blocked()
        submitted[0]()
        assert isinstance(await session.receive(), Accepted)
        assert await closing_reason(session.receive) == ""


async def test_a_device_that_vanishes_leaves_nothing_behind() -> None:
    """Its session ends; what it had handed in is still committed."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        principal = await alice.parts.principal(alice.phone)
        await session.start_publish(alice.phone.event("notes"))
        alice.end.vanish()
        await trio.testing.wait_all_tasks_blocked()
        assert alice.parts.gateway.sessions == 0
        assert (await alice.parts.log.stream(principal.user_pk, "notes")).head.seq == 1
    assert alice.parts.metrics.registry.get_sample_value("keepstep_session_ends_total", {"reason": "lost"}) == 1


async def test_a_silent_device_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    """After so many seconds without a message; each message starts them anew."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await trio.sleep(100)
        await session.send(Ping(1))
        await session.receive()
        start_s = trio.current_time()
        assert await closing_reason(session.receive) == "timeout"
        assert start_s + 120 < trio.current_time() <= start_s + 120 + 30 / 8


async def test_a_device_that_takes_nothing_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    """A send that does not end in time ends the session."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        alice.end.stuck = True
        await session.send(Ping(1))
        start_s = trio.current_time()
        assert await closing_reason(session.receive) == "timeout"
        # An eighth of the timeout until it is noticed, and a second for the farewell that does not go out.
        assert start_s + 30 < trio.current_time() <= start_s + 30 + 30 / 8 + FAREWELL_TIMEOUT_S


async def test_a_device_that_takes_nothing_is_replaced_all_the_same(autojump_clock: trio.testing.MockClock) -> None:
    """The farewell has a second; it does not keep the device's new session from its place."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        alice.end.stuck = True
        await session.send(Ping(1))
        await trio.testing.wait_all_tasks_blocked()
        again = await alice.parts.connect(nursery, alice.phone, nonce="again")
        assert await closing_reason(session.receive) == "replaced"
        await again.send(Ping(2))
        assert await again.receive() == Pong(2)


# -- publishing -----------------------------------------------------------------------------------------------------


async def test_answers_are_sent_in_one_write() -> None:
    """With the events they made, where the session follows them."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await session.subscribe("notes")
        await session.expect(Resumed)
        await session.publish(alice.phone.event("notes"))
        await session.expect(Events)
        await session.expect(CaughtUp)
        alice.end.writes.clear()
        alice.parts.probed.clear()
        await session.publish(*alice.phone.events("notes", 2))
        assert [row[0] for row in (await session.expect(Events)).rows] == [2, 3]
        assert alice.end.writes == [2]
    assert alice.parts.probed == ["after_ack"]


async def test_publishes_are_pipelined() -> None:
    """Many may be under way; the answers come in their order."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        rids = [await session.start_publish(event) for event in alice.phone.events("notes", 5)]
        answers = [await session.expect(Accepted) for _ in rids]
        assert [answer.rid for answer in answers] == rids
        assert [answer.results[0].first_seq for answer in answers] == [1, 2, 3, 4, 5]  # type: ignore[union-attr]


async def test_a_session_with_too_much_under_way_is_not_read() -> None:
    """Backpressure: message 9 waits in the socket until one of the eight is answered."""
    alice = Alice()
    append, go_on, batches = alice.parts.log.append, trio.Event(), []

    async def slow(batch: Sequence[Any], **keywords: Any) -> Any:
        batches.append(len(batch))
        await go_on.wait()
        return await append(batch, **keywords)

    alice.parts.log.append = slow  # type: ignore[method-assign]
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        for event in alice.phone.events("notes", 12):
            await session.start_publish(event)
        await trio.testing.wait_all_tasks_blocked()
        received = alice.parts.metrics.registry.get_sample_value
        taken = received("keepstep_messages_received_total", {"type": "Publish"})
        assert taken is not None
        assert taken <= 8
        go_on.set()
        answers = [await session.expect(Accepted) for _ in range(12)]
        assert [answer.results[0].first_seq for answer in answers] == list(range(1, 13))  # type: ignore[union-attr]


async def test_so_many_publishes_are_under_way_at_most() -> None:
    """Exactly the number that Ready told."""
    alice = Alice(inflight_publishes_max=2)
    submitted: list[Any] = []

    def hold(_principal: object, _submission: object, submitter: Submitter, rid: int, *_: object) -> bool:
        submitted.append(partial(submitter.answered, rid, NO_RESULTS, suspect=False))
        return True

    alice.parts.publisher.submit_nowait = hold  # type: ignore[method-assign,assignment]
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        for event in alice.phone.events("notes", 5):
            await session.start_publish(event)
        await trio.testing.wait_all_tasks_blocked()
        assert len(submitted) == 2
        submitted[0]()
        await session.expect(Accepted)
        await trio.testing.wait_all_tasks_blocked()
        assert len(submitted) == 3


@pytest.mark.parametrize(
    ("events", "code"),
    [
        (b"\x90", "malformed"),
        (b"\xc0", "malformed"),
        (msgspec.msgpack.encode([[b"no header", bytes(64), b"", None]]), None),
    ],
)
async def test_a_publish_of_another_form_is_refused_by_its_number(events: bytes, code: str | None) -> None:
    """The session goes on; a single event that is no event gets its own answer."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await session.send(Publish(7, msgspec.Raw(events)))
        answer = await session.receive()
        if code is None:
            assert isinstance(answer, Accepted)
            assert [one.code for one in answer.results] == ["malformed"]  # type: ignore[union-attr]
        else:
            assert answer == Error(7, code, None)
        assert len(await session.publish(alice.phone.event("notes"))) == 1


async def test_a_publish_of_too_many_events_is_refused_as_a_whole() -> None:
    """Nothing of it is stored."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await session.start_publish(*alice.phone.events("notes", 17))
        answer = await session.receive()
        assert answer == Error(1, "too_large", None)
    assert not any(stream for stream in alice.parts.database.events if stream[1] > 2)


async def test_a_payload_above_the_limit_is_refused_alone() -> None:
    """The event before it is accepted."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        accepted, refused = await session.publish(
            alice.phone.event("notes", bytes(1024)), alice.phone.event("notes", bytes(1025))
        )
        assert accepted.count == 1
        assert refused.code == "too_large"


@pytest.mark.parametrize("fault", ["wrong sequence", "wrong prev", "wrong stream kind", "forged"])
async def test_an_event_that_breaks_a_rule_gets_a_typed_answer(fault: str) -> None:
    """And what is right after it is still accepted."""
    alice = Alice()
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        phone = alice.phone
        event = {
            "wrong sequence": lambda: phone.sign("notes", b"x", n=2, prev=bytes(16)),
            "wrong prev": lambda: phone.sign("notes", b"x", n=1, prev=bytes([1]) * 16),
            "wrong stream kind": lambda: phone.sign("$devices", b"x", n=2, prev=bytes(16)),
            "forged": lambda: replace(phone.sign("notes", b"x", n=1, prev=bytes(16)), sig=bytes(64)),
        }[fault]()
        (answer,) = await session.publish(event)
        expected = {
            "wrong sequence": ("out_of_order", [0, bytes(32)]),
            "wrong prev": ("out_of_order", [0, bytes(32)]),
            "wrong stream kind": ("malformed", []),
            "forged": ("bad_signature", []),
        }[fault]
        assert (answer.code, answer.detail) == expected
        (accepted,) = await session.publish(phone.event("notes"))
        assert accepted.first_seq == 1


async def test_a_sender_of_bad_signatures_is_verified_apart_from_then_on() -> None:
    """Each bad signature in a merged batch costs a search; one is enough to lose the merging."""
    alice = Alice()
    suspicions: list[bool] = []
    submit = alice.parts.publisher.submit_nowait

    def watched(*handed_in: Any) -> bool:
        suspicions.append(next(iter(alice.parts.gateway._sessions))._suspect)
        return submit(*handed_in)

    alice.parts.publisher.submit_nowait = watched  # type: ignore[method-assign,assignment]
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await session.publish(alice.phone.event("notes"))
        await session.publish(replace(alice.phone.sign("other", n=1, prev=bytes(16)), sig=bytes(64)))
        await session.publish(alice.phone.event("notes"))
    assert suspicions == [False, False, True]


async def test_a_device_without_publish_may_not() -> None:
    """Typed, per event."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    reader = DeviceFixture(phone.user, "reader", Capability.SUBSCRIBE)
    await parts.enrol(phone, reader)
    async with parts.running() as nursery:
        session = await parts.connect(nursery, reader)
        (answer,) = await session.publish(reader.event("notes"))
        assert answer.code == "forbidden"


async def test_a_draining_session_takes_nothing_new() -> None:
    """It answers what it is asked, but a publish is refused."""
    alice = Alice()
    submitted: list[Any] = []

    def hold(_principal: object, _submission: object, submitter: Submitter, rid: int, *_: object) -> bool:
        submitted.append(partial(submitter.answered, rid, NO_RESULTS, suspect=False))
        return True

    alice.parts.publisher.submit_nowait = hold  # type: ignore[method-assign,assignment]
    async with alice.parts.running() as nursery:
        session = await alice.connect(nursery)
        await session.start_publish(alice.phone.event("notes"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(alice.parts.gateway.drain)
        await session.expect(Draining)
        # A device that has not read Draining yet: its own session would not let it send.
        for record in session.session._sealer.seal_many(
            [msgspec.msgpack.encode(Publish(9, msgspec.Raw(wire_events(alice.phone.event("notes")))))]
        ):
            await session.end.send_message(record)
        assert await session.receive() == Error(9, "draining", None)
