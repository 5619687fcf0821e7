"""The key that signs access tokens is replaced in a running server: tokens of before go on, unless it was stolen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keepstep import accesstokens
from tests.integration.test_rest_application import Account, account

if TYPE_CHECKING:
    from pathlib import Path

KEY: Final = "correct-horse-battery-staple-0123456789"


def token_of(alice: Account) -> str:
    """The one that it asks with."""
    return alice.http.headers["authorization"].removeprefix("Bearer ")


async def test_tokens_of_the_key_before_are_good_beside_those_of_the_next(data_dir: Path) -> None:
    """Both keys are published; after a theft only the newest is, and tells nobody apart from strangers."""
    async with account(data_dir, settings={"admin_api_key": KEY}) as (_, alice):

        async def rotate(*, stolen: bool) -> str:
            answer = await alice.http.post(
                "/admin/keys/tokens/rotate", json={"stolen": stolen}, headers={"authorization": f"Bearer {KEY}"}
            )
            return str(answer.json()["kid"])

        async def published() -> list[str]:
            return [key["kid"] for key in (await alice.http.get("/.well-known/jwks.json")).json()["keys"]]

        async def statuses() -> list[int]:
            asked = [{"authorization": f"Bearer {token}"} for token in tokens]
            return [(await alice.http.get("/api/v1/streams", headers=each)).status_code for each in asked]

        tokens = [token_of(alice)]
        kids = [accesstokens.kid_of(tokens[0]), await rotate(stolen=False)]
        await alice.sign_in()
        tokens.append(token_of(alice))
        assert accesstokens.kid_of(tokens[1]) == kids[1] != kids[0]
        assert set(await published()) == set(kids)
        assert await statuses() == [200, 200]

        newest = await rotate(stolen=True)
        assert await published() == [newest]
        assert await statuses() == [401, 401]
        await alice.sign_in()
        tokens.append(token_of(alice))
        assert await statuses() == [401, 401, 200]
