"""The WebSocket transport's guards: the upgrade, the limits, admission."""

from __future__ import annotations

import ssl
import struct
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing
import trio_websocket

from keepstep.entrance import Entrance
from keepstep.errors import ProtocolError
from keepstep.interfaces import ConnectionClosed
from keepstep.proxies import TrustedProxies, parse_networks
from keepstep.runtime import SystemClock, WorkerThreads
from keepstep.telemetry import Metrics
from keepstep.tls import ServerCertificate
from keepstep.websocket import REFUSAL_TIMEOUT_S, _serve_socket, serve
from keepstep.websocket_upgrade import UPGRADE_BYTES_MAX
from tests.support.certificates import Authority
from tests.support.websocket import (
    LIMITS,
    UPGRADE,
    CountedStream,
    Place,
    Server,
    close_reason,
    frame,
    read_all,
    serving,
    upgraded,
)

# -- upgrade --------------------------------------------------------------------------------------------------------


async def test_messages_go_both_ways() -> None:
    """Binary, whole, in order; the address and the moment of accepting are known."""
    seen: list[Any] = []
    async with serving() as server:

        async def handler(connection: Any) -> None:
            seen.append((connection.address, connection.accepted_at_s))
            await server.echo(connection)

        server.handler = handler
        peer = await server.open()
        assert peer.subprotocol == "keepstep.v1"
        for message in (b"", b"one", bytes(100)):
            await peer.send_message(message)
            assert await peer.get_message() == message
        assert seen == [("192.0.2.1", pytest.approx(trio.current_time(), abs=10))]


@pytest.mark.parametrize(
    ("path", "subprotocols", "status"),
    [
        ("/", ["keepstep.v1"], 404),
        ("/v1/connect/", ["keepstep.v1"], 404),
        ("/v1/connect", [], 400),
        ("/v1/connect", ["keepstep.v2"], 400),
    ],
)
async def test_only_our_path_and_subprotocol_are_served(path: str, subprotocols: list[str], status: int) -> None:
    """Anything else is refused with HTTP, in a sentence."""
    async with serving() as server:
        with pytest.RaisesGroup(trio_websocket.ConnectionRejected) as caught:
            async with trio.open_nursery() as nursery:
                await trio_websocket.wrap_client_stream(
                    nursery, server.connect(), "here", path, subprotocols=subprotocols
                )
        rejected: Any = caught.value.exceptions[0]
        assert rejected.status_code == status
        assert rejected.body is not None
        assert b"v1" in rejected.body
    assert not server.received


async def test_a_query_after_the_path_is_ignored() -> None:
    """Proxies add them."""
    async with serving() as server:
        peer = await server.open("/v1/connect?via=proxy")
        await peer.send_message(b"one")
        assert await peer.get_message() == b"one"


async def test_compression_is_never_negotiated() -> None:
    """Sealed bytes do not compress, and inflating before authentication is an attack."""
    async with serving() as server:
        stream = server.connect()
        await stream.send_all((UPGRADE + "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n").encode())
        answer = (await stream.receive_some()).lower()
        assert answer.startswith(b"http/1.1 101 ")
        assert b"extensions" not in answer
        await stream.send_all(frame(2, b"deflated", reserved=4))
        await read_all(stream)
    assert isinstance(server.errors[0], ConnectionClosed)


@pytest.mark.parametrize("sent", [b"", b"GET /v1/connect HTTP/1.1\r\nHost: here\r\n", UPGRADE.encode()])
async def test_a_half_sent_upgrade_has_so_many_seconds(sent: bytes, autojump_clock: trio.testing.MockClock) -> None:
    """trio-websocket alone would wait for ever."""
    async with serving() as server:
        stream = server.connect()
        start_s = trio.current_time()
        await stream.send_all(sent)
        await read_all(stream)
        assert trio.current_time() == pytest.approx(start_s + LIMITS.upgrade_timeout_s)


async def test_an_upgrade_that_ends_is_over_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """It does not hold its place until the deadline."""
    async with serving() as server:
        stream = server.connect()
        await stream.send_all(b"GET /v1")
        await stream.send_eof()
        start_s = trio.current_time()
        await read_all(stream)
        assert trio.current_time() == start_s


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", b"POST /v1/connect HTTP/1.1\r\n\r\n"]
)
async def test_what_is_no_upgrade_is_closed_at_once(sent: bytes, autojump_clock: trio.testing.MockClock) -> None:
    """TLS on the plain port, a browser, another method: no traceback, no waiting."""
    async with serving() as server:
        stream = server.connect()
        await stream.send_all(sent)
        start_s = trio.current_time()
        await read_all(stream)
        assert trio.current_time() == start_s


async def test_an_upgrade_request_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    """Headers without end are cut off long before the deadline."""
    async with serving() as server:
        stream = server.connect()
        await stream.send_all(UPGRADE.encode() + b"X-Filler: " + b"x" * UPGRADE_BYTES_MAX)
        start_s = trio.current_time()
        await read_all(stream)
        assert trio.current_time() == start_s


@pytest.mark.parametrize("broken_step", ["websocket.upgrade", "websocket_connection.WebSocketConnection.take"])
async def test_a_fault_of_ours_ends_one_connection(monkeypatch: pytest.MonkeyPatch, broken_step: str) -> None:
    """Whatever bytes a peer finds that make it raise: the fault is reported, and the next connection is served."""

    async def broken(*_arguments: object, **_keywords: object) -> None:
        await trio.lowlevel.checkpoint()
        raise IndexError("a bug")

    async with serving() as server:
        with monkeypatch.context() as patch:
            patch.setattr(f"keepstep.{broken_step}", broken)
            stream = server.connect()
            await stream.send_all((UPGRADE + "\r\n").encode())
            await read_all(stream)
        assert server.faults == [(repr(IndexError("a bug")), "192.0.2.1")]
        peer = await server.open()
        await peer.send_message(b"one")
        assert await peer.get_message() == b"one"


async def test_a_peer_that_is_gone_when_its_upgrade_is_accepted_is_no_fault() -> None:
    """It left in between."""
    async with serving() as server:
        stream = server.connect()
        stream.receive_stream.close()  # whatever is sent to it meets nobody
        await stream.send_all((UPGRADE + "\r\n").encode())
        await trio.testing.wait_all_tasks_blocked()
        assert not server.faults
        assert Place.inside == 0


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("POST /v1/connect HTTP/1.1\r\nHost: here\r\n\r\n", b"400"),
        ("GET / HTTP/1.1\r\nHost: here\r\n\r\n", b"400"),
        ("GET /v1/connect HTTP/1.1\r\nUpgrade websocket\r\n\r\n", b"400"),
        (UPGRADE.replace("Version: 13", "Version: 8") + "\r\n", b"426"),
        (UPGRADE.replace("Host: here", "Host: \xff") + "\r\n", b"400"),
    ],
)
async def test_a_request_that_is_no_upgrade_is_told_so(head: str, status: bytes) -> None:
    """In HTTP, so that whoever points a browser here learns something."""
    async with serving() as server:
        stream = server.connect()
        await stream.send_all(head.encode("latin-1"))
        assert (await read_all(stream)).startswith(b"HTTP/1.1 " + status)
        assert not server.faults


async def test_frames_right_behind_the_upgrade_request_are_taken() -> None:
    """A device should wait for the answer (RFC 6455 section 4.1); one that does not is understood all the same."""
    async with serving() as server:
        stream = server.connect()
        await stream.send_all((UPGRADE + "\r\n").encode() + frame(2, b"early") + frame(2, b"and again")[:4])
        await stream.send_all(frame(2, b"and again")[4:])
        answer = b""
        while not answer.endswith(b"and again"):
            answer += await stream.receive_some()
    assert server.received == [b"early", b"and again"]


# -- limits on messages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "fits"), [(100, True), (101, False)])
async def test_a_strangers_message_is_bounded(size: int, fits: bool) -> None:
    """Closed with our own code, which tells a device what was wrong."""
    async with serving() as server:
        peer = await server.open()
        await peer.send_message(bytes(size))
        if fits:
            assert await peer.get_message() == bytes(size)
        else:
            assert await close_reason(peer) == (4501, "too_large")


@pytest.mark.parametrize(("size", "fits"), [(10_000, True), (10_001, False)])
async def test_an_authenticated_devices_message_is_bounded(size: int, fits: bool) -> None:
    """By the wider limit; and its place is told."""
    async with serving() as server:

        async def handler(connection: Any) -> None:
            connection.authenticated()
            await server.echo(connection)

        server.handler = handler
        peer = await server.open()
        await peer.send_message(bytes(size))
        if fits:
            assert await peer.get_message() == bytes(size)
        else:
            assert await close_reason(peer) == (4501, "too_large")
    assert [place.is_authenticated for place in server.places] == [True]


async def test_a_text_message_is_refused() -> None:
    """Binary messages only."""
    async with serving() as server:
        peer = await server.open()
        await peer.send_message("text")
        assert await close_reason(peer) == (4500, "malformed")


@pytest.mark.parametrize("flood", ["one message without end", "empty fragments", "pings"])
async def test_a_flood_is_cut_off(flood: str, autojump_clock: trio.testing.MockClock) -> None:
    """Bytes that never become a message cost the server a bounded amount of memory, then the connection."""
    async with serving() as server:
        stream = await upgraded(server)
        first = frame(2, b"", final=False) if flood == "empty fragments" else b""
        piece = {
            "one message without end": frame(2, bytes(60), final=False),
            "empty fragments": frame(0, b"", final=False),
            "pings": frame(9, bytes(100)),
        }[flood]
        await stream.send_all(first + piece + (frame(0, bytes(60), final=False) if flood[0] == "o" else piece) * 3_000)
        answer = await read_all(stream)
        assert struct.pack("!H", 4501) in answer
    assert isinstance(server.errors[0], ProtocolError)
    assert server.errors[0].code == "too_large"


async def test_a_flood_while_nobody_receives_shows_at_the_next_receive(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The handler was busy; it is told when it asks."""
    go_on = trio.Event()
    async with serving() as server:

        async def handler(connection: Any) -> None:
            await go_on.wait()
            await server.echo(connection)

        server.handler = handler
        stream = await upgraded(server)
        await stream.send_all(frame(9, bytes(100)) * 3_000)
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
        assert struct.pack("!H", 4501) in await read_all(stream)
    assert not server.received


async def test_control_frames_within_reason_are_answered() -> None:
    """WebSocket's own ping, between messages and inside a fragmented one."""
    async with serving() as server:
        stream = await upgraded(server)
        await stream.send_all(frame(9, b"p") + frame(2, b"on", final=False) + frame(9, b"q") + frame(0, b"e"))
        answer = b""
        while not answer.endswith(b"\x82\x03one"):
            answer += await stream.receive_some()
        assert answer == b"\x8a\x01p\x8a\x01q\x82\x03one"


@pytest.mark.parametrize("sent", [b"\x82\x01x", frame(3, b""), frame(0, b""), frame(8, b"\x03")])
async def test_frames_that_break_the_standard_end_the_connection(sent: bytes) -> None:
    """Unmasked, unknown, out of turn, half a close code: the handler only sees that it is over."""
    async with serving() as server:
        stream = await upgraded(server)
        await stream.send_all(sent)
        await read_all(stream)
    assert isinstance(server.errors[0], ConnectionClosed)


# -- admission ------------------------------------------------------------------------------------------------------


async def test_a_refused_peer_is_told_to_come_back() -> None:
    """With HTTP, before anything of it was read."""
    async with serving(refusing=True) as server:
        stream = server.connect()
        await stream.send_all((UPGRADE + "\r\n").encode())
        answer = await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 5\r\n" in answer
        await stream.send_eof()
        assert await read_all(stream) == b""
    assert server.refusals.borrowed_tokens == 0


async def test_so_many_are_told_at_the_same_time(autojump_clock: trio.testing.MockClock) -> None:
    """More are closed without a word; and telling one takes a second at most."""
    async with serving(refusing=True) as server:
        slow = server.connect()
        start_s = trio.current_time()
        await slow.receive_some()
        other = server.connect()
        assert await read_all(other) == b""
        assert trio.current_time() == start_s
        await trio.sleep(REFUSAL_TIMEOUT_S - 0.01)
        assert server.refusals.borrowed_tokens == 1
        await trio.sleep(0.02)
        assert server.refusals.borrowed_tokens == 0


async def test_a_refused_peer_that_is_gone_does_no_harm() -> None:
    """Its answer goes nowhere."""
    async with serving(refusing=True) as server:
        stream = server.connect()
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
    assert server.refusals.borrowed_tokens == 0


async def test_a_refused_peer_of_a_tls_port_is_closed_without_a_word(tmp_path: Path) -> None:
    """Words would take a handshake, which costs more than the refusal saves."""
    async with serving(refusing=True, entrance=entrance_with_tls(tmp_path)) as server:
        stream = server.connect()
        assert await read_all(stream) == b""
        await trio.testing.wait_all_tasks_blocked()
        assert server.refusals.borrowed_tokens == 0


# -- proxies and TLS ------------------------------------------------------------------------------------------------


def entrance_with_tls(folder: Path) -> Entrance:
    """With a certificate of an authority in that folder."""
    certificate = ServerCertificate(
        Authority(folder).files, SystemClock(), WorkerThreads(), Metrics(), structlog.get_logger()
    )
    return Entrance(certificate=certificate)


BEHIND_PROXIES = Entrance(TrustedProxies(parse_networks("192.0.2.0/24")))


async def upgrade(server: Server, *lines: str) -> bytes:
    """The answer to an upgrade with more header lines; the connection is closed."""
    stream = server.connect()
    await stream.send_all((UPGRADE + "".join(f"{line}\r\n" for line in lines) + "\r\n").encode())
    answer = bytes(await stream.receive_some())
    await stream.aclose()
    return answer


async def test_a_trusted_proxys_upgrade_names_the_client() -> None:
    """The connection is the client's: in logs, in limits, from then on."""
    seen: list[str] = []

    async def handler(connection: Any) -> None:
        await trio.lowlevel.checkpoint()
        seen.append(connection.address)

    async with serving(entrance=BEHIND_PROXIES, handler=handler) as server:
        forged = "X-Forwarded-For: 203.0.113.9, 198.51.100.7"
        assert (await upgrade(server, forged)).startswith(b"HTTP/1.1 101 ")
        assert (await upgrade(server)).startswith(b"HTTP/1.1 101 ")
    async with serving(handler=handler) as server:
        assert (await upgrade(server, forged)).startswith(b"HTTP/1.1 101 ")
    assert seen == ["198.51.100.7", "192.0.2.1", "192.0.2.1"]


async def test_a_client_with_too_many_connections_behind_a_proxy_is_told_so() -> None:
    """In HTTP, by which time it is known who it is."""
    async with serving(entrance=BEHIND_PROXIES, full_for="198.51.100.7") as server:
        answer = await upgrade(server, "X-Forwarded-For: 198.51.100.7")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 5" in answer.lower()
        assert (await upgrade(server, "X-Forwarded-For: 198.51.100.8")).startswith(b"HTTP/1.1 101 ")


async def test_messages_go_both_ways_in_tls(tmp_path: Path) -> None:
    """As without."""
    entrance = entrance_with_tls(tmp_path)
    trust = ssl.create_default_context(cafile=tmp_path / "authority.pem")
    async with serving(entrance=entrance) as server, trio.open_nursery() as nursery:
        secured = trio.SSLStream(server.connect(), trust, server_hostname="localhost", https_compatible=True)
        peer = await trio_websocket.wrap_client_stream(
            nursery, secured, "localhost", "/v1/connect", subprotocols=["keepstep.v1"]
        )
        for message in (b"one", bytes(100)):
            await peer.send_message(message)
            assert await peer.get_message() == message
        await peer.aclose()


async def test_a_half_sent_handshake_has_no_longer_than_an_upgrade(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Counted from the accepted connection, however the time is spent."""
    async with serving(entrance=entrance_with_tls(tmp_path)) as server:
        stream = server.connect()
        start_s = trio.current_time()
        await stream.send_all(b"\x16\x03\x01")
        await trio.sleep(LIMITS.upgrade_timeout_s - 1)
        await stream.send_all(b"\x00")
        assert await read_all(stream) == b""
        assert trio.current_time() == pytest.approx(start_s + LIMITS.upgrade_timeout_s)


# -- real sockets ---------------------------------------------------------------------------------------------------


async def test_sockets_are_accepted_until_cancelled() -> None:
    """Handlers go on in their own nursery; the listeners are closed."""
    addresses: list[str] = []
    server: Server
    async with trio.open_nursery() as connections:
        server = Server(connections)

        def admit(address: str) -> Place:
            addresses.append(address)
            return Place()

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        accepting, stopped = trio.CancelScope(), trio.Event()

        async def accept(task_status: trio.TaskStatus[Any]) -> None:
            with accepting:
                await serve(
                    listeners,
                    server.echo,
                    admit=admit,
                    limits=LIMITS,
                    entrance=Entrance(),
                    connections=connections,
                    on_fault=server.note_fault,
                    task_status=task_status,
                )
            stopped.set()

        await connections.start(accept)
        async with trio_websocket.open_websocket(
            "127.0.0.1", port, "/v1/connect", use_ssl=False, subprotocols=["keepstep.v1"]
        ) as peer:
            accepting.cancel()
            await stopped.wait()
            await peer.send_message(b"still here")
            assert await peer.get_message() == b"still here"
            with pytest.raises(OSError, match="failed"):
                await trio.open_tcp_stream("127.0.0.1", port)
    assert addresses == ["127.0.0.1"]


async def test_a_socket_that_is_gone_before_it_is_served_does_no_harm() -> None:
    """Its address cannot be asked any more."""

    class Gone:
        """A socket whose peer has left."""

        def getpeername(self) -> object:
            raise OSError("not connected")

    class GoneStream(CountedStream):
        """Its stream."""

        socket = Gone()
        closed = False

        async def aclose(self) -> None:
            self.closed = True
            await trio.lowlevel.checkpoint()

    stream = GoneStream(None)
    await _serve_socket(
        stream,  # type: ignore[arg-type]
        handler=lambda _: pytest.fail("served"),
        admit=lambda _: pytest.fail("admitted"),
        limits=LIMITS,
        entrance=Entrance(),
        refusals=trio.CapacityLimiter(1),
        on_fault=lambda error, _address: pytest.fail(repr(error)),
        hub=None,
    )
    assert stream.closed
