"""A session's positions under a test's control: one device, its subscriber, and what that was sent."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from keepstep.client import crypto
from keepstep.model import Position, Principal, StreamPk
from keepstep.protocol.chain import Head as HeadState
from keepstep.protocol.chain import verify_head
from keepstep.protocol.messages import Events, Subscribe, decode_from_server
from keepstep.subscriber import Subscriber
from keepstep.subscription import Addition
from tests.support.events import NOW_MS, DeviceFixture, SignedEvent, submission
from tests.support.parts import LIMITS, SERVER_KEY, Parts, limited

if TYPE_CHECKING:
    from keepstep._keepstep import Run


class Following:
    """Alice's phone and a subscriber of hers, with what it was sent so far.

    Attributes:
        wakes: how often the writer was woken.
    """

    principal: Principal
    subscriber: Subscriber

    def __init__(self, parts: Parts, phone: DeviceFixture) -> None:
        self.parts = parts
        self.phone = phone
        self.wakes = 0

    @classmethod
    async def start(cls, parts: Parts | None = None, **changes: Any) -> Following:
        """``changes`` are limits, or fields of the principal."""
        parts = parts or Parts()
        (phone,) = await parts.register("alice")
        bench = cls(parts, phone)
        limits = {name: value for name, value in changes.items() if hasattr(LIMITS.subscriber, name)}
        fields = {name: value for name, value in changes.items() if name not in limits}
        bench.principal = replace(await parts.principal(phone), **fields)
        bench.subscriber = parts.subscriber(bench.principal, bench.wake, limited(**limits).subscriber)
        return bench

    @classmethod
    async def caught_up(cls, parts: Parts | None = None, **changes: Any) -> tuple[Following, StreamPk]:
        """One that has all of "notes", which has one event, with that stream's number; arguments as for ``start``."""
        bench = await cls.start(parts, **changes)
        await bench.publish("notes")
        bench.subscribe({"notes": "start"})
        await bench.pull_all()
        return bench, await bench.pk("notes")

    def wake(self) -> None:
        """The subscriber's."""
        self.wakes += 1

    def committed(self, stream_pk: StreamPk, first_seq: int, last_seq: int, *, name: str = "notes") -> None:
        """A hint that came late, or of another node's commit: with nothing to take as it is."""
        sizes = {"count": last_seq - first_seq + 1, "rows_bytes": 0}
        run = SimpleNamespace(stream_pk=stream_pk, first_seq=first_seq, last_seq=last_seq, prev_chain=b"", **sizes)
        self.subscriber.committed(Addition(name, cast("Run", run)))

    async def head_tick(self) -> None:
        """The relay's timer for signed heads."""
        self.subscriber.head_tick(await self.parts.log.streams(self.principal.user_pk))

    @property
    def events(self) -> int:
        """How many it was sent."""
        return self.parts.metrics.relayed_events.total

    async def publish(self, stream: str, count: int = 1, **arguments: Any) -> list[SignedEvent]:
        """Append events one by one, each its own commit."""
        events = [self.phone.event(stream, f"{stream} {index}".encode(), **arguments) for index in range(count)]
        for event in events:
            await self.append(event)
        return events

    async def append(self, *events: SignedEvent) -> None:
        """One commit."""
        await self.parts.log.append([submission(self.principal, *events)], now_ms=NOW_MS)

    def subscribe(self, streams: Any) -> None:
        """As the device asks."""
        self.subscriber.subscribe(Subscribe(streams))

    async def pull(self) -> list[Any]:
        """One turn of the writer."""
        return [decode_from_server(message) for message in await self.subscriber.pull()]

    async def pull_all(self) -> list[Any]:
        """Turns until there is nothing to send."""
        messages: list[Any] = []
        while turn := await self.pull():
            messages += turn
        return messages

    async def head(self, stream: str) -> Position:
        """Of the log."""
        return (await self.parts.log.stream(self.principal.user_pk, stream)).head

    async def pk(self, stream: str) -> StreamPk:
        """Of the stream."""
        return (await self.parts.log.stream(self.principal.user_pk, stream)).stream_pk


def verified(signed: tuple[bytes, bytes] | None) -> HeadState:
    """The head that the server signed."""
    assert signed is not None
    return verify_head(crypto, SERVER_KEY, signed)


def seqs(messages: list[Any], stream: str = "notes") -> list[int]:
    """The seqs of a stream's rows, in order."""
    return [row[0] for one in messages if isinstance(one, Events) and one.stream == stream for row in one.rows]
