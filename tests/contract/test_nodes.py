"""Several nodes on one database: what one remembers is never taken for what is."""

from __future__ import annotations

import pytest

from keepstep.errors import Unavailable
from keepstep.eventlog.heads import LANE_BATCHES
from keepstep.protocol.messages import ResultAccepted, ResultDuplicate, ResultError
from tests.support.events import NOW_MS, DeviceFixture, UserFixture, submission
from tests.support.logs import PAGE_BYTES_MAX, Place, append, create_account, enrol, read_all

ADA = UserFixture("ada")


async def test_a_head_that_another_node_moved_is_loaded_again(place: Place) -> None:
    """Nodes that take turns at a stream number it without a gap, however stale their memory is."""
    nodes = [place.node(), place.node()]
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, nodes[0], device)
    events = device.events("notes", 3 * LANE_BATCHES)

    for index, event in enumerate(events):
        (result,) = await append(nodes[index // 2 % 2], principal, event)
        assert isinstance(result, ResultAccepted)
        assert result.first_seq == index + 1

    assert (await read_all(place.node(), principal, "notes")).hashes == [event.hash for event in events]


async def test_only_the_streams_that_another_node_moved_are_decided_again(place: Place) -> None:
    """The others of the batch are stored as decided; answers keep the order of the events."""
    here, there = place.node(), place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, here, phone)
    on_laptop = await enrol(place, here, phone, laptop)
    await append(here, on_phone, phone.event("a"), phone.event("b"))
    await append(there, on_laptop, laptop.event("b"))

    batch = [phone.event("b"), phone.event("a"), phone.event("b"), phone.event("b"), phone.event("a")]
    results = await append(here, on_phone, *batch)

    seqs = [(each.first_seq, each.count) for each in results if isinstance(each, ResultAccepted)]
    assert seqs == [(3, 1), (2, 1), (4, 2), (3, 1)]
    assert len((await read_all(here, on_phone, "a")).rows) == 3
    assert len((await read_all(here, on_phone, "b")).rows) == 5


async def test_a_retry_at_another_node_is_a_duplicate(place: Place) -> None:
    """Also where that node remembers the stream as it was before."""
    here, there = place.node(), place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, here, device)
    first, second, third = device.events("notes", 3)
    await append(there, principal, first)
    await append(here, principal, second, third)

    results = await append(there, principal, second, third)

    assert [result.seq for result in results if isinstance(result, ResultDuplicate)] == [2, 3]


async def test_out_of_order_is_said_of_the_stream_as_it_is(place: Place) -> None:
    """A node that missed what another one stored does not send the device back behind it."""
    here, there = place.node(), place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, here, device)
    first, second, third, fourth = device.events("notes", 4)
    await append(there, principal, first)
    await append(here, principal, second)

    (accepted,) = await append(there, principal, third)
    assert isinstance(accepted, ResultAccepted)
    assert accepted.first_seq == 3
    assert await append(here, principal, device.sign("notes", n=9, prev=bytes(16))) == [
        ResultError("out_of_order", [3, third.hash])
    ]
    (accepted,) = await append(here, principal, fourth)
    assert isinstance(accepted, ResultAccepted)


async def test_two_nodes_create_different_streams_of_a_user(place: Place) -> None:
    """Numbers of streams are given out once."""
    here, there = place.node(), place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, here, phone)
    on_laptop = await enrol(place, here, phone, laptop)

    await append(here, on_phone, phone.event("b"))
    await append(there, on_laptop, laptop.event("a"), laptop.event("b"))
    await append(here, on_phone, phone.event("a"), phone.event("c"))

    streams = await place.node().streams(on_phone.user_pk)
    assert [(info.name, info.head.seq) for info in streams[2:]] == [("a", 2), ("b", 2), ("c", 1)]
    assert len({info.stream_pk for info in streams}) == 5


async def test_each_node_serves_what_the_other_stored(place: Place) -> None:
    """A tail that ends where another node went on is no answer to what comes next."""
    here, there = place.node(), place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, here, device)

    for node in (here, there, here, there):
        await append(node, principal, *device.events("notes", 2))

    assert len((await read_all(here, principal, "notes")).rows) == 8
    assert len((await read_all(there, principal, "notes")).rows) == 8
    assert (await read_all(here, principal, "notes", after=6)).hashes[-1] == device.authored["notes"][1]


@pytest.mark.parametrize("ask", ["stream", "streams"])
async def test_a_tail_that_another_node_overtook_is_not_taken_for_the_end(place: Place, ask: str) -> None:
    """Whoever was shown the head is not told, further back, that an earlier event is the last one."""
    here, there = place.node(), place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, here, device)
    await append(here, principal, *device.events("notes", 2))
    await append(there, principal, *device.events("notes", 2))

    if ask == "stream":
        head = (await here.stream(principal.user_pk, "notes")).head
    else:
        (head,) = [info.head for info in await here.streams(principal.user_pk) if info.name == "notes"]
    page = await here.read(principal.user_pk, "notes", after=0, events_max=2, bytes_max=PAGE_BYTES_MAX, now_ms=NOW_MS)

    assert head.seq == page.head_seq == 4


async def test_an_account_change_is_stored_upon_the_head_it_was_checked_against(place: Place) -> None:
    """Where another enrolment came first, nothing is stored, and the caller checks again."""
    here, there = place.node(), place.node()
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(place, here, phone)
    first, first_change = phone.enrol(DeviceFixture(ADA, "laptop"), checked_seq=1)
    await append(there, principal, first, account_change=first_change)

    second, stale_change = phone.enrol(DeviceFixture(ADA, "tablet"), checked_seq=1)
    with pytest.raises(Unavailable):
        await append(here, principal, second, account_change=stale_change)
    assert len(await place.accounts.devices(principal.user_pk)) == 2

    (accepted,) = await append(
        here, principal, second, account_change=type(stale_change)(stale_change.enrolled, checked_seq=2)
    )
    assert isinstance(accepted, ResultAccepted)
    assert len(await place.accounts.devices(principal.user_pk)) == 3


async def test_a_device_is_enrolled_once(place: Place) -> None:
    """A retry of the enrolment is a duplicate; another one with the same id or key is refused whole."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    principal = await create_account(place, log, phone)
    event, change = phone.enrol(laptop)
    await append(log, principal, event, account_change=change)

    (again,) = await append(log, principal, event, account_change=change)
    assert isinstance(again, ResultDuplicate)
    event, change = phone.enrol(laptop)
    assert await append(log, principal, event, account_change=change) == [ResultError("unprocessable", [])]

    devices = await place.accounts.devices(principal.user_pk)
    assert [device.entry for device in devices] == [phone.entry, laptop.entry]
    assert (await log.stream(principal.user_pk, "$devices")).head.seq == 2


async def test_an_account_change_is_one_events(place: Place) -> None:
    """A change beside more than one event would be ours to blame."""
    log = place.node()
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, phone)
    event, change = phone.enrol(DeviceFixture(ADA, "laptop"))

    with pytest.raises(AssertionError):
        await log.append([submission(principal, event, event)], now_ms=NOW_MS, account_change=change)
