"""Challenges, families of refresh tokens, revoked access tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
import trio

from keepstep.errors import Unavailable
from keepstep.model import AccountChange
from keepstep.tokenstore import Challenge, Refreshed, TokenState
from tests.support.events import NOW_MS, DeviceFixture, UserFixture, seed
from tests.support.logs import Place, append, create_account, enrol

if TYPE_CHECKING:
    from keepstep.model import Principal

ADA: Final = UserFixture("ada")
BEN: Final = UserFixture("ben")
CHALLENGE: Final = Challenge(seed("nonce"), ADA.user_key, b"d" * 16, "token", NOW_MS + 60_000)
FAMILY: Final = b"f" * 16
FIRST, SECOND, THIRD = seed("first"), seed("second"), seed("third")
LATER_MS: Final = NOW_MS + 1_000_000


async def begin(
    place: Place, device: Principal, family_id: bytes = FAMILY, token: bytes = FIRST, *, now_ms: int = NOW_MS
) -> int:
    """Begin a family of a device, which may have three."""
    return await place.tokens.begin_family(
        device.user_pk,
        device.device_pk,
        family_id=family_id,
        token_hash=token,
        now_ms=now_ms,
        expires_at_ms=LATER_MS,
        families_max=3,
    )


async def refresh(
    place: Place, token: bytes, following: bytes, *, user: UserFixture = ADA, now_ms: int = NOW_MS
) -> Refreshed | None:
    """Use a refresh token; a family may be refreshed twice."""
    return await place.tokens.refresh(
        user.user_key, token, next_hash=following, now_ms=now_ms, expires_at_ms=LATER_MS + 1, refreshes_max=2
    )


async def is_alive(place: Place, device: Principal, family_id: bytes = FAMILY, token_id: bytes = b"t" * 16) -> bool:
    """Whether an access token of a family is good."""
    return (await place.tokens.token_state(device.user_pk, family_id=family_id, token_id=token_id)).is_alive


async def test_a_challenge_is_taken_once(place: Place) -> None:
    """Whoever is second finds nothing, as for a nonce that was never given out."""
    await place.tokens.add_challenge(CHALLENGE)

    assert await place.tokens.take_challenge(seed("another")) is None
    assert await place.tokens.take_challenge(CHALLENGE.nonce_hash) == CHALLENGE
    assert await place.tokens.take_challenge(CHALLENGE.nonce_hash) is None


async def test_of_two_that_take_a_challenge_at_once_one_is_given_it(place: Place) -> None:
    """The row is gone for the other."""
    await place.tokens.add_challenge(CHALLENGE)
    taken: list[Challenge | None] = []

    async def take() -> None:
        taken.append(await place.tokens.take_challenge(CHALLENGE.nonce_hash))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        nursery.start_soon(take)

    assert sorted(taken, key=bool) == [None, CHALLENGE]


async def test_a_family_lives_until_it_ends(place: Place) -> None:
    """Of its own user only; ending it again is no error."""
    log = place.node()
    phone = await create_account(place, log, DeviceFixture(ADA, "phone"))
    other = await create_account(place, log, DeviceFixture(BEN, "phone"))

    assert not await is_alive(place, phone)
    assert await begin(place, phone) == 0
    assert await begin(place, phone) == 0  # asked again after a lost answer
    assert await is_alive(place, phone)
    assert not await is_alive(place, other)
    await place.tokens.end_family(other.user_pk, FAMILY)
    assert await is_alive(place, phone)
    for _ in range(2):
        await place.tokens.end_family(phone.user_pk, FAMILY)
        assert not await is_alive(place, phone)
    assert await refresh(place, FIRST, SECOND) is None


async def test_a_refresh_token_is_used_once(place: Place) -> None:
    """Its second use ends the family, and what it was exchanged for ends with it."""
    device = DeviceFixture(ADA, "phone")
    phone = await create_account(place, place.node(), device)
    await begin(place, phone)

    refreshed = Refreshed(phone.user_pk, FAMILY, device.device_id, 0, ended=False)
    assert await refresh(place, FIRST, SECOND) == refreshed
    assert await refresh(place, FIRST, SECOND) == refreshed  # asked again after a lost answer
    assert await is_alive(place, phone)
    assert await refresh(place, FIRST, THIRD) == replace(refreshed, ended=True)
    assert not await is_alive(place, phone)
    assert await refresh(place, SECOND, THIRD) is None


async def test_a_refresh_token_works_for_its_own_user_only(place: Place) -> None:
    """Another user, known or not, has no such token, and the family goes on."""
    log = place.node()
    phone = await create_account(place, log, DeviceFixture(ADA, "phone"))
    await create_account(place, log, DeviceFixture(BEN, "phone"))
    await begin(place, phone)

    assert await refresh(place, FIRST, SECOND, user=BEN) is None
    assert await refresh(place, FIRST, SECOND, user=UserFixture("nobody")) is None
    assert await refresh(place, FIRST, SECOND) is not None


async def test_a_refresh_token_runs_out(place: Place) -> None:
    """And one that was exchanged in time has its own end."""
    phone = await create_account(place, place.node(), DeviceFixture(ADA, "phone"))
    await begin(place, phone)

    assert await refresh(place, FIRST, SECOND, now_ms=LATER_MS) is None
    assert await refresh(place, FIRST, SECOND, now_ms=LATER_MS - 1) is not None
    assert await refresh(place, SECOND, THIRD, now_ms=LATER_MS) is not None


async def test_a_family_is_refreshed_a_bounded_number_of_times(place: Place) -> None:
    """All its used tokens are remembered, so there are only so many."""
    phone = await create_account(place, place.node(), DeviceFixture(ADA, "phone"))
    await begin(place, phone)
    await refresh(place, FIRST, SECOND)
    await refresh(place, SECOND, THIRD)

    refreshed = await refresh(place, THIRD, seed("fourth"))

    assert refreshed is not None
    assert refreshed.ended
    assert not await is_alive(place, phone)


async def test_of_two_that_use_a_refresh_token_at_once_neither_keeps_the_family(place: Place) -> None:
    """Whichever comes second shows that somebody else has the token."""
    phone = await create_account(place, place.node(), DeviceFixture(ADA, "phone"))
    await begin(place, phone)
    ended: list[bool] = []

    async def use(following: bytes) -> None:
        refreshed = await refresh(place, FIRST, following)
        assert refreshed is not None
        ended.append(refreshed.ended)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(use, SECOND)
        nursery.start_soon(use, THIRD)

    assert sorted(ended) == [False, True]
    assert not await is_alive(place, phone)


async def test_a_device_has_a_bounded_number_of_families(place: Place) -> None:
    """The oldest end; other devices' stay."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    families = [bytes([number]) * 16 for number in range(5)]
    await begin(place, on_laptop, FAMILY, seed("laptop"))

    for number, family_id in enumerate(families):
        await begin(place, on_phone, family_id, seed(f"token {number}"), now_ms=NOW_MS + number)

    assert [await is_alive(place, on_phone, family_id) for family_id in families] == [False] * 2 + [True] * 3
    assert await is_alive(place, on_laptop)


async def test_all_families_of_a_device_end_together(place: Place) -> None:
    """Those of the user's other devices go on."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    await begin(place, on_phone, b"1" * 16, FIRST)
    await begin(place, on_phone, b"2" * 16, SECOND)
    await begin(place, on_laptop, b"3" * 16, THIRD)

    await place.tokens.end_families(on_phone.user_pk, on_phone.device_pk)

    assert [await is_alive(place, on_phone, number * 16) for number in (b"1", b"2", b"3")] == [False, False, True]


async def test_what_ends_a_device_ends_its_families(place: Place) -> None:
    """In the same transaction; a device that comes to life again does not bring its tokens back."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    await begin(place, on_phone, b"1" * 16, FIRST)
    await begin(place, on_laptop, b"2" * 16, SECOND)

    event, change = phone.revoke(laptop)
    await append(log, on_phone, event, account_change=change)
    event, change = phone.revoke(laptop)
    await append(log, on_phone, event, account_change=AccountChange(restored=(laptop.device_id,)))

    assert await place.accounts.principal(ADA.user_key, laptop.device_id) == on_laptop
    assert not await is_alive(place, on_laptop, b"2" * 16)
    assert await refresh(place, SECOND, THIRD) is None
    assert await is_alive(place, on_phone, b"1" * 16)


async def test_a_revoked_token_is_revoked_by_itself(place: Place) -> None:
    """Its family goes on with other tokens, and another user's token of the same id too."""
    log = place.node()
    phone = await create_account(place, log, DeviceFixture(ADA, "phone"))
    other = await create_account(place, log, DeviceFixture(BEN, "phone"))
    await begin(place, phone)
    await begin(place, other, token=SECOND)

    for _ in range(2):
        await place.tokens.revoke_token(phone.user_pk, b"t" * 16, expires_at_ms=LATER_MS)

    assert not await is_alive(place, phone)
    assert await is_alive(place, phone, token_id=b"u" * 16)
    assert await is_alive(place, other)


async def test_a_restored_log_has_another_epoch_for_tokens(place: Place) -> None:
    """By which tokens from before the restore are told."""
    log = place.node()
    phone = await create_account(place, log, DeviceFixture(ADA, "phone"))
    place.back_up()
    place.restore()

    assert await begin(place, phone) == NOW_MS
    state = await place.tokens.token_state(phone.user_pk, family_id=FAMILY, token_id=b"t" * 16)
    assert state == TokenState(NOW_MS, is_alive=True)
    refreshed = await refresh(place, FIRST, SECOND)
    assert refreshed is not None
    assert refreshed.epoch == NOW_MS


async def test_what_ran_out_is_cleaned_up_in_bounded_steps(place: Place) -> None:
    """Challenges, refresh tokens, families, revocations; what has time left stays."""
    phone = await create_account(place, place.node(), DeviceFixture(ADA, "phone"))
    for number in range(3):
        await place.tokens.add_challenge(replace(CHALLENGE, nonce_hash=seed(f"nonce {number}")))
        await place.tokens.revoke_token(phone.user_pk, bytes([number]) * 16, expires_at_ms=NOW_MS + 60_000)
    await place.tokens.add_challenge(replace(CHALLENGE, expires_at_ms=LATER_MS + 1))
    await begin(place, phone)
    await begin(place, phone, b"g" * 16, SECOND)
    await refresh(place, SECOND, THIRD)
    clean_up = partial(place.tokens.clean_up_tokens, rows_max=2)

    assert [await clean_up(now_ms=NOW_MS + 60_000) for _ in range(3)] == [4, 2, 0]
    assert await is_alive(place, phone)
    assert [await clean_up(now_ms=LATER_MS) for _ in range(2)] == [3, 0]
    assert await place.tokens.take_challenge(CHALLENGE.nonce_hash) is not None
    assert await is_alive(place, phone, b"g" * 16)
    assert await refresh(place, THIRD, FIRST) is not None


async def test_tokens_are_unavailable_while_the_database_is_away(place: Place) -> None:
    """Nobody is let in on a guess."""
    phone = await create_account(place, place.node(), DeviceFixture(ADA, "phone"))
    place.go_away()

    with pytest.raises(Unavailable):
        await place.tokens.add_challenge(CHALLENGE)
    with pytest.raises(Unavailable):
        await is_alive(place, phone)
    with pytest.raises(Unavailable):
        await refresh(place, FIRST, SECOND)
    place.come_back()

    assert not await is_alive(place, phone)
