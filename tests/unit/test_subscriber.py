"""A session's positions: resuming, pages, signed heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio

from keepstep.errors import ProtocolError, Unavailable
from keepstep.interfaces import Page
from keepstep.model import Capability, inbox_of
from keepstep.pagereader import REREADS_MAX
from keepstep.protocol.messages import CaughtUp, Events, Resumed
from tests.support.events import NOW_MS, DeviceFixture
from tests.support.following import Following, seqs, verified

NOBODY = (0, bytes(32))


# -- resuming -------------------------------------------------------------------------------------------------------


async def test_from_the_start_everything_comes_then_the_signed_head() -> None:
    """Resumed, pages in order without a gap, CaughtUp at exactly that head."""
    bench = await Following.start()
    await bench.publish("notes", 6)
    bench.subscribe({"notes": "start"})
    resumed, first, second, caught_up = await bench.pull_all()
    head = await bench.head("notes")
    assert (resumed.stream, resumed.answer) == ("notes", "contiguous")
    assert resumed.author == bench.phone.authored["notes"]
    assert verified(resumed.head).seq == 6
    assert [row[0] for row in first.rows] == [1, 2, 3, 4]
    assert [row[0] for row in second.rows] == [5, 6]
    assert second.chain == head.chain
    assert isinstance(caught_up, CaughtUp)
    state = verified(caught_up.head)
    assert (state.user_key, state.stream, state.seq, state.chain) == (bench.principal.user_key, "notes", 6, head.chain)
    assert state.time_ms == NOW_MS
    assert bench.events == 6


async def test_from_a_position_only_what_follows_comes() -> None:
    """Exactly what was missed."""
    bench = await Following.start()
    await bench.publish("notes", 2)
    known = await bench.head("notes")
    await bench.publish("notes", 2)
    bench.subscribe({"notes": (known.seq, known.chain)})
    messages = await bench.pull_all()
    assert messages[0].answer == "contiguous"
    assert seqs(messages) == [3, 4]


async def test_from_the_end_nothing_old_comes() -> None:
    """Only the signed head, then what is new."""
    bench = await Following.start()
    await bench.publish("notes", 2)
    bench.subscribe({"notes": "end"})
    resumed, caught_up = await bench.pull_all()
    assert verified(resumed.head).seq == verified(caught_up.head).seq == 2
    await bench.publish("notes")
    bench.committed(await bench.pk("notes"), 1, 3)
    assert seqs(await bench.pull_all()) == [3]


@pytest.mark.parametrize(
    "position", [(0, bytes(32)), (2, bytes(32)), (3, bytes(32))], ids=["chain_0", "within", "above"]
)
async def test_a_position_the_log_does_not_hold_is_said_so(position: tuple[int, bytes]) -> None:
    """Never 'probably': another chain, also before the first event, or above the head. Nothing follows."""
    bench = await Following.start()
    await bench.publish("notes", 2)
    bench.subscribe({"notes": position})
    (resumed,) = await bench.pull_all()
    assert resumed.answer == "unknown_position"
    assert verified(resumed.head).seq == 2
    assert not bench.subscriber.follows("notes")


@pytest.mark.parametrize("start", ["start", "end", "chain_0"])
async def test_a_stream_that_does_not_exist_yet_can_be_followed(start: str) -> None:
    """It begins when somebody publishes; until then there is no head to show."""
    bench = await Following.start()
    position = (0, bench.phone.user.chain_0("notes")) if start == "chain_0" else start
    bench.subscribe({"notes": position})
    (resumed,) = await bench.pull_all()
    assert (resumed.answer, resumed.head, resumed.author) == ("contiguous", None, NOBODY)
    await bench.publish("notes", 2)
    wakes = bench.wakes
    bench.committed(await bench.pk("notes"), 1, 2)
    assert bench.wakes == wakes + 1
    messages = await bench.pull_all()
    assert seqs(messages) == [1, 2]
    assert isinstance(messages[-1], CaughtUp)


async def test_a_position_in_a_stream_that_does_not_exist_is_unknown() -> None:
    """A device that knows events the log has never seen."""
    bench = await Following.start()
    bench.subscribe({"notes": (1, bytes(32))})
    (resumed,) = await bench.pull_all()
    assert (resumed.answer, resumed.head) == ("unknown_position", None)


async def test_reserved_names_of_later_versions_are_unknown() -> None:
    """Also to those who may read everything."""
    bench = await Following.start()
    bench.subscribe({"$inbox/x": "start"})
    (resumed,) = await bench.pull_all()
    assert (resumed.answer, resumed.head, resumed.author) == ("unknown_stream", None, NOBODY)


async def test_who_writes_into_an_inbox_and_cannot_read_it_learns_its_own_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing else of it; the answers come in the order of the questions, also after the database was away."""
    bench = await Following.start()
    await bench.parts.enrol(bench.phone, laptop := DeviceFixture(bench.phone.user, "laptop"))
    inbox, never = inbox_of(laptop.device_id), inbox_of(bytes(16))

    async def away(*_: object, **_options: object) -> None:
        raise Unavailable

    await bench.publish(inbox, 2)
    bench.subscribe({inbox: "end", never: "start"})
    with monkeypatch.context() as patched:
        patched.setattr(bench.parts.log, "follow", away)
        with pytest.raises(Unavailable):
            await bench.pull()
    written, unwritten = await bench.pull_all()
    assert (written.stream, written.answer, written.head) == (inbox, "forbidden", None)
    assert written.author == bench.phone.authored[inbox]
    assert written.author[0] == 2
    assert (unwritten.stream, unwritten.answer, unwritten.author) == (never, "forbidden", NOBODY)


async def test_a_device_without_subscribe_reads_nothing() -> None:
    """Whatever it names."""
    bench = await Following.start(capabilities=Capability.PUBLISH)
    await bench.publish("notes")
    bench.subscribe({"notes": "start", "$devices": "start"})
    assert [one.answer for one in await bench.pull_all()] == ["forbidden", "forbidden"]


async def test_so_many_streams_are_followed_at_a_time() -> None:
    """The rest is refused, and told so; asking anew for one that is followed is no more."""
    bench = await Following.start(subscriptions_max=2)
    bench.subscribe({"a": "start", "b": "start", "c": "start"})
    bench.subscribe({"b": "start"})
    answers = [(one.stream, one.answer) for one in await bench.pull_all()]
    assert answers == [("c", "limit_exceeded"), ("a", "contiguous"), ("b", "contiguous")]
    assert not bench.subscriber.refusals


async def test_subscribing_again_starts_anew() -> None:
    """From where the device now says."""
    bench = await Following.start()
    await bench.publish("notes", 2)
    bench.subscribe({"notes": "end"})
    await bench.pull_all()
    bench.subscribe({"notes": "start"})
    assert seqs(await bench.pull_all()) == [1, 2]


async def test_nothing_comes_after_unsubscribing() -> None:
    """Of that stream."""
    bench = await Following.start()
    await bench.publish("notes")
    pk = await bench.pk("notes")
    bench.subscribe({"notes": "start", "other": "start"})
    await bench.pull_all()
    bench.subscriber.unsubscribe(["notes", "unknown"])
    await bench.publish("notes")
    bench.committed(pk, 1, 2)
    assert not await bench.pull_all()
    assert not bench.subscriber.follows("notes")
    assert bench.subscriber.follows("other")


async def test_a_subscription_that_changes_while_it_is_answered_is_answered_anew() -> None:
    """The device unsubscribed, or named another position, while the log was being asked."""
    bench = await Following.start()
    await bench.publish("notes", 2)
    ask = bench.parts.log.follow

    async def meanwhile(*arguments: Any, **options: Any) -> Any:
        bench.parts.log.follow = ask  # type: ignore[method-assign]
        bench.subscribe({"notes": "end"})
        return await ask(*arguments, **options)

    bench.parts.log.follow = meanwhile  # type: ignore[method-assign]
    bench.subscribe({"notes": "start"})
    messages = await bench.pull_all()
    assert [type(one) for one in messages] == [Resumed, CaughtUp]


async def test_account_streams_come_first() -> None:
    """``$devices``, then ``$keys``, then the others in turn, a page each."""
    bench = await Following.start()
    await bench.publish("a", 6)
    await bench.publish("b", 6)
    bench.subscribe({"a": "start", "b": "start", "$keys": "start", "$devices": "start"})
    order = [(type(one).__name__, one.stream) for one in await bench.pull_all()]
    assert order == [
        ("Resumed", "$devices"),
        ("Resumed", "$keys"),
        ("CaughtUp", "$keys"),
        ("Resumed", "a"),
        ("Resumed", "b"),
        ("Events", "$devices"),
        ("CaughtUp", "$devices"),
        ("Events", "a"),
        ("Events", "b"),
        ("Events", "a"),
        ("CaughtUp", "a"),
        ("Events", "b"),
        ("CaughtUp", "b"),
    ]


# -- all ------------------------------------------------------------------------------------------------------------


async def test_all_follows_every_stream_from_the_acknowledged_position() -> None:
    """``$devices``, ``$keys``, then by name; what was acknowledged does not come again."""
    bench = await Following.start()
    await bench.publish("b", 2)
    await bench.publish("a", 3)
    head = await bench.parts.log.chain_at(bench.principal.user_pk, "a", 2)
    await bench.parts.accounts.save_acks(bench.principal, {"a": (2, head[:16])})
    bench.subscribe("all")
    messages = await bench.pull_all()
    assert [one.stream for one in messages if isinstance(one, Resumed)] == ["$devices", "$keys", "a", "b"]
    assert seqs(messages, "a") == [3]
    assert seqs(messages, "b") == [1, 2]


async def test_all_follows_streams_that_come_into_being_later() -> None:
    """When a commit moves one that the session does not know."""
    bench = await Following.start()
    bench.subscribe("all")
    await bench.pull_all()
    await bench.publish("notes", 2)
    bench.committed(await bench.pk("notes"), 1, 2)
    messages = await bench.pull_all()
    assert [one.answer for one in messages if isinstance(one, Resumed)] == ["contiguous"]
    assert seqs(messages) == [1, 2]


async def test_all_respects_what_was_left_and_what_does_not_fit() -> None:
    """Unsubscribed streams stay away, refused ones are told once; asking for ``all`` again asks for them again."""
    bench = await Following.start(subscriptions_max=3)
    await bench.publish("a")
    await bench.publish("b")
    bench.subscribe("all")
    answers = [(one.stream, one.answer) for one in await bench.pull_all() if isinstance(one, Resumed)]
    assert ("b", "limit_exceeded") in answers
    bench.subscriber.unsubscribe(["a"])
    bench.subscriber.reread(await bench.parts.log.streams(bench.principal.user_pk))
    assert not await bench.pull_all()
    bench.subscribe("all")
    answers = [(one.stream, one.answer) for one in await bench.pull_all() if isinstance(one, Resumed)]
    assert answers == [("a", "contiguous"), ("b", "limit_exceeded")]


async def test_an_acknowledged_position_above_the_head_is_said_so() -> None:
    """The log went back: not silently from the start, which would hide it."""
    bench = await Following.start()
    await bench.publish("notes", 2)

    (acks,) = (device.acks for device in bench.parts.database.users[bench.principal.user_pk].devices.values())
    acks[await bench.pk("notes")] = 3, bytes(16)
    bench.subscribe("all")
    answers = {one.stream: one.answer for one in await bench.pull_all() if isinstance(one, Resumed)}
    assert answers == {"notes": "unknown_position", "$devices": "contiguous", "$keys": "contiguous"}


async def test_names_that_are_made_up_are_not_remembered() -> None:
    """A device cannot make its session grow by subscribing to what cannot be."""
    bench = await Following.start()
    bench.subscribe("all")
    await bench.pull_all()
    for number in range(3):
        bench.subscribe({f"$made-up-{number}-{index}": "start" for index in range(100)})
        await bench.pull_all()
    assert not bench.subscriber._left


async def test_names_that_are_made_up_and_left_again_are_not_remembered_without_end() -> None:
    """Also where nobody has looked yet whether there are such streams."""
    bench = await Following.start(subscriptions_max=4)
    await bench.publish("notes")
    bench.subscribe("all")
    await bench.pull_all()
    for number in range(20):
        bench.subscribe({f"made-up-{number}": "start"})
        bench.subscriber.unsubscribe([f"made-up-{number}"])
    assert len(bench.subscriber._left) <= 8
    await bench.pull_all()
    bench.subscriber.unsubscribe(["notes"])
    bench.subscribe({"notes": "start"})
    assert seqs(await bench.pull_all()) == [1]


# -- live -----------------------------------------------------------------------------------------------------------


async def test_a_commit_wakes_and_is_sent_once() -> None:
    """A hint of what was sent already wakes nobody."""
    bench, pk = await Following.caught_up()
    await bench.publish("notes")
    wakes = bench.wakes
    bench.committed(pk, 1, 2)
    bench.committed(pk, 1, 2)
    assert seqs(await bench.pull_all()) == [2]
    bench.committed(pk, 1, 2)
    assert bench.wakes == wakes + 2
    assert not await bench.pull_all()


async def test_a_commit_in_a_stream_that_is_not_followed_wakes_nobody() -> None:
    """Not even to look."""
    bench = await Following.start()
    await bench.publish("notes")
    bench.subscribe({"notes": "start"})
    await bench.pull_all()
    await bench.publish("other")
    wakes = bench.wakes
    bench.committed(await bench.pk("other"), 1, 1, name="other")
    assert bench.wakes == wakes


async def test_a_commit_in_a_stream_that_was_left_does_not_have_all_streams_listed() -> None:
    """Only a stream's first event can be of one that this session does not know: another commit costs nothing."""
    bench = await Following.start()
    await bench.publish("noise")
    bench.subscribe("all")
    await bench.pull_all()
    bench.subscriber.unsubscribe(["noise"])
    bench.subscribe({"absent": "start"})
    await bench.pull_all()
    wakes = bench.wakes
    await bench.publish("noise")
    bench.committed(await bench.pk("noise"), 2, 2)
    bench.subscriber.reread(await bench.parts.log.streams(bench.principal.user_pk))
    assert bench.wakes == wakes


async def test_events_committed_while_a_page_is_read_are_not_missed() -> None:
    """Clear, read, then wait: the hint that comes during the read counts."""
    bench = await Following.start()
    await bench.publish("notes")
    pk = await bench.pk("notes")
    bench.subscribe({"notes": "start"})
    await bench.pull()
    read = bench.parts.log.read

    async def meanwhile(*arguments: Any, **keywords: Any) -> Page:
        page = await read(*arguments, **keywords)
        bench.parts.log.read = read  # type: ignore[method-assign]
        await bench.publish("notes")
        bench.committed(pk, 1, 2)
        return page

    bench.parts.log.read = meanwhile  # type: ignore[method-assign]
    assert seqs(await bench.pull_all()) == [1, 2]


async def test_what_the_database_answered_with_is_not_asked_for_again() -> None:
    """A commit that is told while it is read, and is in the answer: asking again would meet the next one, and so on."""
    bench, pk = await Following.caught_up()
    bench.parts.log.tail.clear()
    read, reads = bench.parts.log.read, 0

    async def meanwhile(*arguments: Any, **keywords: Any) -> Page:
        nonlocal reads
        reads += 1
        page = await read(*arguments, **keywords)
        bench.committed(pk, 2, 2)
        return page

    await bench.publish("notes")
    bench.parts.log.tail.clear()
    bench.parts.log.read = meanwhile  # type: ignore[method-assign]
    bench.subscriber.reread(await bench.parts.log.streams(bench.principal.user_pk))
    assert seqs(await bench.pull_all()) == [2]
    assert (reads, bench.subscriber.is_due) == (1, False)


async def test_falling_more_than_a_page_behind_is_caught_up_anew() -> None:
    """CaughtUp comes after a resume, and again after the session was more than a page behind."""
    bench = await Following.start()
    await bench.publish("notes")
    pk = await bench.pk("notes")
    bench.subscribe({"notes": "start"})
    assert isinstance((await bench.pull_all())[-1], CaughtUp)
    await bench.publish("notes")
    bench.committed(pk, 1, 2)
    assert [type(one) for one in await bench.pull_all()] == [Events]
    await bench.publish("notes", 5)
    bench.committed(pk, 1, 7)
    assert [type(one) for one in await bench.pull_all()] == [Events, Events, CaughtUp]


async def test_rereading_finds_what_a_lost_hint_would_have_told() -> None:
    """Events of a followed stream, and under ``all`` new streams."""
    bench = await Following.start(subscriptions_max=10)
    await bench.publish("notes")
    bench.subscribe({"notes": "start", "later": "start"})
    await bench.pull_all()
    await bench.publish("notes")
    await bench.publish("later")
    await bench.publish("unrelated")
    bench.subscriber.reread(await bench.parts.log.streams(bench.principal.user_pk))
    messages = await bench.pull_all()
    assert (seqs(messages), seqs(messages, "later"), seqs(messages, "unrelated")) == ([2], [1], [])
    wakes = bench.wakes
    bench.subscriber.reread(await bench.parts.log.streams(bench.principal.user_pk))
    assert bench.wakes == wakes
    bench.subscribe("all")
    await bench.pull_all()
    await bench.publish("new")
    bench.subscriber.reread(await bench.parts.log.streams(bench.principal.user_pk))
    assert seqs(await bench.pull_all(), "new") == [1]


# -- what the log may do --------------------------------------------------------------------------------------------


async def test_a_page_that_does_not_continue_the_position_is_read_again() -> None:
    """From any source; the second answer is right."""
    bench = await Following.start()
    await bench.publish("notes", 2)
    bench.subscribe({"notes": "start"})
    await bench.pull()
    read = bench.parts.log.read

    async def wrong_once(*arguments: Any, **keywords: Any) -> Page:
        bench.parts.log.read = read  # type: ignore[method-assign]
        return replace(await read(*arguments, **keywords), after=1)

    bench.parts.log.read = wrong_once  # type: ignore[method-assign]
    assert seqs(await bench.pull_all()) == [1, 2]


async def test_a_log_that_never_continues_is_unavailable() -> None:
    """After a few attempts; nothing with a gap is sent, and the stream stays ready."""
    bench = await Following.start()
    await bench.publish("notes", 2)
    bench.subscribe({"notes": "start"})
    await bench.pull()
    read = bench.parts.log.read
    attempts = []

    async def gap(*arguments: Any, **keywords: Any) -> Page:
        attempts.append(arguments)
        return replace(await read(*arguments, **keywords), count=1)

    bench.parts.log.read = gap  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await bench.pull()
    assert len(attempts) == REREADS_MAX
    bench.parts.log.read = read  # type: ignore[method-assign]
    assert seqs(await bench.pull_all()) == [1, 2]


async def test_what_was_ready_stays_ready_while_the_log_is_away() -> None:
    """At every step: listing, resuming, reading."""
    bench = await Following.start()
    await bench.publish("notes", 2)
    bench.subscribe("all")
    for _ in range(2):
        bench.parts.log.tail.clear()
        bench.parts.database.away = True
        with pytest.raises(Unavailable):
            await bench.pull()
        bench.parts.database.away = False
        await bench.pull()
    assert seqs(await bench.pull_all()) == [1, 2]


async def test_a_stream_that_is_left_while_the_log_is_away_is_not_read_again() -> None:
    """The reading under way fails after the device has left the stream."""
    bench = await Following.start()
    await bench.publish("notes", 2)
    bench.subscribe({"notes": "start"})
    await bench.pull()

    async def away(*_: Any, **_keywords: Any) -> Page:
        bench.subscriber.unsubscribe(["notes"])
        raise Unavailable

    bench.parts.log.read = away  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await bench.pull()
    assert not bench.subscriber.is_due
    assert bench.subscriber.pull_nowait() == []


@pytest.mark.parametrize(("code", "answer"), [("unknown_position", "unknown_position"), ("unknown_stream",) * 2])
async def test_a_log_that_lost_a_followed_position_says_so(code: str, answer: str) -> None:
    """The device decides what it means; nothing is sent on a guess."""
    bench = await Following.start()
    await bench.publish("notes", 2)
    pk = await bench.pk("notes")
    bench.subscribe({"notes": "start"})
    await bench.pull_all()

    async def lost(*_arguments: Any, **_keywords: Any) -> Page:
        await trio.lowlevel.checkpoint()
        raise ProtocolError(code)

    bench.parts.log.read = lost  # type: ignore[method-assign]
    bench.committed(pk, 1, 3)
    (resumed,) = await bench.pull_all()
    assert (resumed.stream, resumed.answer) == ("notes", answer)
    assert not bench.subscriber.follows("notes")


async def test_a_fault_of_the_log_is_not_taken_for_an_answer() -> None:
    """``internal`` ends the session instead of a stream."""
    bench = await Following.start()
    await bench.publish("notes", 2)
    bench.subscribe({"notes": "start"})
    await bench.pull()

    async def broken(*_arguments: Any, **_keywords: Any) -> Page:
        await trio.lowlevel.checkpoint()
        raise ProtocolError("internal")

    bench.parts.log.read = broken  # type: ignore[method-assign]
    with pytest.raises(ProtocolError, match="internal"):
        await bench.pull()


async def test_a_fault_in_finding_a_stream_is_not_taken_for_an_answer() -> None:
    """As little as one in reading it."""
    bench = await Following.start()

    async def broken(*_arguments: Any, **_options: Any) -> Any:
        await trio.lowlevel.checkpoint()
        raise ProtocolError("internal")

    bench.parts.log.follow = broken  # type: ignore[method-assign]
    bench.subscribe({"notes": "start"})
    with pytest.raises(ProtocolError, match="internal"):
        await bench.pull()


async def test_a_stream_that_is_left_while_its_page_is_read_is_not_sent() -> None:
    """Or whose position is lost then."""
    bench = await Following.start()
    await bench.publish("notes", 2)
    for error in (None, ProtocolError("unknown_position")):
        bench.subscribe({"notes": "start"})
        await bench.pull()
        read = bench.parts.log.read

        async def meanwhile(*arguments: Any, **keywords: Any) -> Page:
            bench.subscriber.unsubscribe(["notes"])
            if error is not None:  # noqa: B023 - called in this round only
                raise error  # noqa: B023
            return await read(*arguments, **keywords)  # noqa: B023

        bench.parts.log.read = meanwhile  # type: ignore[method-assign]
        assert not await bench.pull_all()
        bench.parts.log.read = read  # type: ignore[method-assign]


async def test_a_stream_that_is_left_while_it_is_looked_for_is_not_sent() -> None:
    """Nor answered."""
    bench = await Following.start()
    await bench.publish("notes")
    bench.subscribe({"notes": "start"})
    ask = bench.parts.log.follow

    async def meanwhile(*arguments: Any, **options: Any) -> Any:
        bench.subscriber.unsubscribe(["notes"])
        return await ask(*arguments, **options)

    bench.parts.log.follow = meanwhile  # type: ignore[method-assign]
    assert not await bench.pull_all()
