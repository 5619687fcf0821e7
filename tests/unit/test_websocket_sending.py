"""The WebSocket transport: sending and closing."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
import trio_websocket

from keepstep.entrance import Entrance
from keepstep.interfaces import ConnectionClosed
from keepstep.websocket import serve_stream
from keepstep.websocket_connection import CLOSE_TIMEOUT_S, WebSocketConnection
from tests.support.websocket import LIMITS, CountedStream, Place, close_reason, frame, read_all, serving, upgraded


@asynccontextmanager
async def one_connection() -> AsyncIterator[tuple[WebSocketConnection, CountedStream, Any]]:
    """A served connection in the test's own hands, its stream, and the peer."""
    async with trio.open_nursery() as nursery:
        ours: Any
        ours, theirs = trio.testing.memory_stream_pair()
        counted = CountedStream(theirs)
        handed, finished = trio.open_memory_channel[WebSocketConnection](1), trio.Event()

        async def handler(connection: Any) -> None:
            await handed[0].send(connection)
            await finished.wait()

        nursery.start_soon(
            partial(
                serve_stream,
                counted,
                "192.0.2.1",
                handler=handler,
                admit=lambda _: Place(),
                limits=LIMITS,
                entrance=Entrance(),
                refusals=trio.CapacityLimiter(1),
                on_fault=lambda error, _address: pytest.fail(repr(error)),
            )
        )
        peer = await trio_websocket.wrap_client_stream(
            nursery, ours, "here", "/v1/connect", subprotocols=["keepstep.v1"], message_queue_size=100
        )
        counted.writes.clear()
        yield await handed[1].receive(), counted, peer
        finished.set()
        nursery.cancel_scope.cancel()


async def test_messages_sent_together_are_one_write() -> None:
    """Wake-ups cost, bytes do not."""
    async with one_connection() as (connection, stream, peer):
        await connection.send([b"one", b"two", b"three"])
        await connection.send([b"four"])
        assert len(stream.writes) == 2
        assert [await peer.get_message() for _ in range(4)] == [b"one", b"two", b"three", b"four"]


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
async def test_messages_of_every_size_arrive_whole(size: int) -> None:
    """On both sides of where the length of a frame is written in another way (RFC 6455 section 5.2)."""
    async with one_connection() as (connection, _, peer):
        await connection.send([bytes(size)])
        assert await peer.get_message() == bytes(size)


async def test_frames_never_mix(autojump_clock: trio.testing.MockClock) -> None:
    """A pong that is due in the middle of a write comes after it."""
    async with one_connection() as (connection, stream, peer), trio.open_nursery() as nursery:
        stream.gate = trio.Event()
        nursery.start_soon(connection.send, [bytes(1_000)])
        nursery.start_soon(connection.receive)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(peer.ping, b"ping")
        await trio.testing.wait_all_tasks_blocked()
        assert stream.writes == [1_004]
        stream.gate.set()
        assert await peer.get_message() == bytes(1_000)
        await trio.testing.wait_all_tasks_blocked()
        assert stream.writes == [1_004, 6]
        nursery.cancel_scope.cancel()


async def test_sending_to_a_peer_that_is_gone_says_so() -> None:
    """Without a word: its socket is closed."""
    async with one_connection() as (connection, stream, _):
        stream.stream.send_stream.close()
        with pytest.raises(ConnectionClosed):
            await connection.send([b"one"])
        await connection.close(1000, "")


async def test_sending_to_a_peer_that_closed_says_so() -> None:
    """As receiving does, which answers the peer; closing it again is no fault."""
    async with one_connection() as (connection, _, peer), trio.open_nursery() as nursery:
        nursery.start_soon(peer.aclose)
        with pytest.raises(ConnectionClosed):
            await connection.receive()
        with pytest.raises(ConnectionClosed):
            await connection.send([b"one"])
        with pytest.raises(ConnectionClosed):
            await connection.receive()
        await connection.close(1000, "")
        await connection.close(1000, "")


async def test_a_write_that_was_cut_off_ends_the_connection_without_a_code(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Half a frame is out: a close frame behind it would be read as its rest."""
    async with one_connection() as (connection, stream, peer):
        stream.gate = trio.Event()
        with trio.move_on_after(1):
            await connection.send([b"one"])
        writes = len(stream.writes)
        await connection.close(4103, "timeout")
        assert len(stream.writes) == writes
        assert (await close_reason(peer))[0] == 1006


async def test_a_send_that_was_cancelled_before_it_began_leaves_no_trace() -> None:
    """The close code still goes out."""
    async with one_connection() as (connection, _, peer):
        with trio.CancelScope() as scope:
            scope.cancel()
            await connection.send([b"one"])
        await connection.close(4103, "timeout")
        assert await close_reason(peer) == (4103, "timeout")


async def test_closing_waits_a_little_for_the_peers_answer(autojump_clock: trio.testing.MockClock) -> None:
    """A peer that does not answer is cut off; and a cancelled caller closes all the same."""
    async with serving() as server:

        async def handler(connection: Any) -> None:
            with trio.CancelScope() as scope:
                scope.cancel()
                await connection.close(4104, "draining")

        server.handler = handler
        stream = await upgraded(server)
        start_s = trio.current_time()
        answer = await read_all(stream)
        assert answer[:4] == b"\x88\x0a" + struct.pack("!H", 4104)
        assert trio.current_time() == pytest.approx(start_s + CLOSE_TIMEOUT_S)


async def test_a_peer_that_pings_while_we_close_does_no_harm() -> None:
    """trio-websocket would try to answer on a connection that is closing."""
    async with serving() as server:

        async def handler(connection: Any) -> None:
            await connection.receive()
            await connection.close(4104, "draining")

        server.handler = handler
        stream = await upgraded(server)
        await stream.send_all(frame(2, b"go"))
        await stream.receive_some()
        await stream.send_all(frame(9, b"ping"))
        await read_all(stream)


async def test_a_handler_that_returns_closes_the_stream() -> None:
    """Whether it said goodbye or not."""
    async with serving() as server:

        async def handler(_connection: Any) -> None:
            await trio.lowlevel.checkpoint()

        server.handler = handler
        assert (await close_reason(await server.open()))[0] == 1006
