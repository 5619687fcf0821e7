"""Deleting the caller's account, with proof by a device that manages it (protocol.md sections 1 and 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keepstep.model import SIGNATURE_BYTES, Capability
from keepstep.protocol.challenge import NONCE_BYTES, Purpose
from keepstep.rest.endpoints import Access, AnswerBody, Call, Endpoint, Example, NoParameters, Reply, RequestBody
from keepstep.rest.fields import Base64url, Base64url32, Base64url64
from keepstep.validation import format_base64url, parse_base64url

if TYPE_CHECKING:
    from keepstep.rest.services import RestServices


class DeleteRequest(RequestBody, frozen=True, kw_only=True):
    """A challenge with the purpose `delete-account`, and the calling device's signature over it."""

    nonce: Base64url32
    signature: Base64url64


class Deleted(AnswerBody, frozen=True, kw_only=True):
    """The account is deleted: `[1, user_key, deleted_at_ms]` (MessagePack), signed with the server's identity key."""

    receipt: Base64url
    signature: Base64url64


async def _delete(call: Call[NoParameters, NoParameters, DeleteRequest]) -> Reply:
    services: RestServices = call.services
    principal = call.principal
    await services.auth.take_challenge(
        parse_base64url(call.body.nonce, bytes_max=NONCE_BYTES, what="a nonce"),
        user_key=principal.user_key,
        device_id=principal.device_id,
        purpose=Purpose.DELETE_ACCOUNT,
        signature=parse_base64url(call.body.signature, bytes_max=SIGNATURE_BYTES, what="a signature"),
        device_key=principal.device_key,
    )
    deleted_at_ms = services.clock.now_ms()
    await services.administration.delete_user(principal.user_pk, principal.user_key, now_ms=deleted_at_ms)
    services.cuts.look_now()
    services.logger.info("account_deleted", request_id=call.request_id, user_pk=principal.user_pk)
    receipt, sig = services.signer.sign_deletion(principal.user_key, deleted_at_ms=deleted_at_ms)
    return Reply(Deleted(receipt=format_base64url(receipt), signature=format_base64url(sig)))


ENDPOINTS: Final = (
    Endpoint(
        method="DELETE",
        path="/api/v1/account",
        access=Access.DEVICE,
        summary="Delete the account",
        description=(
            "The token is not enough: the device signs a challenge with the purpose `delete-account` "
            "(`POST /api/v1/auth/challenge`). From the answer on nothing of the account is let in, its sessions and "
            "tokens end within a second, and what is stored of it is removed within minutes. It never begins again: "
            "the same user id cannot register here. Export it before."
        ),
        handler=_delete,
        answers={200: Deleted},
        body_type=DeleteRequest,
        errors=("auth_failed",),
        capability=Capability.MANAGE,
        example=Example(
            body={"nonce": "A" * 43, "signature": "A" * 86},
            answer={"receipt": "kwHEINdamAGCsQq31Uv-08lkBz4", "signature": "A" * 86},
        ),
    ),
)
