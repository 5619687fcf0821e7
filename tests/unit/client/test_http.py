"""One HTTP request over a socket, and every way in which it can fail, in plain words."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from keepstep.client import http
from keepstep.client.http import Response, raise_for_problem, request
from keepstep.errors import ClientError, ProtocolError


@asynccontextmanager
async def answering(answer: bytes, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that reads a request's head and answers these bytes; its address, and what it read."""
    heads: list[bytes] = []

    async def serve(stream: trio.abc.Stream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive_some()
            heads.append(head)
            await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        if tls is None:
            listeners: list[trio.SocketListener] = await nursery.start(
                partial(trio.serve_tcp, serve, 0, host="127.0.0.1")
            )
            yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", heads
        else:
            secured: list[trio.SSLListener[trio.SocketStream]] = await nursery.start(
                partial(trio.serve_ssl_over_tcp, serve, 0, tls, host="127.0.0.1", https_compatible=True)
            )
            listener = secured[0].transport_listener
            assert isinstance(listener, trio.SocketListener)
            yield f"https://127.0.0.1:{listener.socket.getsockname()[1]}", heads
        nursery.cancel_scope.cancel()


async def test_a_request_is_answered() -> None:
    """Status, media type and body; the request has its head and body."""
    answer = b"HTTP/1.1 201 Created\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 5\r\n\r\nhello"
    async with answering(answer) as (url, heads):
        response = await request("POST", f"{url}/path", body=b"body", content_type="application/msgpack")
    assert response == Response(201, "text/plain", b"hello")
    assert heads[0].startswith(b"POST /path HTTP/1.1\r\n")
    assert b"content-type: application/msgpack" in heads[0].lower()
    assert b"content-length: 4" in heads[0].lower()


async def test_a_chunked_answer_is_joined() -> None:
    """And so is one without a length."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
    async with answering(chunked) as (url, heads):
        assert (await request("GET", url)).body == b"hello"
    assert heads[0].startswith(b"GET / HTTP/1.1\r\n")
    async with answering(b"HTTP/1.1 200 OK\r\n\r\nhello") as (url, _):
        assert (await request("GET", url)).body == b"hello"


async def test_a_body_goes_into_a_sink_however_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of an error does not: it is the answer, and bounded."""
    monkeypatch.setattr(http, "RESPONSE_BYTES_MAX", 4)
    pieces: list[bytes] = []

    async def sink(piece: bytes) -> None:
        await trio.lowlevel.checkpoint()
        pieces.append(piece)

    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello") as (url, _):
        assert await request("GET", url, sink=sink) == Response(200, "", b"")
    assert b"".join(pieces) == b"hello"
    async with answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone") as (url, _):
        assert await request("GET", url, sink=sink) == Response(404, "", b"none")
    assert b"".join(pieces) == b"hello"


async def test_an_interim_answer_is_passed_over() -> None:
    """A status of 1xx is not the answer."""
    async with answering(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n") as (url, _):
        assert (await request("GET", url)).status == 204


async def test_an_answer_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would fill the memory."""
    monkeypatch.setattr(http, "RESPONSE_BYTES_MAX", 4)
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello") as (url, _):
        with pytest.raises(ClientError, match="larger than 4 bytes"):
            await request("GET", url)


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", b""]
)
async def test_what_does_not_answer_in_http_is_told_plainly(answer: bytes) -> None:
    """Another protocol, an answer cut short, and none."""
    async with answering(answer) as (url, _):
        with pytest.raises(ClientError, match="does not answer in HTTP"):
            await request("GET", url)


async def test_a_server_that_is_not_there_is_told_plainly() -> None:
    """Nobody listens."""
    with pytest.raises(ClientError, match="cannot be reached"):
        await request("GET", "http://127.0.0.1:1")


@pytest.mark.parametrize("url", ["ftp://server.test", "server.test", "http://", "http://[", "http://server.test:99999"])
async def test_another_kind_of_address_is_told_plainly(url: str) -> None:
    """Nothing is tried."""
    with pytest.raises(ClientError, match="is not an http or https address"):
        await request("GET", url)


def test_the_port_of_devices_is_told_from_that_of_rest() -> None:
    """It answers 400 without a word; a problem of REST always has a body."""
    with pytest.raises(ClientError, match="port of devices"):
        raise_for_problem(Response(400, "", b""))
    with pytest.raises(ClientError, match="status 400"):
        raise_for_problem(Response(400, "text/html", b"<p>"))


async def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a time in all, whatever it does in it."""
    monkeypatch.setattr(http, "REQUEST_TIMEOUT_S", 0)
    async with answering(b"") as (url, _):
        with pytest.raises(ClientError, match="did not answer within"):
            await request("GET", url)


def certificate(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's side of a certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = directory / "server.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cadata=made.public_bytes(serialization.Encoding.PEM).decode())


async def test_https_checks_the_servers_certificate(tmp_path: Path) -> None:
    """One that is trusted, and the same one where it is not."""
    server, client = certificate(tmp_path)
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", tls=server) as (url, _):
        assert (await request("GET", url, tls=client)).body == b"hello"
    with pytest.raises(ClientError, match="cannot be reached"):
        await request("GET", "https://127.0.0.1:1", tls=client)


async def test_a_certificate_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    """Nothing is sent to whoever shows it."""
    server, _ = certificate(tmp_path)
    heads: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        secured = trio.SSLStream(stream, server, server_side=True)
        with pytest.raises(trio.BrokenResourceError):
            heads.append(bytes(await secured.receive_some()))
        await trio.aclose_forcefully(secured)

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        with pytest.raises(ClientError, match="cannot be reached"):
            await request("GET", f"https://127.0.0.1:{port}")
        nursery.cancel_scope.cancel()
    assert heads == []


PROBLEM = b'{"code": "registration_closed", "title": "x"}'
ANSWERS: dict[str, tuple[Response, Callable[[], type[Exception]]]] = {
    "a code of the table": (Response(403, "application/problem+json", PROBLEM), lambda: ProtocolError),
    "another code": (Response(403, "application/problem+json", b'{"code": "x"}'), lambda: ClientError),
    "another media type": (Response(403, "text/html", PROBLEM), lambda: ClientError),
    "no JSON": (Response(500, "application/problem+json", b"oops"), lambda: ClientError),
    "no object": (Response(500, "application/problem+json", b"[]"), lambda: ClientError),
    "a code that is no text": (Response(403, "application/problem+json", b'{"code": []}'), lambda: ClientError),
    "no end of arrays": (Response(403, "application/problem+json", b'{"more": ' + b"[" * 100_000), lambda: ClientError),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_error_status_becomes_the_error_it_stands_for(answer: str) -> None:
    """A problem document's code where it is ours; the status otherwise."""
    response, expected = ANSWERS[answer]
    with pytest.raises(expected()):
        raise_for_problem(response)


def test_a_success_is_no_problem() -> None:
    """Nothing is raised."""
    raise_for_problem(Response(200, "", b""))
