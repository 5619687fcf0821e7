"""Housekeeping of the log."""

from __future__ import annotations

import pytest

from keepstep.errors import Unavailable
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import Place, append, create_account, read_all

ADA = UserFixture("ada")


async def test_payloads_expire_in_bounded_steps(place: Place) -> None:
    """No step drops more than it is told to; what has time left stays, and headers and signatures always do."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, *(device.event("notes", b"soon", ttl_s=1) for _ in range(5)))
    await append(log, principal, device.event("notes", b"later", ttl_s=100), device.event("notes", b"never"))
    hashes = (await read_all(log, principal, "notes")).hashes

    steps = [await place.maintenance.expire_payloads(now_ms=NOW_MS + 1_000, rows_max=2) for _ in range(4)]

    reading = await read_all(place.node(), principal, "notes")
    assert steps == [2, 2, 1, 0]
    assert reading.payloads == [None] * 5 + [b"later", b"never"]
    assert reading.hashes == hashes


async def test_a_database_that_is_there_answers(place: Place) -> None:
    """Readiness, and a clock near ours."""
    await place.maintenance.ping()

    assert await place.maintenance.now_ms() > NOW_MS - 1


async def test_partitions_are_made_once(place: Place) -> None:
    """Making them again finds nothing missing."""
    await place.maintenance.make_partitions(now_ms=NOW_MS, ahead=2)

    assert await place.maintenance.make_partitions(now_ms=NOW_MS, ahead=2) == 0


async def test_housekeeping_is_unavailable_while_the_database_is_away(place: Place) -> None:
    """It is tried again later."""
    place.go_away()
    with pytest.raises(Unavailable):
        await place.maintenance.ping()
    with pytest.raises(Unavailable):
        await place.maintenance.make_partitions(now_ms=NOW_MS, ahead=1)
    with pytest.raises(Unavailable):
        await place.maintenance.expire_payloads(now_ms=NOW_MS, rows_max=1)
    place.come_back()
    await place.maintenance.ping()
