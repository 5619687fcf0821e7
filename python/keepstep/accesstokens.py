"""Access tokens: JSON Web Tokens (RFC 7519), signed with EdDSA (RFC 8037) and nothing else; the only place with PyJWT.

What a token says is read only once its signature holds, and its header decides nothing: it names which of our keys to
try, and one that brings a key, or an address of one, is refused.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from keepstep import _keepstep
from keepstep.errors import ProtocolError
from keepstep.model import KEY_BYTES
from keepstep.validation import format_base64url

ALGORITHM: Final = "EdDSA"
TOKEN_CHARACTERS_MAX: Final = 2_048
"""Longest token that is looked at; ours have about 700 characters."""
TOKEN_ID_BYTES: Final = 16
"""A token's and a family's id, random."""
CLOCK_SKEW_S: Final = 5
"""How far ahead of this node's clock a token may begin: nodes follow one clock, each by its own measurement."""
_REQUIRED: Final = ("iss", "aud", "sub", "did", "fid", "jti", "iat", "nbf", "exp", "epoch")
_KEYS_CACHED: Final = 32
_UUID: Final = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs access tokens.

    Attributes:
        secret: its seed, 32 bytes; never shown.
        public: Ed25519 public key, 32 bytes.
        kid: its name in tokens, the thumbprint of RFC 7638.
    """

    secret: bytes = field(repr=False)
    public: bytes
    kid: str

    @classmethod
    def from_secret(cls, secret: bytes) -> SigningKey:
        """The key of a seed of 32 bytes."""
        public = _keepstep.ed25519_public(secret)
        return cls(secret, public, thumbprint(public))


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What an access token says.

    Attributes:
        user_key: the user id, 32 bytes.
        device_id: 16 bytes.
        token_id: its own id, 16 bytes.
        family_id: the family it belongs to, 16 bytes.
        epoch: the log's when it was signed.
        issued_at_s: unix seconds.
        expires_at_s: unix seconds; it is good before then.
    """

    user_key: bytes
    device_id: bytes
    token_id: bytes
    family_id: bytes
    epoch: int
    issued_at_s: int
    expires_at_s: int


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole header: a token that says anything else in it (``jwk``, ``jku``, ``x5u``, ``crit``) is none of ours."""

    alg: Literal["EdDSA"]
    typ: Literal["JWT"]
    kid: Annotated[str, Meta(max_length=64)]


class _Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The claims; each is required."""

    iss: str
    aud: str
    sub: Annotated[str, Meta(pattern=f"^[0-9a-f]{{{2 * KEY_BYTES}}}$")]
    did: Annotated[str, Meta(pattern=_UUID)]
    fid: Annotated[str, Meta(pattern=f"^[0-9a-f]{{{2 * TOKEN_ID_BYTES}}}$")]
    jti: Annotated[str, Meta(pattern=f"^[0-9a-f]{{{2 * TOKEN_ID_BYTES}}}$")]
    iat: int
    nbf: int
    exp: int
    epoch: int


def thumbprint(public: bytes) -> str:
    """A public key's name: SHA-256 over its required members in order (RFC 7638 section 3, RFC 8037 section 2)."""
    members = f'{{"crv":"Ed25519","kty":"OKP","x":"{format_base64url(public)}"}}'
    return format_base64url(hashlib.sha256(members.encode()).digest())


def jwk(key: SigningKey) -> dict[str, str]:
    """The public half as a JSON Web Key (RFC 8037 section 2)."""
    return {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": format_base64url(key.public),
        "kid": key.kid,
        "alg": ALGORITHM,
        "use": "sig",
    }


def encode(token: AccessToken, key: SigningKey, *, issuer: str) -> str:
    """Sign a token; ``issuer`` is its audience too, for it is the issuer that reads it."""
    claims = _Claims(
        iss=issuer,
        aud=issuer,
        sub=token.user_key.hex(),
        did=str(uuid.UUID(bytes=token.device_id)),
        fid=token.family_id.hex(),
        jti=token.token_id.hex(),
        iat=token.issued_at_s,
        nbf=token.issued_at_s,
        exp=token.expires_at_s,
        epoch=token.epoch,
    )
    return jwt.encode(msgspec.structs.asdict(claims), _signer(key.secret), ALGORITHM, headers={"kid": key.kid})


def kid_of(text: str) -> str:
    """Which key a token says it is signed with.

    Raises:
        ProtocolError: ``invalid_token``: it is no token, of another algorithm, or brings a key of its own.
    """
    if len(text) > TOKEN_CHARACTERS_MAX:
        raise ProtocolError("invalid_token", "too long")
    try:
        return msgspec.convert(jwt.get_unverified_header(text), _Header).kid
    except (jwt.InvalidTokenError, msgspec.ValidationError, ValueError) as exc:
        raise ProtocolError("invalid_token", "not a token of this server's form") from exc


def decode(text: str, public: bytes, *, issuer: str, now_ms: int) -> AccessToken:
    """What a token says, whose signature holds under ``public``, and whose time is now.

    Args:
        text: a token that ``kid_of`` took.
        public: the key it names.
        issuer: who must have issued it, for itself.
        now_ms: unix milliseconds.

    Raises:
        ProtocolError: ``invalid_token``.
    """
    options: Any = {"require": list(_REQUIRED), "verify_exp": False, "verify_nbf": False, "verify_iat": False}
    try:
        decoded = jwt.decode(text, _verifier(public), [ALGORITHM], options=options, audience=issuer, issuer=issuer)
        claims = msgspec.convert(decoded, _Claims)
    except (jwt.InvalidTokenError, msgspec.ValidationError, ValueError) as exc:
        raise ProtocolError("invalid_token", "does not verify") from exc
    # Its times are compared here: PyJWT knows only the machine's clock.
    if claims.exp * 1000 <= now_ms:
        raise ProtocolError("invalid_token", "has expired")
    if max(claims.nbf, claims.iat) * 1000 > now_ms + CLOCK_SKEW_S * 1000:
        raise ProtocolError("invalid_token", "is not valid yet")
    return AccessToken(
        user_key=bytes.fromhex(claims.sub),
        device_id=uuid.UUID(claims.did).bytes,
        token_id=bytes.fromhex(claims.jti),
        family_id=bytes.fromhex(claims.fid),
        epoch=claims.epoch,
        issued_at_s=claims.iat,
        expires_at_s=claims.exp,
    )


@lru_cache(_KEYS_CACHED)
def _signer(secret: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(secret)


@lru_cache(_KEYS_CACHED)
def _verifier(public: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(public)
