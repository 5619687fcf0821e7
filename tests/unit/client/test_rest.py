"""How a client keeps its token fresh, and what it tells of a server that does not let it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import pytest
import trio

from keepstep.client import crypto, rest
from keepstep.client.http import Response
from keepstep.client.rest import RestClient, decode_answer
from keepstep.errors import ClientError, ProtocolError
from keepstep.protocol.receipt import verify_receipt
from keepstep.protocol.succession import announce, encode_announcement
from keepstep.validation import format_base64url
from tests.support.events import DeviceFixture, UserFixture, seed
from tests.support.parts import SERVER_KEY, SERVER_SECRET
from tests.support.rest_wire import identity_of, wired

if TYPE_CHECKING:
    from keepstep.protocol.succession import Announcement

ACCOUNT: Final = "/api/v1/account"


async def test_a_token_is_got_once_and_used_until_it_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by tasks that ask at the same time; half a minute before its end it is refreshed."""
    async with wired(monkeypatch) as (wire, phone, environment):
        client = RestClient(identity_of(phone), environment=environment)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(client.access_token)
        assert wire.asked == ["challenge", "token"]
        first = await client.access_token()
        wire.here.parts.clock.at_ms += 3_570_000
        assert await client.access_token() == first
        wire.here.parts.clock.at_ms += 1
        assert await client.access_token() != first
        assert wire.asked == ["challenge", "token", "refresh"]
        assert (await client.request("GET", ACCOUNT)).status == 200


async def test_a_refresh_that_fails_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to the refresh before was lost, so its token counts as used: the device's key is good still."""
    async with wired(monkeypatch) as (wire, phone, environment):
        client = RestClient(identity_of(phone), environment=environment)
        await client.access_token()
        wire.here.parts.clock.at_ms += 3_600_000
        wire.answers["/api/v1/auth/refresh"] = Response(200, "application/json", b"{")
        with pytest.raises(ClientError, match="no form that is known"):
            await client.access_token()
        wire.answers.clear()
        assert client._grant is not None
        user = {"user_id": phone.user.user_key.hex(), "refresh_token": client._grant.refresh_token}
        await wire.here.http.post("/api/v1/auth/refresh", json=user)
        await client.access_token()
        assert wire.asked[2:] == ["refresh", "refresh", "challenge", "token"]


async def test_a_token_that_is_refused_before_its_time_is_replaced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody revoked it; a server that refuses the next one too is believed."""
    async with wired(monkeypatch) as (wire, phone, environment):
        client = RestClient(identity_of(phone), environment=environment)
        principal = await wire.here.parts.principal(phone)
        await client.access_token()
        await wire.here.services.auth.revoke_device(principal.user_pk, principal.device_pk)
        assert (await client.request("GET", ACCOUNT)).status == 200
        assert wire.asked == ["challenge", "token", "account", "challenge", "token", "account"]
        wire.answers[ACCOUNT] = Response(401, "application/problem+json", b"{}")
        assert (await client.request("GET", ACCOUNT)).status == 401
        assert wire.asked[6:] == ["account", "challenge", "token", "account"]


async def test_a_server_that_is_away_is_not_taken_for_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refresh token is kept for the next time."""
    async with wired(monkeypatch) as (wire, phone, environment):
        client = RestClient(identity_of(phone), environment=environment)
        await client.access_token()
        wire.here.parts.clock.at_ms += 3_600_000
        wire.here.parts.database.away = True
        with pytest.raises(ProtocolError, match="unavailable"):
            await client.access_token()
        wire.here.parts.database.away = False
        await client.access_token()
        assert wire.asked[2:] == ["refresh", "refresh"]


async def test_a_client_goes_on_to_the_next_server_key_that_the_pinned_one_announced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By what the device has read, and by what REST announces; the device pins it. Nobody else's key will do."""
    old_secret = seed("old server")
    announcement = announce(crypto, old_secret=old_secret, new_secret=SERVER_SECRET, from_ms=0, until_ms=1)
    other = announce(crypto, old_secret=seed("other"), new_secret=SERVER_SECRET, from_ms=0, until_ms=1)
    async with wired(monkeypatch) as (wire, phone, environment):
        identity = identity_of(phone, server_key=crypto.ed25519_public(old_secret))

        def tell(*told: Announcement) -> None:
            announced = [format_base64url(encode_announcement(each)) for each in told]
            body = json.dumps({"server_key": SERVER_KEY.hex(), "server_key_announcements": announced})
            wire.answers["/api/v1/server"] = Response(200, "application/json", body.encode())

        tell(other)
        with pytest.raises(ClientError, match="another server than the one"):
            await RestClient(identity, environment=environment).access_token()
        pinned: list[bytes] = []

        async def repinned(server_key: bytes) -> None:
            pinned.append(server_key)

        reader = RestClient(identity, environment=environment)
        reader.follow_server(lambda: [announcement], repinned)
        assert await reader.access_token()
        tell(other, announcement)
        assert await RestClient(identity, environment=environment).access_token()
        assert pinned == [SERVER_KEY]
        receipt, sig = await reader.delete_account()
        verify_receipt(crypto, SERVER_KEY, receipt, sig)


async def test_a_device_that_is_not_known_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer, whatever the reason."""
    async with wired(monkeypatch) as (_, phone, environment):
        client = RestClient(identity_of(DeviceFixture(phone.user, "stranger")), environment=environment)
        with pytest.raises(ProtocolError, match="auth_failed"):
            await client.request("GET", ACCOUNT)


async def test_another_server_gets_no_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one with another key nor one that calls itself by another address."""
    async with wired(monkeypatch) as (wire, phone, environment):
        stranger = RestClient(identity_of(phone, server_key=bytes(32)), environment=environment)
        with pytest.raises(ClientError, match="another server"):
            await stranger.access_token()
        challenge = {"nonce": "A" * 43, "server_key": SERVER_KEY.hex(), "origin": "https://evil.example.org"}
        answer = Response(200, "application/json", json.dumps(challenge).encode())
        wire.answers["/api/v1/auth/challenge"] = answer
        with pytest.raises(ClientError, match="KEEPSTEP_PUBLIC_REST_URL"):
            await RestClient(identity_of(phone), environment=environment).access_token()
        assert wire.asked == ["challenge", "server", "challenge"]


async def test_signing_out_ends_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is nothing, nothing is asked; a server that refuses is heard."""
    async with wired(monkeypatch) as (wire, phone, environment):
        client = RestClient(identity_of(phone), environment=environment)
        await client.sign_out()
        assert wire.asked == []
        await client.access_token()
        wire.answers["/api/v1/auth/revoke"] = Response(503, "text/plain", b"")
        with pytest.raises(ClientError, match="503"):
            await client.sign_out()
        wire.answers.clear()
        await client.sign_out()
        await client.access_token()
        assert wire.asked == ["challenge", "token", "revoke", "revoke", "challenge", "token"]


async def test_an_account_is_deleted_with_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards nothing lets the device in."""
    async with wired(monkeypatch) as (wire, phone, environment):
        client = RestClient(identity_of(phone), environment=environment)
        receipt, sig = await client.delete_account()
        assert verify_receipt(crypto, SERVER_KEY, receipt, sig).user_key == phone.user.user_key
        assert wire.asked == ["challenge", "challenge", "token", "account"]
        with pytest.raises(ProtocolError, match="auth_failed"):
            await client.access_token()


def test_an_answer_in_another_form_is_refused() -> None:
    """Whatever a server sends, it is an error in plain words."""
    for body in (b"", b"[]", b"{}", b"\xff"):
        with pytest.raises(ClientError, match="no form that is known"):
            decode_answer(Response(200, "application/json", body), rest._Challenge)


def test_an_address_that_is_none_is_refused() -> None:
    """Before anything is asked."""
    with pytest.raises(ClientError, match="not the address"):
        RestClient(identity_of(DeviceFixture(UserFixture("ada"), "phone")), rest_url="nonsense")
