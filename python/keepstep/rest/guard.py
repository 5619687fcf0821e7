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
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import trio

BODY_BYTES_MAX: Final = 64 * 1024
"""Largest request body; the largest this interface takes is a registration of 4 KiB."""
BODY_TIMEOUT_S: Final = 5.0
"""Seconds for a request's body to arrive."""
REQUESTS_MAX: Final = 256
"""Requests that are being answered at the same time."""

REQUEST_ID: Final = "keepstep.request_id"
"""Where the request's id is in its ASGI scope."""
_ID: Final = re.compile(rb"\A[A-Za-z0-9._-]{1,64}\Z")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[..., Awaitable[None]]
"""An ASGI application; frameworks type its three arguments each in their own way."""


class Guard:
    """Wraps an ASGI application.

    Args:
        application: the one behind.
        refuse: makes status, headers and body of a refusal from a code of the error table and a request id.
        make_id: makes the id of a request that brings none.
        body_bytes_max: largest request body.
        body_timeout_s: for it to arrive.
        requests_max: requests at the same time.
    """

    def __init__(
        self,
        application: Application,
        refuse: Callable[[str, str], tuple[int, dict[str, str], bytes]],
        *,
        make_id: Callable[[], str],
        body_bytes_max: int = BODY_BYTES_MAX,
        body_timeout_s: float = BODY_TIMEOUT_S,
        requests_max: int = REQUESTS_MAX,
    ) -> None:
        self._application = application
        self._refuse = refuse
        self._make_id = make_id
        self._body_bytes_max = body_bytes_max
        self._body_timeout_s = body_timeout_s
        self._requests_max = requests_max
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the application's lifespan."""
        if scope["type"] == "websocket":
            # Devices have a port of their own: Hypercorn would negotiate compression and inflate without bound.
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "lifespan":
            await self._application(scope, receive, send)
        else:
            self._requests += 1
            scope[REQUEST_ID] = request_id = self._request_id(scope)
            try:
                await self._request(scope, receive, _with_header(send, b"x-request-id", request_id.encode()))
            finally:
                self._requests -= 1

    def _request_id(self, scope: Scope) -> str:
        """The id that the client or a proxy gave, where it has the form of one."""
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        return given.decode() if _ID.match(given) else self._make_id()

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytearray()
        too_large = False
        with trio.move_on_after(self._body_timeout_s) as scope_of_body:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                if len(body) + len(message["body"]) > self._body_bytes_max:
                    too_large = True
                else:
                    body += message["body"]
                more = message["more_body"]
        if scope_of_body.cancelled_caught:
            await self._answer(scope, send, "timeout", close=True)
        elif too_large:
            await self._answer(scope, send, "too_large")
        elif self._requests > self._requests_max:
            await self._answer(scope, send, "unavailable")
        else:
            exchange = _Exchange(bytes(body), receive, send)
            await self._application(scope, exchange.receive, exchange.send)

    async def _answer(self, scope: Scope, send: Send, code: str, *, close: bool = False) -> None:
        status, headers, body = self._refuse(code, scope[REQUEST_ID])
        if close:
            headers = headers | {"connection": "close"}
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _with_header(send: Send, name: bytes, value: bytes) -> Send:
    """Send the answer with one more header."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (name, value)]}
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
