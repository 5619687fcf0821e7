"""Snapshots, confirmations and erasures: checked against what is stored, and done in the event's own transaction."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keepstep._keepstep import Events
from keepstep.eventlog import store
from keepstep.interfaces import EventLog, SnapshotInfo
from keepstep.model import Capability, Kind, Policy, Position, Principal
from keepstep.protocol.messages import Result, ResultAccepted, ResultDuplicate, ResultError
from keepstep.protocol.policy import encode_policy
from keepstep.protocol.snapshot import encode_confirm, encode_erase, encode_snapshot
from tests.support.events import NOW_MS, DeviceFixture, SignedEvent, UserFixture, submission, wire_events
from tests.support.logs import Place, append, create_account, enrol, read_all

ADA = UserFixture("ada")
REFUSED = ResultError("unprocessable", [])
FORBIDDEN = ResultError("forbidden", [])


async def attempt(log: EventLog, principal: Principal, device: DeviceFixture, event: SignedEvent) -> Result:
    """Append an event that may be refused; a refused one takes no author number."""
    (result,) = await append(log, principal, event)
    if not isinstance(result, ResultAccepted):
        device.authored[event.stream] = before(device, event)
    return result


def before(device: DeviceFixture, event: SignedEvent) -> tuple[int, bytes]:
    """The fixture's state before an event it has just signed."""
    return event.n - 1, KEPT[device.device_id, event.stream]


KEPT: dict[tuple[bytes, str], bytes] = {}
"""The hash before the event signed last, by device and stream."""


def sign(device: DeviceFixture, kind: Kind, payload: bytes, *, stream: str = "notes") -> SignedEvent:
    """The device's next event of a kind."""
    KEPT[device.device_id, stream] = device.authored.get(stream, (0, bytes(32)))[1]
    return device.event(stream, payload, kind=kind)


# -- erasures


async def test_an_erasure_drops_payloads_with_its_own_commit(place: Place) -> None:
    """From the next read on, also where they were still in memory; header, signature and chain stay."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, *device.events("notes", 4))
    erasure = encode_erase({device.device_id: [3, 1]})

    assert isinstance(await attempt(log, principal, device, sign(device, Kind.ERASE, erasure)), ResultAccepted)

    for node in (log, place.node()):
        reading = await read_all(node, principal, "notes")
        assert reading.payloads == [None, b"phone notes 1", None, b"phone notes 3", erasure]
    await append(log, principal, device.event("notes", b"after"))
    assert (await read_all(log, principal, "notes")).payloads[4:] == [erasure, b"after"]


async def test_an_erasure_may_be_in_one_batch_with_what_it_erases(place: Place) -> None:
    """Events are decided in order, each upon what the one before left; runs are joined in the answer."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    events = [
        *device.events("notes", 2),
        sign(device, Kind.ERASE, encode_erase({device.device_id: [2]})),
        device.event("notes", b"after"),
        device.event("other", b"elsewhere"),
    ]

    results = await append(log, principal, *events)

    assert [(each.first_seq, each.count) for each in results if isinstance(each, ResultAccepted)] == [(1, 4), (1, 1)]
    payloads = (await read_all(log, principal, "notes")).payloads
    assert (payloads[:2], payloads[3]) == ([b"phone notes 0", None], b"after")


async def test_an_erasure_sent_again_is_a_duplicate(place: Place) -> None:
    """And what is gone may be erased once more."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    erasure = encode_erase({device.device_id: [1]})
    await append(log, principal, device.event("notes", b"gone"))
    event = sign(device, Kind.ERASE, erasure)
    await append(log, principal, event)

    (again,) = await append(log, principal, event)
    (once_more,) = await append(log, principal, sign(device, Kind.ERASE, erasure))

    assert isinstance(again, ResultDuplicate)
    assert isinstance(once_more, ResultAccepted)


async def test_only_a_managing_device_erases_what_others_wrote(place: Place) -> None:
    """Any device its own."""
    log = place.node()
    phone, pen = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "pen", capabilities=Capability.PUBLISH)
    on_phone = await create_account(place, log, phone)
    on_pen = await enrol(place, log, phone, pen)
    await append(log, on_phone, phone.event("notes", b"of phone"))
    await append(log, on_pen, *(pen.event("notes", b"of pen") for _ in range(2)))
    of_phone, of_pen = {phone.device_id: [1]}, {pen.device_id: [1]}

    assert await attempt(log, on_pen, pen, sign(pen, Kind.ERASE, encode_erase(of_phone))) == FORBIDDEN
    assert await attempt(log, on_pen, pen, sign(pen, Kind.ERASE, encode_erase(of_phone | of_pen))) == FORBIDDEN
    assert isinstance(await attempt(log, on_pen, pen, sign(pen, Kind.ERASE, encode_erase(of_pen))), ResultAccepted)
    both = encode_erase({phone.device_id: [1], pen.device_id: [2]})
    assert isinstance(await attempt(log, on_phone, phone, sign(phone, Kind.ERASE, both)), ResultAccepted)
    assert (await read_all(log, on_phone, "notes")).payloads[:3] == [None, None, None]


async def test_what_cannot_be_erased_is_said_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events to come, of strangers, that say how to read the stream, or too far back: all or nothing goes."""
    log = place.node()
    device, stranger = DeviceFixture(ADA, "phone"), DeviceFixture(UserFixture("bob"), "phone")
    principal = await create_account(place, log, device)
    await create_account(place, log, stranger)
    await append(log, principal, device.event("notes", encode_policy(Policy.APPEND), kind=Kind.POLICY))
    await append(log, principal, *device.events("notes", 2))

    for named in ({device.device_id: [2, 9]}, {stranger.device_id: [1]}, {device.device_id: [1]}):
        assert await attempt(log, principal, device, sign(device, Kind.ERASE, encode_erase(named))) == REFUSED
    for walk in ("keepstep.memory.apart", "keepstep.postgres.apart"):
        monkeypatch.setattr(f"{walk}.ERASE_WALK_EVENTS_MAX", 1)
    too_far = encode_erase({device.device_id: [2]})
    assert await attempt(log, principal, device, sign(device, Kind.ERASE, too_far)) == REFUSED
    assert None not in (await read_all(log, principal, "notes")).payloads


@pytest.mark.parametrize("kind", [Kind.SNAPSHOT, Kind.CONFIRM, Kind.ERASE])
async def test_another_form_is_malformed(place: Place, kind: Kind) -> None:
    """The server reads these payloads; the other events of the batch go on."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)

    results = await append(log, principal, device.event("notes", b"fine"), sign(device, kind, b"\x91\x01"))
    assert [type(each) for each in results] == [ResultAccepted, ResultError]
    assert results[1] == ResultError("malformed", [])
    device.authored["notes"] = (1, KEPT[device.device_id, "notes"])
    assert await attempt(log, principal, device, sign(device, kind, b"\x92\x02\x01")) == ResultError("unsupported", [])


async def test_only_a_writing_device_may(place: Place) -> None:
    """A display can neither snapshot nor erase."""
    log = place.node()
    phone, display = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "display", capabilities=Capability.SUBSCRIBE)
    await create_account(place, log, phone)
    on_display = await enrol(place, log, phone, display)
    for kind in (Kind.SNAPSHOT, Kind.CONFIRM, Kind.ERASE):
        assert await attempt(log, on_display, display, sign(display, kind, b"")) == FORBIDDEN


# -- snapshots


async def two_devices(place: Place, log: EventLog) -> tuple[DeviceFixture, Principal, DeviceFixture, Principal]:
    """A phone and a laptop that both wrote into notes."""
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    await append(log, on_phone, *phone.events("notes", 2))
    await append(log, on_laptop, laptop.event("notes", b"laptop"))
    return phone, on_phone, laptop, on_laptop


async def test_a_snapshot_is_kept_and_confirmed_by_another_device(place: Place) -> None:
    """The first confirmation counts; the newest snapshot is listed first."""
    log = place.node()
    phone, on_phone, laptop, on_laptop = await two_devices(place, log)
    covers = Position(3, await log.chain_at(on_phone.user_pk, "notes", 3))
    older = Position(1, await log.chain_at(on_phone.user_pk, "notes", 1))
    first = encode_snapshot(covers, {phone.device_id: 2, laptop.device_id: 1}, b"sealed")
    second = encode_snapshot(older, {phone.device_id: 1}, b"sealed too")
    assert await log.snapshots(on_phone.user_pk, "notes") == []

    for payload in (first, second):
        assert isinstance(await attempt(log, on_phone, phone, sign(phone, Kind.SNAPSHOT, payload)), ResultAccepted)
    confirm = sign(laptop, Kind.CONFIRM, encode_confirm(4))
    assert isinstance(await attempt(log, on_laptop, laptop, confirm), ResultAccepted)
    again = sign(laptop, Kind.CONFIRM, encode_confirm(4))
    assert isinstance(await attempt(log, on_laptop, laptop, again), ResultAccepted)

    assert await place.node().snapshots(on_phone.user_pk, "notes") == [
        SnapshotInfo(5, older, phone.device_id, NOW_MS, None),
        SnapshotInfo(4, covers, phone.device_id, NOW_MS, (6, laptop.device_id)),
    ]
    assert (await read_all(log, on_phone, "notes")).payloads[3:5] == [first, second]


async def test_a_snapshot_must_fit_the_stream(place: Place) -> None:
    """Its chain is the stream's at that seq, and no author is further than it is."""
    log = place.node()
    phone, on_phone, laptop, _ = await two_devices(place, log)
    covers = Position(3, await log.chain_at(on_phone.user_pk, "notes", 3))
    authors = {phone.device_id: 2, laptop.device_id: 1}

    for position, vector in (
        (Position(2, covers.chain), authors),
        (Position(9, covers.chain), authors),
        (Position(3, bytes(32)), authors),
        (covers, authors | {laptop.device_id: 2}),
        (covers, authors | {bytes(16): 1}),
    ):
        event = sign(phone, Kind.SNAPSHOT, encode_snapshot(position, vector, b"sealed"))
        assert await attempt(log, on_phone, phone, event) == REFUSED
    assert await log.snapshots(on_phone.user_pk, "notes") == []


async def test_a_snapshot_is_confirmed_by_another_device_if_there_is_one(place: Place) -> None:
    """Who has only one device confirms its own; a confirmation names a snapshot."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    await append(log, on_phone, phone.event("notes", b"one"))
    covers = Position(1, await log.chain_at(on_phone.user_pk, "notes", 1))
    for _ in range(2):
        event = sign(phone, Kind.SNAPSHOT, encode_snapshot(covers, {phone.device_id: 1}, b"sealed"))
        await append(log, on_phone, event)

    confirm = sign(phone, Kind.CONFIRM, encode_confirm(1))
    assert await attempt(log, on_phone, phone, confirm) == REFUSED
    confirm = sign(phone, Kind.CONFIRM, encode_confirm(2))
    assert isinstance(await attempt(log, on_phone, phone, confirm), ResultAccepted)
    await enrol(place, log, phone, laptop)
    assert await attempt(log, on_phone, phone, sign(phone, Kind.CONFIRM, encode_confirm(3))) == FORBIDDEN


async def test_an_erased_snapshot_stays_listed(place: Place) -> None:
    """Its state is gone, as its author or a managing device wanted."""
    log = place.node()
    phone, on_phone, _, _ = await two_devices(place, log)
    covers = Position(1, await log.chain_at(on_phone.user_pk, "notes", 1))
    await append(log, on_phone, sign(phone, Kind.SNAPSHOT, encode_snapshot(covers, {phone.device_id: 1}, b"sealed")))
    await append(log, on_phone, sign(phone, Kind.ERASE, encode_erase({phone.device_id: [3]})))

    assert (await read_all(log, on_phone, "notes")).payloads[3] is None
    assert [each.seq for each in await log.snapshots(on_phone.user_pk, "notes")] == [4]


async def test_only_the_newest_snapshots_are_listed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what a device starts from."""
    monkeypatch.setattr("keepstep.eventlog.log.SNAPSHOTS_MAX", 2)
    assert store.SNAPSHOTS_MAX > 2
    log = place.node()
    phone, on_phone, _, _ = await two_devices(place, log)
    covers = Position(1, await log.chain_at(on_phone.user_pk, "notes", 1))
    payload = encode_snapshot(covers, {phone.device_id: 1}, b"sealed")
    await append(log, on_phone, *(sign(phone, Kind.SNAPSHOT, payload) for _ in range(3)))

    assert [each.seq for each in await log.snapshots(on_phone.user_pk, "notes")] == [6, 5]


async def test_an_erased_snapshot_that_comes_back_with_its_account_is_not_listed(place: Place) -> None:
    """Stored again without its payload, as an export has it: nothing to start from, and its confirmation comes too."""
    log = place.node()
    phone, on_phone, _, _ = await two_devices(place, log)
    covers = Position(1, await log.chain_at(on_phone.user_pk, "notes", 1))
    event = sign(phone, Kind.SNAPSHOT, encode_snapshot(covers, {phone.device_id: 1}, b"sealed"))
    raw = wire_events(replace(event, payload=None))
    events = Events.parse(raw, events_max=1, payload_bytes_max=1, payloads_may_be_missing=True)

    batch = [submission(on_phone, event).with_events(events)]
    ((result,),) = (await log.append(batch, now_ms=NOW_MS)).results

    assert isinstance(result, ResultAccepted)
    assert (await read_all(place.node(), on_phone, "notes")).payloads[3:] == [None]
    assert await log.snapshots(on_phone.user_pk, "notes") == []

    log = place.node()
    confirm = sign(phone, Kind.CONFIRM, encode_confirm(4))
    assert isinstance(await attempt(log, on_phone, phone, confirm), ResultAccepted)
    assert await log.snapshots(on_phone.user_pk, "notes") == []
    for seq in (1, 99):
        assert await attempt(log, on_phone, phone, sign(phone, Kind.CONFIRM, encode_confirm(seq))) == REFUSED
    await append(log, on_phone, sign(phone, Kind.ERASE, encode_erase({phone.device_id: [1]})))
    assert await attempt(log, on_phone, phone, sign(phone, Kind.CONFIRM, encode_confirm(1))) == REFUSED
