"""Every endpoint against every kind of caller: the answer is the documented one, as the table of endpoints says it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import pytest
import structlog

from keepstep.accesstokens import SigningKey
from keepstep.admin import AdminKey
from keepstep.errors import ERRORS
from keepstep.protocol.messages import ResultAccepted
from keepstep.rest.endpoints import Access, Endpoint
from keepstep.rest.table import ENDPOINTS
from keepstep.tokens import RevocationScope
from tests.support.events import NOW_MS, DeviceFixture, seed, submission
from tests.support.logs import append
from tests.support.parts import Parts
from tests.support.rest import Site, site
from tests.support.tokens import ListedKeys, make_tokens

if TYPE_CHECKING:
    import httpx

    from keepstep.tokens import Tokens

ADMIN_KEY: Final = "correct-horse-battery-staple-0123456789"
HOUR_MS: Final = 3_600_000
STREAM: Final = "ada/secret-plans"
TOKENS_OF_OTHERS: Final = (
    "nobody",
    "guessed",
    "basic",
    "expired",
    "revoked token",
    "revoked device",
    "expired device",
    "another server's",
)
"""Callers who prove nothing, wherever something has to be proven."""


@dataclass
class Callers:
    """Who calls: an ``Authorization`` header each, by what is the matter with it."""

    here: Site
    ada: DeviceFixture
    authorizations: dict[str, str]

    async def call(self, endpoint: Endpoint, caller: str, **names: str) -> httpx.Response:
        """As in the endpoint's example, with other values for the path and query parameters that have these names."""
        authorization = self.authorizations[caller]
        path = {name: names.get(name, value) for name, value in endpoint.example.path.items()}
        query = {name: names.get(name, value) for name, value in endpoint.example.query.items()}
        headers = {"authorization": authorization} if authorization else {}
        if endpoint.example.body is None and endpoint.binary_body is not None:
            headers["content-type"] = endpoint.binary_body.content_type
        return await self.here.http.request(
            endpoint.method, endpoint.path.format(**path), params=query, headers=headers, **body_of(endpoint)
        )


def body_of(endpoint: Endpoint) -> dict[str, Any]:
    """A body of the endpoint's example, or some bytes where its body is binary."""
    if endpoint.example.body is not None:
        return {"json": endpoint.example.body}
    if endpoint.binary_body is not None:
        return {"content": b"\x93"}
    return {}


@asynccontextmanager
async def callers() -> AsyncIterator[Callers]:
    """Ada, who has a stream, Bob, and everybody who proves less than they do."""
    parts = Parts()
    tokens = make_tokens(parts)
    admin = AdminKey(ADMIN_KEY, parts.administration, parts.clock, parts.metrics, structlog.get_logger())
    (ada,) = await parts.register("ada", "phone")
    (bob,) = await parts.register("bob", "phone")
    principal = await parts.principal(ada)
    assert isinstance((await append(parts.log, principal, ada.event(STREAM, b"at dawn")))[0], ResultAccepted)
    revoked, short_lived = (
        DeviceFixture(ada.user, "lost"),
        DeviceFixture(ada.user, "borrowed", expires_at_ms=NOW_MS + 3 * HOUR_MS),
    )
    for device in (revoked, short_lived):
        await parts.enrol(ada, device)
    issue = partial(token_of, parts, tokens)
    expired = await issue(ada)
    parts.clock.at_ms += 2 * HOUR_MS + HOUR_MS // 2
    authorizations = {
        "nobody": "",
        "guessed": "Bearer guessed",
        "basic": "Basic YWRhOmFkYQ==",
        "expired": expired,
        "revoked token": await issue(ada),
        "revoked device": await issue(revoked),
        "expired device": await issue(short_lived),
        "another server's": await issue(ada, from_another=True),
        "ada": "",
        "bob": "",
        "the administrator": f"Bearer {ADMIN_KEY}",
        "wrong key": f"Bearer {ADMIN_KEY}x",
    }
    access = await tokens.access(authorizations["revoked token"])
    await tokens.revoke(access, RevocationScope.TOKEN)
    await end(parts, ada, revoked)
    parts.clock.at_ms += HOUR_MS * 3 // 4  # the borrowed device has expired, and none of the tokens just issued
    authorizations |= {"ada": await issue(ada), "bob": await issue(bob)}
    async with (
        site(parts=parts, admin=admin, tokens=tokens, auth=tokens) as here,
        parts.running(),
    ):
        yield Callers(here, ada, authorizations)


async def token_of(parts: Parts, tokens: Tokens, device: DeviceFixture, *, from_another: bool = False) -> str:
    """The header of a device that signed a challenge; of a server with another key on request."""
    if from_another:
        keys = ListedKeys()
        keys.keys = [SigningKey.from_secret(seed("a key of nobody here"))]
        tokens = make_tokens(parts, keys=keys)
    return f"Bearer {(await tokens.begin(await parts.principal(device))).access_token}"


async def end(parts: Parts, author: DeviceFixture, device: DeviceFixture) -> None:
    """Revoke a device, past the publisher."""
    principal = await parts.principal(author)
    event, change = author.revoke(device)
    appended = await parts.log.append(
        [submission(principal, event)], now_ms=parts.clock.now_ms(), account_change=change
    )
    assert isinstance(appended.results[0][0], ResultAccepted)


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Status and code."""
    return answer.status_code, answer.json()["code"]


def assert_documented(endpoint: Endpoint, answer: httpx.Response) -> None:
    """One of the endpoint's answers, or the problem of one of its codes."""
    assert answer.status_code < 500
    if answer.headers.get("content-type") == "application/problem+json":
        code = answer.json()["code"]
        assert code in endpoint.codes, f"{code} is not documented"
        assert answer.status_code == ERRORS[code].http_status
    else:
        assert answer.status_code in endpoint.answers


REFUSED: Final = {
    Access.PUBLIC: (),
    Access.DEVICE: (*TOKENS_OF_OTHERS, "the administrator", "wrong key"),
    Access.ADMIN: (*TOKENS_OF_OTHERS, "ada", "wrong key"),
}
LET_IN: Final = {
    Access.PUBLIC: ("nobody", "guessed", "revoked device", "ada", "the administrator"),
    Access.DEVICE: ("bob", "ada"),
    Access.ADMIN: ("the administrator",),
}


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.operation)
async def test_every_caller_gets_the_documented_answer(endpoint: Endpoint) -> None:
    """Who proves nothing learns nothing; who is let in gets what the endpoint documents."""
    async with callers() as all_callers:
        for caller in REFUSED[endpoint.access]:
            answer = await all_callers.call(endpoint, caller, stream=STREAM)
            assert problem(answer) == (401, "invalid_token"), caller
            assert answer.headers["www-authenticate"].startswith("Bearer"), caller
            assert STREAM not in answer.text
            assert "invalid_token" in endpoint.codes
        for caller in LET_IN[endpoint.access]:
            answer = await all_callers.call(endpoint, caller)
            assert_documented(endpoint, answer)
            if answer.status_code == 401:
                assert answer.json()["code"] != "invalid_token", caller


@pytest.mark.parametrize(
    "endpoint", [each for each in ENDPOINTS if each.access is Access.DEVICE], ids=lambda endpoint: endpoint.operation
)
async def test_another_users_names_lead_nowhere(endpoint: Endpoint) -> None:
    """Bob names Ada's stream and device wherever something is named: not there, and nothing of Ada's in any answer."""
    async with callers() as all_callers:
        ada = all_callers.ada
        device_id = str(UUID(bytes=ada.device_id))
        names = {"stream": STREAM, "device_id": device_id, "user_id": ada.user.user_key.hex(), "after": "0"}

        answer = await all_callers.call(endpoint, "bob", **names)

        assert_documented(endpoint, answer)
        if {"stream", "device_id", "user_id"} & {*endpoint.example.path, *endpoint.example.query}:
            assert answer.status_code == 404
        said = answer.text.replace(STREAM, "", 1) if answer.status_code == 404 else answer.text
        for secret in (STREAM, device_id, ada.device_id.hex(), ada.user.user_key.hex(), ada.device_key.hex()):
            assert secret not in said


@pytest.mark.parametrize(
    "endpoint", [each for each in ENDPOINTS if each.access is Access.ADMIN], ids=lambda endpoint: endpoint.operation
)
async def test_without_an_admin_key_there_is_no_administration(endpoint: Endpoint) -> None:
    """Whoever asks."""
    async with callers() as all_callers, site(parts=all_callers.here.parts) as without:
        all_callers.here = without
        for caller in all_callers.authorizations:
            assert problem(await all_callers.call(endpoint, caller)) == (404, "not_found")


def test_every_endpoint_says_who_may_call_it() -> None:
    """What anybody may call is listed here, so that a new endpoint is not open by mistake."""
    assert {endpoint.path for endpoint in ENDPOINTS if endpoint.access is Access.PUBLIC} == {
        "/.well-known/jwks.json",
        "/api/v1/accounts",
        "/api/v1/accounts/{user_id}/rotate",
        "/api/v1/auth/challenge",
        "/api/v1/auth/refresh",
        "/api/v1/auth/token",
        "/api/v1/links/{link_id}/{side}/{number}",
        "/api/v1/server",
        "/docs",
        "/docs/start.js",
        "/docs/swagger-ui-bundle.js",
        "/docs/swagger-ui.css",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/openapi.json",
    }
    for endpoint in ENDPOINTS:
        assert endpoint.path.startswith("/admin/") == (endpoint.access is Access.ADMIN)
