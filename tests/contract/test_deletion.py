"""Deleting an account: nobody gets in, nothing is left, and it never begins again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from keepstep.administration import Cut
from keepstep.errors import ProtocolError
from keepstep.protocol.messages import ResultAccepted, ResultError
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import Place, acks_of, append, create_account, enrol, read_all

if TYPE_CHECKING:
    from keepstep.eventlog.log import StoredLog
    from keepstep.model import Principal

ADA: Final = UserFixture("ada")
BEN: Final = UserFixture("ben")
LATER_MS: Final = NOW_MS + 1_000


async def a_full_account(place: Place, log: StoredLog, phone: DeviceFixture) -> Principal:
    """An account with something in every table that is easily filled."""
    principal = await create_account(place, log, phone)
    await enrol(place, log, phone, DeviceFixture(phone.user, "laptop"))
    await append(log, principal, *phone.events("notes", 3))
    await place.accounts.open_session(principal, phone.device_id, now_ms=NOW_MS)
    await place.accounts.save_acks(principal, {"notes": (2, b"c" * 16)})
    return principal


async def remove(place: Place) -> int:
    """Remove everything in steps of two rows; how many there were."""
    removed = 0
    while count := await place.administration.remove_deleted(before_ms=LATER_MS, rows_max=2):
        assert count <= 2
        removed += count
    return removed


async def test_nobody_gets_into_a_deleted_account(place: Place) -> None:
    """From the commit on, on every node, although its rows are still there."""
    log = place.node()
    phone = DeviceFixture(ADA, "phone")
    principal = await a_full_account(place, log, phone)

    await place.administration.delete_user(principal.user_pk, ADA.user_key, now_ms=LATER_MS)
    await place.administration.delete_user(principal.user_pk, ADA.user_key, now_ms=LATER_MS + 1)

    assert await place.accounts.principal(ADA.user_key, phone.device_id) is None
    assert await place.administration.user(ADA.user_key) is None
    assert await place.administration.cuts_since(LATER_MS) == [Cut(principal.user_pk, None)]
    (answer,) = await append(log, principal, phone.event("notes"))
    assert isinstance(answer, ResultError)


async def test_nothing_is_left_of_a_deleted_account(place: Place) -> None:
    """In bounded steps; other accounts keep theirs."""
    log = place.node()
    ada = await a_full_account(place, log, DeviceFixture(ADA, "phone"))
    bens_phone = DeviceFixture(BEN, "phone")
    ben = await a_full_account(place, log, bens_phone)
    await place.administration.delete_user(ada.user_pk, ADA.user_key, now_ms=LATER_MS)

    assert await place.administration.remove_deleted(before_ms=LATER_MS - 1, rows_max=100) == 0
    assert await remove(place) > 0

    fresh = place.node()
    assert await fresh.streams(ada.user_pk) == []
    assert await place.accounts.devices(ada.user_pk) == []
    with pytest.raises(ProtocolError, match="unknown_stream"):
        await fresh.stream(ada.user_pk, "notes")
    assert (await place.administration.statistics()).users == 1
    assert len((await read_all(fresh, ben, "notes")).payloads) == 3
    assert await acks_of(place.node(), ben) == {"notes": 2}
    assert await place.accounts.principal(BEN.user_key, bens_phone.device_id) is not None


async def test_a_deleted_account_never_begins_again(place: Place) -> None:
    """Neither while it is being removed nor long after: its devices would find another history."""
    log = place.node()
    phone = DeviceFixture(ADA, "phone")
    genesis = phone.genesis()
    await log.create_account(genesis, now_ms=NOW_MS)
    principal = await place.accounts.principal(ADA.user_key, phone.device_id)
    assert principal is not None
    await place.administration.delete_user(principal.user_pk, ADA.user_key, now_ms=LATER_MS)

    assert await log.create_account(genesis, now_ms=LATER_MS) == ResultError("account_deleted", [])
    await remove(place)
    assert await log.create_account(genesis, now_ms=LATER_MS) == ResultError("account_deleted", [])
    assert await place.accounts.user(ADA.user_key) is None


async def test_a_deleted_account_comes_back_with_its_whole_log(place: Place) -> None:
    """When an operator says so, and all of the old one is removed."""
    log = place.node()
    phone = DeviceFixture(ADA, "phone")
    genesis = phone.genesis()
    await log.create_account(genesis, now_ms=NOW_MS)
    principal = await place.accounts.principal(ADA.user_key, phone.device_id)
    assert principal is not None
    assert not await place.administration.forget_deleted(ADA.user_key)
    await place.administration.delete_user(principal.user_pk, ADA.user_key, now_ms=LATER_MS)
    assert not await place.administration.forget_deleted(ADA.user_key)
    await remove(place)

    assert await place.administration.forget_deleted(ADA.user_key)
    assert not await place.administration.forget_deleted(ADA.user_key)

    assert isinstance(await log.create_account(genesis, now_ms=LATER_MS), ResultAccepted)
    again = await place.accounts.principal(ADA.user_key, phone.device_id)
    assert again is not None
    assert again.user_pk != principal.user_pk
