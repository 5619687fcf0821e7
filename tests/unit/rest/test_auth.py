"""Tokens over REST: from a challenge to an answered request, and every way to be refused."""

from __future__ import annotations

import base64
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import jwt
import pytest
import trio
import trio.testing

from keepstep.rest.auth import CHALLENGE_RATE
from keepstep.tokens import CHECK_KEPT_S
from keepstep.validation import format_base64url
from tests.support.events import DeviceFixture, UserFixture
from tests.support.parts import SERVER_KEY, Parts
from tests.support.rest import Site, site
from tests.support.tokens import ISSUER, ORIGIN, make_tokens, sign_challenge

if TYPE_CHECKING:
    import httpx

NOBODY: Final = DeviceFixture(UserFixture("nobody"), "phone")


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Site, DeviceFixture]]:
    """A site whose tokens are real, and a device."""
    parts = Parts()
    (phone,) = await parts.register("alice", "phone")
    tokens = make_tokens(parts)
    async with site(parts=parts, auth=tokens, tokens=tokens) as here:
        yield here, phone


async def challenge(here: Site, device: DeviceFixture, **changes: Any) -> httpx.Response:
    """Ask for a challenge."""
    body = {"user_id": device.user.user_key.hex(), "device_id": str(uuid.UUID(bytes=device.device_id))}
    return await here.http.post("/api/v1/auth/challenge", json=body | changes)


async def token(here: Site, device: DeviceFixture, **changes: Any) -> httpx.Response:
    """Sign a challenge and ask for tokens."""
    nonce: str = (await challenge(here, device)).json()["nonce"]
    signature = sign_challenge(device, base64.urlsafe_b64decode(nonce + "="))
    body = {
        "user_id": device.user.user_key.hex(),
        "device_id": str(uuid.UUID(bytes=device.device_id)),
        "device_key": device.device_key.hex(),
        "nonce": nonce,
        "signature": format_base64url(signature),
    }
    return await here.http.post("/api/v1/auth/token", json=body | changes)


def code(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a problem."""
    return answer.status_code, answer.json()["code"]


async def account(here: Site, grant: dict[str, Any]) -> httpx.Response:
    """Ask something that only a device is told."""
    return await here.http.get("/api/v1/account", headers={"authorization": f"Bearer {grant['access_token']}"})


async def revoke(here: Site, grant: dict[str, Any], **body: str) -> httpx.Response:
    """End tokens."""
    headers = {"authorization": f"Bearer {grant['access_token']}"}
    return await here.http.post("/api/v1/auth/revoke", headers=headers, json=body)


async def test_a_device_signs_a_challenge_and_is_let_in() -> None:
    """With exactly the documented answers."""
    async with running() as (here, phone):
        told = (await challenge(here, phone)).json()
        answer = await token(here, phone)
        asked = await account(here, answer.json())

    assert sorted(told) == ["expires_at_ms", "nonce", "origin", "server_key"]
    assert (told["server_key"], told["origin"]) == (SERVER_KEY.hex(), ORIGIN)
    assert told["expires_at_ms"] == here.parts.clock.now_ms() + 60_000
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    grant = answer.json()
    assert (grant["token_type"], grant["expires_in_s"], grant["refresh_expires_in_s"]) == ("Bearer", 3_600, 2_592_000)
    assert asked.status_code == 200
    assert asked.json()["user_id"] == phone.user.user_key.hex()


async def test_a_stranger_is_answered_like_a_device() -> None:
    """A challenge for anybody; the one refusal for whoever is not a device."""
    async with running() as (here, phone):
        known, unknown = await challenge(here, phone), await challenge(here, NOBODY)
        made_up = DeviceFixture(phone.user, "made up")
        refusals = [await token(here, NOBODY), await token(here, made_up)]
        refusals.append(await token(here, phone, signature="A" * 86))
        refusals.append(await token(here, phone, nonce="A" * 43))
        refusals.append(await token(here, phone, device_key=NOBODY.device_key.hex()))

    assert known.status_code == unknown.status_code == 200
    assert {len(answer.content) for answer in (known, unknown)} == {len(known.content)}
    assert [code(answer) for answer in refusals] == [(401, "auth_failed")] * 5
    assert {answer.headers["www-authenticate"] for answer in refusals} == {"Bearer"}
    bodies = [{name: value for name, value in answer.json().items() if name != "request_id"} for answer in refusals]
    assert all(body == bodies[0] for body in bodies)


@pytest.mark.parametrize(
    "changes",
    [
        {"user_id": "short"},
        {"user_id": "AB" * 32},
        {"device_id": "ab" * 16},
        {"purpose": "anything"},
        {"more": 1},
        {"user_id": None},
    ],
    ids=str,
)
async def test_a_challenge_is_asked_for_in_the_documented_form(changes: dict[str, Any]) -> None:
    """Anything else is malformed, and says where."""
    async with running() as (here, phone):
        assert code(await challenge(here, phone, **changes)) == (400, "malformed")


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "A" * 42},
        {"nonce": "A" * 42 + "B"},
        {"signature": "?" * 86},
        {"device_key": "x"},
        {"purpose": "token"},
    ],
    ids=str,
)
async def test_a_signed_challenge_has_the_documented_form(changes: dict[str, Any]) -> None:
    """The last digit of base64url is canonical too."""
    async with running() as (here, phone):
        assert code(await token(here, phone, **changes)) == (400, "malformed")


async def test_a_signature_for_deleting_the_account_gives_no_token() -> None:
    """And neither does a challenge that was asked for that."""
    async with running() as (here, phone):
        nonce: str = (await challenge(here, phone, purpose="delete-account")).json()["nonce"]
        signature = sign_challenge(phone, base64.urlsafe_b64decode(nonce + "="))
        assert code(await token(here, phone, nonce=nonce, signature=format_base64url(signature))) == (
            401,
            "auth_failed",
        )


async def test_refreshing_rotates_and_reuse_ends_the_family(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever comes second with a refresh token ends it for both."""
    async with running() as (here, phone):
        first = (await token(here, phone)).json()
        body = {"user_id": phone.user.user_key.hex(), "refresh_token": first["refresh_token"]}
        stranger = await here.http.post("/api/v1/auth/refresh", json=body | {"user_id": NOBODY.user.user_key.hex()})
        second = await here.http.post("/api/v1/auth/refresh", json=body)
        assert (await account(here, second.json())).status_code == 200
        reused = await here.http.post("/api/v1/auth/refresh", json=body)
        after = [await account(here, grant) for grant in (first, second.json())]

    assert code(stranger) == (401, "auth_failed")
    assert second.status_code == 200
    assert second.json()["refresh_token"] != first["refresh_token"]
    assert code(reused) == (401, "auth_failed")
    assert [code(answer) for answer in after] == [(401, "invalid_token")] * 2


@pytest.mark.parametrize(
    ("body", "still_good"),
    [
        ({"scope": "token"}, [False, True, True]),
        ({}, [False, False, True]),
        ({"scope": "family"}, [False, False, True]),
        ({"scope": "device"}, [False, False, False]),
    ],
)
async def test_a_device_ends_its_tokens(
    body: dict[str, str], still_good: list[bool], autojump_clock: trio.testing.MockClock
) -> None:
    """One, those of its challenge, or all; the answer is empty."""
    async with running() as (here, phone):
        first = (await token(here, phone)).json()
        asked = {"user_id": phone.user.user_key.hex(), "refresh_token": first["refresh_token"]}
        refreshed = (await here.http.post("/api/v1/auth/refresh", json=asked)).json()
        separate = (await token(here, phone)).json()

        answer = await revoke(here, first, **body)
        after = [(await account(here, grant)).status_code for grant in (first, refreshed, separate)]
        again = await revoke(here, first, **body)

    assert (answer.status_code, answer.content) == (204, b"")
    assert after == [200 if is_good else 401 for is_good in still_good]
    assert code(again) == (401, "invalid_token")


async def test_a_revoked_token_is_refused_with_what_to_do(autojump_clock: trio.testing.MockClock) -> None:
    """RFC 6750 section 3: the header says that the token is the reason."""
    async with running() as (here, phone):
        grant = (await token(here, phone)).json()
        await revoke(here, grant)
        await trio.sleep(CHECK_KEPT_S)
        answer = await account(here, grant)
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_a_user_id_in_a_header_proves_nothing() -> None:
    """It is refused with a hint, also beside a good token and at the endpoints that give tokens out."""
    async with running() as (here, phone):
        headers = {"X-User-ID": phone.user.user_key.hex()}
        grant = (await token(here, phone)).json()
        answers = [
            await here.http.get("/api/v1/account", headers=headers),
            await here.http.get(
                "/api/v1/account", headers=headers | {"authorization": f"Bearer {grant['access_token']}"}
            ),
            await here.http.post("/api/v1/auth/challenge", headers=headers, json={}),
        ]
    assert [code(answer) for answer in answers] == [(400, "user_id_header")] * 3
    assert "Authorization: Bearer" in answers[0].json()["title"]


async def test_anybody_can_verify_a_token_with_the_published_keys() -> None:
    """Standard software, given nothing but the key set."""
    async with running() as (here, phone):
        grant = (await token(here, phone)).json()
        published = (await here.http.get("/.well-known/jwks.json")).json()
    keys = {key.key_id: key for key in jwt.PyJWKSet.from_dict(published).keys}
    kid = jwt.get_unverified_header(grant["access_token"])["kid"]
    claims = jwt.decode(
        grant["access_token"],
        keys[kid],
        ["EdDSA"],
        audience=ISSUER,
        issuer=ISSUER,
        options={"verify_exp": False, "verify_iat": False, "verify_nbf": False},
    )
    assert claims["sub"] == phone.user.user_key.hex()
    assert "d" not in published["keys"][0], "the secret half"


async def test_asking_for_tokens_is_slowed_down_by_address(autojump_clock: trio.testing.MockClock) -> None:
    """Challenges, tokens and refreshes together; a minute later there is room again."""
    async with running() as (here, phone):
        for _ in range(CHALLENGE_RATE.calls):
            assert (await challenge(here, NOBODY)).status_code == 200
        refused = await challenge(here, phone)
        assert code(refused) == (429, "rate_limited")
        assert int(refused.headers["retry-after"]) >= 1
        body = {"user_id": phone.user.user_key.hex(), "refresh_token": "A" * 43}
        assert code(await here.http.post("/api/v1/auth/refresh", json=body)) == (429, "rate_limited")
        await trio.sleep(CHALLENGE_RATE.window_s)
        assert (await token(here, phone)).status_code == 200
