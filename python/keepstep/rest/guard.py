"""What every request passes before Quart sees it: an id, and bounds in size, time and number (ASGI).

The whole body is taken in before the application may answer. That bounds it, and it keeps Hypercorn 0.18 from
hanging: a connection on which an answer was sent before the request's body had arrived (401, 405, 413) never gets
another answer, and common clients send head and body apart.

Nor is the application told of a disconnect while its answer is being finished: Hypercorn announces one as it tidies up
after every answer, Quart-Trio then cancels the very send in which that happens, and the idle timer of the connection
is never started.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

import trio

from keepstep.errors import ProtocolError

BODIES_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bodies that are held at the same time, those of requests that are being answered included."""
BODY_TIMEOUT_S: Final = 5.0
"""Seconds for a request's body to arrive."""
REQUESTS_MAX: Final = 1_024
"""Requests that are being answered at the same time, those that wait for events included."""

REQUEST_ID: Final = "keepstep.request_id"
"""Where the request's id is in its ASGI scope."""
_VERSIONS_REFUSED: Final = ("2", "3")
"""HTTP/2 without TLS, to which Hypercorn lets every client switch: nobody needs it, and it lets streams be reset."""
_ID: Final = re.compile(rb"\A[A-Za-z0-9._-]{1,64}\Z")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[..., Awaitable[None]]
"""An ASGI application; frameworks type its three arguments each in their own way."""


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """What a body may be that is larger than anybody's.

    Attributes:
        bytes_max: largest one, bytes.
        timeout_s: for it to arrive, from now on, seconds.
    """

    bytes_max: int
    timeout_s: float


async def _no_larger(_scope: Scope) -> BodyLimit:
    """Nobody may send more. Raises ``too_large``."""
    raise ProtocolError("too_large")


class Guard:
    """Wraps an ASGI application.

    Args:
        application: the one behind.
        refuse: makes status, headers and body of a refusal from a code of the error table and a request id.
        make_id: makes the id of a request that brings none.
        body_bytes_max: largest body of a request, by its method and path.
        larger_body: asked for a request whose body is larger, by its scope; raises ProtocolError where it may not be.
        headers: that every answer has, where the application has not given them another value.
        body_timeout_s: for a body to arrive.
        bodies_bytes_max: bodies at the same time.
        requests_max: requests at the same time.
    """

    def __init__(
        self,
        application: Application,
        refuse: Callable[[str, str], tuple[int, dict[str, str], bytes]],
        *,
        make_id: Callable[[], str],
        body_bytes_max: Callable[[str, str], int],
        headers: Mapping[str, str],
        larger_body: Callable[[Scope], Awaitable[BodyLimit]] = _no_larger,
        body_timeout_s: float = BODY_TIMEOUT_S,
        bodies_bytes_max: int = BODIES_BYTES_MAX,
        requests_max: int = REQUESTS_MAX,
    ) -> None:
        self._application = application
        self._refuse = refuse
        self._make_id = make_id
        self._body_bytes_max = body_bytes_max
        self._larger_body = larger_body
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self._body_timeout_s = body_timeout_s
        self._bodies_bytes_max = bodies_bytes_max
        self._requests_max = requests_max
        self._requests = 0
        self._bodies_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the application's lifespan."""
        if scope["type"] == "websocket":
            # Devices have a port of their own: Hypercorn would negotiate compression and inflate without bound.
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "lifespan":
            await self._application(scope, receive, send)
        else:
            scope[REQUEST_ID] = request_id = self._request_id(scope)
            headers = [*self._headers, (b"x-request-id", request_id.encode())]
            await self._request(scope, receive, _with_headers(send, headers))

    def _request_id(self, scope: Scope) -> str:
        """The id that the client or a proxy gave, where it has the form of one."""
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        return given.decode() if _ID.match(given) else self._make_id()

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytearray()
        refusal: str | None = None
        body_bytes_max = self._body_bytes_max(scope["method"], scope["path"])
        may_grow = True
        try:
            with trio.move_on_after(self._body_timeout_s) as scope_of_body:
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    size = len(body) + len(message["body"])
                    if size > body_bytes_max and may_grow and refusal is None:
                        may_grow = False
                        try:
                            larger = await self._larger_body(scope)
                        except ProtocolError as error:
                            refusal = error.code
                        else:
                            body_bytes_max = larger.bytes_max
                            scope_of_body.deadline = trio.current_time() + larger.timeout_s
                    refusal = refusal or self._refusal(size, len(message["body"]), body_bytes_max)
                    if refusal is None:
                        body += message["body"]
                        self._bodies_bytes += len(message["body"])
                    more = message["more_body"]
            if scope_of_body.cancelled_caught:
                await self._answer(scope, send, "timeout", close=True)
            elif refusal is not None:
                await self._answer(scope, send, refusal)
            elif scope.get("http_version") in _VERSIONS_REFUSED:
                await self._answer(scope, send, "unsupported", close=True)
            elif self._requests >= self._requests_max:
                await self._answer(scope, send, "unavailable")
            else:
                await self._pass_on(scope, _Exchange(bytes(body), receive, send))
        finally:
            self._bodies_bytes -= len(body)

    async def _pass_on(self, scope: Scope, exchange: _Exchange) -> None:
        # Counted from here on: who trickles a body holds a socket, which is counted elsewhere, and nobody's place.
        self._requests += 1
        try:
            await self._application(scope, exchange.receive, exchange.send)
        finally:
            self._requests -= 1

    def _refusal(self, size: int, added: int, body_bytes_max: int) -> str | None:
        """Why a piece of a body is not taken in, with which it would have that size."""
        if size > body_bytes_max:
            return "too_large"
        return "unavailable" if self._bodies_bytes + added > self._bodies_bytes_max else None

    async def _answer(self, scope: Scope, send: Send, code: str, *, close: bool = False) -> None:
        status, headers, body = self._refuse(code, scope[REQUEST_ID])
        if close:
            headers = headers | {"connection": "close"}
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    """Send the answer with more headers, where it has none of that name."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {bytes(name).lower() for name, _ in message["headers"]}
            missing = [(name, value) for name, value in headers if name not in given]
            message = {**message, "headers": [*message["headers"], *missing]}
        await send(message)

    return sending


class _Exchange:
    """One request and its answer as the application sees them: the body that was taken in, then a disconnect.

    Args:
        body: the whole of it.
        receive: for what comes after the body.
        send: for the answer.
    """

    def __init__(self, body: bytes, receive: Receive, send: Send) -> None:
        self._body: bytes | None = body
        self._receive = receive
        self._send = send
        self._is_finishing = False
        self._finished = trio.Event()

    async def receive(self) -> Message:
        """ASGI's receive."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        message = await self._receive()
        if self._is_finishing:
            await self._finished.wait()
        return message

    async def send(self, message: Message) -> None:
        """ASGI's send."""
        self._is_finishing = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)
        if self._is_finishing:
            self._finished.set()
