"""An account of another server, read in over REST."""

from __future__ import annotations

from typing import Final

import pytest

from keepstep.account_file import CONTENT_TYPE
from keepstep.rest import importing
from keepstep.rest.endpoints import BODY_BYTES_MAX
from tests.support.parts import Parts
from tests.unit.rest.test_admin import KEY, administrated
from tests.unit.test_account_file import a_life, append, export, of_user

PATH: Final = "/admin/accounts/import"
HEADERS: Final = {"content-type": CONTENT_TYPE}
WRONG_KEY: Final = HEADERS | {"authorization": f"Bearer {KEY}x"}


async def account_file() -> tuple[Parts, bytes, bytes]:
    """Another server's parts, whose account, and its file."""
    parts = Parts()
    phone = await a_life(parts)
    return parts, phone.user.user_key, await export(parts, phone)


async def test_an_account_of_another_server_is_read_in_whole() -> None:
    """Places, times, chains and devices; a second time nothing is new."""
    elsewhere, user_key, file = await account_file()
    async with administrated() as here:
        answers = [await here.http.post(PATH, content=file, headers=HEADERS) for _ in range(2)]
        events = sum(head.seq for head in elsewhere.database.users[1].heads.values())
        told = {"user_id": user_key.hex(), "streams": 5, "events": events}
        assert [answer.json() for answer in answers] == [told | {"stored": events}, told | {"stored": 0}]
        assert of_user(here.parts.database, user_key) == of_user(elsewhere.database, user_key)
        audit = (await here.http.get("/admin/audit")).json()["entries"]
        assert [entry["action"] for entry in audit] == ["post_admin_accounts_import"] * 2


async def test_a_newer_file_brings_what_is_new() -> None:
    """As where devices went on at the other server meanwhile."""
    elsewhere = Parts()
    (phone,) = await elsewhere.register("alice", "phone")
    async with administrated() as here:
        stored = []
        for _ in range(2):
            await append(elsewhere, phone, phone.event("notes"))
            file = await export(elsewhere, phone)
            stored.append((await here.http.post(PATH, content=file, headers=HEADERS)).json()["stored"])
        assert stored == [2, 1]


async def test_a_file_may_be_verified_alone() -> None:
    """And stores nothing."""
    _, user_key, file = await account_file()
    async with administrated() as here:
        answer = await here.http.post(PATH, params={"verify_only": "true"}, content=file, headers=HEADERS)
        assert (answer.status_code, answer.json()["stored"]) == (200, None)
        assert here.parts.database.user_pk(user_key) is None


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
async def test_nothing_is_stored_of_a_file_that_does_not_verify(place: float) -> None:
    """Wherever its damage is; the answer names it."""
    _, user_key, file = await account_file()
    at = int(len(file) * place)
    damaged = file[:at] + bytes([file[at] ^ 1]) + file[at + 1 :]
    async with administrated() as here:
        answer = await here.http.post(PATH, content=damaged, headers=HEADERS)
        assert (answer.status_code, answer.json()["code"]) == (422, "unprocessable")
        assert answer.json()["detail"].startswith("the file: ")
        assert here.parts.database.user_pk(user_key) is None


async def test_only_the_key_lets_a_large_file_in() -> None:
    """Nobody else has the server hold one; a wrong key counts as everywhere."""
    large = bytes(2 * BODY_BYTES_MAX)
    async with administrated() as here:
        assert (await here.http.post(PATH, content=large, headers=HEADERS)).json()["code"] == "unprocessable"
        for _ in range(10):
            refused = await here.http.post(PATH, content=large, headers=WRONG_KEY)
            assert (refused.status_code, refused.json()["code"]) == (401, "invalid_token")
        assert (await here.http.post(PATH, content=large, headers=HEADERS)).json()["code"] == "rate_limited"


async def test_the_largest_file_is_bounded() -> None:
    """With the key too; and elsewhere an administrator's body is as small as anybody's."""
    (endpoint,) = importing.ENDPOINTS
    assert endpoint.body_bytes_max == 32 * 1024 * 1024
    async with administrated() as here:
        for path, size in ((PATH, endpoint.body_bytes_max + 1), ("/admin/invites", BODY_BYTES_MAX + 1)):
            answer = await here.http.post(path, content=bytes(size), headers=HEADERS)
            assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
