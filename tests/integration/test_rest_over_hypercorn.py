"""REST over real sockets: what Hypercorn is kept from doing wrong."""

from __future__ import annotations

from pathlib import Path

import h11
import httpx
import pytest
import trio
import trio.testing

from keepstep import server as server_module
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
        with trio.fail_after(10):
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
        async with httpx.AsyncClient(base_url=server.rest_url) as http:
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
        async with httpx.AsyncClient(base_url=server.rest_url) as http:
            answer = await http.get("/health/live")
        assert "server" not in answer.headers


async def test_stopping_waits_for_no_idle_connection(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kept-alive connection is closed with the server, not after its own time or that for requests under way."""
    monkeypatch.setattr(server_module, "REST_GRACE_S", 600.0)
    monkeypatch.setattr(server_module, "REST_KEEP_ALIVE_S", 600.0)
    async with running_server(data_dir) as server, httpx.AsyncClient(base_url=server.rest_url) as http:
        assert (await http.get("/health/live")).status_code == 200
        server.stop.set()
        with trio.fail_after(60):
            await server.stopped.wait()
