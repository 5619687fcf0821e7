"""Users, devices, sessions, ack positions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio

from keepstep.errors import Unavailable
from keepstep.interfaces import ListedDevice, OpenedSession
from keepstep.model import Capability, DevicePk, KnownDevice, UserPk
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import Place, acks_of, append, create_account, enrol, principal_of, session_no

if TYPE_CHECKING:
    from keepstep.model import Principal

ADA = UserFixture("ada")
SESSION = b"s" * 16
CHAIN16 = b"c" * 16


async def test_an_enrolled_device_is_known_by_user_and_id(place: Place) -> None:
    """With its key and capabilities; unknown users and devices are nobody."""
    log = place.node()
    phone = DeviceFixture(ADA, "phone")
    tablet = DeviceFixture(ADA, "tablet", capabilities=Capability.SUBSCRIBE, expires_at_ms=NOW_MS + 1)
    await create_account(place, log, phone)
    await enrol(place, log, phone, tablet)

    principal = await place.accounts.principal(ADA.user_key, tablet.device_id)

    assert principal is not None
    assert (principal.user_key, principal.device_id) == (ADA.user_key, tablet.device_id)
    assert (principal.device_key, principal.capabilities) == (tablet.device_key, Capability.SUBSCRIBE)
    assert principal.expires_at_ms == NOW_MS + 1
    assert await place.accounts.principal(bytes(32), tablet.device_id) is None
    assert await place.accounts.principal(ADA.user_key, bytes(16)) is None


async def test_devices_are_listed_in_order_of_enrolment(place: Place) -> None:
    """Each as ``$devices`` lists it."""
    log = place.node()
    phone, *others = (DeviceFixture(ADA, name) for name in ("phone", "a", "b"))
    principal = await create_account(place, log, phone)
    for device in others:
        await enrol(place, log, phone, device)

    devices = await place.accounts.devices(principal.user_pk)

    assert devices == [
        ListedDevice(DevicePk(number), device.entry, manage_from_ms=0, revoked=None)
        for number, device in enumerate([phone, *others], 1)
    ]
    assert await place.accounts.devices(UserPk(principal.user_pk + 1)) == []


async def test_sessions_are_numbered_per_device(place: Place) -> None:
    """A later session has a higher number, whatever became of the one before."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)

    numbers = [await session_no(place, on_phone, SESSION)]
    await place.accounts.close_session(SESSION, now_ms=NOW_MS + 1, reason="bye")
    numbers.append(await session_no(place, on_phone, b"t" * 16))
    numbers.append(await session_no(place, on_laptop, b"u" * 16))

    assert numbers == [1, 2, 1]


async def test_who_may_have_a_session_gets_one(place: Place) -> None:
    """With what the device is and the head of its ``$devices``; the others are told apart, and get no number."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    tablet = DeviceFixture(ADA, "tablet", expires_at_ms=NOW_MS + 1)
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    on_tablet = await enrol(place, log, phone, tablet)
    event, change = phone.revoke(laptop)
    await append(log, on_phone, event, account_change=change)
    devices = await log.stream(on_phone.user_pk, "$devices")

    async def opened(claim: Principal, number: int, now_ms: int = NOW_MS) -> OpenedSession | None:
        return await place.accounts.open_session(claim, bytes([number]) * 16, now_ms=now_ms)

    found = partial(OpenedSession, devices_pk=devices.stream_pk, devices=devices.head)
    live = KnownDevice(on_phone, None)
    assert await opened(on_phone, 1) == found(live, 1)
    assert await opened(replace(on_phone, device_key=bytes(32)), 2) == found(live, None)
    assert await opened(on_laptop, 3) == found(KnownDevice(on_laptop, 4), None)
    assert await opened(on_tablet, 4, NOW_MS) == found(KnownDevice(on_tablet, None), 1)
    assert await opened(on_tablet, 5, NOW_MS + 1) == found(KnownDevice(on_tablet, None), None)
    assert await opened(replace(on_phone, user_key=bytes(32)), 6) is None
    assert await opened(replace(on_phone, device_id=bytes(16)), 7) is None
    assert await opened(on_phone, 8) == found(live, 2)


async def test_sessions_that_open_and_close_at_the_same_moment_are_each_numbered(place: Place) -> None:
    """Together or not, also several of one device, beside those of strangers: every one has its own answer."""
    log = place.node()
    users = [UserFixture(f"user {number}") for number in range(5)]
    principals = [await create_account(place, log, DeviceFixture(user, "phone")) for user in users]
    claims = [*principals, *principals, replace(principals[0], user_key=bytes(32))]
    numbers: dict[int, tuple[bytes, int | None] | None] = {}

    async def come_and_go(place_no: int, claim: Principal) -> None:
        session_id = bytes([place_no]) * 16
        opened = await place.accounts.open_session(claim, session_id, now_ms=NOW_MS)
        numbers[place_no] = None if opened is None else (opened.known.principal.user_key, opened.session_no)
        await place.accounts.close_session(session_id, now_ms=NOW_MS + 1, reason="bye")

    async with trio.open_nursery() as nursery:
        for place_no, claim in enumerate(claims):
            nursery.start_soon(come_and_go, place_no, claim)

    assert numbers.pop(10) is None
    assert sorted(cast("Any", numbers.values())) == sorted((user.user_key, no) for user in users for no in (1, 2))
    assert (await place.administration.statistics()).open_sessions == 0


async def test_who_claims_a_device_with_another_key_is_asked_with_it(place: Place) -> None:
    """Strangers neither get a session nor queue before the device that they name."""
    log = place.node()
    real = await create_account(place, log, DeviceFixture(ADA, "phone"))
    claims = [replace(real, device_key=bytes([number]) * 32) for number in range(20)]
    opened: dict[int, int | None] = {}

    async def come(number: int, claim: Principal) -> None:
        found = await place.accounts.open_session(claim, bytes([number + 1]) * 16, now_ms=NOW_MS)
        assert found is not None
        opened[number] = found.session_no

    async with trio.open_nursery() as nursery:
        for number, claim in enumerate([*claims[:10], real, *claims[10:]]):
            nursery.start_soon(come, number, claim)

    assert opened.pop(10) == 1
    assert {*opened.values()} == {None}


async def test_a_session_ends_once(place: Place) -> None:
    """Ending it again, or one that nobody opened, is no error: whoever ends it may come twice."""
    log = place.node()
    principal = await create_account(place, log, DeviceFixture(ADA, "phone"))
    await place.accounts.open_session(principal, SESSION, now_ms=NOW_MS)

    await place.accounts.close_session(SESSION, now_ms=NOW_MS + 1, reason="bye")
    await place.accounts.close_session(SESSION, now_ms=NOW_MS + 2, reason="again")
    await place.accounts.close_session(b"x" * 16, now_ms=NOW_MS + 2, reason="unknown")

    assert await session_no(place, principal, b"t" * 16) == 2


async def test_acks_only_move_up(place: Place) -> None:
    """Per device and stream; a stream that is not there is left out."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    await append(log, on_phone, *phone.events("notes", 5))

    assert await acks_of(place.node(), on_phone) == {}
    await place.accounts.save_acks(on_phone, {"notes": (3, CHAIN16), "$devices": (1, CHAIN16), "nothing": (1, CHAIN16)})
    await place.accounts.save_acks(on_phone, {"notes": (2, CHAIN16), "$devices": (2, CHAIN16)})

    assert await acks_of(place.node(), on_phone) == {"notes": 3, "$devices": 2}
    assert await acks_of(place.node(), on_laptop) == {}


async def test_an_ack_above_the_head_is_not_saved(place: Place) -> None:
    """It is of the log before a restore; saved, it would hide what is stored there from now on."""
    log = place.node()
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, phone)
    await append(log, principal, *phone.events("notes", 2))

    await place.accounts.save_acks(principal, {"notes": (3, CHAIN16), "$devices": (1, CHAIN16)})

    assert await acks_of(place.node(), principal) == {"$devices": 1}


async def test_accounts_are_unavailable_while_the_database_is_away(place: Place) -> None:
    """Every question says so, and works again when it is back."""
    log = place.node()
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, phone)
    place.go_away()

    with pytest.raises(Unavailable):
        await place.accounts.principal(ADA.user_key, phone.device_id)
    with pytest.raises(Unavailable):
        await place.accounts.open_session(principal, SESSION, now_ms=NOW_MS)
    place.come_back()

    assert await principal_of(place, phone) == principal
