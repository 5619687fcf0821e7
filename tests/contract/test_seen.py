"""What an author says it has seen of a stream: a position that never was would make readers call the server a liar."""

from __future__ import annotations

import pytest

from keepstep.protocol.messages import ResultAccepted, ResultError
from tests.support.events import DeviceFixture, UserFixture
from tests.support.logs import Place, append, create_account, enrol

ADA = UserFixture("ada")
OTHER_CHAIN = b"c" * 32


@pytest.mark.parametrize("at", [0, 2, 3, 99])
async def test_a_position_that_never_was_is_refused(place: Place, at: int) -> None:
    """Above the head, or with another chain at it or before the first event; signed anew the event is stored."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    (stored,) = await append(log, principal, *device.events("notes", 2))
    assert isinstance(stored, ResultAccepted)
    before = device.authored["notes"]

    device.seen["notes"] = at, OTHER_CHAIN
    assert await append(log, principal, device.event("notes")) == [ResultError("unknown_position", [])]
    device.seen["notes"], device.authored["notes"] = (2, stored.chain), before
    assert isinstance((await append(log, principal, device.event("notes")))[0], ResultAccepted)


async def test_a_new_stream_begins_with_nothing_seen(place: Place) -> None:
    """There is no position in it but the one before its first event."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    device.seen["notes"] = 1, OTHER_CHAIN

    assert await append(log, principal, device.event("notes")) == [ResultError("unknown_position", [])]
    assert [info.name for info in await log.streams(principal.user_pk)] == ["$devices", "$keys"]


async def test_a_node_that_is_behind_looks_before_it_refuses(place: Place) -> None:
    """The device has seen what another node stored."""
    behind, ahead = place.node(), place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, behind, phone)
    on_laptop = await enrol(place, behind, phone, laptop)
    await append(behind, on_phone, phone.event("notes"))
    (stored,) = await append(ahead, on_laptop, laptop.event("notes"))
    assert isinstance(stored, ResultAccepted)

    phone.seen["notes"] = 2, stored.chain
    assert isinstance((await append(behind, on_phone, phone.event("notes")))[0], ResultAccepted)


async def test_every_event_of_a_batch_names_what_was_read_before_it(place: Place) -> None:
    """As when an outbox is sent at once after a device was offline."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    (first,) = await append(log, principal, device.event("notes"))
    assert isinstance(first, ResultAccepted)
    device.seen["notes"] = 1, first.chain

    (run,) = await append(log, principal, *device.events("notes", 3))
    assert isinstance(run, ResultAccepted)
    assert run.count == 3
