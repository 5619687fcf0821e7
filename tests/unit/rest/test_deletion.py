"""Deleting an account over REST, with proof by a device that manages it."""

from __future__ import annotations

import uuid

import httpx

from keepstep.client import crypto
from keepstep.model import Capability
from keepstep.protocol.challenge import Purpose
from keepstep.protocol.receipt import DeletionReceipt, verify_receipt
from keepstep.validation import format_base64url, parse_base64url
from tests.support.events import DeviceFixture
from tests.support.parts import SERVER_KEY
from tests.support.rest import Site, site
from tests.support.tokens import sign_challenge


async def delete(
    here: Site,
    token: dict[str, str],
    device: DeviceFixture,
    *,
    asked: str = "delete-account",
    signed: Purpose = Purpose.DELETE_ACCOUNT,
) -> httpx.Response:
    """Ask for a challenge, sign it, and post it."""
    who = {"user_id": device.user.user_key.hex(), "device_id": str(uuid.UUID(bytes=device.device_id))}
    challenge = (await here.http.post("/api/v1/auth/challenge", json=who | {"purpose": asked})).json()
    nonce = parse_base64url(challenge["nonce"], bytes_max=32, what="a nonce")
    signature = sign_challenge(device, nonce, signed)
    body = {"nonce": challenge["nonce"], "signature": format_base64url(signature)}
    return await here.http.request("DELETE", "/api/v1/account", headers=token, json=body)


async def test_a_device_that_manages_deletes_its_account() -> None:
    """With a signature of that moment; every session is told, and other accounts stay."""
    async with site() as here:
        (phone,) = await here.parts.register("alice", "phone")
        (bobs,) = await here.parts.register("bob", "phone")
        answer = await delete(here, await here.token(phone), phone)
        assert answer.status_code == 200
        receipt, sig = (
            parse_base64url(answer.json()[name], bytes_max=64, what=name) for name in ("receipt", "signature")
        )
        expected = DeletionReceipt(phone.user.user_key, here.parts.clock.now_ms())
        assert verify_receipt(crypto, SERVER_KEY, receipt, sig) == expected
        administration = here.parts.administration
        assert await administration.user(phone.user.user_key) is None
        assert await administration.user(bobs.user.user_key) is not None
        assert len(await administration.cuts_since(0)) == 1


async def test_a_token_alone_deletes_nothing() -> None:
    """Nor does a signature for something else, another device's, or one that was used."""
    async with site() as here:
        (phone,) = await here.parts.register("alice", "phone")
        (bobs,) = await here.parts.register("bob", "phone")
        token = await here.token(phone)
        answers = [
            await delete(here, token, phone, asked="token", signed=Purpose.TOKEN),
            await delete(here, token, phone, asked="token"),
            await delete(here, token, bobs),
            await here.http.request(
                "DELETE", "/api/v1/account", headers=token, json={"nonce": "A" * 43, "signature": "A" * 86}
            ),
        ]
        assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(401, "auth_failed")}
        assert (await here.http.request("DELETE", "/api/v1/account", headers=token)).status_code == 415
        assert await here.parts.administration.user(phone.user.user_key) is not None
        assert await here.parts.administration.user(bobs.user.user_key) is not None


async def test_a_device_that_does_not_manage_deletes_nothing() -> None:
    """Whatever it signs."""
    async with site() as here:
        (phone,) = await here.parts.register("alice", "phone")
        reader = DeviceFixture(phone.user, "reader", capabilities=Capability.SUBSCRIBE | Capability.PUBLISH)
        await here.parts.enrol(phone, reader)
        answer = await delete(here, await here.token(reader), reader)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert await here.parts.administration.user(phone.user.user_key) is not None
