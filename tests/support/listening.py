"""Connections that listen, over the hub and over Trio streams, on real sockets."""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
import trio.testing

from keepstep.entrance import Entrance
from keepstep.errors import ProtocolError
from keepstep.websocket import serve_stream
from tests.support.records import OVERHEAD, Sealing
from tests.support.websocket import LIMITS, UPGRADE, Place

if TYPE_CHECKING:
    from keepstep.interfaces import Opened

WAYS: Final = ["stream", "hub", "at rest"] if sys.platform == "linux" else ["stream"]
"""``at rest``: by the hub, without a task until there is an end to see to."""
EACH_WAY: Final = pytest.mark.parametrize("way", WAYS)
PATIENCE_S: Final = 60
"""Bound on every wait here, seconds; they take milliseconds."""
BY_HUB: Final = pytest.mark.parametrize("way", [way for way in WAYS if way != "stream"])
AT_REST: Final = pytest.mark.parametrize("way", [way for way in WAYS if way == "at rest"])


def descriptors() -> int:
    """How many this process has open; those of earlier tests are closed."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


class Receiver:
    """Remembers what it was handed; may do something about it.

    Attributes:
        connection: which it is of.
    """

    def __init__(self) -> None:
        self.connection: Any = None
        self.messages: list[bytes] = []
        self.calls: list[int] = []
        self.writable_calls = 0
        self.ends: list[ProtocolError | None] = []
        self.on_received: Callable[[], None] = lambda: None
        self.resumed: Callable[[], Awaitable[None]] | None = None
        self._news = trio.Event()

    def received(self, opened: Sequence[Opened], record_bytes: int, now_s: float) -> None:
        """As ``interfaces.Receiver``."""
        messages = [each for each in opened if isinstance(each, bytes)]
        assert len(messages) == len(opened)
        assert record_bytes == sum(map(len, messages)) + len(messages) * OVERHEAD
        assert now_s == pytest.approx(trio.current_time(), abs=60)
        self.messages += messages
        self.calls.append(len(messages))
        self._tell()
        self.on_received()

    def writable(self) -> None:
        """As ``interfaces.Receiver``."""
        self.writable_calls += 1
        self._tell()

    def lost(self, reason: ProtocolError | None) -> None:
        """As ``interfaces.Receiver``."""
        self.ends.append(reason)
        self._tell()

    async def resume(self) -> None:
        """As ``interfaces.RestingReceiver``."""
        assert self.resumed is not None
        await self.resumed()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait for something that one of its calls brings about."""
        with trio.fail_after(PATIENCE_S):
            while not happened():
                await self._news.wait()


def has(receiver: Receiver, count: int) -> bool:
    """Whether so many messages have come."""
    return len(receiver.messages) == count


@dataclass
class Listening:
    """A connection that listens, until it is cancelled or over, and the peer's raw stream."""

    connection: Any
    peer: trio.SocketStream
    scope: trio.CancelScope
    sealing: Sealing
    receiver: Receiver = field(default_factory=Receiver)
    over: trio.Event = field(default_factory=trio.Event)
    fault: Exception | None = None
    closing: tuple[int, str] = (4104, "draining")

    def cancel(self) -> None:
        """End it from outside."""
        self.scope.cancel()
        resting = self.connection.resting
        if resting is not None:
            resting.rouse()

    async def peer_says(self, *messages: bytes) -> None:
        """Each a record in a frame."""
        await self.peer.send_all(self.sealing.frames(*messages))

    async def peer_receives(self, count: int) -> bytes:
        """Exactly so many bytes."""
        data = b""
        while len(data) < count:
            data += bytes(await self.peer.receive_some(count - len(data)))
        return data


async def until_over(listening: Listening, listen: Callable[[], Awaitable[None]]) -> None:
    """Listen, then close."""
    try:
        with listening.scope:
            await listen()
    except* ArithmeticError as group:
        listening.fault = group
    listening.over.set()
    await listening.connection.close(*listening.closing)


class Bench:
    """Makes connections that listen, over one hub or none."""

    def __init__(self, nursery: trio.Nursery, way: str) -> None:
        self._nursery = nursery
        self._rests = way == "at rest"
        self._peers: list[trio.SocketStream] = []
        self.faults: list[Exception] = []
        self.hub: Any = None
        if way != "stream":
            from keepstep.websocket_hub import Hub

            self.hub = Hub(
                nursery,
                lambda error, _address: self.faults.append(error),
                unfinished_bytes_max=LIMITS.unfinished_bytes_max,
            )

    async def open(
        self, *, early: bytes = b"", receiver: Receiver | None = None, sealing: Sealing | None = None
    ) -> Listening:
        """A connection that listens; ``early`` comes right behind the upgrade request."""
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        peer = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        self._peers.append(peer)
        async with listener:
            ours = await listener.accept()
        made: list[Listening] = []
        ready = trio.Event()

        async def handler(connection: Any) -> None:
            connection.authenticated()
            listening = Listening(connection, peer, trio.CancelScope(), sealing or Sealing(), receiver or Receiver())
            made.append(listening)
            ready.set()
            receiver_, records = listening.receiver, listening.sealing.records
            receiver_.connection = connection
            if not self._rests:
                await until_over(listening, partial(connection.listen, receiver_, records))
                return
            receiver_.resumed = partial(until_over, listening, connection.over)
            connection.rest(receiver_, records)

        self._nursery.start_soon(
            partial(
                serve_stream,
                ours,
                "192.0.2.1",
                handler=handler,
                admit=lambda _: Place(),
                limits=LIMITS,
                entrance=Entrance(),
                refusals=trio.CapacityLimiter(1),
                on_fault=lambda error, _address: pytest.fail(repr(error)),
                hub=self.hub,
            )
        )
        await peer.send_all((UPGRADE + "\r\n").encode() + early)
        await ready.wait()
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += bytes(await peer.receive_some(1))
        await trio.testing.wait_all_tasks_blocked()
        return made[0]

    def leave(self) -> None:
        """Every peer closes, which ends the connections."""
        for peer in self._peers:
            peer.socket.close()


@asynccontextmanager
async def bench(way: str, *, fault: type[Exception] | None = None) -> AsyncIterator[Bench]:
    """Until the block ends; nobody is left inside then. The hub met that ``fault``, or none."""
    async with trio.open_nursery() as nursery:
        each = Bench(nursery, way)
        try:
            yield each
        finally:
            each.leave()
    assert Place.inside == 0
    assert [type(fault) for fault in each.faults] == ([] if fault is None else [fault])
