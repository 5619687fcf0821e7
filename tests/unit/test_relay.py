"""Who is woken by a commit, and the timers that make up for hints that never came."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from keepstep.model import DEVICES_STREAM, Capability
from keepstep.protocol.messages import Events, Head, Subscribe, decode_from_server
from keepstep.subscriber import Subscriber
from tests.support.events import NOW_MS, DeviceFixture, submission
from tests.support.parts import Parts


class Follower:
    """A session of the relay: its subscriber, how often it was woken, what it heard of ``$devices``."""

    subscriber: Subscriber

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.wakes = 0
        self.heard: list[int] = []

    @classmethod
    async def start(cls, parts: Parts, device: DeviceFixture, *streams: str) -> Follower:
        """Follow streams from their start, and take what there is."""
        follower = cls(parts)
        principal = await parts.principal(device)
        follower.subscriber = parts.subscriber(principal, follower.wake)
        devices_pk = (await parts.log.stream(principal.user_pk, DEVICES_STREAM)).stream_pk
        parts.relay.add(follower.subscriber, devices_pk=devices_pk, devices_changed=follower.heard.append)
        follower.subscriber.subscribe(Subscribe(dict.fromkeys(streams, "start")))
        await follower.take()
        follower.wakes = 0
        return follower

    def wake(self) -> None:
        """The subscriber's."""
        self.wakes += 1

    async def take(self) -> list[Any]:
        """All there is to send."""
        messages: list[Any] = []
        while turn := await self.subscriber.pull():
            messages += map(decode_from_server, turn)
        return messages


async def publish(parts: Parts, device: DeviceFixture, stream: str) -> None:
    """One event, one commit."""
    principal = await parts.principal(device)
    await parts.log.append([submission(principal, device.event(stream))], now_ms=NOW_MS)


async def test_a_commit_wakes_every_subscriber_of_the_stream() -> None:
    """The author's own session too: a device verifies the chain with its own events in it."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    followers = [await Follower.start(parts, device, "notes") for device in (phone, laptop)]
    await publish(parts, phone, "notes")
    assert [follower.wakes for follower in followers] == [1, 1]
    for follower in followers:
        (*_, events, _) = [None, *await follower.take()]
        assert isinstance(events, Events)


async def test_a_commit_of_another_user_reaches_nobody() -> None:
    """Same stream name, same row numbers: not a wake-up, not an event."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    (tablet,) = await parts.register("bob", "tablet")
    alice, bob = await Follower.start(parts, phone, "notes"), await Follower.start(parts, tablet, "notes")
    await publish(parts, tablet, "notes")
    assert (alice.wakes, bob.wakes) == (0, 1)
    assert not await alice.take()
    assert not alice.heard


async def test_sessions_that_do_not_follow_the_account_hear_that_it_moved() -> None:
    """Those that follow it get the event itself."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    without, following = await Follower.start(parts, phone), await Follower.start(parts, laptop, DEVICES_STREAM)
    await parts.enrol(phone, DeviceFixture(phone.user, "watch", capabilities=Capability.PUBLISH))
    assert (without.heard, following.heard) == ([3], [])
    assert any(isinstance(message, Events) for message in await following.take())
    await publish(parts, phone, "notes")
    assert without.heard == [3]


async def test_a_removed_subscriber_is_not_woken() -> None:
    """And the last one of a user leaves nothing behind."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    one, other = await Follower.start(parts, phone, "notes"), await Follower.start(parts, phone, "notes")
    parts.relay.remove(one.subscriber)
    await publish(parts, phone, "notes")
    assert (one.wakes, other.wakes, parts.relay.users) == (0, 1, 1)
    parts.relay.remove(other.subscriber)
    assert parts.relay.users == 0


async def test_heads_are_signed_once_an_interval(autojump_clock: trio.testing.MockClock) -> None:
    """On streams that moved."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    follower = await Follower.start(parts, phone, "notes")
    await publish(parts, phone, "notes")
    await follower.take()
    await publish(parts, phone, "notes")
    await follower.take()
    async with trio.open_nursery() as nursery:
        await nursery.start(parts.relay.run)
        await trio.sleep(61)
        heads = [message for message in await follower.take() if isinstance(message, Head)]
        await trio.sleep(60)
        later = await follower.take()
        nursery.cancel_scope.cancel()
    assert len(heads) == 1
    assert not later


async def test_heads_are_signed_for_one_user_after_the_other(autojump_clock: trio.testing.MockClock) -> None:
    """At even distances: as many signatures and questions at one moment would hold up everybody's answers."""
    parts = Parts()
    followers = []
    for name in ("alice", "bob", "carol"):
        (phone,) = await parts.register(name)
        followers.append(await Follower.start(parts, phone, "notes"))
        await publish(parts, phone, "notes")
        await followers[-1].take()
        await publish(parts, phone, "notes")
        await followers[-1].take()
    told = []
    async with trio.open_nursery() as nursery:
        await nursery.start(parts.relay.run)
        for _ in range(3):
            await trio.sleep(20.5)
            told.append([bool(await follower.take()) for follower in followers])
        nursery.cancel_scope.cancel()
    assert told == [[True, False, False], [False, True, False], [False, False, True]]


async def test_nothing_is_read_for_heads_where_nothing_moved(autojump_clock: trio.testing.MockClock) -> None:
    """A question for each user and minute is for those who write."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    follower = await Follower.start(parts, phone, "notes")
    assert not follower.subscriber.needs_heads
    await publish(parts, phone, "notes")
    await follower.take()
    assert not follower.subscriber.needs_heads
    await publish(parts, phone, "notes")
    await follower.take()
    assert follower.subscriber.needs_heads


async def test_a_lost_hint_is_made_up_for(autojump_clock: trio.testing.MockClock) -> None:
    """Another node's commit, of which this one was never told."""
    parts = Parts()
    other_node = Parts(database=parts.database)
    phone, laptop = await parts.register("alice", "phone", "laptop")
    follower = await Follower.start(parts, laptop, "notes")
    await publish(other_node, phone, "notes")
    assert follower.wakes == 0
    async with trio.open_nursery() as nursery:
        await nursery.start(parts.relay.run)
        await trio.sleep(31)
        nursery.cancel_scope.cancel()
    assert follower.wakes == 1
    assert [len(message.rows) for message in await follower.take() if isinstance(message, Events)] == [1]


@pytest.mark.parametrize("users", [1, 3])
async def test_rereading_is_spread_over_the_interval(autojump_clock: trio.testing.MockClock, users: int) -> None:
    """Each user once an interval, at even distances; a user that left meanwhile is not read."""
    parts = Parts()
    followers = []
    for name in ("alice", "bob", "carol")[:users]:
        (phone,) = await parts.register(name)
        followers.append(await Follower.start(parts, phone, "notes"))
    reads: list[float] = []
    ask = parts.log.streams

    async def counted(user_pk: Any) -> Any:
        reads.append(trio.current_time())
        return await ask(user_pk)

    parts.log.streams = counted  # type: ignore[method-assign]
    start_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(parts.relay.run)
        await trio.sleep(30 * (users + 1) / users + 0.1)
        assert [read_s - start_s for read_s in reads[:users]] == pytest.approx(
            [30 / users * turn for turn in range(1, users + 1)]
        )
        for follower in followers:
            parts.relay.remove(follower.subscriber)
        count = len(reads)
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert len(reads) == count


async def test_rereading_goes_on_after_the_database_was_away(autojump_clock: trio.testing.MockClock) -> None:
    """A failed round costs nothing but itself."""
    parts = Parts()
    other_node = Parts(database=parts.database)
    phone, laptop = await parts.register("alice", "phone", "laptop")
    follower = await Follower.start(parts, laptop, "notes")
    await publish(other_node, phone, "notes")
    async with trio.open_nursery() as nursery:
        await nursery.start(parts.relay.run)
        parts.database.away = True
        await trio.sleep(45)
        assert follower.wakes == 0
        parts.database.away = False
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert follower.wakes >= 1


async def test_a_session_that_ends_while_its_user_is_reread_is_left_alone() -> None:
    """The answer comes when nobody of the user is there any more."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    follower = await Follower.start(parts, phone, "notes")
    ask = parts.log.streams

    async def meanwhile(user_pk: Any) -> Any:
        parts.relay.remove(follower.subscriber)
        return await ask(user_pk)

    parts.log.streams = meanwhile  # type: ignore[method-assign]
    await parts.relay._look_at_user(follower.subscriber.principal.user_pk, Subscriber.reread)
    assert follower.wakes == 0
