"""Clients that show by which address a server knows them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import trio
import trio_websocket

if TYPE_CHECKING:
    import ssl


@asynccontextmanager
async def opened(
    url: str, first: bytes = b"", trust: ssl.SSLContext | None = None, *, source: str | None = None
) -> AsyncIterator[Any]:
    """A connection that begins with these bytes; TLS after them where it is to be; from that address of ours."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    stream = await trio.open_tcp_stream(parts.hostname, parts.port, local_address=source)
    async with stream:
        if first:
            await stream.send_all(first)
        if trust is None:
            yield stream
        else:
            yield trio.SSLStream(stream, trust, server_hostname=parts.hostname, https_compatible=True)


async def ask_rest(
    url: str,
    *lines: str,
    path: str = "/api/v1/server",
    first: bytes = b"",
    trust: ssl.SSLContext | None = None,
    source: str | None = None,
) -> int:
    """The status of one call on a connection of its own; 0 where it was closed without an answer."""
    async with opened(url, first, trust, source=source) as stream:
        head = [f"GET {path} HTTP/1.1", f"Host: {urlsplit(url).netloc}", "Connection: close", *lines, "", ""]
        answer = b""
        try:
            await stream.send_all("\r\n".join(head).encode())
            while piece := await stream.receive_some():
                answer += bytes(piece)
        except trio.BrokenResourceError:
            return 0
    return int(answer.split()[1]) if answer else 0


async def ask_as_device(
    url: str,
    *headers: tuple[str, str],
    first: bytes = b"",
    trust: ssl.SSLContext | None = None,
    source: str | None = None,
) -> None:
    """Connect and send nonsense in place of a handshake, which the server logs with the address."""
    async with opened(url, first, trust, source=source) as stream, trio.open_nursery() as nursery:
        websocket = await trio_websocket.wrap_client_stream(
            nursery,
            stream,
            urlsplit(url).netloc,
            "/v1/connect",
            subprotocols=["keepstep.v1"],
            extra_headers=[(name.encode(), value.encode()) for name, value in headers],
        )
        await websocket.send_message(b"nonsense")
        with pytest.raises(trio_websocket.ConnectionClosed):
            await websocket.get_message()
        nursery.cancel_scope.cancel()


def addresses(lines: Sequence[Any]) -> list[str]:
    """Of the devices that were refused, by the server's log."""
    return [line["address"] for line in lines if line["event"] == "handshake_refused"]
