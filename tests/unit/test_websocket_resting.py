"""Connections at rest: they listen without a task, until there is an end to see to."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.support.listening import AT_REST, PATIENCE_S, Bench, Listening, bench, descriptors
from tests.support.websocket import Place, frame, read_all


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


class Parting:
    """A connection whose session is over, and whether it has been told that it is closed."""

    def __init__(self, listening: Listening, *, begins: bool = True) -> None:
        self.is_over = trio.Event()
        self._listening = listening
        listening.receiver.resumed = self._resume
        if begins:
            listening.connection.rouse()

    async def _resume(self) -> None:
        connection = self._listening.connection
        connection.stop()
        await connection.over()
        connection.part(4104, "draining", self.is_over.set)


@AT_REST
async def test_a_connection_parts_without_a_task(way: str) -> None:
    """The peer is told why, and keeps its place until it has said goodbye too."""
    async with trio.open_nursery() as nursery:
        each = Bench(nursery, way)
        listening = await each.open()
        tasks = len(nursery.child_tasks)
        parting = Parting(listening)
        assert await listening.peer_receives(12) == b"\x88\x0a\x10\x08draining"
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == tasks
        assert not parting.is_over.is_set()
        assert Place.inside == 1
        await listening.peer.send_all(frame(8, b"\x10\x08"))
        with trio.fail_after(PATIENCE_S):
            await parting.is_over.wait()
        assert Place.inside == 0
        assert await read_all(listening.peer) == b""
        each.leave()


@AT_REST
async def test_a_connection_whose_peer_has_gone_has_parted(way: str) -> None:
    """There is nobody to wait for, and it is left once."""
    async with bench(way) as each:
        listening = await each.open()
        parting = Parting(listening, begins=False)
        await listening.peer.aclose()
        await listening.receiver.until(lambda: bool(listening.receiver.ends))
        with trio.fail_after(PATIENCE_S):
            await parting.is_over.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert Place.inside == 0


@AT_REST
async def test_who_does_not_say_goodbye_is_waited_for_so_long(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, each for its own time."""
    monkeypatch.setattr("keepstep.websocket_hub.CLOSE_TIMEOUT_S", 0.01)
    async with bench(way) as each:
        partings = [Parting(await each.open()) for _ in range(3)]
        with trio.fail_after(PATIENCE_S):
            for parting in partings:
                await parting.is_over.wait()
        assert Place.inside == 0
        late = Parting(await each.open())
        with trio.fail_after(PATIENCE_S):
            await late.is_over.wait()
        assert Place.inside == 0


@AT_REST
async def test_cancelling_the_connections_ends_those_that_part(way: str) -> None:
    """They are told, and their sockets are closed."""
    async with trio.open_nursery() as connections:
        each = Bench(connections, way)
        listening = await each.open()
        parting = Parting(listening)
        await listening.peer_receives(12)
        assert not parting.is_over.is_set()
        connections.cancel_scope.cancel()
    assert parting.is_over.is_set()
    assert Place.inside == 0
    assert await read_all(listening.peer) == b""
    each.leave()
