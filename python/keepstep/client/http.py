"""One HTTP/1.1 request over a Trio stream: finding a server, posting a genesis, and REST for devices that use it."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import h11
import msgspec
import trio

from keepstep.client.secure import open_secure
from keepstep.errors import ERRORS, ClientError, ProtocolError

RESPONSE_BYTES_MAX: Final = 256 * 1024
"""Largest response body taken, bytes."""
REQUEST_TIMEOUT_S: Final = 30
"""A whole request, from the name's look-up to the last byte of the answer, seconds."""
READ_BYTES: Final = 16 * 1024
HTTP_OK: Final = 200
HTTP_BAD_REQUEST: Final = 400


@dataclass(frozen=True, slots=True)
class Response:
    """Status, media type without its parameters, and body."""

    status: int
    content_type: str
    body: bytes


class _Problem(msgspec.Struct, frozen=True):
    """A problem document (RFC 9457), as far as it matters here."""

    code: str


async def request(
    method: str,
    url: str,
    *,
    body: bytes = b"",
    content_type: str | None = None,
    headers: Mapping[str, str] | None = None,
    response_bytes_max: int | None = None,
    sink: Callable[[bytes], Awaitable[object]] | None = None,
    tls: ssl.SSLContext | None = None,
    within_s: float | None = None,
) -> Response:
    """Send one request on a connection of its own and read the whole answer; redirects are not followed.

    Args:
        method: ``GET``, ``POST`` and so on.
        url: ``http://`` or ``https://``.
        body: the request's body.
        content_type: its media type.
        headers: more of them.
        response_bytes_max: largest body of the answer, bytes; ``RESPONSE_BYTES_MAX`` by default.
        sink: takes the body of an answer with status 200 piece by piece, however large, instead of the answer; each
            piece may take as long as a request otherwise does.
        tls: for ``https``; the system's trusted certificates by default.
        within_s: for the whole of it, seconds; ``REQUEST_TIMEOUT_S`` by default.

    Raises:
        ClientError: the server cannot be reached, or does not answer in time, or not in HTTP.

    A cancellation closes the connection; whether the server acted on the request is then unknown.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise ClientError(f"{url} is not an http or https address") from exc
    if parts.scheme not in ("http", "https") or not host:
        raise ClientError(f"{url} is not an http or https address")
    timeout_s = REQUEST_TIMEOUT_S if within_s is None else within_s
    try:
        with trio.fail_after(timeout_s) as scope:
            stream = await _connect(parts.scheme, host, port, tls)
            async with stream:
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                head = _request(method, parts.netloc, target, body, content_type, headers or {})

                async def take(piece: bytes) -> None:
                    scope.deadline = trio.current_time() + REQUEST_TIMEOUT_S
                    assert sink is not None
                    await sink(piece)

                bytes_max = response_bytes_max or RESPONSE_BYTES_MAX
                return await _exchange(stream, head, body, bytes_max, None if sink is None else take)
    except trio.TooSlowError as exc:
        raise ClientError(f"{parts.netloc} did not answer within {timeout_s} s") from exc
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
    if response.content_type == "application/problem+json":
        with contextlib.suppress(ValueError, RecursionError):
            code = msgspec.json.decode(response.body, type=_Problem).code
            if code in ERRORS:
                raise ProtocolError(code)
    if response.status == HTTP_BAD_REQUEST and not response.body:
        # What a WebSocket server says to a request that is not its own.
        raise ClientError(
            "that is not where REST is answered: if it is the port of devices (8441 unless configured otherwise), name "
            "the one of REST (8440)"
        )
    raise ClientError(f"the server answered with HTTP status {response.status}")


async def _connect(scheme: str, host: str, port: int | None, tls: ssl.SSLContext | None) -> trio.abc.Stream:
    if scheme == "http":
        return await trio.open_tcp_stream(host, port or 80)
    return await open_secure(host, port or 443, tls)


def _request(
    method: str, netloc: str, target: str, body: bytes, content_type: str | None, more: Mapping[str, str]
) -> h11.Request:
    headers = [
        *more.items(),
        ("Host", netloc),
        ("User-Agent", "keepstep-client"),
        ("Accept", "application/json, application/msgpack"),
        ("Connection", "close"),
    ]
    if content_type is not None:
        headers += [("Content-Type", content_type), ("Content-Length", str(len(body)))]
    return h11.Request(method=method, target=target, headers=headers)


async def _exchange(
    stream: trio.abc.Stream,
    head: h11.Request,
    body: bytes,
    response_bytes_max: int,
    sink: Callable[[bytes], Awaitable[object]] | None,
) -> Response:
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
        elif isinstance(event, h11.Data) and sink is not None and status == HTTP_OK:
            await sink(bytes(event.data))
        elif isinstance(event, h11.Data):
            received += event.data
            if len(received) > response_bytes_max:
                raise ClientError(f"the server's answer is larger than {response_bytes_max} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return Response(status, content_type, bytes(received))


def _reason(exc: BaseException) -> str:
    text = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
    return str(text)
