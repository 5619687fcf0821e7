"""Events as they come, as server-sent events (WHATWG HTML section 9.2).

As in a session, a commit only wakes: what is sent is read from the log after the position of this request, so that a
slow reader gets larger pages and nobody waits for it. The next page is read only when the last one has been taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import trio

from keepstep.errors import ProtocolError
from keepstep.model import Capability
from keepstep.protocol.messages import INTEGER_MAX
from keepstep.rest.endpoints import (
    Access,
    BadRequest,
    Binary,
    Call,
    Endpoint,
    Example,
    NoParameters,
    Reply,
    RequestBody,
)
from keepstep.rest.events import STANDING_INTERVAL_S, check_standing, events_of, read_page
from keepstep.rest.fields import Seq, StreamName
from keepstep.rest.streams import check_readable

if TYPE_CHECKING:
    from keepstep.interfaces import Page
    from keepstep.rest.waiting import Watch

LIVE_S_MAX: Final = 600.0
"""How long one request is sent events; then its client asks again from where it is."""
HEARTBEAT_S: Final = 15.0
"""After so long without an event a comment is sent, and the log is read without a hint: hints may be lost."""
RECONNECT_MS: Final = 1_000
"""When a client should ask again after the end."""
PAGE_EVENTS_MAX: Final = 100
"""Events read at a time."""
CONTENT_TYPE: Final = "text/event-stream"


class LiveQuery(RequestBody, frozen=True, kw_only=True):
    """From where on."""

    stream: StreamName
    after: Seq = 0


class LiveEvents:
    """The pieces of one answer: an async iterator that the web framework takes from and closes.

    Args:
        call: the request, checked.
        after: the position it goes on from.
    """

    def __init__(self, call: Call[NoParameters, LiveQuery, None], *, after: int) -> None:
        self._call = call
        self._after = after
        self._generation = call.services.log.generation()
        self._watch: Watch | None = None
        self._until_s = trio.current_time() + LIVE_S_MAX
        self._heard_s = trio.current_time()
        self._ended = False

    def __aiter__(self) -> LiveEvents:
        return self

    async def __anext__(self) -> bytes:
        """The next piece: a hello, events, a heartbeat, or why it ends."""
        if self._ended:
            raise StopAsyncIteration
        try:
            if self._watch is None:
                self._watch = self._call.services.watches.add(self._call.principal.user_pk)
                return f"retry: {RECONNECT_MS}\n\n".encode()
            return await self._next(self._watch)
        except ProtocolError as error:
            self._ended = True
            return f'event: end\ndata: {{"code":"{error.code}"}}\n\n'.encode()

    async def aclose(self) -> None:
        """Wake this request no more. May be called again."""
        self._ended = True
        watch, self._watch = self._watch, None
        if watch is not None:
            self._call.services.watches.remove(self._call.principal.user_pk, watch)

    async def _next(self, watch: Watch) -> bytes:
        """Read, and wait while there is nothing. Raises ProtocolError where the answer has to end."""
        while trio.current_time() < self._until_s:
            watch.clear()
            await check_standing(self._call, generation=self._generation)
            page = await read_page(self._call, self._call.query.stream, after=self._after, limit=PAGE_EVENTS_MAX)
            if page.count:
                self._after = page.last_seq
                self._heard_s = trio.current_time()
                return _pieces(page)
            if await self._is_silent(watch):
                self._heard_s = trio.current_time()
                return b": nothing new\n\n"
        raise StopAsyncIteration

    async def _is_silent(self, watch: Watch) -> bool:
        """Wait for a commit; whether a heartbeat is due instead."""
        due_s = min(self._heard_s + HEARTBEAT_S, self._until_s)
        while trio.current_time() < due_s:
            with trio.move_on_after(min(STANDING_INTERVAL_S, due_s - trio.current_time())):
                await watch.wait()
                return False
            await check_standing(self._call, generation=self._generation)
        return True


def _pieces(page: Page) -> bytes:
    """A page as server-sent events, one for each event, whose id is its seq."""
    return b"".join(
        b"id: %d\nevent: event\ndata: %s\n\n" % (event.seq, msgspec.json.encode(event)) for event in events_of(page)
    )


async def _live(call: Call[NoParameters, LiveQuery, None]) -> Reply:
    services, principal, query = call.services, call.principal, call.query
    check_readable(principal, query.stream)
    after = query.after
    last = call.headers.get("last-event-id")
    if last is not None:
        # a client that comes back says what it had; its URL still says where it began
        if not last.isascii() or not last.isdigit() or len(last) > len(str(INTEGER_MAX)) or int(last) > INTEGER_MAX:
            raise BadRequest("Last-Event-ID: the seq of an event")
        after = int(last)
    await read_page(
        call, query.stream, after=after, limit=1
    )  # a stream or position that is not there is a problem, not an answer
    with services.watches.watch(principal.user_pk):
        pass  # nor is one too many that wait
    return Reply(LiveEvents(call, after=after), headers={"X-Accel-Buffering": "no"})


ENDPOINTS: Final = (
    Endpoint(
        method="GET",
        path="/api/v1/events/live",
        access=Access.DEVICE,
        summary="Events of a stream as they come",
        description=(
            "Server-sent events: one `event` for each event after `after`, with the seq as its id and the event as in "
            f"`GET /api/v1/events` as its data. A comment every {HEARTBEAT_S:.0f} seconds without one. The answer ends "
            f"after {LIVE_S_MAX:.0f} seconds, or with `event: end` and the code of an error: the device was revoked or "
            "its token ran out, the server is going down. A client goes on with `Last-Event-ID`, as browsers do."
        ),
        handler=_live,
        answers={200: Binary(CONTENT_TYPE, "Server-sent events")},
        query_type=LiveQuery,
        request_headers={"Last-Event-ID": "The seq of the last event the client has; goes before `after`"},
        errors=("unknown_stream", "unknown_position", "pruned", "limit_exceeded"),
        capability=Capability.SUBSCRIBE,
        example=Example(query={"stream": "notes/kitchen", "after": 17}),
    ),
)
