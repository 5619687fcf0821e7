"""Connections that listen: one suite over the hub and over Trio streams, on real sockets."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from keepstep._keepstep import RecordSealer, frame_many
from tests.support.listening import EACH_WAY, PATIENCE_S, Listening, Receiver, bench, has
from tests.support.records import Sealing
from tests.support.websocket import frame, read_all

if TYPE_CHECKING:
    from keepstep.interfaces import Opened


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
async def test_what_comes_early_may_pause_it(way: str) -> None:
    """Whoever can take no more of a peer that speaks before it is listened to is not given more."""
    async with bench(way) as each:
        receiver, sealing = Receiver(), Sealing()
        receiver.on_received = lambda: receiver.connection.pause()
        listening = await each.open(early=sealing.frames(b"early"), receiver=receiver, sealing=sealing)
        await receiver.until(lambda: receiver.messages == [b"early"])
        await listening.peer_says(b"one")
        await trio.testing.wait_all_tasks_blocked()
        assert receiver.messages == [b"early"]
        receiver.on_received = lambda: None
        listening.connection.resume()
        await receiver.until(lambda: receiver.messages == [b"early", b"one"])


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
        del record_bytes, now_s
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
