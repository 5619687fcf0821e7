"""REST over real sockets: what Hypercorn is kept from doing wrong."""

from __future__ import annotations

from pathlib import Path

import h11
import httpx
import pytest
import trio
import trio.testing

from keepstep.rest import serving
from tests.support.server import running_server


async def exchange(stream: trio.SocketStream, connection: h11.Connection) -> h11.Response:
    """The next answer on a connection, read to its end."""
    response = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.EndOfMessage):
            assert response is not None
            return response
        elif isinstance(event, h11.ConnectionClosed):
            raise AssertionError("closed without an answer")


async def open_rest(url: str) -> trio.SocketStream:
    """A connection to a server's REST port."""
    parts = httpx.URL(url)
    assert parts.port is not None
    return await trio.open_tcp_stream(parts.host, parts.port)


@pytest.mark.parametrize(
    ("method", "path", "size", "status"),
    [("PUT", "/health/live", 10, 405), ("POST", "/nowhere", 10, 404), ("POST", "/api/v1/accounts", 70_000, 413)],
)
async def test_a_connection_serves_on_after_a_body_that_nobody_wanted(
    data_dir: Path, method: str, path: str, size: int, status: int
) -> None:
    """Hypercorn 0.18 hangs on the next request when an answer leaves before the body came; clients send them apart."""
    async with running_server(data_dir) as server, await open_rest(server.rest_url) as stream:
        with trio.fail_after(60):
            connection = h11.Connection(h11.CLIENT)
            headers = [("Host", "here"), ("Content-Length", str(size))]
            await stream.send_all(connection.send(h11.Request(method=method, target=path, headers=headers)))
            await trio.testing.wait_all_tasks_blocked(0.05)
            await stream.send_all(connection.send(h11.Data(data=bytes(size))))
            await stream.send_all(connection.send(h11.EndOfMessage()))
            assert (await exchange(stream, connection)).status_code == status
            connection.start_next_cycle()
            request = h11.Request(method="GET", target="/health/live", headers=[("Host", "here")])
            await stream.send_all(connection.send(request) + connection.send(h11.EndOfMessage()))
            assert (await exchange(stream, connection)).status_code == 200


async def test_no_websocket_is_served_on_the_rest_port(data_dir: Path) -> None:
    """Refused before anything is negotiated."""
    async with running_server(data_dir) as server:
        async with httpx.AsyncClient(base_url=server.rest_url, timeout=60) as http:
            answer = await http.get(
                "/v1/connect",
                headers={
                    "Upgrade": "websocket",
                    "Connection": "Upgrade",
                    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
                    "Sec-WebSocket-Version": "13",
                    "Sec-WebSocket-Extensions": "permessage-deflate",
                },
            )
        assert answer.status_code == 403
        assert "sec-websocket-extensions" not in answer.headers


async def test_the_server_does_not_say_what_it_is_made_of(data_dir: Path) -> None:
    """No header names the software below."""
    async with running_server(data_dir) as server:
        async with httpx.AsyncClient(base_url=server.rest_url, timeout=60) as http:
            answer = await http.get("/health/live")
        assert "server" not in answer.headers


async def test_stopping_waits_for_no_idle_connection(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kept-alive connection is closed with the server, not after its own time or that for requests under way."""
    monkeypatch.setattr(serving, "GRACE_S", 600.0)
    monkeypatch.setattr(serving, "KEEP_ALIVE_S", 600.0)
    async with running_server(data_dir) as server, httpx.AsyncClient(base_url=server.rest_url, timeout=60) as http:
        assert (await http.get("/health/live")).status_code == 200
        server.stop.set()
        with trio.fail_after(60):
            await server.stopped.wait()


async def test_a_connection_above_the_cap_is_closed_as_it_comes(data_dir: Path) -> None:
    """Idle REST sockets cannot take the file descriptors of devices and database; one that leaves makes room."""
    async with (
        running_server(data_dir, settings={"rest_connections_max": 2}) as server,
        httpx.AsyncClient(base_url=server.rest_url, timeout=60) as http,
    ):
        assert (await http.get("/health/live")).status_code == 200
        async with await open_rest(server.rest_url) as second:
            connection = h11.Connection(h11.CLIENT)
            request = h11.Request(method="GET", target="/health/live", headers=[("Host", "here")])
            await second.send_all(connection.send(request) + connection.send(h11.EndOfMessage()))
            with trio.fail_after(60):
                assert (await exchange(second, connection)).status_code == 200
                async with await open_rest(server.rest_url) as third:
                    assert await third.receive_some() == b""
            metrics = (await http.get("/metrics")).text
    assert "keepstep_rest_connections_refused_total 1.0" in metrics
    assert "keepstep_rest_connections 2.0" in metrics


@pytest.mark.parametrize(
    "opening",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + bytes.fromhex("000000040000000000")
        # HEADERS on stream 1, its end: :method GET, :path /, :scheme http, :authority "a"
        + bytes.fromhex("000006010500000001828486410161"),
        (
            b"GET /health/live HTTP/1.1\r\nHost: here\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
        ),
    ],
    ids=["prior knowledge", "upgrade"],
)
async def test_http_2_is_refused(data_dir: Path, opening: bytes) -> None:
    """Whichever way a client switches to it; the answer is 501 (in HPACK a literal, after the static name :status)."""
    async with running_server(data_dir) as server, await open_rest(server.rest_url) as stream:
        await stream.send_all(opening)
        received = b""
        with trio.fail_after(60):
            while b"501" not in received and bytes.fromhex("4803") not in received:
                received += await stream.receive_some()
