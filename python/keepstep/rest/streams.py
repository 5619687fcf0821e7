"""The account's streams: what there is, how it is kept, and where it stands (protocol.md section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from keepstep.errors import ProtocolError
from keepstep.model import RESERVED_STREAMS, Capability, reading_refusal
from keepstep.rest.account import EXAMPLE_KEY, EXAMPLE_POSITION, StreamPosition, position
from keepstep.rest.endpoints import Access, AnswerBody, Call, Endpoint, Example, NoParameters, Reply, RequestBody
from keepstep.rest.fields import Base64url, Hex32, Seq, StreamName
from keepstep.rest.paging import PageQuery, cut_page
from keepstep.validation import format_base64url, parse_stream_name

if TYPE_CHECKING:
    from keepstep.interfaces import StreamInfo
    from keepstep.model import Principal

PolicyName = Literal["append", "expect", "fork", "latest"]
RetentionName = Literal["keep", "standard"]


class SignedHead(AnswerBody, frozen=True, kw_only=True):
    """Where a stream stands now, signed by the server: `[1, user_key, stream, epoch, seq, chain, time_ms]`."""

    head: Base64url
    sig: Base64url


class Author(AnswerBody, frozen=True, kw_only=True):
    """The calling device's last event in the stream: its next one has `n = last_n + 1` and begins at `last_hash`."""

    last_n: Seq
    last_hash: Hex32


class Stream(AnswerBody, frozen=True, kw_only=True):
    """A stream: its policy, how long what is in it is kept, its head, and the bytes that it takes and may take.

    Its events begin after `tail`; null: with the first one.
    """

    stream: StreamName
    policy: PolicyName
    retention_class: RetentionName
    ttl_max_s: int | None
    head: StreamPosition
    tail: StreamPosition | None
    stored_bytes: Seq
    stream_bytes_max: Seq | None


class StreamDetail(Stream, frozen=True, kw_only=True):
    """A stream, its signed head, and the calling device's place in it."""

    signed_head: SignedHead
    author: Author


class StreamPage(AnswerBody, frozen=True, kw_only=True):
    """Streams: the protocol's own first, then by name."""

    streams: list[Stream]
    next_cursor: str | None


class StreamPath(RequestBody, frozen=True, kw_only=True):
    """Which stream; its name may hold slashes."""

    stream: StreamName


def check_readable(principal: Principal, name: str) -> str:
    """The name of a stream that a device may read: any application stream, ``$devices``, ``$keys``, its own inbox.

    Raises:
        ProtocolError: ``malformed``; ``forbidden``: another device's inbox; ``unknown_stream``: another reserved name.
    """
    refusal = reading_refusal(parse_stream_name(name), principal.device_id)
    if refusal is not None:
        raise ProtocolError(refusal)
    return name


def _order(name: str) -> bytes:
    """Sorts the protocol's own streams first, the others by name."""
    rank = RESERVED_STREAMS.index(name) if name in RESERVED_STREAMS else len(RESERVED_STREAMS)
    return bytes((rank,)) + name.encode()


POLICY_NAMES: Final[tuple[PolicyName, ...]] = ("append", "expect", "fork", "latest")
RETENTION_NAMES: Final[tuple[RetentionName, ...]] = ("keep", "standard")


def _stream(info: StreamInfo) -> Stream:
    return Stream(
        stream=info.name,
        policy=POLICY_NAMES[info.policy],
        retention_class=RETENTION_NAMES[info.retention_class],
        ttl_max_s=info.ttl_max_s,
        head=position(info.head),
        tail=None if info.tail is None else position(info.tail),
        stored_bytes=info.stored_bytes,
        stream_bytes_max=info.bytes_max,
    )


async def _streams(call: Call[NoParameters, PageQuery, None]) -> Reply:
    principal = call.principal
    infos = await call.services.log.streams(principal.user_pk)
    listed = sorted(
        (info for info in infos if reading_refusal(info.name, principal.device_id) is None),
        key=lambda info: _order(info.name),
    )
    page, next_cursor = cut_page(listed, call.query, key=lambda info: _order(info.name))
    return Reply(StreamPage(streams=[_stream(info) for info in page], next_cursor=next_cursor))


async def _one_stream(call: Call[StreamPath, NoParameters, None]) -> Reply:
    principal, services = call.principal, call.services
    name = check_readable(principal, call.path.stream)
    info = await services.log.stream(principal.user_pk, name)
    last_n, last_hash = await services.log.author(principal.user_pk, name, principal.device_pk)
    head, sig = services.signer.sign(principal.user_key, name, seq=info.head.seq, chain=info.head.chain)
    shown = _stream(info)
    detail = StreamDetail(
        stream=shown.stream,
        policy=shown.policy,
        retention_class=shown.retention_class,
        ttl_max_s=shown.ttl_max_s,
        head=shown.head,
        tail=shown.tail,
        stored_bytes=shown.stored_bytes,
        stream_bytes_max=shown.stream_bytes_max,
        signed_head=SignedHead(head=format_base64url(head), sig=format_base64url(sig)),
        author=Author(last_n=last_n, last_hash=last_hash.hex()),
    )
    # The signed head says when it was signed, and so differs every time although the stream stands where it stood.
    version = f"{shown} {last_n} {services.signer.epoch}".encode()
    return Reply(detail, version=version)


_EXAMPLE: Final = {
    "stream": "notes/kitchen",
    "policy": "append",
    "retention_class": "standard",
    "ttl_max_s": None,
    "head": EXAMPLE_POSITION,
    "tail": None,
    "stored_bytes": 4096,
    "stream_bytes_max": None,
}
_EXAMPLE_DETAIL: Final = _EXAMPLE | {
    "signed_head": {"head": "lwHEIA", "sig": "q6urq6urq6s"},
    "author": {"last_n": 4, "last_hash": EXAMPLE_KEY},
}

ENDPOINTS: Final = (
    Endpoint(
        method="GET",
        path="/api/v1/streams",
        access=Access.DEVICE,
        summary="The account's streams",
        handler=_streams,
        answers={200: StreamPage},
        query_type=PageQuery,
        capability=Capability.SUBSCRIBE,
        etag=True,
        example=Example(query={"limit": 10}, answer={"streams": [_EXAMPLE], "next_cursor": None}),
    ),
    Endpoint(
        method="GET",
        path="/api/v1/streams/{stream}",
        access=Access.DEVICE,
        summary="One stream, its signed head, and where the calling device stands in it",
        description=(
            "A stream comes into being with the first event that a device publishes into it; its policy and retention "
            "are set by a signed policy event (`POST /api/v1/events`): the server signs nothing for a client."
        ),
        handler=_one_stream,
        answers={200: StreamDetail},
        path_type=StreamPath,
        errors=("unknown_stream",),
        capability=Capability.SUBSCRIBE,
        etag=True,
        example=Example(path={"stream": "notes/kitchen"}, answer=_EXAMPLE_DETAIL),
    ),
)
