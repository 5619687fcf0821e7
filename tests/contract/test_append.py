"""Appending: order, idempotence, refusals, what readers find afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keepstep.errors import Unavailable
from keepstep.eventlog.answers import UNCHECKED
from keepstep.eventlog.store import WALK_EVENTS_MAX
from keepstep.model import Capability, Kind, UserPk
from keepstep.protocol.event import NO_PREV
from keepstep.protocol.messages import ResultAccepted, ResultDuplicate, ResultError
from tests.support.events import NOW_MS, DeviceFixture, UserFixture, submission
from tests.support.logs import Place, append, create_account, enrol, read_all

ADA = UserFixture("ada")
TEN_MINUTES_MS = 10 * 60 * 1000


async def test_events_get_consecutive_seqs_and_are_read_back_in_order(place: Place) -> None:
    """What is accepted is what a reader finds, in that order, under a chain that it can recompute."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)

    first = await append(log, principal, *device.events("notes", 3))
    second = await append(log, principal, *device.events("notes", 2), now_ms=NOW_MS + 5)

    reading = await read_all(log, principal, "notes")
    assert isinstance(first[0], ResultAccepted)
    assert (first[0].count, first[0].first_seq, first[0].received_at_ms) == (3, 1, NOW_MS)
    assert second == [ResultAccepted(2, 4, NOW_MS + 5, reading.chain)]
    assert reading.payloads == [f"phone notes {index}".encode() for index in (0, 1, 2, 0, 1)]
    assert {row[1] for row in reading.rows} == {device.device_id}


async def test_a_batch_spans_users_streams_and_submissions(place: Place) -> None:
    """Each stream has seqs of its own; answers are per submission, in the order of its events."""
    log = place.node()
    ada, bob = DeviceFixture(ADA, "phone"), DeviceFixture(UserFixture("bob"), "phone")
    of_ada, of_bob = await create_account(place, log, ada), await create_account(place, log, bob)

    first = submission(of_ada, ada.event("a"), ada.event("b"), ada.event("a"))
    second = submission(of_bob, bob.event("a"))
    third = submission(of_ada, ada.event("a"), ada.event("a"))
    results = (await log.append([first, second, third], now_ms=NOW_MS)).results

    seqs = [[(each.first_seq, each.count) for each in group if isinstance(each, ResultAccepted)] for group in results]
    assert seqs == [[(1, 1), (1, 1), (2, 1)], [(1, 1)], [(3, 2)]]
    assert len((await read_all(log, of_ada, "a")).rows) == 4
    assert len((await read_all(log, of_ada, "b")).rows) == 1
    assert len((await read_all(log, of_bob, "a")).rows) == 1


async def test_the_last_event_sent_again_is_a_duplicate(place: Place) -> None:
    """A retry learns seq, chain and time of what is stored, and stores nothing."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    event = device.event("notes")
    (accepted,) = await append(log, principal, event)
    assert isinstance(accepted, ResultAccepted)

    (again,) = await append(log, principal, event, now_ms=NOW_MS + 1)

    assert again == ResultDuplicate(1, accepted.chain, NOW_MS)
    assert len((await read_all(log, principal, "notes")).rows) == 1


async def test_an_author_behind_the_head_learns_where_its_last_event_is(place: Place) -> None:
    """The author's last event is known by its hash, and where it is not the stream's last, looked up."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    event = phone.event("notes")
    (accepted,) = await append(log, on_phone, event)
    await append(log, on_laptop, laptop.event("notes"), now_ms=NOW_MS + 1)
    assert isinstance(accepted, ResultAccepted)

    assert await append(log, on_phone, event) == [ResultDuplicate(1, accepted.chain, NOW_MS)]


async def test_old_events_are_found_along_their_authors_path(place: Place) -> None:
    """A whole outbox sent again is answered event by event, with what is new among it stored."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    old = device.events("notes", 5)
    await append(log, principal, *old)
    new = device.event("notes")

    results = await append(log, principal, old[1], old[3], old[4], new)

    reading = await read_all(log, principal, "notes")
    assert [result.seq for result in results[:3] if isinstance(result, ResultDuplicate)] == [2, 4, 5]
    assert results[3] == ResultAccepted(1, 6, NOW_MS, reading.chain)
    assert reading.hashes == [event.hash for event in [*old, new]]


async def test_an_event_twice_in_one_batch_is_stored_once(place: Place) -> None:
    """Within a batch too the second one is a duplicate of the first."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    event = device.event("notes")

    batch = [submission(principal, event, event), submission(principal, event)]
    results = (await log.append(batch, now_ms=NOW_MS)).results

    reading = await read_all(log, principal, "notes")
    stored = ResultDuplicate(1, reading.chain, NOW_MS)
    assert results == [[ResultAccepted(1, 1, NOW_MS, reading.chain), stored], [stored]]
    assert len(reading.rows) == 1


async def test_a_retry_after_years_is_still_a_duplicate(place: Place) -> None:
    """The author number is remembered in whatever partition the event is."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    year_ms = 365 * 24 * 3600 * 1000
    events = device.events("notes", 4)
    for year, event in enumerate(events):
        await append(log, principal, event, now_ms=NOW_MS + year * year_ms)

    results = await append(place.node(), principal, *events[:2], now_ms=NOW_MS + 4 * year_ms)

    seqs = [(result.seq, result.received_at_ms) for result in results if isinstance(result, ResultDuplicate)]
    assert seqs == [(1, NOW_MS), (2, NOW_MS + year_ms)]
    assert len((await read_all(place.node(), principal, "notes", now_ms=NOW_MS + 9 * year_ms)).rows) == 4


async def test_far_back_a_duplicate_is_not_checked(place: Place) -> None:
    """Beyond the documented number of the author's own events it is only said that it is stored already."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    events = device.events("notes", WALK_EVENTS_MAX + 2)
    for start in range(0, len(events), 256):
        await append(log, principal, *events[start : start + 256])

    results = await append(log, principal, events[0], events[1], events[2])

    assert results[0] == results[1] == UNCHECKED
    assert isinstance(results[2], ResultDuplicate)
    assert results[2].seq == 3


@pytest.mark.parametrize("index", [0, 2])
async def test_other_bytes_under_an_author_number_are_refused(place: Place, index: int) -> None:
    """The answer tells what is stored there: the author's last event, or an older one."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    events = device.events("notes", 3)
    await append(log, principal, *events)
    before = events[index - 1].hash[:16] if index else NO_PREV

    forged = device.sign("notes", b"other", n=index + 1, prev=before)

    assert await append(log, principal, forged) == [ResultError("id_reused", [index + 1, events[index].hash])]
    assert len((await read_all(log, principal, "notes")).rows) == 3


async def test_a_gap_in_the_author_numbers_is_refused(place: Place) -> None:
    """The device learns its last number and hash, sends from there, and goes on."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    first, second, third = device.events("notes", 3)
    await append(log, principal, first)

    assert await append(log, principal, third) == [ResultError("out_of_order", [1, first.hash])]
    (accepted,) = await append(log, principal, second, third)
    assert isinstance(accepted, ResultAccepted)
    assert (accepted.first_seq, accepted.count) == (2, 2)


async def test_an_older_signing_never_lands_behind_a_newer_one(place: Place) -> None:
    """The next number with another ``prev`` does not follow."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    (event,) = device.events("notes", 1)
    await append(log, principal, event)

    stray = device.sign("notes", b"stray", n=2, prev=b"another" + bytes(9))

    assert await append(log, principal, stray) == [ResultError("out_of_order", [1, event.hash])]


async def test_a_bad_signature_ends_its_event_only(place: Place) -> None:
    """The others of the batch are stored, and who sent it is told apart."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    forged = laptop.sign("notes", b"forged", n=1, prev=NO_PREV)

    batch = [submission(on_phone, phone.event("notes")), submission(on_phone, forged, phone.event("notes"))]
    appended = await log.append([*batch, submission(on_laptop, laptop.event("notes"))], now_ms=NOW_MS)

    assert appended.suspects == {1}
    assert appended.results[1][0] == ResultError("bad_signature", [])
    assert len((await read_all(log, on_phone, "notes")).rows) == 3


async def test_refused_events_create_no_stream(place: Place) -> None:
    """A stream comes into being with its first event, not with an attempt at one."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    reader = DeviceFixture(ADA, "tablet", capabilities=Capability.SUBSCRIBE)
    principal = await create_account(place, log, device)
    of_reader = await enrol(place, log, device, reader)
    forged = reader.sign("forged", n=1, prev=NO_PREV)
    misplaced = device.sign("misplaced", n=1, prev=NO_PREV, kind=Kind.KEYS)
    skipping = device.sign("skipping", n=2, prev=NO_PREV)

    results = [
        *await append(log, of_reader, reader.event("not-allowed")),
        *await append(log, principal, forged),
        *await append(log, principal, misplaced, skipping, device.event("good")),
    ]

    codes = [result.code for result in results if isinstance(result, ResultError)]
    assert codes == ["forbidden", "bad_signature", "malformed", "out_of_order"]
    assert [info.name for info in await log.streams(principal.user_pk)] == ["$devices", "$keys", "good"]


async def test_other_reserved_names_are_no_streams(place: Place) -> None:
    """``$…`` belongs to the protocol."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)

    assert await append(log, principal, device.event("$secrets")) == [ResultError("unknown_stream", [])]


async def test_keys_events_take_the_manage_capability(place: Place) -> None:
    """``$keys`` is there from genesis and is written by devices that manage."""
    log = place.node()
    phone = DeviceFixture(ADA, "phone")
    laptop = DeviceFixture(ADA, "laptop", capabilities=Capability.PUBLISH | Capability.SUBSCRIBE)
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)

    (refused,) = await append(log, on_laptop, laptop.event("$keys", b"wraps", kind=Kind.KEYS))
    (accepted,) = await append(log, on_phone, phone.event("$keys", b"wraps", kind=Kind.KEYS))

    assert refused == ResultError("forbidden", [])
    assert isinstance(accepted, ResultAccepted)
    assert (await read_all(log, on_phone, "$keys")).payloads == [b"wraps"]


async def test_a_user_may_have_so_many_streams(place: Place) -> None:
    """``$devices`` and ``$keys`` count; what is beyond is answered ``limit_exceeded`` and the others are stored."""
    log = place.node(streams_per_user_max=4)
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)

    results = await append(log, principal, *(device.event(name) for name in ("a", "b", "c", "a")))
    later = await append(log, principal, device.event("d"))

    kinds = [result.code if isinstance(result, ResultError) else "" for result in [*results, *later]]
    assert kinds == ["", "", "limit_exceeded", "", "limit_exceeded"]
    assert [info.name for info in await log.streams(principal.user_pk)] == ["$devices", "$keys", "a", "b"]


async def test_a_user_that_is_not_there_has_no_streams(place: Place) -> None:
    """An event of a deleted or invented user is refused; nothing is created for it."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    stranger = replace(principal, user_pk=UserPk(principal.user_pk + 1))

    assert await append(log, stranger, device.event("notes")) == [ResultError("unknown_stream", [])]


async def test_time_never_steps_back_in_a_stream(place: Place) -> None:
    """A clock that was set back does not make an event older than the one before it."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, device.event("notes"), now_ms=NOW_MS + 60_000)

    (accepted,) = await append(log, principal, device.event("notes"), now_ms=NOW_MS)

    assert isinstance(accepted, ResultAccepted)
    assert accepted.received_at_ms == NOW_MS + 60_000


async def test_a_stream_far_ahead_of_the_clock_takes_nothing(place: Place) -> None:
    """It waits for the clock to be put right; other streams go on."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, device.event("ahead"), now_ms=NOW_MS + TEN_MINUTES_MS + 1)

    results = await append(log, principal, device.event("ahead"), device.event("other"))

    assert results[0] == ResultError("unavailable", [1_000])
    assert isinstance(results[1], ResultAccepted)


async def test_a_row_that_the_database_refuses_is_found_and_the_rest_goes_on(place: Place) -> None:
    """Only the event at fault ends; what its author sent after it does not follow any more; no seq is left out."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    await append(log, on_phone, phone.event("notes"))
    place.refuse(b"poison")

    before = phone.events("notes", 2)
    poison, after = phone.event("notes", b"poison"), phone.event("notes")
    others = laptop.events("notes", 3)
    batch = [submission(on_phone, *before, poison, after), submission(on_laptop, *others)]
    results = (await log.append(batch, now_ms=NOW_MS)).results

    reading = await read_all(log, on_phone, "notes")
    assert isinstance(results[0][0], ResultAccepted)
    assert (results[0][0].first_seq, results[0][0].count) == (2, 2)
    assert results[0][1:] == [ResultError("unprocessable", []), ResultError("out_of_order", [3, before[-1].hash])]
    assert results[1] == [ResultAccepted(3, 4, NOW_MS, reading.chain)]
    assert reading.hashes[1:] == [event.hash for event in [*before, *others]]


async def test_while_the_database_is_away_nothing_is_stored_and_nothing_is_lost(place: Place) -> None:
    """The same events are taken when it is back."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    first, second = device.events("notes", 2)
    await append(log, principal, first)

    place.go_away()
    with pytest.raises(Unavailable):
        await append(log, principal, second)
    place.come_back()

    (accepted,) = await append(log, principal, second)
    assert isinstance(accepted, ResultAccepted)
    assert accepted.first_seq == 2


async def test_more_authors_than_a_stream_packs(place: Place) -> None:
    """Above 16 authors a stream keeps them in a table; numbers and duplicates stay exact, on every node."""
    log = place.node()
    first = DeviceFixture(ADA, "first")
    devices = {first.name: (first, await create_account(place, log, first))}
    for number in range(19):
        device = DeviceFixture(ADA, f"device {number}", capabilities=Capability.PUBLISH)
        devices[device.name] = (device, await enrol(place, log, first, device))
    events = {name: device.events("notes", 3) for name, (device, _) in devices.items()}

    for round_, node in enumerate((log, log, place.node())):
        batch = [submission(principal, events[name][round_]) for name, (_, principal) in devices.items()]
        for start in range(0, len(batch), 6):
            results = (await node.append(batch[start : start + 6], now_ms=NOW_MS)).results
            assert {type(result) for group in results for result in group} == {ResultAccepted}

    other = place.node()
    for name, (device, principal) in devices.items():
        again = await append(other, principal, *events[name])
        assert {type(result) for result in again} == {ResultDuplicate}
        assert await other.author(principal.user_pk, "notes", principal.device_pk) == device.authored["notes"]
    assert len((await read_all(other, devices["first"][1], "notes")).rows) == 60


async def test_listeners_hear_of_each_commit(place: Place) -> None:
    """They are told what was added to which stream; of refusals and duplicates they hear nothing."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    heard: list[list[tuple[int, int]]] = []
    log.subscribe_commits(lambda runs: heard.append([(run.stream_pk, run.last_seq) for _, run in runs]))
    principal = await create_account(place, log, device)
    events = [device.event("a"), device.event("b"), device.event("a")]

    await append(log, principal, *events)
    await append(log, principal, *events)

    assert heard == [[(1, 1)], [(3, 2), (4, 1)]]
