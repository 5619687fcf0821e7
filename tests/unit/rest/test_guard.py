"""What every REST request passes before the application sees it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from keepstep.errors import ProtocolError
from keepstep.rest.guard import REQUEST_ID, BodyLimit, Guard, Message, Scope
from keepstep.rest.problems import refusal


class Exchange:
    """One request: what it sends, and what comes back, in the order in which things happen."""

    def __init__(self, *parts: bytes, headers: dict[str, str] | None = None, complete: bool = True) -> None:
        self.order: list[str] = []
        self.sent: list[Message] = []
        self._parts = list(parts)
        self._complete = complete
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": "/",
            "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
        }

    async def receive(self) -> dict[str, Any]:
        """ASGI's receive: one part after the other, then a disconnect or nothing more."""
        await trio.lowlevel.checkpoint()
        if self._parts:
            self.order.append("received")
            body = self._parts.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(self._parts) or not self._complete}
        if self._complete:
            return {"type": "http.disconnect"}
        await trio.sleep_forever()
        raise AssertionError

    async def send(self, message: Message) -> None:
        """ASGI's send."""
        await trio.lowlevel.checkpoint()
        self.order.append(message["type"])
        self.sent.append(message)

    @property
    def status(self) -> int:
        """Of the answer."""
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        """Of the answer."""
        return dict(self.sent[0]["headers"])


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers with the request's id and body, before it reads either."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    request = await receive()
    await send({"type": "http.response.body", "body": scope[REQUEST_ID].encode() + b" " + request["body"]})


def guard(application: Any = echo, **limits: Any) -> Guard:
    """Small limits."""
    arguments: dict[str, Any] = {
        "body_bytes_max": lambda _method, path: 12 if path == "/large" else 10,
        "headers": {"X-Always": "1", "Cache-Control": "no-store"},
        "body_timeout_s": 5,
        "requests_max": 2,
    } | limits
    return Guard(application, refusal, make_id=lambda: "made", **arguments)


@pytest.mark.parametrize("parts", [(b"",), (b"0123456789",), (b"01234", b"", b"56789")])
async def test_the_application_answers_after_the_whole_body(parts: tuple[bytes, ...]) -> None:
    """Also one that answers at once: Hypercorn would hang on the next request of that connection."""
    exchange = Exchange(*parts)
    await guard()(exchange.scope, exchange.receive, exchange.send)
    assert exchange.order == ["received"] * len(parts) + ["http.response.start", "http.response.body"]
    assert exchange.sent[1]["body"] == b"made " + b"".join(parts)


async def test_what_comes_after_the_body_reaches_the_application() -> None:
    """A client that disconnects while it waits."""
    heard: list[str] = []

    async def waits(_scope: Any, receive: Any, _send: Any) -> None:
        heard.extend([(await receive())["type"], (await receive())["type"]])

    exchange = Exchange(b"x")
    await guard(waits)(exchange.scope, exchange.receive, exchange.send)
    assert heard == ["http.request", "http.disconnect"]


async def test_a_disconnect_waits_until_the_answer_is_finished() -> None:
    """Hypercorn announces one while it sends the last of the answer; that must not make the application cancel it."""
    order: list[str] = []
    sending, disconnect = trio.Event(), trio.Event()

    async def application(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                order.append((await receive())["type"])

            nursery.start_soon(listen)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"1", "more_body": True})
            await send({"type": "http.response.body", "body": b"2"})

    parts = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if parts:
            await trio.lowlevel.checkpoint()
            return parts.pop()
        await sending.wait()
        disconnect.set()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message.get("body") == b"2":
            sending.set()
            await disconnect.wait()
            await trio.testing.wait_all_tasks_blocked()
            order.append("sent")

    await guard(application)({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send)
    assert order == ["sent", "http.disconnect"]


async def test_a_larger_body_is_taken_where_it_may_be() -> None:
    """Asked once, when it is larger than anybody's; with a bound and a time of its own."""
    asked: list[str] = []

    async def larger(scope: Scope) -> BodyLimit:
        asked.append(scope["path"])
        return BodyLimit(bytes_max=20, timeout_s=60)

    for parts, status in (((b"01234567", b"89012345", b"0123"), 200), ((b"0123456789", b"01234567890"), 413)):
        exchange = Exchange(*parts)
        await guard(larger_body=larger)(exchange.scope, exchange.receive, exchange.send)
        assert exchange.status == status
    assert asked == ["/", "/"]


async def test_a_larger_body_has_more_time(autojump_clock: trio.testing.MockClock) -> None:
    """From when it is allowed on."""

    async def larger(_scope: Scope) -> BodyLimit:
        return BodyLimit(bytes_max=20, timeout_s=60)

    exchange = Exchange(b"0123456789", b"0", complete=False)
    await guard(larger_body=larger)(exchange.scope, exchange.receive, exchange.send)
    assert (exchange.status, trio.current_time()) == (408, 60)


async def test_who_may_not_send_a_larger_body_is_told_why() -> None:
    """The refusal is the asked one's."""

    async def larger(_scope: Scope) -> BodyLimit:
        raise ProtocolError("invalid_token")

    exchange = Exchange(b"0123456789", b"0")
    await guard(larger_body=larger)(exchange.scope, exchange.receive, exchange.send)
    assert exchange.status == 401


async def test_a_body_above_the_limit_is_refused_after_its_end() -> None:
    """And not kept; the application never hears of it."""
    exchange = Exchange(b"0123456789", b"0", b"12345678901234567890")
    await guard(lambda *_: pytest.fail("called"))(exchange.scope, exchange.receive, exchange.send)
    assert exchange.order[:4] == ["received"] * 3 + ["http.response.start"]
    assert exchange.status == 413
    assert b"connection" not in exchange.headers


async def test_a_body_that_does_not_come_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    """After five seconds the request is refused and the connection closed: its rest would be read as a request."""
    exchange = Exchange(b"01", complete=False)
    await guard(lambda *_: pytest.fail("called"))(exchange.scope, exchange.receive, exchange.send)
    assert trio.current_time() == 5
    assert exchange.status == 408
    assert exchange.headers[b"connection"] == b"close"


async def test_a_client_that_leaves_in_its_body_gets_no_answer() -> None:
    """There is nobody to answer."""
    exchange = Exchange()
    await guard(lambda *_: pytest.fail("called"))(exchange.scope, exchange.receive, exchange.send)
    assert not exchange.sent


async def test_so_many_requests_are_answered_at_a_time() -> None:
    """More are told to come back."""
    go_on = trio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await go_on.wait()
        await echo(scope, receive, send)

    guarded = guard(slow)
    exchanges = [Exchange(b"") for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for exchange in exchanges:
            nursery.start_soon(guarded, exchange.scope, exchange.receive, exchange.send)
            await trio.testing.wait_all_tasks_blocked()
        assert exchanges[2].status == 503
        assert b"retry-after" in exchanges[2].headers
        go_on.set()
    assert [exchange.status for exchange in exchanges[:2]] == [200, 200]
    again = Exchange(b"")
    await guarded(again.scope, again.receive, again.send)
    assert again.status == 200


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("Abc-1.2_3", "Abc-1.2_3"),
        ("x" * 64, "x" * 64),
        ("x" * 65, "made"),
        ("", "made"),
        ("a b", "made"),
        ("é", "made"),
    ],
)
async def test_a_request_id_is_kept_or_made(given: str, used: str) -> None:
    """Where it has the form of one; the answer carries it too."""
    exchange = Exchange(b"", headers={"x-request-id": given})
    await guard()(exchange.scope, exchange.receive, exchange.send)
    assert exchange.scope[REQUEST_ID] == used
    assert exchange.headers[b"x-request-id"] == used.encode()


async def test_no_websocket_is_served_here() -> None:
    """Hypercorn would negotiate compression and inflate without bound; devices have their own port."""
    exchange = Exchange(b"")
    exchange.scope["type"] = "websocket"
    await guard(lambda *_: pytest.fail("called"))(exchange.scope, exchange.receive, exchange.send)
    assert exchange.sent == [{"type": "websocket.close", "code": 1008}]


async def test_the_lifespan_passes_through() -> None:
    """It is not a request."""
    seen: list[str] = []

    async def application(scope: Any, _receive: Any, _send: Any) -> None:
        await trio.lowlevel.checkpoint()
        seen.append(scope["type"])

    exchange = Exchange()
    await guard(application)({"type": "lifespan"}, exchange.receive, exchange.send)
    assert seen == ["lifespan"]


async def test_a_path_may_take_larger_bodies_than_others() -> None:
    """A publish is larger than a question."""
    exchange = Exchange(b"0123456789ab")
    exchange.scope["path"] = "/large"
    await guard()(exchange.scope, exchange.receive, exchange.send)
    assert exchange.status == 200


async def test_bodies_in_all_are_bounded() -> None:
    """One more is told to come back, and what it would have held is not counted."""
    go_on = trio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await go_on.wait()
        await echo(scope, receive, send)

    guarded = guard(slow, bodies_bytes_max=15)
    first, second = Exchange(b"0123456789"), Exchange(b"012345")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guarded, first.scope, first.receive, first.send)
        await trio.testing.wait_all_tasks_blocked()
        await guarded(second.scope, second.receive, second.send)
        assert second.status == 503
        go_on.set()
    assert first.status == 200
    again = Exchange(b"0123456789")
    await guarded(again.scope, again.receive, again.send)
    assert again.status == 200


async def test_every_answer_has_the_guards_headers_unless_it_has_its_own() -> None:
    """A refusal too."""

    async def cached(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Cache-Control", b"private")]})
        await send({"type": "http.response.body", "body": b""})

    answered, refused = Exchange(b""), Exchange(b"0123456789ab")
    await guard(cached)(answered.scope, answered.receive, answered.send)
    await guard(cached)(refused.scope, refused.receive, refused.send)
    assert (answered.headers[b"x-always"], answered.headers[b"Cache-Control"]) == (b"1", b"private")
    assert b"cache-control" not in answered.headers
    assert (refused.headers[b"x-always"], refused.headers[b"cache-control"]) == (b"1", b"no-store")
