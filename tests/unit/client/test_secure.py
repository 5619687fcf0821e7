"""TLS to a server, and the words where it does not come about."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from keepstep import certificates
from keepstep.client.http import request
from keepstep.client.secure import open_secure
from keepstep.client.transport import Disconnected, open_transport
from keepstep.errors import ClientError
from tests.support.certificates import Authority


@asynccontextmanager
async def serving(serve: Callable[[Any], Awaitable[object]]) -> AsyncIterator[int]:
    """The port of a server on 127.0.0.1."""
    async with trio.open_nursery() as nursery:
        listeners: Any = await nursery.start(lambda task_status: _listen(serve, task_status))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def _listen(serve: Callable[[Any], Awaitable[object]], task_status: trio.TaskStatus[Any]) -> None:
    await trio.serve_tcp(serve, 0, host="127.0.0.1", task_status=task_status)


def tls_server(authority: Authority) -> Callable[[Any], Awaitable[object]]:
    """Sends one byte in TLS to whoever trusts it."""
    context = certificates.load(authority.files).context

    async def serve(stream: Any) -> None:
        secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            await secured.send_all(b"!")
        except trio.BrokenResourceError:
            pass
        finally:
            await secured.aclose()

    return serve


async def plain(stream: Any) -> None:
    """Answers in the clear."""
    async with stream:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def mute(stream: Any) -> None:
    """Hangs up."""
    await stream.aclose()


async def test_a_server_of_a_known_authority_is_spoken_to(tmp_path: Path) -> None:
    """By name and by address, as the certificate says."""
    authority = Authority(tmp_path)
    async with serving(tls_server(authority)) as port:
        for host in ("127.0.0.1", "localhost"):
            async with await open_secure(host, port, authority.client_context()) as stream:
                assert await stream.receive_some() == b"!"


async def test_the_environment_can_name_the_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``SSL_CERT_FILE``, as OpenSSL reads it."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    async with serving(tls_server(authority)) as port, await open_secure("127.0.0.1", port, None) as stream:
        assert await stream.receive_some() == b"!"


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        (None, r"its certificate is not trusted here: unable to get local issuer certificate \(SSL_CERT_FILE"),
        (plain, "it does not speak TLS: wrong version number"),
        (mute, "it ended the connection before TLS was agreed on"),
    ],
)
async def test_why_there_is_no_tls_is_told_to_rest_and_to_sessions(
    tmp_path: Path, serve: Callable[[Any], Awaitable[object]] | None, words: str
) -> None:
    """In the same words."""
    async with serving(serve or tls_server(Authority(tmp_path))) as port:
        with pytest.raises(ClientError, match=words):
            await request("GET", f"https://127.0.0.1:{port}/")
        with pytest.raises(Disconnected, match=words):
            async with open_transport(f"wss://127.0.0.1:{port}/v1/connect"):
                pytest.fail("connected")


async def test_a_cancelled_handshake_leaves_no_connection(tmp_path: Path) -> None:
    """The other end sees it end."""
    ended = trio.Event()

    async def slow(stream: Any) -> None:
        try:
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
        finally:
            ended.set()
            await trio.aclose_forcefully(stream)

    async with serving(slow) as port, trio.open_nursery() as nursery:
        nursery.start_soon(open_secure, "127.0.0.1", port, ssl.create_default_context())
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.fail_after(10):
            await ended.wait()
