"""One HTTP/1.1 request over a Trio stream: finding a server, and posting a genesis. Nothing else goes over HTTP."""

from __future__ import annotations

import contextlib
import json
import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import h11
import trio

from keepstep.errors import ERRORS, ClientError, ProtocolError

RESPONSE_BYTES_MAX: Final = 256 * 1024
"""Largest response body taken, bytes."""
REQUEST_TIMEOUT_S: Final = 30
"""A whole request, from the name's look-up to the last byte of the answer, seconds."""
READ_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Response:
    """Status, media type without its parameters, and body."""

    status: int
    content_type: str
    body: bytes


async def request(
    method: str,
    url: str,
    *,
    body: bytes = b"",
    content_type: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> Response:
    """Send one request on a connection of its own and read the whole answer; redirects are not followed.

    Args:
        method: ``GET`` or ``POST``.
        url: ``http://`` or ``https://``.
        body: the request's body.
        content_type: its media type.
        tls: for ``https``; the system's trusted certificates by default.

    Raises:
        ClientError: the server cannot be reached, or does not answer in time, or not in HTTP.

    A cancellation closes the connection; whether the server acted on the request is then unknown.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ClientError(f"{url} is not an http or https address")
    try:
        with trio.fail_after(REQUEST_TIMEOUT_S):
            stream = await _connect(parts.scheme, parts.hostname, parts.port, tls)
            async with stream:
                head = _request(method, parts.netloc, parts.path or "/", body, content_type)
                return await _exchange(stream, head, body)
    except trio.TooSlowError as exc:
        raise ClientError(f"{parts.netloc} did not answer within {REQUEST_TIMEOUT_S} s") from exc
    except (OSError, ssl.SSLError, trio.BrokenResourceError) as exc:
        raise ClientError(f"{parts.netloc} cannot be reached: {_reason(exc)}") from exc
    except h11.RemoteProtocolError as exc:
        raise ClientError(f"{parts.netloc} does not answer in HTTP") from exc


def raise_for_problem(response: Response) -> None:
    """Turn an error status into the error it stands for.

    Raises:
        ProtocolError: the answer is a problem document with a code of the error table (RFC 9457).
        ClientError: it is any other error status.
    """
    if response.status < 400:
        return
    with contextlib.suppress(ValueError, AttributeError):
        code = json.loads(response.body).get("code")
        if response.content_type == "application/problem+json" and code in ERRORS:
            raise ProtocolError(code)
    raise ClientError(f"the server answered with HTTP status {response.status}")


async def _connect(scheme: str, host: str, port: int | None, tls: ssl.SSLContext | None) -> trio.abc.Stream:
    if scheme == "http":
        return await trio.open_tcp_stream(host, port or 80)
    stream = await trio.open_ssl_over_tcp_stream(
        host, port or 443, ssl_context=tls or ssl.create_default_context(), https_compatible=True
    )
    try:
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


def _request(method: str, netloc: str, path: str, body: bytes, content_type: str | None) -> h11.Request:
    headers = [
        ("Host", netloc),
        ("User-Agent", "keepstep-client"),
        ("Accept", "application/json, application/msgpack"),
        ("Connection", "close"),
    ]
    if content_type is not None:
        headers += [("Content-Type", content_type), ("Content-Length", str(len(body)))]
    return h11.Request(method=method, target=path, headers=headers)


async def _exchange(stream: trio.abc.Stream, head: h11.Request, body: bytes) -> Response:
    connection = h11.Connection(h11.CLIENT)
    # Head and body in one write: a server that answers early then still finds the whole request read.
    await stream.send_all(
        (connection.send(head) or b"")
        + (connection.send(h11.Data(data=body)) or b"")
        + (connection.send(h11.EndOfMessage()) or b"")
    )
    status, content_type, received = 0, "", bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(READ_BYTES)))
        elif isinstance(event, h11.Response):
            status = event.status_code
            content_type = dict(event.headers).get(b"content-type", b"").decode("latin-1").partition(";")[0].strip()
        elif isinstance(event, h11.Data):
            received += event.data
            if len(received) > RESPONSE_BYTES_MAX:
                raise ClientError(f"the server's answer is larger than {RESPONSE_BYTES_MAX} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return Response(status, content_type, bytes(received))


def _reason(exc: BaseException) -> str:
    text = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
    return str(text)
