"""The WebSocket under a session, over real sockets: what arrives, and in what words it ends."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio_websocket
from wsproto.utilities import generate_accept_token

from keepstep.client import transport as transports
from keepstep.client.transport import SUBPROTOCOL, Disconnected, open_transport
from keepstep.errors import ProtocolError

Handler = Callable[[trio_websocket.WebSocketConnection], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler, *, subprotocol: str | None = SUBPROTOCOL) -> AsyncIterator[str]:
    """A WebSocket server's address."""

    async def accept(asked: trio_websocket.WebSocketRequest) -> None:
        await handler(await asked.accept(subprotocol=subprotocol))

    async with trio.open_nursery() as nursery:
        server: Any = await nursery.start(trio_websocket.serve_websocket, accept, "127.0.0.1", 0, None)
        yield f"ws://127.0.0.1:{server.port}/v1/connect#key"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def answering(make: Callable[[bytes], bytes]) -> AsyncIterator[str]:
    """A server that answers an upgrade with any bytes, made from the right accept token; its address."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive_some()
            key = re.search(rb"(?i)sec-websocket-key: *(\S+)", head)
            assert key is not None
            await stream.send_all(make(generate_accept_token(key[1])))
            while await stream.receive_some():
                pass

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1/connect"
        nursery.cancel_scope.cancel()


def upgraded(token: bytes, *headers: bytes, then: bytes = b"") -> bytes:
    """An accepted upgrade with more headers, and what follows it."""
    lines = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade"]
    return b"\r\n".join([*lines, b"Sec-WebSocket-Accept: " + token, *headers, b"", b""]) + then


async def echo(connection: trio_websocket.WebSocketConnection) -> None:
    """Send back what comes."""
    while True:
        try:
            await connection.send_message(await connection.get_message())
        except trio_websocket.ConnectionClosed:
            return


async def test_messages_go_both_ways() -> None:
    """Binary ones, as they are."""
    async with serving(echo) as url, open_transport(url) as transport:
        await transport.send(b"\x00\xff")
        assert await transport.receive() == b"\x00\xff"


async def test_a_close_code_is_told() -> None:
    """It decides whether the device comes back."""

    async def close(connection: trio_websocket.WebSocketConnection) -> None:
        await connection.aclose(4513, "replaced")

    async with serving(close) as url, open_transport(url) as transport:
        with pytest.raises(Disconnected, match="replaced") as caught:
            await transport.receive()
        assert caught.value.close_code == 4513
        with pytest.raises(Disconnected):
            await transport.send(b"late")


async def test_the_words_of_a_close_frame_are_not_repeated() -> None:
    """Anybody on the way can send one: its text could steer the terminal on which the reason is shown."""
    text = b"\x1b]0;owned\x07 update at evil.test"
    frame = b"\x88" + bytes([2 + len(text)]) + (4100).to_bytes(2, "big") + text
    accepted = b"Sec-WebSocket-Protocol: " + SUBPROTOCOL.encode()
    async with answering(lambda token: upgraded(token, accepted, then=frame)) as url, open_transport(url) as transport:
        with pytest.raises(Disconnected) as caught:
            await transport.receive()
    assert caught.value.close_code == 4100
    assert str(caught.value) == "the server closed the connection: unavailable"


UPGRADES: dict[str, Callable[[bytes], bytes]] = {
    "a subprotocol that is no text": lambda token: upgraded(token, b"Sec-WebSocket-Protocol: \xff"),
    "a subprotocol nobody asked for": lambda token: upgraded(token, b"Sec-WebSocket-Protocol: chat"),
    "an extension nobody asked for": lambda token: upgraded(token, b"Sec-WebSocket-Extensions: permessage-deflate"),
    "another accept token": lambda token: upgraded(token[::-1]),
    "no HTTP": lambda _token: b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
}


@pytest.mark.parametrize("answer", UPGRADES)
async def test_an_upgrade_that_makes_no_sense_only_ends_the_attempt(answer: str) -> None:
    """Whatever it makes the WebSocket library raise: the device tries again later."""
    async with answering(UPGRADES[answer]) as url:
        with pytest.raises(Disconnected, match="does not answer as a WebSocket server"):
            async with open_transport(url):
                pass


async def test_a_server_that_hangs_up_is_not_waited_for() -> None:
    """As a proxy does that has nothing behind it."""

    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(
            partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1")
        )
        with pytest.raises(Disconnected, match="closed the connection before it answered"):
            async with open_transport(f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1/connect"):
                pass
        nursery.cancel_scope.cancel()


async def test_a_cut_is_told_apart() -> None:
    """Without a closing handshake the code is the one that stands for that."""

    async def cut(connection: trio_websocket.WebSocketConnection) -> None:
        await trio.aclose_forcefully(connection._stream)

    async with serving(cut) as url, open_transport(url) as transport:
        with pytest.raises(Disconnected) as caught:
            await transport.receive()
    assert caught.value.close_code in (None, 1006)


async def test_text_is_not_of_this_protocol() -> None:
    """The server broke it."""

    async def talk(connection: trio_websocket.WebSocketConnection) -> None:
        await connection.send_message("hello")
        await echo(connection)

    async with serving(talk) as url, open_transport(url) as transport:
        with pytest.raises(ProtocolError, match="text"):
            await transport.receive()


async def test_a_server_of_something_else_is_told_apart() -> None:
    """It takes the connection and not the subprotocol."""
    async with serving(echo, subprotocol=None) as url:
        with pytest.raises(ProtocolError, match=r"keepstep\.v1"):
            async with open_transport(url):
                pass


async def test_a_refused_upgrade_is_told_with_its_status() -> None:
    """The server is there and does not want this one."""

    async def refuse(asked: trio_websocket.WebSocketRequest) -> None:
        await asked.reject(503)

    async with trio.open_nursery() as nursery:
        server: Any = await nursery.start(trio_websocket.serve_websocket, refuse, "127.0.0.1", 0, None)
        with pytest.raises(Disconnected, match="status 503"):
            async with open_transport(f"ws://127.0.0.1:{server.port}/v1/connect"):
                pass
        nursery.cancel_scope.cancel()


async def test_a_server_that_is_not_there_is_told_plainly() -> None:
    """Also over TLS."""
    for scheme in ("ws", "wss"):
        with pytest.raises(Disconnected, match="cannot be reached"):
            async with open_transport(f"{scheme}://127.0.0.1:1/v1/connect"):
                pass


async def test_a_server_that_does_not_upgrade_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a time in all."""
    monkeypatch.setattr(transports, "CONNECT_TIMEOUT_S", 0)
    async with serving(echo) as url:
        with pytest.raises(Disconnected, match="did not answer within"):
            async with open_transport(url):
                pass


async def test_closing_waits_for_nobody_when_cancelled() -> None:
    """A server that does not finish the closing handshake holds nobody up."""

    async def sleep(_connection: trio_websocket.WebSocketConnection) -> None:
        await trio.sleep_forever()

    async with serving(sleep) as url:
        with trio.CancelScope() as scope:
            async with open_transport(url) as transport:
                await transport.send(b"x")
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught


def test_an_error_without_words_is_named_by_its_kind() -> None:
    """Or by what it comes from."""
    cause = OSError("no route")
    error = trio_websocket.HandshakeError()
    assert transports._reason(error) == "HandshakeError"
    error.__cause__ = cause
    assert transports._reason(error) == "no route"
