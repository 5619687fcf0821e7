"""Connections between the accepted socket and a device's first message, on real sockets: elsewhere without a lobby."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing

from keepstep.entrance import Entrance
from keepstep.errors import ProtocolError
from keepstep.interfaces import Connection, ConnectionClosed
from keepstep.proxies import TrustedProxies, parse_networks
from keepstep.websocket import serve
from keepstep.websocket_lobby import ACCEPT_PAUSE_S
from tests.support.websocket import LIMITS, UPGRADE, Place, frame, read_all

REQUEST = (UPGRADE + "\r\n").encode()
UNUSUAL = (UPGRADE.replace("Host: here", "Host:here\r\nX-A: 1\r\nX-a: 2\r\n folded") + "\r\n").encode()
PATIENCE_S = 60
HELLO = frame(2, b"hello")


@dataclass
class Served:
    """A server of one port, what its handlers met, and its peers."""

    connections: trio.Nursery
    accepting: trio.CancelScope = field(default_factory=trio.CancelScope)
    entrance: Entrance = field(default_factory=Entrance)
    port: int = 0
    refuses: bool = False
    full_for: str = ""
    places: list[Place] = field(default_factory=list)
    served: list[tuple[str, float]] = field(default_factory=list)
    met: list[object] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    fault: Exception | None = None
    peers: list[trio.SocketStream] = field(default_factory=list)

    def admit(self, _address: str) -> Place:
        """As ``Admission.enter``."""
        if self.refuses:
            raise ProtocolError("too_many_connections")
        self.places.append(Place(self.full_for))
        return self.places[-1]

    async def handle(self, connection: Connection) -> None:
        """Answer one message, and close."""
        self.served.append((connection.address, connection.accepted_at_s))
        if self.fault is not None:
            raise self.fault
        try:
            message = await connection.receive()
            self.met.append(message)
            await connection.send([message])
        except (ProtocolError, ConnectionClosed) as error:
            self.met.append(type(error))
        await connection.close(4104, "draining")

    async def run(self, task_status: trio.TaskStatus[Any]) -> None:
        """Accept until ``accepting`` is cancelled."""
        with self.accepting:
            await serve(
                await trio.open_tcp_listeners(0, host="127.0.0.1"),
                self.handle,
                admit=self.admit,
                limits=LIMITS,
                entrance=self.entrance,
                connections=self.connections,
                on_fault=lambda error, _address: self.faults.append(repr(error)),
                task_status=task_status,
            )

    async def peer(self, sent: bytes = b"") -> trio.SocketStream:
        """Connected, and has sent so much."""
        peer = await trio.open_tcp_stream("127.0.0.1", self.port)
        self.peers.append(peer)
        await peer.send_all(sent)
        await trio.testing.wait_all_tasks_blocked(0.01)
        return peer


@asynccontextmanager
async def serving(**arguments: Any) -> AsyncIterator[Served]:
    """Until the block ends; nobody is left inside then."""
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as connections:
            served = Served(connections, **arguments)
            (listener,) = await connections.start(served.run)
            served.port = listener.socket.getsockname()[1]
            try:
                yield served
            finally:
                for peer in served.peers:
                    peer.socket.close()
            connections.cancel_scope.cancel()
    assert Place.inside == 0


async def until(happened: Callable[[], bool]) -> None:
    """Wait for something that a socket brings about."""
    while not happened():
        await trio.testing.wait_all_tasks_blocked(0.01)


async def answer_of(peer: trio.SocketStream) -> bytes:
    """The answer to an upgrade request."""
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += bytes(await peer.receive_some(1))
    return answer


@pytest.mark.parametrize("request_", [REQUEST, UNUSUAL], ids=["usual", "unusual"])
@pytest.mark.parametrize("cut", [0, 1, 50])
async def test_a_first_message_is_served(request_: bytes, cut: int) -> None:
    """Whatever shape the request has that was accepted, and however it comes."""
    async with serving() as served:
        peer = await served.peer(request_[:cut] if cut else b"")
        await peer.send_all(request_[cut:])
        assert (await answer_of(peer)).startswith(b"HTTP/1.1 101 ")
        await peer.send_all(HELLO)
        close = b"\x88\x0a" + struct.pack("!H", 4104) + b"draining"
        assert await peer.receive_some(7) == b"\x82\x05hello"
        assert await peer.receive_some(12) == close
        await peer.send_all(frame(8, close[2:4]))
        assert await read_all(peer) == b""
    assert served.met == [b"hello"]
    assert served.served[0][0] == "127.0.0.1"
    assert not served.faults


@pytest.mark.parametrize("request_", [REQUEST, UNUSUAL], ids=["usual", "unusual"])
async def test_a_message_right_behind_the_request_is_served(request_: bytes) -> None:
    """It is not waited for again."""
    async with serving() as served:
        peer = await served.peer(request_ + HELLO)
        assert (await answer_of(peer)).startswith(b"HTTP/1.1 101 ")
        assert await peer.receive_some(7) == b"\x82\x05hello"
    assert served.met == [b"hello"]


@pytest.mark.parametrize("sent", [b"", REQUEST[:50], b"\x16\x03\x01"])
async def test_who_leaves_before_its_upgrade_is_forgotten(sent: bytes) -> None:
    """Without a task ever; the place is free at once."""
    async with serving() as served:
        peer = await served.peer(sent)
        await peer.aclose()
        await until(lambda: not Place.inside)
    assert not served.served


async def test_who_leaves_after_its_upgrade_is_lost_to_a_handler() -> None:
    """Which counts it."""
    async with serving() as served:
        peer = await served.peer(REQUEST)
        await answer_of(peer)
        await peer.aclose()
        await until(lambda: bool(served.met))
    assert served.met == [ConnectionClosed]


async def test_a_socket_too_many_is_told_so() -> None:
    """It has no place."""
    async with serving(refuses=True) as served:
        assert (await read_all(await served.peer())).startswith(b"HTTP/1.1 503 ")
    assert not served.places


@pytest.mark.parametrize("proxy", ["127.0.0.0/8", ""])
async def test_a_client_with_too_many_connections_is_told_so(proxy: str) -> None:
    """Behind a proxy that is believed it is the one named, whose address its connection has; else the peer itself."""
    entrance = Entrance(TrustedProxies(parse_networks(proxy), header="x-forwarded-for"))
    named = (UPGRADE + "X-Forwarded-For: 198.51.100.7\r\n\r\n").encode()
    client = "198.51.100.7" if proxy else "127.0.0.1"
    async with serving(entrance=entrance, full_for=client) as served:
        assert (await read_all(await served.peer(named))).startswith(b"HTTP/1.1 503 ")
        served.full_for = ""
        peer = await served.peer(named + HELLO)
        assert (await answer_of(peer)).startswith(b"HTTP/1.1 101 ")
        assert await peer.receive_some(7) == b"\x82\x05hello"
    assert [address for address, _ in served.served] == [client]


async def test_at_the_end_of_accepting_who_waits_is_served() -> None:
    """So that it is told why it has to go; who is within its request comes to that too."""
    async with serving() as served:
        half, upgraded = await served.peer(REQUEST[:50]), await served.peer(REQUEST)
        await answer_of(upgraded)
        served.accepting.cancel()
        await until(lambda: len(served.served) == 1)
        await half.send_all(REQUEST[50:])
        await until(lambda: len(served.served) == 2)


async def test_a_fault_of_ours_ends_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a handler, or in answering a request."""
    async with serving(fault=ArithmeticError("broken")) as served:
        peer = await served.peer(REQUEST + HELLO)
        await answer_of(peer)
        assert await peer.receive_some() == b""
        monkeypatch.setattr("keepstep.websocket_lobby.read_plain_request", None)
        assert await read_all(await served.peer(REQUEST)) == b""
        assert len(served.faults) == 2


if sys.platform == "linux":

    async def test_who_says_nothing_has_no_task(autojump_clock: trio.testing.MockClock) -> None:
        """Within its request and after it, until the time of an upgrade is over; a handler tells the upgraded."""
        async with serving() as served:
            tasks = len(served.connections.child_tasks)
            half, upgraded = await served.peer(REQUEST[:50]), await served.peer(REQUEST)
            assert (await answer_of(upgraded)).startswith(b"HTTP/1.1 101 ")
            assert len(served.connections.child_tasks) <= tasks + 2  # the hub's, and the lobby's
            assert not served.served
            assert await read_all(half) == b""
            await upgraded.send_all(HELLO)
            assert (await read_all(upgraded)).startswith(b"\x82\x05hello")
            assert trio.current_time() >= served.served[0][1] + LIMITS.upgrade_timeout_s

    async def test_who_met_a_fault_of_the_lobbys_is_gone_with_its_time(
        monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
    ) -> None:
        """Within its request and after it; the others are served."""
        from keepstep.websocket_lobby import Lobby

        turn = Lobby.turn

        def fail(_lobby: Lobby, *_arguments: object) -> None:
            raise ArithmeticError("a bug")

        async with serving() as served:
            half, upgraded = await served.peer(REQUEST[:50]), await served.peer(REQUEST)
            await answer_of(upgraded)
            monkeypatch.setattr(Lobby, "turn", fail)
            await half.send_all(REQUEST[50:])
            await upgraded.send_all(HELLO)
            await until(lambda: len(served.faults) == 2)
            monkeypatch.setattr(Lobby, "turn", turn)
            other = await served.peer(REQUEST + HELLO)
            await answer_of(other)
            assert await other.receive_some(7) == b"\x82\x05hello"
            for peer in (half, upgraded):
                with suppress(trio.BrokenResourceError):  # what it said was not read
                    assert await read_all(peer) == b""
            assert served.met == [b"hello", ConnectionClosed]

    async def test_without_descriptors_accepting_pauses(
        monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
    ) -> None:
        """And goes on; any other error is raised."""
        from keepstep._keepstep import SocketHub

        answers: list[Any] = [OSError(errno.EMFILE, "too many"), [], OSError(errno.EBADF, "closed")]
        times: list[float] = []

        class Sockets:
            """The extension's, but for accepting, which gives what a test says."""

            def __init__(self, unfinished_bytes_max: int) -> None:
                self.hub = SocketHub(unfinished_bytes_max)

            def fileno(self) -> int:
                return self.hub.fileno()

            def accept(self, _listener: int) -> Any:
                times.append(trio.current_time())
                answer = answers.pop(0)
                if isinstance(answer, OSError):
                    raise answer
                return answer

        monkeypatch.setattr("keepstep.websocket_hub.SocketHub", Sockets)
        with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="closed"), flatten_subgroups=True):
            async with serving() as served, trio.open_nursery() as nursery:
                nursery.start_soon(served.peer)
                await trio.sleep_forever()
        assert times[1] == pytest.approx(times[0] + ACCEPT_PAUSE_S)

    async def test_a_socket_that_the_system_does_not_watch_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
        """It alone."""
        from keepstep.websocket_hub import Hub

        welcome = Hub.welcome

        def refuse(_hub: Hub, descriptor: int, *_arguments: object, **_named: object) -> None:
            socket.socket(fileno=descriptor).close()
            raise OSError(errno.ENOSPC, "no more")

        async with serving() as served:
            monkeypatch.setattr(Hub, "welcome", refuse)
            assert await read_all(await served.peer()) == b""
            assert len(served.faults) == 1
            monkeypatch.setattr(Hub, "welcome", welcome)
            assert (await answer_of(await served.peer(REQUEST))).startswith(b"HTTP/1.1 101 ")
