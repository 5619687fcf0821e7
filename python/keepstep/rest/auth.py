"""How a device gets tokens, keeps them fresh and ends them (protocol.md section 2, Over REST)."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated, Final, Literal

from msgspec import Meta

from keepstep.access import RatePolicy
from keepstep.admission import address_prefix
from keepstep.model import SIGNATURE_BYTES
from keepstep.protocol.challenge import NONCE_BYTES, Purpose
from keepstep.rest.endpoints import Access, AnswerBody, Call, Endpoint, Example, NoParameters, Reply, RequestBody
from keepstep.rest.fields import Base64url32, Base64url64, DeviceId, Hex32, Milliseconds, UserId
from keepstep.tokens import REFRESH_TOKEN_BYTES, RevocationScope
from keepstep.validation import format_base64url, parse_base64url

if TYPE_CHECKING:
    from keepstep.rest.services import RestServices
    from keepstep.tokens import Grant

CHALLENGE_RATE: Final = RatePolicy("challenge", calls=120, window_s=60)
"""Challenges, tokens and refreshes of one address prefix: a device needs two an hour, and many share an address."""

Nonce = Base64url32
Signature = Base64url64
RefreshToken = Annotated[Base64url32, Meta(description="Good for one refresh; a secret")]
Seconds = Annotated[int, Meta(ge=1, description="Seconds")]


class ChallengeRequest(RequestBody, frozen=True, kw_only=True):
    """Who wants to prove itself, and for what."""

    user_id: UserId
    device_id: DeviceId
    purpose: Purpose = Purpose.TOKEN


class ChallengeAnswer(AnswerBody, frozen=True, kw_only=True):
    """What to sign: see the protocol's section 2, Over REST."""

    nonce: Nonce
    expires_at_ms: Milliseconds
    server_key: Hex32
    origin: str


class TokenRequest(RequestBody, frozen=True, kw_only=True):
    """A signed challenge."""

    user_id: UserId
    device_id: DeviceId
    device_key: Hex32
    nonce: Nonce
    signature: Signature


class RefreshRequest(RequestBody, frozen=True, kw_only=True):
    """A refresh token, and whose it is."""

    user_id: UserId
    refresh_token: RefreshToken


class TokenAnswer(AnswerBody, frozen=True, kw_only=True):
    """An access token for the `Authorization` header, and the refresh token for the next pair."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - a word of OAuth
    expires_in_s: Seconds
    refresh_token: RefreshToken
    refresh_expires_in_s: Seconds


class RevokeRequest(RequestBody, frozen=True, kw_only=True):
    """What ends: this access token, all tokens that came from its challenge, or all of the device."""

    scope: RevocationScope = RevocationScope.FAMILY


class PublicKey(AnswerBody, frozen=True, kw_only=True):
    """A JSON Web Key (RFC 7517, RFC 8037)."""

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    x: str
    kid: str
    alg: Literal["EdDSA"]
    use: Literal["sig"]


class PublicKeys(AnswerBody, frozen=True, kw_only=True):
    """The keys that sign access tokens, the one in use first."""

    keys: list[PublicKey]


async def _challenge(call: Call[NoParameters, NoParameters, ChallengeRequest]) -> Reply:
    await _count(call.services, call.address)
    auth, body = call.services.auth, call.body
    challenge = await auth.challenge(bytes.fromhex(body.user_id), uuid.UUID(body.device_id).bytes, body.purpose)
    return Reply(
        ChallengeAnswer(
            nonce=format_base64url(challenge.nonce),
            expires_at_ms=challenge.expires_at_ms,
            server_key=auth.server_key.hex(),
            origin=auth.origin,
        )
    )


async def _token(call: Call[NoParameters, NoParameters, TokenRequest]) -> Reply:
    await _count(call.services, call.address)
    auth, body = call.services.auth, call.body
    principal = await auth.take_challenge(
        parse_base64url(body.nonce, bytes_max=NONCE_BYTES, what="a nonce"),
        user_key=bytes.fromhex(body.user_id),
        device_id=uuid.UUID(body.device_id).bytes,
        purpose=Purpose.TOKEN,
        signature=parse_base64url(body.signature, bytes_max=SIGNATURE_BYTES, what="a signature"),
        device_key=bytes.fromhex(body.device_key),
    )
    return Reply(_answer(await auth.begin(principal)))


async def _refresh(call: Call[NoParameters, NoParameters, RefreshRequest]) -> Reply:
    await _count(call.services, call.address)
    token = parse_base64url(call.body.refresh_token, bytes_max=REFRESH_TOKEN_BYTES, what="a refresh token")
    return Reply(_answer(await call.services.auth.refresh(bytes.fromhex(call.body.user_id), token)))


async def _revoke(call: Call[NoParameters, NoParameters, RevokeRequest]) -> Reply:
    auth = call.services.auth
    await auth.revoke(await auth.access(call.headers.get("authorization")), call.body.scope)
    return Reply(None, status=204)


async def _public_keys(call: Call[NoParameters, NoParameters, None]) -> Reply:
    keys = call.services.auth.public_keys()
    return Reply(
        PublicKeys(
            keys=[
                PublicKey(kty="OKP", crv="Ed25519", x=key["x"], kid=key["kid"], alg="EdDSA", use="sig") for key in keys
            ]
        )
    )


async def _count(services: RestServices, address: str) -> None:
    """Guessing is slow, also for whoever never gets a token. Raises ProtocolError: ``rate_limited``."""
    await services.limiter.take(f"address:{address_prefix(address)}", CHALLENGE_RATE)


def _answer(grant: Grant) -> TokenAnswer:
    return TokenAnswer(
        access_token=grant.access_token,
        expires_in_s=grant.expires_in_s,
        refresh_token=format_base64url(grant.refresh_token),
        refresh_expires_in_s=grant.refresh_expires_in_s,
    )


_KEY: Final = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
_DEVICE_ID: Final = "0f8fad5b-d9cb-469f-a165-70867728950e"
_NONCE: Final = "A" * 43
_TOKENS: Final = {
    "access_token": "eyJhbGciOiJFZERTQSIsImtpZCI6Ii4uLiIsInR5cCI6IkpXVCJ9.e30.c2lnbmF0dXJl",
    "token_type": "Bearer",
    "expires_in_s": 3_600,
    "refresh_token": "Zm9yIG9uZSByZWZyZXNoIG9ubHksIGFuZCBzZWNyZXQ",
    "refresh_expires_in_s": 2_592_000,
}

ENDPOINTS: Final = (
    Endpoint(
        method="POST",
        path="/api/v1/auth/challenge",
        access=Access.PUBLIC,
        summary="A nonce for a device to sign",
        description=(
            "The answer is the same whether or not there is such a user or device. A nonce is good once, for a "
            "minute, and for the purpose it was asked for. `origin` is where this server says it is reached: a device "
            "signs the address that it knows itself, and refuses another one."
        ),
        handler=_challenge,
        answers={200: ChallengeAnswer},
        body_type=ChallengeRequest,
        example=Example(
            body={"user_id": _KEY, "device_id": _DEVICE_ID, "purpose": "token"},
            answer={
                "nonce": _NONCE,
                "expires_at_ms": 1_767_225_660_000,
                "server_key": _KEY,
                "origin": "https://sync.example.org",
            },
        ),
    ),
    Endpoint(
        method="POST",
        path="/api/v1/auth/token",
        access=Access.PUBLIC,
        summary="Tokens for a signed challenge",
        description=(
            "`auth_failed` for every reason: a wrong signature, a nonce that is unknown, used or expired, an unknown "
            "user or device, another key than the enrolled one, a device that was revoked."
        ),
        handler=_token,
        answers={200: TokenAnswer},
        body_type=TokenRequest,
        errors=("auth_failed",),
        example=Example(
            body={
                "user_id": _KEY,
                "device_id": _DEVICE_ID,
                "device_key": _KEY,
                "nonce": _NONCE,
                "signature": "A" * 86,
            },
            answer=_TOKENS,
        ),
    ),
    Endpoint(
        method="POST",
        path="/api/v1/auth/refresh",
        access=Access.PUBLIC,
        summary="The next pair of tokens for a refresh token",
        description=(
            "A refresh token is good once. Whoever presents one that was used before shows that somebody else has it: "
            "all tokens that came from the same challenge end, and the device signs a new challenge."
        ),
        handler=_refresh,
        answers={200: TokenAnswer},
        body_type=RefreshRequest,
        errors=("auth_failed",),
        example=Example(body={"user_id": _KEY, "refresh_token": _TOKENS["refresh_token"]}, answer=_TOKENS),
    ),
    Endpoint(
        method="POST",
        path="/api/v1/auth/revoke",
        access=Access.DEVICE,
        summary="End tokens before their time",
        description="On this node at once, on every other within half a second.",
        handler=_revoke,
        answers={204: None},
        body_type=RevokeRequest,
        example=Example(body={"scope": "family"}),
    ),
    Endpoint(
        method="GET",
        path="/.well-known/jwks.json",
        access=Access.PUBLIC,
        summary="The keys that sign access tokens",
        description=(
            "For whoever verifies tokens by itself; a key that was replaced is listed for as long as tokens signed "
            "with it may be good. A token that verifies may have been revoked: only this server knows."
        ),
        handler=_public_keys,
        answers={200: PublicKeys},
        tag="auth",
        example=Example(
            answer={
                "keys": [
                    {
                        "kty": "OKP",
                        "crv": "Ed25519",
                        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
                        "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
                        "alg": "EdDSA",
                        "use": "sig",
                    }
                ]
            }
        ),
    ),
)
