"""Reading events: a page after a position, now or as soon as there is one (protocol.md sections 3 and 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import trio
from msgspec import Meta

from keepstep.errors import ProtocolError, Unavailable
from keepstep.model import Capability
from keepstep.pages import encode_rows
from keepstep.protocol.messages import EventRow
from keepstep.rest.account import EXAMPLE_DEVICE_ID, EXAMPLE_KEY, format_device_id
from keepstep.rest.endpoints import Access, AnswerBody, Call, Endpoint, Example, NoParameters, Reply, RequestBody
from keepstep.rest.fields import (
    PAGE_LIMIT_DEFAULT,
    Base64url,
    DeviceId,
    Hex32,
    Milliseconds,
    PageLimit,
    Seq,
    StreamName,
)
from keepstep.rest.streams import check_readable
from keepstep.validation import format_base64url

if TYPE_CHECKING:
    from keepstep.interfaces import Page
    from keepstep.rest.services import RestServices

WAIT_S_MAX: Final = 30
"""Longest wait for an event."""
STANDING_INTERVAL_S: Final = 0.5
"""How often a request that waits asks whether its device may still read: revocation shows within a second."""
REREADS_MAX: Final = 3
"""Tries to get a page that continues a position."""

_ROWS: Final = msgspec.msgpack.Decoder(list[EventRow])


class EventsQuery(RequestBody, frozen=True, kw_only=True):
    """Which events."""

    stream: StreamName
    after: Seq = 0
    limit: PageLimit = PAGE_LIMIT_DEFAULT
    wait_s: Annotated[
        int, Meta(ge=0, le=WAIT_S_MAX, description="How long to wait where there is no event yet, seconds")
    ] = 0


class Event(AnswerBody, frozen=True, kw_only=True):
    """An event as its author signed it. `payload` is sealed, and null where it has run out or was erased."""

    seq: Seq
    device_id: DeviceId
    received_at_ms: Milliseconds
    header: Base64url
    sig: Base64url
    payload: Base64url | None


class EventPage(AnswerBody, frozen=True, kw_only=True):
    """Consecutive events after a position; `chain` is the hash chain after the last one, or at `after` without one."""

    stream: StreamName
    events: list[Event]
    chain: Hex32
    head_seq: Seq


def events_of(page: Page) -> list[Event]:
    """The events of a page as they are answered."""
    return [
        Event(
            seq=seq,
            device_id=format_device_id(device_id),
            received_at_ms=received_at_ms,
            header=format_base64url(header),
            sig=format_base64url(sig),
            payload=None if payload is None else format_base64url(payload),
        )
        for seq, device_id, received_at_ms, header, sig, payload, _ in _ROWS.decode(encode_rows(page))
    ]


async def read_page(call: Call[Any, Any, Any], stream: str, *, after: int, limit: int) -> Page:
    """A page that continues a position, from whichever source answers.

    Raises:
        ProtocolError: as ``EventLog.read``.
    """
    services = call.services
    for _ in range(REREADS_MAX):
        page = await services.log.read(
            call.principal.user_pk,
            stream,
            after=after,
            events_max=min(limit, services.policy.page_events_max),
            bytes_max=services.policy.page_bytes_max,
            now_ms=services.clock.now_ms(),
        )
        # protocol.md section 4: "The first seq of a page must be position + 1, from any source; else reread."
        if page.after == after and page.last_seq == page.after + page.count:
            return page
    raise Unavailable("the log does not continue a position")


async def check_standing(call: Call[Any, Any, Any], *, generation: int) -> None:
    """A request that has waited may go on: the device is live, the server not going down, the log the same.

    Raises:
        ProtocolError: why not.
    """
    services: RestServices = call.services
    if services.is_draining():
        raise ProtocolError("draining")
    principal = await services.tokens.authenticate(call.headers.get("authorization"))
    if (principal.user_pk, principal.device_pk) != (call.principal.user_pk, call.principal.device_pk):
        raise ProtocolError("invalid_token", "the token has become another device's")
    if services.log.generation() != generation:
        raise Unavailable("the log is another one than this request read")


async def _read(call: Call[NoParameters, EventsQuery, None]) -> Reply:
    services, query = call.services, call.query
    check_readable(call.principal, query.stream)
    page = await read_page(call, query.stream, after=query.after, limit=query.limit)
    if not page.count and query.wait_s:
        page = await _wait(call, services.log.generation())
    answer = EventPage(stream=query.stream, events=events_of(page), chain=page.chain.hex(), head_seq=page.head_seq)
    return Reply(answer)


async def _wait(call: Call[NoParameters, EventsQuery, None], generation: int) -> Page:
    """The first page with an event, or an empty one when the time is over."""
    query = call.query
    deadline_s = trio.current_time() + query.wait_s
    with call.services.watches.watch(call.principal.user_pk) as watch:
        while True:
            watch.clear()
            page = await read_page(call, query.stream, after=query.after, limit=query.limit)
            if page.count or trio.current_time() >= deadline_s:
                return page
            woken = False
            while not woken and trio.current_time() < deadline_s:
                with trio.move_on_after(min(STANDING_INTERVAL_S, deadline_s - trio.current_time())):
                    await watch.wait()
                    woken = True
                await check_standing(call, generation=generation)


EXAMPLE_EVENT: Final = {
    "seq": 18,
    "device_id": EXAMPLE_DEVICE_ID,
    "received_at_ms": 1_767_225_600_000,
    "header": "nAEAxBA",
    "sig": "q6urq6urq6s",
    "payload": "lAEBxBg",
}

ENDPOINTS: Final = (
    Endpoint(
        method="GET",
        path="/api/v1/events",
        access=Access.DEVICE,
        summary="Events of a stream after a position",
        description=(
            "At most `limit` events with a seq above `after`, in order and without a gap. With `wait_s` the answer "
            "waits for an event where there is none yet, and is an empty page when the time is over."
        ),
        handler=_read,
        answers={200: EventPage},
        query_type=EventsQuery,
        errors=("unknown_stream", "unknown_position", "pruned", "limit_exceeded", "draining"),
        capability=Capability.SUBSCRIBE,
        timeout_s=WAIT_S_MAX + 20.0,
        concurrency_max=512,
        example=Example(
            query={"stream": "notes/kitchen", "after": 17, "limit": 100, "wait_s": 30},
            answer={"stream": "notes/kitchen", "events": [EXAMPLE_EVENT], "chain": EXAMPLE_KEY, "head_seq": 18},
        ),
    ),
)
