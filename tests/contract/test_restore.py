"""A restore: the database went back, its epoch went up, and nothing remembered of the time between is true any more."""

from __future__ import annotations

import pytest

from keepstep.errors import ProtocolError, Unavailable
from keepstep.protocol.messages import ResultAccepted
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import PAGE_BYTES_MAX, Place, append, create_account, principal_of, read_all

ADA = UserFixture("ada")


async def test_what_was_lost_is_stored_again(place: Place) -> None:
    """Once the node knows: a retry is decided by what the database holds, not by what this node remembers of it."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    kept, lost = device.events("notes", 2)
    await append(log, principal, kept)
    place.back_up()
    await append(log, principal, lost)
    place.restore()

    with pytest.raises(Unavailable):
        await append(log, principal, lost)
    (accepted,) = await append(log, await principal_of(place, device), lost)

    assert isinstance(accepted, ResultAccepted)
    assert accepted.first_seq == 2
    assert (await read_all(place.node(), principal, "notes")).hashes == [kept.hash, lost.hash]


async def test_an_append_never_reaches_a_user_who_has_the_row_number_now(place: Place) -> None:
    """Who registers first after a restore is given the number of a user whom the restore took away."""
    log = place.node()
    ada, bob = DeviceFixture(ADA, "phone"), DeviceFixture(UserFixture("bob"), "phone")
    await create_account(place, log, DeviceFixture(UserFixture("eve"), "phone"))
    place.back_up()
    of_ada = await create_account(place, log, ada)
    place.restore()
    other_node = place.node()
    await create_account(place, other_node, bob)

    with pytest.raises(Unavailable):
        await append(log, of_ada, ada.event("notes"))

    of_bob = await principal_of(place, bob)
    assert [info.name for info in await other_node.streams(of_bob.user_pk)] == ["$devices", "$keys"]


async def test_what_was_lost_is_not_served(place: Place) -> None:
    """The first answer of the restored database empties the tail."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    kept, lost = device.events("notes", 2)
    await append(log, principal, kept)
    place.back_up()
    await append(log, principal, lost)
    place.restore()

    head = (await log.stream(principal.user_pk, "notes")).head

    assert head.seq == 1
    with pytest.raises(ProtocolError, match="unknown_position"):
        await log.read(principal.user_pk, "notes", after=2, events_max=1, bytes_max=PAGE_BYTES_MAX, now_ms=NOW_MS)
    assert (await read_all(log, principal, "notes")).hashes == [kept.hash]


async def test_a_restore_shows_in_generation_and_epoch(place: Place) -> None:
    """With the first answer of the restored database, before anybody acts on it."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    before = log.generation()
    assert log.epoch() == 0
    place.back_up()
    place.restore()

    await log.stream(principal.user_pk, "$devices")

    assert log.generation() != before
    assert log.epoch() == NOW_MS


async def test_an_account_is_created_in_the_restored_database(place: Place) -> None:
    """Also where nothing else was asked of it before."""
    log = place.node()
    await create_account(place, log, DeviceFixture(ADA, "phone"))
    place.back_up()
    place.restore()

    result = await log.create_account(DeviceFixture(UserFixture("bob"), "phone").genesis(), now_ms=NOW_MS)

    assert isinstance(result, ResultAccepted)
