"""Making an account (protocol.md section 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from keepstep.errors import ProtocolError
from keepstep.model import DEVICES_STREAM
from keepstep.rest.account import EXAMPLE_KEY
from keepstep.rest.endpoints import MSGPACK, Access, Binary, Call, Endpoint, Example, NoParameters, Reply, RequestBody
from keepstep.rest.fields import UserId
from keepstep.validation import parse_user_id

if TYPE_CHECKING:
    from keepstep.identity import Registered
    from keepstep.rest.services import RestServices


async def _register(call: Call[NoParameters, NoParameters, bytes]) -> Reply:
    services: RestServices = call.services
    try:
        registered = await services.identity.register(
            call.body, address=call.address, invite=call.headers.get("keepstep-invite")
        )
    except ProtocolError as error:
        services.metrics.registrations.labels(error.code).inc()
        raise
    services.metrics.registrations.labels("created" if registered.is_new else "duplicate").inc()
    return _reply(services, registered)


class UserPath(RequestBody, frozen=True, kw_only=True):
    """Whose account it is."""

    user_id: UserId


async def _rotate(call: Call[UserPath, NoParameters, bytes]) -> Reply:
    services: RestServices = call.services
    user_key = parse_user_id(call.path.user_id)
    return _reply(services, await services.identity.rotate(user_key, call.body, address=call.address))


def _reply(services: RestServices, registered: Registered) -> Reply:
    """Where the event is, and the head of today."""
    head = services.signer.sign(
        registered.user_key, DEVICES_STREAM, seq=registered.head.seq, chain=registered.head.chain
    )
    answer = msgspec.msgpack.encode([registered.seq, registered.received_at_ms, registered.chain, head])
    return Reply(answer, status=201 if registered.is_new else 200)


_ANSWER: Final = Binary(MSGPACK, "`[seq, received_at_ms, chain, signed head of $devices]`")

ENDPOINTS: Final = (
    Endpoint(
        method="POST",
        path="/api/v1/accounts",
        access=Access.PUBLIC,
        summary="Make an account from its genesis event",
        description="Posting the same genesis again answers where it is stored (200 instead of 201).",
        handler=_register,
        answers={201: _ANSWER, 200: _ANSWER},
        binary_body=Binary(MSGPACK, "`[header, sig, payload]` of the genesis event, at most 4 KiB"),
        request_headers={"Keepstep-Invite": "The invite's code, where the server registers only who was invited"},
        errors=(
            *("bad_signature", "id_reused", "unprocessable", "unsupported"),
            *("registration_closed", "invite_invalid", "account_disabled", "account_deleted"),
        ),
    ),
    Endpoint(
        method="POST",
        path="/api/v1/accounts/{user_id}/rotate",
        access=Access.PUBLIC,
        summary="Lock out every device but those that the root key lists",
        description="Signed by the root key of the recovery file and by a new device, which the event enrols. "
        "Posting the same rotation again answers where it is stored (200 instead of 201).",
        handler=_rotate,
        path_type=UserPath,
        answers={201: _ANSWER, 200: _ANSWER},
        binary_body=Binary(MSGPACK, "`[header, sig, payload]` of the rotation, at most 64 KiB"),
        errors=(
            *("bad_signature", "forbidden", "id_reused", "unprocessable", "unknown_position", "unsupported"),
            "limit_exceeded",
        ),
        example=Example(path={"user_id": EXAMPLE_KEY}),
    ),
)
