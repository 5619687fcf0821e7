"""Connections that listen: one suite over the hub and over Trio streams, on real sockets."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from keepstep._keepstep import RecordSealer, frame_many
from keepstep.entrance import Entrance
from keepstep.errors import ProtocolError
from keepstep.websocket import serve_stream
from tests.support.records import OVERHEAD, Sealing
from tests.support.websocket import LIMITS, UPGRADE, Place, frame, read_all

if TYPE_CHECKING:
    from keepstep.interfaces import Opened

WAYS = ["stream", "hub", "at rest"] if sys.platform == "linux" else ["stream"]
"""``at rest``: by the hub, without a task until there is an end to see to."""
EACH_WAY = pytest.mark.parametrize("way", WAYS)
PATIENCE_S = 60
"""Bound on every wait here, seconds; they take milliseconds."""
BY_HUB = pytest.mark.parametrize("way", [way for way in WAYS if way != "stream"])


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


class Receiver:
    """Remembers what it was handed; may do something about it."""

    def __init__(self) -> None:
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
        self.hub: Any = None
        if way != "stream":
            from keepstep.websocket_hub import Hub

            self.hub = Hub(nursery, lambda error, _address: pytest.fail(repr(error)))

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
async def bench(way: str) -> AsyncIterator[Bench]:
    """Until the block ends; nobody is left inside then."""
    async with trio.open_nursery() as nursery:
        each = Bench(nursery, way)
        try:
            yield each
        finally:
            each.leave()
    assert Place.inside == 0


@EACH_WAY
async def test_what_is_written_is_sealed(way: str) -> None:
    """In order, whatever goes together, also over a rekey."""
    async with bench(way) as each:
        sealer, twin = (RecordSealer(2, bytes(32), b"aad") for _ in range(2))
        listening = await each.open(sealing=Sealing(sealer))
        writes: list[list[bytes | None]] = [[b"one"], [b"two", b"rekey", None, b"three"], [b"four"]]
        for write in writes:
            listening.connection.write(write)
        frames = b"".join(frame_many(write, twin) for write in writes)
        assert await listening.peer_receives(len(frames)) == frames


@EACH_WAY
async def test_messages_are_handed_over_in_order_and_together(way: str) -> None:
    """As many as arrived; what came before it listened comes first."""
    async with bench(way) as each:
        sealing = Sealing()
        early, one, two, last = (sealing.frames(message) for message in (b"early", b"one", b"two", b""))
        listening = await each.open(early=early + one[:3], sealing=sealing)
        receiver = listening.receiver
        await receiver.until(lambda: receiver.messages == [b"early"])
        await listening.peer.send_all(one[3:] + two + last[:1])
        await receiver.until(lambda: len(receiver.messages) == 3)
        await listening.peer.send_all(last[1:])
        await receiver.until(lambda: len(receiver.messages) == 4)
        assert receiver.messages == [b"early", b"one", b"two", b""]
        assert receiver.calls == [1, 2, 1]


@EACH_WAY
async def test_what_is_written_arrives_in_order(way: str) -> None:
    """From within a call, and from elsewhere."""
    async with bench(way) as each:
        listening = await each.open()
        connection, receiver = listening.connection, listening.receiver
        receiver.on_received = lambda: connection.write([b"answer"])
        await listening.peer_says(b"question")
        assert await listening.peer_receives(8) == b"\x82\x06answer"
        connection.write([b"one", b"two"])
        assert connection.backlog_bytes >= 6
        connection.write([b"three"])
        assert await listening.peer_receives(17) == b"\x82\x03one\x82\x03two\x82\x05three"
        await trio.testing.wait_all_tasks_blocked()
        assert connection.backlog_bytes == 0


@EACH_WAY
async def test_a_paused_connection_takes_nothing(way: str) -> None:
    """Until it goes on; to pause or go on twice changes nothing."""
    async with bench(way) as each:
        listening = await each.open()
        connection, receiver = listening.connection, listening.receiver
        connection.pause()
        connection.pause()
        await listening.peer_says(b"one")
        await trio.testing.wait_all_tasks_blocked()
        assert not receiver.messages
        connection.resume()
        connection.resume()
        await receiver.until(lambda: receiver.messages == [b"one"])


@EACH_WAY
async def test_a_peer_that_takes_nothing_blocks_only_itself(way: str) -> None:
    """The backlog stays, in order; when all has gone the receiver is told."""
    async with bench(way) as each:
        slow, other = await each.open(), await each.open()
        connection, size = slow.connection, 65_536
        written = 0
        while not connection.blocked:
            connection.write([bytes([written % 251]) * size])
            written += 1
            await trio.testing.wait_all_tasks_blocked()
            assert written < 1_000
        connection.write([b"last"])
        assert connection.backlog_bytes > 0
        other.connection.write([b"one"])
        assert await other.peer_receives(5) == b"\x82\x03one"
        for index in range(written):
            data = await slow.peer_receives(size + 10)
            assert data == b"\x82\x7f" + struct.pack("!Q", size) + bytes([index % 251]) * size
        assert await slow.peer_receives(6) == b"\x82\x04last"
        await slow.receiver.until(lambda: not connection.blocked)
        assert connection.backlog_bytes == 0
        assert slow.receiver.writable_calls


@EACH_WAY
async def test_pings_are_answered_meanwhile(way: str) -> None:
    """By the connection itself, behind what is being sent."""
    async with bench(way) as each:
        listening = await each.open()
        await listening.peer.send_all(frame(9, b"p") + frame(10, b"unasked") + listening.sealing.frames(b"one"))
        assert await listening.peer_receives(3) == b"\x8a\x01p"
        await listening.receiver.until(lambda: listening.receiver.messages == [b"one"])


@EACH_WAY
@pytest.mark.parametrize("leaving", ["half close", "close", "close frame", "reset"])
async def test_a_peer_that_leaves_is_lost_once(way: str, leaving: str) -> None:
    """However it does; what it said before is handed over, unless it tore the connection down."""
    async with bench(way) as each:
        listening = await each.open()
        receiver, peer = listening.receiver, listening.peer
        if leaving == "reset":
            peer.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.socket.close()
        else:
            await listening.peer_says(b"last")
            if leaving == "half close":
                await peer.send_eof()
            elif leaving == "close":
                await peer.aclose()
            else:
                await peer.send_all(frame(8, struct.pack("!H", 4001) + b"why"))
                assert (await read_all(peer)).endswith(b"\x88\x02" + struct.pack("!H", 4001))
        with trio.fail_after(PATIENCE_S):
            await listening.over.wait()
        assert receiver.ends == [None]
        if leaving != "reset":
            assert receiver.messages == [b"last"]
        listening.connection.write([b"to nobody"])
        listening.connection.pause()
        listening.connection.resume()
        assert (listening.connection.backlog_bytes, listening.connection.blocked) == (0, False)


@EACH_WAY
async def test_a_reset_ends_a_paused_connection_too(way: str) -> None:
    """Where the operating system says so by itself; elsewhere with the next thing that is sent or taken."""
    async with bench(way) as each:
        listening = await each.open()
        listening.connection.pause()
        peer = listening.peer.socket
        peer.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        await trio.testing.wait_all_tasks_blocked()
        listening.connection.resume()
        with trio.fail_after(PATIENCE_S):
            await listening.over.wait()
        assert listening.receiver.ends == [None]


@EACH_WAY
@pytest.mark.parametrize(
    ("sent", "code", "close"),
    [
        (frame(2, bytes(10_001)), "too_large", 4501),
        (frame(9, b"") * 257, "too_large", 4501),
        (frame(1, b"text"), "malformed", 4500),
        (frame(3, b""), None, 1002),
    ],
)
async def test_a_peer_that_breaks_the_protocol_is_told(way: str, sent: bytes, code: str | None, close: int) -> None:
    """What it said before counts; then comes the close code."""
    async with bench(way) as each:
        listening = await each.open()
        if code is not None:
            listening.closing = (close, code)
        await listening.peer.send_all(listening.sealing.frames(b"before") + sent)
        answer = await read_all(listening.peer)
        assert b"\x88" + bytes([2 + len(code or "")]) + struct.pack("!H", close) + (code or "").encode() in answer
        assert listening.receiver.messages == [b"before"]
        assert [None if end is None else end.code for end in listening.receiver.ends] == [code]


@EACH_WAY
async def test_cancelling_it_leaves_the_connection_to_be_closed(way: str) -> None:
    """With a code, for nothing is torn; the receiver, whose owner did it, is not told."""
    async with bench(way) as each:
        listening = await each.open()
        listening.cancel()
        await listening.over.wait()
        assert await listening.peer_receives(12) == b"\x88\x0a" + struct.pack("!H", 4104) + b"draining"
        await listening.peer.send_all(frame(8, struct.pack("!H", 4104)))
        assert await read_all(listening.peer) == b""
        assert not listening.receiver.ends


class Canceller(Receiver):
    """Ends somebody else's connection as soon as anything comes."""

    def __init__(self, done: trio.Event) -> None:
        super().__init__()
        self.victim: Listening | None = None
        self._done = done

    def received(self, opened: Sequence[Opened], record_bytes: int, now_s: float) -> None:
        """As ``interfaces.Receiver``."""
        self.calls.append(len(opened))
        assert self.victim is not None
        self.victim.cancel()
        self._done.set()


@EACH_WAY
async def test_what_came_with_the_end_of_the_listening_is_nobodys(way: str) -> None:
    """Whoever is cancelled with records on their way, which are no plain messages, is closed as anybody else."""
    async with bench(way) as each:
        cancelled = trio.Event()
        receivers = Canceller(cancelled), Canceller(cancelled)
        first, second = [await each.open(receiver=receiver) for receiver in receivers]
        receivers[0].victim, receivers[1].victim = second, first
        for listening in (first, second):  # without a checkpoint: one turn of the hub finds both
            assert os.write(listening.peer.socket.fileno(), frame(2, b"no record")) > 0
        with trio.fail_after(PATIENCE_S):
            await cancelled.wait()
            victim = second if receivers[0].calls else first
            await victim.over.wait()


@EACH_WAY
async def test_a_backlog_that_is_cancelled_is_torn(way: str, autojump_clock: trio.testing.MockClock) -> None:
    """Half a frame may be out: no code can follow it."""
    async with bench(way) as each:
        listening = await each.open()
        while not listening.connection.blocked:
            listening.connection.write([bytes(65_536)])
            await trio.testing.wait_all_tasks_blocked()
        listening.cancel()
        await listening.over.wait()
        assert listening.connection.torn
        assert b"draining" not in await read_all(listening.peer)


@EACH_WAY
async def test_a_receivers_fault_ends_its_own_connection(way: str) -> None:
    """It is raised where the connection is listened to; others go on."""

    def fail() -> None:
        raise ArithmeticError("a bug")

    async with bench(way) as each:
        faulty, other = await each.open(), await each.open()
        faulty.receiver.on_received = fail
        await faulty.peer_says(b"one", b"two")
        await faulty.over.wait()
        assert faulty.fault is not None
        await other.peer_says(b"one")
        await other.receiver.until(lambda: other.receiver.messages == [b"one"])


@EACH_WAY
async def test_a_fault_with_what_came_early_is_raised_too(way: str) -> None:
    """As one that comes later."""

    def fail() -> None:
        raise ArithmeticError("a bug")

    async with bench(way) as each:
        receiver = Receiver()
        receiver.on_received = fail
        sealing = Sealing()
        listening = await each.open(early=sealing.frames(b"early"), receiver=receiver, sealing=sealing)
        await listening.over.wait()
        assert listening.fault is not None


@EACH_WAY
async def test_an_end_before_it_listened_is_told_at_once(way: str) -> None:
    """The peer was gone by then."""
    async with bench(way) as each:
        sealing = Sealing()
        listening = await each.open(early=sealing.frames(b"early") + frame(3, b""), sealing=sealing)
        with trio.fail_after(PATIENCE_S):
            await listening.over.wait()
        assert listening.receiver.messages == [b"early"]
        assert listening.receiver.ends == [None]


@EACH_WAY
async def test_no_connection_waits_for_a_greedy_one(way: str) -> None:
    """More sockets than one turn takes, each with more than one turn takes of it: all get their turns."""
    async with bench(way) as each:
        greedy = [await each.open() for _ in range(70)]
        quiet = await each.open()
        flood = [bytes(9_000)] * 8
        async with trio.open_nursery() as sending:
            for listening in greedy:
                sending.start_soon(listening.peer_says, *flood)
            sending.start_soon(quiet.peer_says, b"quiet")
            with trio.fail_after(PATIENCE_S):
                await quiet.receiver.until(lambda: quiet.receiver.messages == [b"quiet"])
        for listening in greedy:
            await listening.receiver.until(partial(has, listening.receiver, 8))


@BY_HUB
async def test_the_hub_rests_when_nobody_listens(way: str) -> None:
    """Its tasks end with the last connection and begin with the next; every descriptor is given back."""
    before = descriptors()
    async with trio.open_nursery() as nursery:
        each = Bench(nursery, way)
        tasks = len(nursery.child_tasks)
        for _ in range(2):
            listening = await each.open()
            listening.connection.write([b"one"])
            assert await listening.peer_receives(5) == b"\x82\x03one"
            await listening.peer.aclose()
            await listening.over.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == tasks
        assert descriptors() == before + 1  # the hub's own


@BY_HUB
async def test_somebody_who_comes_while_the_last_one_leaves_is_served(way: str) -> None:
    """The hub was about to rest."""
    async with bench(way) as each:
        first = await each.open()
        second = await each.open()
        first.cancel()
        second.cancel()
        third = await each.open()
        await third.peer_says(b"one")
        await third.receiver.until(lambda: third.receiver.messages == [b"one"])


@BY_HUB
async def test_a_peer_that_takes_no_pongs_cannot_make_the_server_hold_more(way: str) -> None:
    """They are left out while so much waits for it."""
    async with bench(way) as each:
        listening = await each.open()
        peer = listening.peer
        while not listening.connection.blocked:
            listening.connection.write([bytes(65_536)])
            await trio.testing.wait_all_tasks_blocked()
        listening.connection.write([bytes(100_000)])
        await trio.testing.wait_all_tasks_blocked()
        backlog_bytes = listening.connection.backlog_bytes
        for index in range(50):
            await peer.send_all(frame(9, bytes(120)) * 100 + listening.sealing.frames(b"one"))
            await listening.receiver.until(partial(has, listening.receiver, index + 1))
        listening.connection.write([b"x"])
        await trio.testing.wait_all_tasks_blocked()
        # Less where the system has taken more of it meanwhile.
        assert listening.connection.backlog_bytes <= backlog_bytes + 3


AT_REST = pytest.mark.parametrize("way", [way for way in WAYS if way == "at rest"])


@AT_REST
async def test_a_connection_at_rest_has_no_task(way: str) -> None:
    """Whatever comes and goes; it gets one when there is an end to see to."""
    async with trio.open_nursery() as nursery:
        each = Bench(nursery, way)
        first = await each.open()
        tasks = len(nursery.child_tasks)
        second = await each.open()
        await second.peer_says(b"one")
        await second.receiver.until(lambda: second.receiver.messages == [b"one"])
        second.connection.write([b"two"])
        assert await second.peer_receives(5) == b"\x82\x03two"
        assert len(nursery.child_tasks) == tasks
        second.connection.rouse()
        second.connection.rouse()
        assert len(nursery.child_tasks) == tasks + 1
        await second.peer_says(b"three")
        await second.receiver.until(lambda: second.receiver.messages == [b"one", b"three"])
        assert not second.over.is_set()
        each.leave()
        with trio.fail_after(PATIENCE_S):
            await first.over.wait()
            await second.over.wait()
    assert Place.inside == 0


@AT_REST
async def test_cancelling_the_connections_ends_those_at_rest(way: str) -> None:
    """Each in a task of its own, with what its owner does at the end; the sockets are closed."""
    before = descriptors()
    async with trio.open_nursery() as connections:
        each = Bench(connections, way)
        peers = [(await each.open()).peer for _ in range(3)]
        assert Place.inside == 3
        connections.cancel_scope.cancel()
    assert Place.inside == 0
    for peer in peers:
        assert await read_all(peer) == b""
        await peer.aclose()
    del each
    assert descriptors() <= before + 1  # the hub's own


@AT_REST
async def test_a_fault_of_who_sees_to_the_end_ends_that_connection(way: str) -> None:
    """It is told, and the place is left."""
    faults: list[Exception] = []

    async def fail() -> None:
        raise ArithmeticError("a bug")

    async with bench(way) as each:
        each.hub._on_fault = lambda error, _address: faults.append(error)
        faulty, other = await each.open(), await each.open()
        faulty.receiver.resumed = fail
        faulty.connection.rouse()
        assert await read_all(faulty.peer) == b""
        assert [type(fault) for fault in faults] == [ArithmeticError]
        await other.peer_says(b"one")
        await other.receiver.until(lambda: other.receiver.messages == [b"one"])
