"""Access tokens: what is signed, what is read, and everything that is refused."""

from __future__ import annotations

import base64
import hmac
import json
from dataclasses import replace
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keepstep.accesstokens import AccessToken, SigningKey, decode, encode, jwk, kid_of, thumbprint
from keepstep.errors import ProtocolError
from tests.support.events import NOW_MS, seed

ISSUER: Final = "keepstep:" + "ab" * 32
KEY: Final = SigningKey.from_secret(seed("token key"))
OTHER: Final = SigningKey.from_secret(seed("another token key"))
NOW_S: Final = NOW_MS // 1000
TOKEN: Final = AccessToken(
    user_key=seed("user"),
    device_id=seed("device")[:16],
    token_id=seed("token")[:16],
    family_id=seed("family")[:16],
    epoch=7,
    issued_at_s=NOW_S,
    expires_at_s=NOW_S + 3600,
)
CLAIMS: Final[dict[str, Any]] = jwt.decode(encode(TOKEN, KEY, issuer=ISSUER), options={"verify_signature": False})
HEADER: Final = {"alg": "EdDSA", "typ": "JWT", "kid": KEY.kid}


def part(value: Any) -> bytes:
    """A part of a token: JSON, base64url without padding."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")


def signed(claims: Any, header: Any = HEADER, key: SigningKey = KEY) -> str:
    """A token that our own key signs, whatever it says."""
    text = part(header) + b"." + part(claims)
    signature = Ed25519PrivateKey.from_private_bytes(key.secret).sign(text)
    return (text + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def read(text: str, *, key: SigningKey = KEY, issuer: str = ISSUER, now_ms: int = NOW_MS) -> AccessToken:
    """What the server makes of a token, whose keys are ``key`` alone."""
    if kid_of(text) != key.kid:
        raise ProtocolError("invalid_token", "another key")
    return decode(text, key.public, issuer=issuer, now_ms=now_ms)


def refused(text: str, **arguments: Any) -> str:
    """Why a token is refused; always under the same code."""
    with pytest.raises(ProtocolError) as caught:
        read(text, **arguments)
    assert caught.value.code == "invalid_token"
    return caught.value.detail


def test_a_token_says_what_was_signed() -> None:
    """Every field comes back, and standard software reads the standard claims."""
    text = encode(TOKEN, KEY, issuer=ISSUER)

    assert read(text) == TOKEN
    assert read(signed(CLAIMS)) == TOKEN
    assert jwt.get_unverified_header(text) == HEADER
    assert (CLAIMS["iss"], CLAIMS["aud"], CLAIMS["sub"]) == (ISSUER, ISSUER, TOKEN.user_key.hex())
    assert CLAIMS["exp"] - CLAIMS["iat"] == 3600
    assert len(text) < 1024


def test_keys_are_named_and_shown_as_in_the_standards() -> None:
    """The example of RFC 8037 appendix A.3."""
    public = base64.urlsafe_b64decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
    assert thumbprint(public) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    assert jwk(replace(KEY, public=public, kid=thumbprint(public))) == {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
        "alg": "EdDSA",
        "use": "sig",
    }
    assert KEY.secret.hex() not in repr(KEY)


def test_standard_software_verifies_a_token_with_the_published_key() -> None:
    """From what /.well-known/jwks.json shows, nothing else."""
    text = encode(replace(TOKEN, expires_at_s=2**33), KEY, issuer=ISSUER)
    published = jwt.PyJWK.from_dict(jwk(KEY))
    claims = jwt.decode(text, published, ["EdDSA"], audience=ISSUER, issuer=ISSUER)
    assert claims["jti"] == TOKEN.token_id.hex()


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE"])
def test_no_signature_is_no_token(algorithm: str) -> None:
    """Algorithm confusion: a token that says it needs no signature."""
    text = part(HEADER | {"alg": algorithm}) + b"." + part(CLAIMS) + b"."
    refused(text.decode())
    with pytest.raises(ProtocolError, match="invalid_token"):
        decode(text.decode(), KEY.public, issuer=ISSUER, now_ms=NOW_MS)


@pytest.mark.parametrize("form", ["raw", "pem", "jwk"])
def test_the_public_key_is_no_shared_secret(form: str) -> None:
    """Algorithm confusion: HMAC under bytes that everybody can download."""
    public = Ed25519PrivateKey.from_private_bytes(KEY.secret).public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    secret = {"raw": KEY.public, "pem": pem, "jwk": json.dumps(jwk(KEY)).encode()}[form]
    text = part(HEADER | {"alg": "HS256"}) + b"." + part(CLAIMS)
    forged = text + b"." + base64.urlsafe_b64encode(hmac.digest(secret, text, "sha256")).rstrip(b"=")
    refused(forged.decode())
    with pytest.raises(ProtocolError, match="invalid_token"):
        decode(forged.decode(), KEY.public, issuer=ISSUER, now_ms=NOW_MS)


def test_another_algorithm_is_refused() -> None:
    """RS256 by a key of the forger's own."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    forged = jwt.encode(CLAIMS, private, "RS256", headers={"kid": KEY.kid})
    refused(forged)
    with pytest.raises(ProtocolError, match="invalid_token"):
        decode(forged, KEY.public, issuer=ISSUER, now_ms=NOW_MS)


@pytest.mark.parametrize(
    "extra",
    [
        {"jwk": jwk(OTHER)},
        {"jku": "https://forger.example.org/jwks.json"},
        {"x5u": "https://forger.example.org/key.pem"},
        {"x5c": ["AAAA"]},
        {"crit": ["exp"]},
        {"cty": "JWT"},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_a_token_that_brings_its_own_key_is_refused(extra: dict[str, Any]) -> None:
    """Whoever signed it: a header says which key of ours, nothing else."""
    refused(signed(CLAIMS, HEADER | extra, OTHER))
    refused(signed(CLAIMS, HEADER | extra, KEY))


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"alg": "EdDSA", "typ": "JWT"},
        {"alg": "EdDSA", "typ": "JWT", "kid": 1},
        {"alg": "EdDSA", "typ": "JWT", "kid": "x" * 65},
        {"alg": "EdDSA", "typ": "other", "kid": KEY.kid},
        {"alg": "EdDSA", "kid": KEY.kid},
        [],
    ],
)
def test_other_headers_are_refused(header: Any) -> None:
    """Exactly the three members that we write."""
    refused(signed(CLAIMS, header))


def test_another_key_is_refused() -> None:
    """Signed by a stranger under our key's name, or by a key of ours that is not known any more."""
    assert refused(signed(CLAIMS, key=OTHER)) == "does not verify"
    assert refused(encode(TOKEN, OTHER, issuer=ISSUER)) == "another key"


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_changed_token_is_refused(index: int) -> None:
    """In its header, its claims or its signature."""
    parts = encode(TOKEN, KEY, issuer=ISSUER).split(".")
    parts[index] = parts[index][:-4] + ("AAAA" if parts[index][-4:] != "AAAA" else "BBBB")
    refused(".".join(parts))


@pytest.mark.parametrize("text", ["", ".", "..", "a.b.c", "a.b", "é.é.é", "x" * 2049, "a.b.c.d.e"])
def test_what_is_no_token_is_refused(text: str) -> None:
    """Whatever it is, and however long."""
    refused(text)


def test_another_issuer_or_audience_is_refused() -> None:
    """A token of another server, and one that was made for somebody else."""
    refused(encode(TOKEN, KEY, issuer="keepstep:" + "cd" * 32))
    refused(signed(CLAIMS | {"iss": "https://elsewhere"}))
    refused(signed(CLAIMS | {"aud": "somebody else"}))
    refused(signed(CLAIMS | {"aud": [ISSUER, "somebody else"]}))


def test_a_token_is_good_from_its_beginning_until_its_end() -> None:
    """Not before, but for what the clocks of two nodes may differ; not at its end, and not later."""
    text = encode(TOKEN, KEY, issuer=ISSUER)
    assert read(text, now_ms=NOW_MS - 5_000) == TOKEN
    assert refused(text, now_ms=NOW_MS - 5_001) == "is not valid yet"
    assert read(text, now_ms=NOW_MS + 3_599_999) == TOKEN
    assert refused(text, now_ms=NOW_MS + 3_600_000) == "has expired"
    assert refused(signed(CLAIMS | {"nbf": NOW_S + 6})) == "is not valid yet"
    assert refused(signed(CLAIMS | {"iat": NOW_S + 6})) == "is not valid yet"


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_every_claim_is_required(name: str) -> None:
    """A token without one says too little."""
    refused(signed({key: value for key, value in CLAIMS.items() if key != name}))


@pytest.mark.parametrize(
    "changes",
    [
        {"sub": "ab" * 31},
        {"sub": "AB" * 32},
        {"did": "ab" * 16},
        {"jti": "ab" * 15},
        {"fid": 5},
        {"exp": str(NOW_S + 1)},
        {"exp": NOW_S + 0.5},
        {"exp": None},
        {"nbf": True},
        {"iat": "now"},
        {"epoch": "7"},
        {"scope": "everything"},
    ],
    ids=str,
)
def test_claims_of_another_form_are_refused(changes: dict[str, Any]) -> None:
    """Also ones that nobody knows."""
    refused(signed(CLAIMS | changes))


def test_claims_are_an_object() -> None:
    """Nothing else is a token's content."""
    refused(signed([1, 2]))
