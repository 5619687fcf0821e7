"""Devices that end and come back: no node takes a new event of one that has ended, and everybody can look it up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keepstep import _keepstep
from keepstep.errors import Unavailable
from keepstep.model import AccountChange, Capability, Rotation
from keepstep.protocol.messages import ResultAccepted, ResultDuplicate, ResultError
from tests.support.events import NOW_MS, DeviceFixture, UserFixture, seed, submission
from tests.support.logs import append, create_account, enrol, principal_of, read_all

if TYPE_CHECKING:
    from keepstep.eventlog.log import StoredLog
    from keepstep.model import Principal
    from keepstep.protocol.messages import Result
    from tests.support.events import SignedEvent
    from tests.support.logs import Place

ADA = UserFixture("ada")


def devices(*names: str) -> list[DeviceFixture]:
    """Devices of Ada's that have signed nothing yet."""
    return [DeviceFixture(ADA, name) for name in names]


async def rotate(
    log: StoredLog, principal: Principal, device: DeviceFixture, change: AccountChange, event: SignedEvent
) -> Result:
    """Append a rotation that was checked, as ``identity`` does."""
    assert event.payload is not None
    rotation = Rotation(principal.user_pk, ADA.user_key, device.entry, event.header, event.sig, event.payload)
    return await log.rotate(rotation, change, now_ms=NOW_MS)


async def test_no_node_takes_a_new_event_of_a_revoked_device(place: Place) -> None:
    """Not the one that revoked it, and not another that remembers heads and devices from before; nor its session's."""
    here, there = place.node(), place.node()
    phone, laptop = devices("phone", "laptop")
    on_phone = await create_account(place, here, phone)
    on_laptop = await enrol(place, here, phone, laptop)
    stored = laptop.event("notes")
    for node in (here, there):
        await append(node, on_laptop, stored if node is here else laptop.event("notes"))
        await append(node, on_phone, phone.event("others"))
    event, change = phone.revoke(laptop)
    assert isinstance((await append(here, on_phone, event, account_change=change))[0], ResultAccepted)

    for node in (here, there):
        for stream in ("notes", "others", "begun"):
            last = laptop.authored.copy()
            assert await append(node, on_laptop, laptop.event(stream)) == [ResultError("forbidden", [])], stream
            laptop.authored = last
        assert [type(each) for each in await append(node, on_laptop, stored)] == [ResultDuplicate]
        assert [type(each) for each in await append(node, on_phone, phone.event("notes"))] == [ResultAccepted]
    assert len((await read_all(there, on_phone, "notes")).rows) == 4


async def test_a_device_that_has_ended_is_known_and_no_principal(place: Place) -> None:
    """By the seq that ended it; other nodes find it by the time of that event."""
    log = place.node()
    phone, laptop = devices("phone", "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    assert await place.accounts.revoked_since(0) == []
    event, change = phone.revoke(laptop)
    await append(log, on_phone, event, account_change=change)

    known = await place.accounts.device(ADA.user_key, laptop.device_id)
    assert known is not None
    assert (known.principal, known.revoked_seq) == (on_laptop, 3)
    assert await place.accounts.principal(ADA.user_key, laptop.device_id) is None
    (revoked,) = await place.accounts.revoked_since(NOW_MS)
    assert (revoked.user_pk, revoked.device_pk, revoked.revoked_seq) == (on_phone.user_pk, on_laptop.device_pk, 3)
    assert await place.accounts.revoked_since(NOW_MS + 1) == []
    assert await place.accounts.user(ADA.user_key) == on_phone.user_pk
    assert await place.accounts.user(bytes(32)) is None
    assert await place.accounts.device(bytes(32), laptop.device_id) is None


async def test_a_device_writes_once_it_was_enrolled_on_another_node(place: Place) -> None:
    """An enrolment moves no epoch: a node that remembers the other devices looks again."""
    here, there = place.node(), place.node()
    phone, laptop = devices("phone", "laptop")
    on_phone = await create_account(place, here, phone)
    await append(there, on_phone, phone.event("notes"))
    on_laptop = await enrol(place, here, phone, laptop)

    assert [type(each) for each in await append(there, on_laptop, laptop.event("notes"))] == [ResultAccepted]


async def test_an_expired_device_writes_nothing_new(place: Place) -> None:
    """Whatever its session knows."""
    log = place.node()
    (phone,) = devices("phone")
    display = DeviceFixture(ADA, "display", expires_at_ms=NOW_MS + 1_000)
    await create_account(place, log, phone)
    on_display = await enrol(place, log, phone, display)
    assert isinstance((await append(log, on_display, display.event("notes")))[0], ResultAccepted)

    assert await append(log, on_display, display.event("notes"), now_ms=NOW_MS + 1_000) == [
        ResultError("forbidden", [])
    ]


async def test_a_device_that_expires_before_its_event_is_received_writes_nothing(place: Place) -> None:
    """``received_at`` does not step back where the clock does, and readers go by it."""
    log = place.node()
    (phone,) = devices("phone")
    display = DeviceFixture(ADA, "display", expires_at_ms=NOW_MS + 1_000)
    on_phone = await create_account(place, log, phone)
    on_display = await enrol(place, log, phone, display)
    await append(log, on_phone, phone.event("notes"), now_ms=NOW_MS + 1_000)

    assert await append(log, on_display, display.event("notes"), now_ms=NOW_MS + 999) == [ResultError("forbidden", [])]
    assert isinstance((await append(log, on_display, display.event("other"), now_ms=NOW_MS + 999))[0], ResultAccepted)


async def test_a_batch_of_two_users_loses_only_what_the_ended_device_wrote(place: Place) -> None:
    """Another user's events in the same batch are stored."""
    here, there = place.node(), place.node()
    phone, laptop = devices("phone", "laptop")
    bobs = DeviceFixture(UserFixture("bob"), "phone")
    on_phone, on_bobs = await create_account(place, here, phone), await create_account(place, here, bobs)
    on_laptop = await enrol(place, here, phone, laptop)
    await there.append(
        [submission(on_laptop, laptop.event("notes")), submission(on_bobs, bobs.event("notes"))], now_ms=NOW_MS
    )
    event, change = phone.revoke(laptop)
    await append(here, on_phone, event, account_change=change)

    appended = await there.append(
        [submission(on_laptop, laptop.event("notes")), submission(on_bobs, bobs.event("notes"))], now_ms=NOW_MS
    )

    assert appended.results[0] == [ResultError("forbidden", [])]
    assert isinstance(appended.results[1][0], ResultAccepted)


async def test_a_cool_down_is_kept_with_the_device(place: Place) -> None:
    """Until it is over the device does everything but manage."""
    log = place.node()
    phone, laptop = devices("phone", "laptop")
    on_phone = await create_account(place, log, phone)
    event, _ = phone.enrol(laptop)
    change = AccountChange(laptop.entry, manage_from_ms=NOW_MS + 5)
    await append(log, on_phone, event, account_change=change)

    principal = await principal_of(place, laptop)
    assert principal.manage_from_ms == NOW_MS + 5
    assert principal.capabilities_at(NOW_MS + 4) == Capability.PUBLISH | Capability.SUBSCRIBE
    assert principal.capabilities_at(NOW_MS + 5) == principal.capabilities


async def test_a_rotation_enrols_its_author_and_decides_who_is_live(place: Place) -> None:
    """One transaction: new device, ended ones, restored ones, next root; every node sees all of it."""
    here, there = place.node(), place.node()
    phone, laptop, tablet, rescue = devices("phone", "laptop", "tablet", "rescue")
    on_phone = await create_account(place, here, phone)
    on_laptop = await enrol(place, here, phone, laptop)
    on_tablet = await enrol(place, here, phone, tablet)
    event, change = phone.revoke(laptop)
    await append(here, on_phone, event, account_change=change)
    for node in (here, there):
        await append(node, on_tablet, tablet.event("notes"))
    head = (await here.stream(on_phone.user_pk, "$devices")).head
    rescue.seen["$devices"] = head.seq, head.chain
    change = AccountChange(
        rescue.entry,
        checked_seq=head.seq,
        revoked=(phone.device_id, tablet.device_id),
        restored=(laptop.device_id,),
        next_root_hash=seed("the next root's hash"),
    )

    result = await rotate(there, on_phone, rescue, change, rescue.rotate(laptop))

    assert isinstance(result, ResultAccepted)
    assert result.first_seq == head.seq + 1
    on_rescue = await principal_of(place, rescue)
    assert on_rescue.device_pk == 4
    for node in (here, there):
        for principal, device, answer in (
            (on_phone, phone, ResultError),
            (on_tablet, tablet, ResultError),
            (on_laptop, laptop, ResultAccepted),
            (on_rescue, rescue, ResultAccepted),
        ):
            before = device.authored.copy()
            (stored,) = await append(node, principal, device.event("notes"))
            assert isinstance(stored, answer), device.name
            if answer is ResultError:
                device.authored = before
    assert len(await place.accounts.revoked_since(0)) == 2
    assert [row[1] for row in (await read_all(there, on_rescue, "$devices")).rows][-1] == rescue.device_id


async def test_a_rotation_is_stored_upon_the_head_it_was_checked_against(place: Place) -> None:
    """Where an event came in between, nothing is stored; nor where the id of its device is another's."""
    log = place.node()
    phone, laptop, rescue = devices("phone", "laptop", "rescue")
    on_phone = await create_account(place, log, phone)
    head = (await log.stream(on_phone.user_pk, "$devices")).head
    for each in (rescue, laptop):
        each.seen["$devices"] = head.seq, head.chain
    await enrol(place, log, phone, DeviceFixture(ADA, "watch"))

    with pytest.raises(Unavailable) as caught:
        await rotate(log, on_phone, rescue, AccountChange(rescue.entry, checked_seq=1), rescue.rotate())
    assert caught.value.retry_after_ms == 0
    rescue.authored.clear()
    taken = AccountChange(phone.entry, checked_seq=2)
    assert await rotate(log, on_phone, rescue, taken, rescue.rotate()) == ResultError("unprocessable", [])
    assert (await log.stream(on_phone.user_pk, "$devices")).head.seq == 2


async def test_a_cloned_device_is_recorded(place: Place) -> None:
    """Other nodes find it by the time."""
    log = place.node()
    (phone,) = devices("phone")
    on_phone = await create_account(place, log, phone)
    assert await place.accounts.cloned_since(0) == []
    await place.accounts.record_clone(on_phone, now_ms=NOW_MS)
    (cloned,) = await place.accounts.cloned_since(NOW_MS)
    assert (cloned.user_pk, cloned.device_id, cloned.cloned_at_ms) == (on_phone.user_pk, phone.device_id, NOW_MS)
    assert await place.accounts.cloned_since(NOW_MS + 1) == []


async def test_an_invite_registers_one_user(place: Place) -> None:
    """Unknown, expired and used ones are refused, and then nothing is stored; the same genesis again is a duplicate."""
    log = place.node()
    good, late = _keepstep.blake3(b"good"), _keepstep.blake3(b"late")
    place.invite(good, expires_at_ms=NOW_MS + 1)
    place.invite(late, expires_at_ms=NOW_MS)
    first, second = DeviceFixture(UserFixture("ada"), "phone"), DeviceFixture(UserFixture("bob"), "phone")
    genesis = first.genesis()

    for code_hash in (late, _keepstep.blake3(b"unknown")):
        answer = await log.create_account(genesis, now_ms=NOW_MS, invite_hash=code_hash)
        assert answer == ResultError("invite_invalid", [])
    assert await place.accounts.user(ADA.user_key) is None
    assert isinstance(await log.create_account(genesis, now_ms=NOW_MS, invite_hash=good), ResultAccepted)
    assert isinstance(await log.create_account(genesis, now_ms=NOW_MS, invite_hash=good), ResultDuplicate)
    answer = await log.create_account(second.genesis(), now_ms=NOW_MS, invite_hash=good)
    assert answer == ResultError("invite_invalid", [])


@pytest.mark.parametrize("seen", [(0, seed("another")), (1, seed("another")), (9, seed("ahead"))])
async def test_an_event_that_names_an_account_that_never_was_is_refused(place: Place, seen: tuple[int, bytes]) -> None:
    """A stolen device could stop every reader with it; what is beside it in the batch is stored, in order."""
    log = place.node()
    phone, laptop = devices("phone", "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    head = (await log.stream(on_phone.user_pk, "$devices")).head
    stored = laptop.event("notes")
    assert isinstance((await append(log, on_laptop, stored))[0], ResultAccepted)
    before = laptop.authored.copy()
    forged = laptop.event("notes", devices_seen=seen)
    laptop.authored = before
    good = laptop.event("others", devices_seen=(head.seq, head.chain))

    appended = await log.append(
        [submission(on_phone, phone.event("notes")), submission(on_laptop, stored, forged, good)], now_ms=NOW_MS
    )

    (first,), (again, refused, accepted) = appended.results
    assert isinstance(first, ResultAccepted)
    assert isinstance(again, ResultDuplicate)
    assert refused == ResultError("unknown_position", [])
    assert isinstance(accepted, ResultAccepted)
    assert [row[1] for row in (await read_all(log, on_phone, "notes")).rows] == [laptop.device_id, phone.device_id]
    assert isinstance((await append(log, on_laptop, laptop.event("notes")))[0], ResultAccepted)
