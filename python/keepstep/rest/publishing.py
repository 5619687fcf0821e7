"""Publishing over REST: the same events, through the same pipelines, to the same answers as over WebSocket.

The server never signs or numbers for a client: a body holds what a device has signed (protocol.md sections 3 and 4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from keepstep._keepstep import DeviceKey, Events, Submission
from keepstep.errors import ProtocolError
from keepstep.protocol.messages import PUBLISH_BYTES_MAX, PUBLISH_EVENTS_MAX, ResultAccepted, ResultDuplicate
from keepstep.publish import AwaitedAnswer
from keepstep.rest.account import EXAMPLE_KEY
from keepstep.rest.endpoints import (
    MSGPACK,
    Access,
    AnswerBody,
    Binary,
    Call,
    Endpoint,
    Example,
    NoParameters,
    Reply,
    RequestBody,
)
from keepstep.rest.fields import Base64url, Hex32, Milliseconds, Seq
from keepstep.validation import parse_base64url, parse_size

if TYPE_CHECKING:
    from keepstep.protocol.messages import Result

BODY_BYTES_MAX: Final = PUBLISH_BYTES_MAX * 3 // 2
"""A publish of 1 MiB as base64, and what JSON adds to it."""


class SignedEvent(RequestBody, frozen=True, kw_only=True):
    """An event as its author signed it."""

    header: Base64url
    sig: Base64url
    payload: Base64url | None = None


class PublishRequest(RequestBody, frozen=True, kw_only=True):
    """Events of the calling device, in its order."""

    events: Annotated[list[SignedEvent], Meta(min_length=1, max_length=PUBLISH_EVENTS_MAX)]


class Accepted(Struct, frozen=True, kw_only=True, tag_field="result", tag="accepted"):
    """`count` events are stored durably, at consecutive seqs from `first_seq`; `chain` is after the last of them."""

    count: int
    first_seq: Seq
    received_at_ms: Milliseconds
    chain: Hex32


class Duplicate(Struct, frozen=True, kw_only=True, tag_field="result", tag="duplicate"):
    """The event was stored before, at `seq`; all null: under an author number too old to be looked up."""

    seq: Seq | None
    received_at_ms: Milliseconds | None
    chain: Hex32 | None


class Refused(Struct, frozen=True, kw_only=True, tag_field="result", tag="refused"):
    """The event is not stored.

    `last_n` and `last_hash` come with `out_of_order`, `seq` and `hash` of what is stored with `id_reused`, `seq` and
    `chain` of the stream's head with `conflict`, and `retry_after_ms` with what may be tried again.
    """

    code: str
    last_n: Seq | None = None
    last_hash: Hex32 | None = None
    seq: Seq | None = None
    hash: Hex32 | None = None
    chain: Hex32 | None = None
    retry_after_ms: int | None = None


class PublishAnswer(AnswerBody, frozen=True, kw_only=True):
    """What became of each event, in order; runs of accepted events are one result."""

    results: list[Accepted | Duplicate | Refused]


def _result(result: Result) -> Accepted | Duplicate | Refused:
    if isinstance(result, ResultAccepted):
        return Accepted(
            count=result.count,
            first_seq=result.first_seq,
            received_at_ms=result.received_at_ms,
            chain=result.chain.hex(),
        )
    if isinstance(result, ResultDuplicate):
        chain = None if result.chain is None else result.chain.hex()
        return Duplicate(seq=result.seq, received_at_ms=result.received_at_ms, chain=chain)
    return Refused(code=result.code, **_detail(result.code, result.detail))


def _detail(code: str, detail: list[Any]) -> dict[str, Any]:
    """The detail of ``messages.ResultError`` by name."""
    match code, detail:
        case "out_of_order", [last_n, last_hash]:
            return {"last_n": last_n, "last_hash": last_hash.hex()}
        case "conflict", [seq, chain]:
            return {"seq": seq, "chain": chain.hex()}
        case "id_reused", [seq, event_hash]:
            return {"seq": seq, "hash": event_hash.hex()}
        case _, [retry_after_ms]:
            return {"retry_after_ms": retry_after_ms}
    return {}


def _wire(request: PublishRequest) -> bytes:
    """The events of a JSON body as the MessagePack that a publish message holds."""

    def decoded(text: str, what: str) -> bytes:
        return parse_base64url(text, bytes_max=PUBLISH_BYTES_MAX, what=what)

    return msgspec.msgpack.encode(
        [
            [
                decoded(event.header, "a header"),
                decoded(event.sig, "a signature"),
                None if event.payload is None else decoded(event.payload, "a payload"),
                None,
            ]
            for event in request.events
        ]
    )


async def _publish(call: Call[NoParameters, NoParameters, PublishRequest | bytes]) -> Reply:
    services, principal = call.services, call.principal
    if services.is_draining():
        raise ProtocolError("draining")
    services.publisher.suspects.require(principal)
    raw = call.body if isinstance(call.body, bytes) else _wire(call.body)
    parse_size(len(raw), bytes_max=PUBLISH_BYTES_MAX, what="the events of a publish")
    submission = Submission(
        user_pk=principal.user_pk,
        user_key=principal.user_key,
        device_pk=principal.device_pk,
        device_id=principal.device_id,
        device_key=DeviceKey(principal.device_key),
        capabilities=int(principal.capabilities_at(services.clock.now_ms())),
        events=Events.parse(
            raw, events_max=services.policy.publish_events_max, payload_bytes_max=services.policy.payload_bytes_max
        ),
        # Apart from the merged batch of everybody: a client of REST has no session that could be known for bad ones.
        suspect=True,
    )
    answer = AwaitedAnswer()
    await services.publisher.submit(principal, submission, answer)
    return Reply(PublishAnswer(results=[_result(result) for result in await answer.wait()]))


ENDPOINTS: Final = (
    Endpoint(
        method="POST",
        path="/api/v1/events",
        access=Access.DEVICE,
        summary="Publish signed events",
        description=(
            "Events that the calling device has signed, numbered in its one outbox. The answer comes after they are "
            "stored durably. Posting the same events again answers `duplicate`: a call whose answer was lost may be "
            "repeated as it is."
        ),
        handler=_publish,
        answers={200: PublishAnswer},
        body_type=PublishRequest,
        binary_body=Binary(MSGPACK, "`[[header, sig, payload or nil, trace or nil] ...]` as in a publish message"),
        errors=("draining", "limit_exceeded", "unsupported"),
        body_bytes_max=BODY_BYTES_MAX,
        example=Example(
            body={"events": [{"header": "nAEAxBA", "sig": "q6urq6urq6s", "payload": "lAEBxBg"}]},
            answer={
                "results": [
                    {
                        "result": "accepted",
                        "count": 1,
                        "first_seq": 18,
                        "received_at_ms": 1_767_225_600_000,
                        "chain": EXAMPLE_KEY,
                    }
                ]
            },
        ),
    ),
)
