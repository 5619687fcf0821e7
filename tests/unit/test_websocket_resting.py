"""Connections at rest: they listen without a task, until there is an end to see to."""

from __future__ import annotations

import trio
import trio.testing

from tests.support.listening import AT_REST, PATIENCE_S, Bench, bench, descriptors
from tests.support.websocket import Place, read_all


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

    async def fail() -> None:
        raise ArithmeticError("a bug")

    async with bench(way, fault=ArithmeticError) as each:
        faulty, other = await each.open(), await each.open()
        faulty.receiver.resumed = fail
        faulty.connection.rouse()
        assert await read_all(faulty.peer) == b""
        await other.peer_says(b"one")
        await other.receiver.until(lambda: other.receiver.messages == [b"one"])


@AT_REST
async def test_who_has_stopped_waits_for_nothing(way: str) -> None:
    """Nothing more is handed over, whatever comes; the end has nothing to wait for."""
    async with bench(way) as each:
        listening = await each.open()
        await listening.peer_says(b"one")
        await listening.receiver.until(lambda: listening.receiver.messages == [b"one"])
        resting = listening.connection.resting
        assert not resting.is_over
        resting.stop()
        assert resting.is_over
        await listening.peer_says(b"two")
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(0):
            await resting.over()
        assert listening.receiver.messages == [b"one"]
        assert listening.receiver.ends == []
        resting.rouse()
        assert await read_all(listening.peer) != b""  # closed by whoever sees to the end


@AT_REST
async def test_who_waits_for_the_end_goes_on_when_it_has_stopped(way: str) -> None:
    """As when the peer has left."""
    async with bench(way) as each:
        listening = await each.open()
        listening.connection.rouse()
        await trio.testing.wait_all_tasks_blocked()
        assert not listening.over.is_set()
        listening.connection.stop()
        assert await read_all(listening.peer) != b""
        await listening.over.wait()
        assert listening.receiver.ends == []
