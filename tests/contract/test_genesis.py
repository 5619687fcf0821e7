"""Creating accounts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keepstep.errors import ProtocolError, Unavailable
from keepstep.model import UserPk
from keepstep.protocol.messages import ResultAccepted, ResultDuplicate, ResultError
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import Place, create_account, read_all

ADA = UserFixture("ada")


async def test_an_account_begins_with_its_genesis(place: Place) -> None:
    """User, first device, ``$devices`` with one event, and the empty ``$keys`` are there."""
    log = place.node()
    phone = DeviceFixture(ADA, "phone")
    genesis = phone.genesis()

    result = await log.create_account(genesis, now_ms=NOW_MS)

    principal = await place.accounts.principal(ADA.user_key, phone.device_id)
    assert principal is not None
    reading = await read_all(log, principal, "$devices")
    assert result == ResultAccepted(1, 1, NOW_MS, reading.chain)
    assert reading.payloads == [genesis.payload]
    assert [device.entry for device in await place.accounts.devices(principal.user_pk)] == [phone.entry]
    streams = await log.streams(principal.user_pk)
    assert [(info.name, info.head.seq) for info in streams] == [("$devices", 1), ("$keys", 0)]
    assert streams[1].head.chain == ADA.chain_0("$keys")


async def test_the_same_genesis_again_is_a_duplicate(place: Place) -> None:
    """On any node, and it creates nothing."""
    phone = DeviceFixture(ADA, "phone")
    genesis = phone.genesis()
    accepted = await place.node().create_account(genesis, now_ms=NOW_MS)
    assert isinstance(accepted, ResultAccepted)

    again = await place.node().create_account(genesis, now_ms=NOW_MS + 1)

    assert again == ResultDuplicate(1, accepted.chain, NOW_MS)


async def test_another_genesis_of_the_same_user_is_refused(place: Place) -> None:
    """The first one stands; the answer tells its hash."""
    log = place.node()
    phone, thief = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "thief")
    principal = await create_account(place, log, phone)

    result = await log.create_account(thief.genesis(), now_ms=NOW_MS)

    assert result == ResultError("id_reused", [1, phone.authored["$devices"][1]])
    assert await place.accounts.principal(ADA.user_key, thief.device_id) is None
    assert len((await read_all(log, principal, "$devices")).rows) == 1


async def test_a_genesis_that_does_not_verify_leaves_nothing(place: Place) -> None:
    """A bad signature, or a device key that is none, creates no user."""
    log = place.node()
    phone = DeviceFixture(ADA, "phone")
    genesis = phone.genesis()

    forged = replace(genesis, sig=bytes(64))
    assert await log.create_account(forged, now_ms=NOW_MS) == ResultError("bad_signature", [])
    no_key = replace(genesis, device=replace(genesis.device, device_key=bytes(32)))
    assert await log.create_account(no_key, now_ms=NOW_MS) == ResultError("malformed", [])

    assert await place.accounts.principal(ADA.user_key, phone.device_id) is None
    assert isinstance(await log.create_account(genesis, now_ms=NOW_MS), ResultAccepted)


async def test_no_account_is_created_while_the_database_is_away(place: Place) -> None:
    """The same genesis is accepted when it is back."""
    log = place.node()
    genesis = DeviceFixture(ADA, "phone").genesis()

    place.go_away()
    with pytest.raises(Unavailable):
        await log.create_account(genesis, now_ms=NOW_MS)
    place.come_back()

    assert isinstance(await log.create_account(genesis, now_ms=NOW_MS), ResultAccepted)


async def test_users_do_not_see_each_other(place: Place) -> None:
    """The same names lead to different streams, and a user's device is nobody else's."""
    log = place.node()
    ada, bob = DeviceFixture(ADA, "phone"), DeviceFixture(UserFixture("bob"), "phone")
    of_ada, of_bob = await create_account(place, log, ada), await create_account(place, log, bob)

    assert of_ada.user_pk != of_bob.user_pk
    assert await place.accounts.principal(ADA.user_key, bob.device_id) is None
    assert (await read_all(log, of_ada, "$devices")).hashes != (await read_all(log, of_bob, "$devices")).hashes
    with pytest.raises(ProtocolError, match="unknown_stream"):
        await log.stream(UserPk(of_bob.user_pk + 1), "$devices")
