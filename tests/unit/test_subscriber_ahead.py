"""What a commit adds goes to everybody who is exactly before it: read and encoded once."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from keepstep._keepstep import Run
from keepstep.errors import ProtocolError
from keepstep.model import DEVICES_STREAM, Kind
from keepstep.protocol.messages import Events, Head, Subscribe, decode_from_server
from keepstep.protocol.snapshot import encode_erase
from keepstep.subscriber import Subscriber
from keepstep.subscription import AHEAD_BYTES_MAX, PAGE_AHEAD_BYTES_MAX
from tests.support.events import NOW_MS, DeviceFixture, SignedEvent, submission
from tests.support.parts import Parts, limited


class Follower:
    """A device's subscriber that the relay wakes, caught up with ``notes``."""

    subscriber: Subscriber

    def __init__(self, parts: Parts, device: DeviceFixture) -> None:
        self.parts = parts
        self.device = device
        self.wakes = 0
        self.held = False

    @classmethod
    async def start(cls, parts: Parts, device: DeviceFixture, **changes: int) -> Follower:
        """``changes``: other limits than usual."""
        follower = cls(parts, device)
        principal = await parts.principal(device)
        follower.subscriber = parts.subscriber(
            principal, follower.wake, limited(**changes).subscriber, holds=lambda: follower.held
        )
        devices_pk = (await parts.log.stream(principal.user_pk, DEVICES_STREAM)).stream_pk
        parts.relay.add(follower.subscriber, devices_pk=devices_pk, devices_changed=lambda _: None)
        follower.subscriber.subscribe(Subscribe({"notes": "start"}))
        while await follower.subscriber.pull():
            pass
        follower.wakes = 0
        return follower

    def wake(self) -> None:
        """The subscriber's."""
        self.wakes += 1

    async def publish(self, *events: SignedEvent) -> None:
        """One commit; of one event unless they are given."""
        principal = await self.parts.principal(self.device)
        submitted = submission(principal, *(events or (self.device.event("notes"),)))
        await self.parts.log.append([submitted], now_ms=NOW_MS)

    async def head_tick(self) -> None:
        """The relay's timer for signed heads."""
        self.subscriber.head_tick(await self.parts.log.streams(self.subscriber.principal.user_pk))

    async def take(self) -> list[Any]:
        """All there is to send."""
        messages: list[Any] = []
        while turn := await self.subscriber.pull():
            messages += map(decode_from_server, turn)
        return messages


def seqs(messages: list[Any]) -> list[int]:
    """Of all events."""
    return [row[0] for each in messages if isinstance(each, Events) for row in each.rows]


def last(messages: list[Any]) -> Events:
    """The last page."""
    return [each for each in messages if isinstance(each, Events)][-1]


async def start() -> Follower:
    """Alice's phone, caught up behind its first event."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    beginning = Follower(parts, phone)
    await beginning.publish()
    return await Follower.start(parts, phone)


async def test_all_followers_get_one_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes, made once, and counted for each."""
    follower = await start()
    parts = follower.parts
    others = [await Follower.start(parts, follower.device) for _ in range(2)]
    relayed = parts.metrics.relayed_events.total
    asked: list[int] = []
    ends_with = parts.log.ends_with

    def counted(stream: str, run: Run) -> bool:
        asked.append(run.first_seq)
        return ends_with(stream, run)

    monkeypatch.setattr(parts.log, "ends_with", counted)
    await follower.publish(*follower.device.events("notes", 2))
    pages = [each.subscriber.pull_nowait() for each in (follower, *others)]
    assert asked == [2]
    assert [each.wakes for each in (follower, *others)] == [1, 1, 1]
    first = pages[0]
    assert first is not None
    assert all(page is not None and page[0] is first[0] for page in pages)
    assert seqs([decode_from_server(first[0])]) == [2, 3]
    assert parts.metrics.relayed_events.total == relayed + 6
    assert not follower.subscriber.is_due
    assert follower.subscriber.pull_nowait() == []


async def test_what_is_beyond_the_pages_that_wait_is_read_in_its_turn() -> None:
    """In order, nothing twice."""
    follower = await start()
    page_bytes = PAGE_AHEAD_BYTES_MAX // 2  # and some more: header, signature
    published = AHEAD_BYTES_MAX // page_bytes + 2
    for _ in range(published):
        await follower.publish(follower.device.event("notes", bytes(page_bytes)))
    waiting_bytes = follower.subscriber.ahead_bytes
    assert AHEAD_BYTES_MAX <= waiting_bytes < AHEAD_BYTES_MAX + PAGE_AHEAD_BYTES_MAX
    ahead = follower.subscriber.pull_nowait()
    assert ahead is not None
    assert follower.subscriber.ahead_bytes == 0
    assert len(ahead) == AHEAD_BYTES_MAX // page_bytes
    rest = await follower.take()
    assert seqs([*map(decode_from_server, ahead), *rest]) == list(range(2, published + 2))


async def test_pages_of_a_commit_to_many_streams_all_wait() -> None:
    """However many there are: they are small, and made for all who follow."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    names = [f"s{number}" for number in range(64)]
    follower = await Follower.start(parts, phone, subscriptions_max=len(names) + 1)
    await follower.publish(*map(phone.event, names))
    follower.subscriber.subscribe(Subscribe(dict.fromkeys(names, "start")))
    await follower.take()
    await follower.publish(*map(phone.event, names))
    ahead = follower.subscriber.pull_nowait()
    assert ahead is not None
    pages = [page for page in map(decode_from_server, ahead) if isinstance(page, Events)]
    assert {page.stream for page in pages} == set(names)


async def test_a_large_page_is_read_in_its_turn() -> None:
    """So what waits for a device that takes nothing is bounded."""
    follower = await start()
    await follower.publish(follower.device.event("notes", bytes(PAGE_AHEAD_BYTES_MAX)))
    await follower.publish()
    assert seqs(await follower.take()) == [2, 3]


async def test_what_expires_goes_ahead_until_it_has() -> None:
    """From then on the log is asked in the session's turn, and has no payload of it."""
    follower = await start()
    await follower.publish(follower.device.event("notes", b"brief", ttl_s=60))
    assert len(follower.subscriber.ahead) == 1
    follower.parts.clock.at_ms += 60_000
    await follower.publish(follower.device.event("notes", b"too late", ttl_s=60))
    assert len(follower.subscriber.ahead) == 1
    assert seqs(await follower.take()) == [2, 3]


async def test_nothing_is_ahead_of_what_the_database_is_asked_for() -> None:
    """It may read beyond the commit, and its pages go first."""
    follower = await start()
    follower.subscriber.subscribe(Subscribe({"other": "start"}))
    assert follower.subscriber.pull_nowait() is None
    await follower.publish()
    await follower.publish(follower.device.event("other"))
    assert seqs(await follower.take()) == [2, 1]
    await follower.publish()
    assert follower.subscriber.pull_nowait()


async def test_a_page_ahead_takes_credit_until_it_is_acknowledged() -> None:
    """Above the credit nothing is taken, and an ack lets the next one go."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    follower = Follower(parts, phone)
    await follower.publish()
    follower = await Follower.start(parts, phone, unacked_bytes_max=1)
    head = await parts.log.stream(follower.subscriber.principal.user_pk, "notes")
    follower.subscriber.acknowledge({"notes": (1, head.head.chain[:16])})
    await follower.publish()
    await follower.publish()
    first = await follower.take()
    assert seqs(first) == [2]
    assert follower.subscriber.is_due
    follower.subscriber.acknowledge({"notes": (2, last(first).chain[:16])})
    assert seqs(await follower.take()) == [3]


async def test_acks_of_pages_ahead_are_checked() -> None:
    """By the chain that was sent; the right one is saved."""
    follower = await start()
    await follower.publish()
    page = last(await follower.take())
    follower.subscriber.acknowledge({"notes": (2, page.chain[:16])})
    assert follower.subscriber.unsaved_acks == {"notes": (2, page.chain[:16])}
    await follower.publish()
    await follower.take()
    with pytest.raises(ProtocolError, match="unknown_position"):
        follower.subscriber.acknowledge({"notes": (3, bytes(16))})


async def test_a_signed_head_follows_pages_ahead() -> None:
    """At the next tick, once."""
    follower = await start()
    await follower.publish()
    await follower.take()
    await follower.head_tick()
    (head,) = await follower.take()
    assert isinstance(head, Head)
    await follower.head_tick()
    assert not await follower.take()


async def test_a_stream_that_was_left_goes_on_where_it_was() -> None:
    """What was taken ahead of its turn was sent before, and is not sent again."""
    follower = await start()
    await follower.publish()
    ahead = follower.subscriber.pull_nowait()
    assert ahead
    page = last([decode_from_server(each) for each in ahead])
    follower.subscriber.unsubscribe(["notes"])
    await follower.publish()
    assert not await follower.take()
    follower.subscriber.subscribe(Subscribe({"notes": (2, page.chain)}))
    assert seqs(await follower.take()) == [3]


async def test_an_erased_payload_does_not_go_when_the_device_takes_something_again() -> None:
    """While the session has to wait no page is made that would go long after its erasure was acknowledged."""
    follower = await start()
    device = follower.device
    follower.held = True
    secret = device.event("notes", b"secret")
    await follower.publish(secret)
    await follower.publish(device.event("notes", encode_erase({device.device_id: [secret.n]}), kind=Kind.ERASE))
    follower.held = False
    messages = await follower.take()
    assert seqs(messages) == [2, 3]
    assert b"secret" not in msgspec.msgpack.encode(messages)
