"""Inboxes: one stream per device, which any device may write into and the first event makes."""

from __future__ import annotations

from keepstep.model import Capability, inbox_of
from keepstep.protocol.messages import ResultAccepted, ResultError
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import Place, append, create_account, enrol, read_all

ADA = UserFixture("ada")


async def test_the_first_event_makes_an_inbox(place: Place) -> None:
    """Another device's message is stored in it; the streams are listed after $devices and $keys by name."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    await enrol(place, log, phone, laptop)
    inboxes = sorted([inbox_of(phone.device_id), inbox_of(laptop.device_id)])

    for stream in reversed(inboxes):
        _, result = await append(log, on_phone, phone.event("notes"), phone.event(stream, b"sealed"))
        assert isinstance(result, ResultAccepted)

    assert (await read_all(log, on_phone, inboxes[0])).payloads == [b"sealed"]
    assert [info.name for info in await log.streams(on_phone.user_pk)] == ["$devices", "$keys", *inboxes, "notes"]


async def test_only_a_device_of_the_user_has_an_inbox(place: Place) -> None:
    """Neither an unknown device nor another user's one."""
    log = place.node()
    phone, stranger = DeviceFixture(ADA, "phone"), DeviceFixture(UserFixture("bob"), "phone")
    principal = await create_account(place, log, phone)
    await create_account(place, log, stranger)

    for device_id in (bytes(16), stranger.device_id):
        answer = await append(log, principal, phone.event(inbox_of(device_id)))
        assert answer == [ResultError("unknown_stream", [])]


async def test_writing_into_an_inbox_takes_the_capability_to_publish(place: Place) -> None:
    """As any other stream."""
    log = place.node()
    phone, display = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "display", capabilities=Capability.SUBSCRIBE)
    await create_account(place, log, phone)
    on_display = await enrol(place, log, phone, display)

    answer = await append(log, on_display, display.event(inbox_of(phone.device_id)))

    assert answer == [ResultError("forbidden", [])]


async def test_messages_that_the_device_acknowledged_lose_their_payload(place: Place) -> None:
    """In steps; what the other device acknowledges of its own inbox changes nothing here."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    of_phone, of_laptop = inbox_of(phone.device_id), inbox_of(laptop.device_id)
    for stream in (of_phone, of_laptop, "notes"):
        await append(log, on_phone, *phone.events(stream, 4))
    chain16 = bytes(16)
    await place.accounts.save_acks(on_laptop, {of_laptop: (3, chain16), "notes": (4, chain16), of_phone: (4, chain16)})

    emptied = [await place.maintenance.empty_inboxes(now_ms=NOW_MS, rows_max=2) for _ in range(3)]

    assert emptied == [2, 1, 0]
    left = (await read_all(place.node(), on_laptop, of_laptop)).payloads
    assert left == [None, None, None, f"phone {of_laptop} 3".encode()]
    assert None not in (await read_all(place.node(), on_phone, of_phone)).payloads
    assert None not in (await read_all(place.node(), on_phone, "notes")).payloads


async def test_no_node_remembers_the_payload_of_a_message(place: Place) -> None:
    """Its device acknowledged it, and so it is gone: also for the node that took it."""
    node, other = place.node(), place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, node, phone)
    on_laptop = await enrol(place, node, phone, laptop)
    inbox = inbox_of(laptop.device_id)
    await append(node, on_phone, *phone.events(inbox, 2))
    assert None not in (await read_all(node, on_laptop, inbox)).payloads
    await place.accounts.save_acks(on_laptop, {inbox: (2, bytes(16))})
    await place.maintenance.empty_inboxes(now_ms=NOW_MS, rows_max=10)
    for each in (node, other):
        assert (await read_all(each, on_laptop, inbox)).payloads == [None, None]
