"""A restore: the database went back, its epoch went up, and nothing remembered of the time between is true any more."""

from __future__ import annotations

import pytest

from keepstep.errors import ProtocolError
from keepstep.protocol.messages import ResultAccepted
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import PAGE_BYTES_MAX, Place, append, create_account, read_all

ADA = UserFixture("ada")


async def test_what_was_lost_is_stored_again(place: Place) -> None:
    """A retry is decided by what the database holds, not by what this node remembers of it."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    kept, lost = device.events("notes", 2)
    await append(log, principal, kept)
    place.back_up()
    await append(log, principal, lost)
    place.restore()

    (accepted,) = await append(log, principal, lost)

    assert isinstance(accepted, ResultAccepted)
    assert accepted.first_seq == 2
    assert (await read_all(place.node(), principal, "notes")).hashes == [kept.hash, lost.hash]


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
    assert await place.maintenance.epoch() > 0


async def test_an_account_is_created_in_the_restored_database(place: Place) -> None:
    """Also where nothing else was asked of it before."""
    log = place.node()
    await create_account(place, log, DeviceFixture(ADA, "phone"))
    place.back_up()
    place.restore()

    result = await log.create_account(DeviceFixture(UserFixture("bob"), "phone").genesis(), now_ms=NOW_MS)

    assert isinstance(result, ResultAccepted)
