"""Linking a new device: a mailbox between it and a trusted one (protocol.md section 4, Linking)."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from keepstep.links import LINK_LIFETIME_MS, Side
from keepstep.model import Capability
from keepstep.protocol.linking import LINK_ID_BYTES, MESSAGE_BYTES_MAX, MESSAGES_MAX
from keepstep.rest.endpoints import Access, AnswerBody, Call, Endpoint, Example, NoParameters, Reply, RequestBody
from keepstep.rest.fields import Base64url, Milliseconds
from keepstep.validation import format_base64url, parse_base64url, parse_hex

WAIT_S_MAX: Final = 15
"""Longest wait for a message, seconds: below a request's own time."""
CONCURRENCY_MAX: Final = 256
"""Readers that wait at the same time."""
CONCURRENCY_PER_ADDRESS_MAX: Final = 32
"""Those of one address prefix, so that no stranger takes all places: a household links few devices at a time."""
ADDRESS_CHARACTERS_MAX: Final = 64

LinkId = Annotated[
    str,
    Meta(
        min_length=32,
        max_length=32,
        pattern="^[0-9a-f]{32}$",
        description="16 random bytes of the device that began the link, as lower-case hexadecimal digits",
        examples=["00112233445566778899aabbccddeeff"],
    ),
]
SideName = Annotated[
    Literal["trusted", "new"], Meta(description="Who writes: the device that began the link, or the new one")
]
Number = Annotated[int, Meta(ge=0, le=MESSAGES_MAX - 1, description="Of the message, from 0 on")]
WaitSeconds = Annotated[int, Meta(ge=0, le=WAIT_S_MAX, description="How long to wait for the message")]
_SIDES: Final = {"trusted": Side.TRUSTED, "new": Side.NEW}


class LinkPath(RequestBody, frozen=True, kw_only=True):
    """Which link."""

    link_id: LinkId


class LinkMessagePath(RequestBody, frozen=True, kw_only=True):
    """Which message of which link."""

    link_id: LinkId
    side: SideName
    number: Number


class LinkWait(RequestBody, frozen=True, kw_only=True):
    """How long to wait."""

    wait_s: WaitSeconds = 0


class Link(AnswerBody, frozen=True, kw_only=True):
    """A link that was begun."""

    expires_at_ms: Milliseconds


class NewLinkMessage(RequestBody, frozen=True, kw_only=True):
    """What one device tells the other, sealed between them."""

    message: Base64url


class WrittenLinkMessage(AnswerBody, frozen=True, kw_only=True):
    """A message, and the IP address it came from, by which a user may know the new device's network."""

    message: Base64url
    address: str


def _link_id(path: LinkPath | LinkMessagePath) -> bytes:
    return parse_hex(path.link_id, size=LINK_ID_BYTES, what="a link's id")


async def _begin(call: Call[LinkPath, NoParameters, None]) -> Reply:
    expires_at_ms = await call.services.links.begin(call.principal.user_pk, _link_id(call.path))
    return Reply(Link(expires_at_ms=expires_at_ms), status=201)


async def _end(call: Call[LinkPath, NoParameters, None]) -> Reply:
    await call.services.links.end(call.principal.user_pk, _link_id(call.path))
    return Reply(None, status=204)


async def _write(call: Call[LinkMessagePath, NoParameters, NewLinkMessage]) -> Reply:
    message = parse_base64url(call.body.message, bytes_max=MESSAGE_BYTES_MAX, what="a message of a link")
    path = call.path
    await call.services.links.write(
        _link_id(path), _SIDES[path.side], path.number, message, address=call.address[:ADDRESS_CHARACTERS_MAX]
    )
    return Reply(None, status=204)


async def _read(call: Call[LinkMessagePath, LinkWait, None]) -> Reply:
    path = call.path
    found = await call.services.links.read(_link_id(path), _SIDES[path.side], path.number, wait_s=call.query.wait_s)
    if found is None:
        return Reply(None, status=204)
    return Reply(WrittenLinkMessage(message=format_base64url(found.message), address=found.address))


_EXAMPLE_PATH: Final[dict[str, Any]] = {"link_id": "00112233445566778899aabbccddeeff"}
_EXAMPLE_PLACE: Final[dict[str, Any]] = _EXAMPLE_PATH | {"side": "new", "number": "0"}

ENDPOINTS: Final = (
    Endpoint(
        method="PUT",
        path="/api/v1/links/{link_id}",
        access=Access.DEVICE,
        summary="Begin to link a new device",
        description=(
            "A mailbox for whoever knows its id, which the device shows in a QR code with a secret that stays between "
            f"the two. It is gone after {LINK_LIFETIME_MS // 1000} seconds."
        ),
        handler=_begin,
        answers={201: Link},
        path_type=LinkPath,
        errors=("limit_exceeded",),
        capability=Capability.MANAGE,
        example=Example(path=_EXAMPLE_PATH, answer={"expires_at_ms": 1_767_225_600_000}),
    ),
    Endpoint(
        method="DELETE",
        path="/api/v1/links/{link_id}",
        access=Access.DEVICE,
        summary="End a link of the account",
        description="Also where there is none: then nothing is done.",
        handler=_end,
        answers={204: None},
        path_type=LinkPath,
        example=Example(path=_EXAMPLE_PATH),
    ),
    Endpoint(
        method="PUT",
        path="/api/v1/links/{link_id}/{side}/{number}",
        access=Access.PUBLIC,
        summary="Write a message of a link",
        description=(
            "Each message is written once; writing the same again changes nothing. At most "
            f"{MESSAGES_MAX} of each side, of {MESSAGE_BYTES_MAX // 1024} KiB."
        ),
        handler=_write,
        answers={204: None},
        path_type=LinkMessagePath,
        body_type=NewLinkMessage,
        errors=("not_found", "link_taken"),
        example=Example(path=_EXAMPLE_PLACE, body={"message": "AQID"}),
    ),
    Endpoint(
        method="GET",
        path="/api/v1/links/{link_id}/{side}/{number}",
        access=Access.PUBLIC,
        summary="Read a message of a link",
        description=f"Waits for it up to `wait_s` seconds, at most {WAIT_S_MAX}; 204 where it has not come.",
        handler=_read,
        answers={200: WrittenLinkMessage, 204: None},
        path_type=LinkMessagePath,
        query_type=LinkWait,
        errors=("not_found",),
        concurrency_max=CONCURRENCY_MAX,
        concurrency_per_address_max=CONCURRENCY_PER_ADDRESS_MAX,
        example=Example(path=_EXAMPLE_PLACE, query={"wait_s": 15}, answer={"message": "AQID", "address": "192.0.2.1"}),
    ),
)
