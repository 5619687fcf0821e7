"""What takes away the oldest events of streams: what goes, what stays, and how the log answers for what is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from keepstep.administration import Quota
from keepstep.client import crypto
from keepstep.errors import ProtocolError, Pruned, Unavailable
from keepstep.eventlog.retention import DAY_MS, SNAPSHOT_DELAY_MS, Advanced, RetentionRules
from keepstep.model import Kind, Policy, Position, PrunedPrefix, RetentionClass, inbox_of
from keepstep.protocol.chain import event_hash
from keepstep.protocol.messages import ResultAccepted, ResultDuplicate, ResultError
from keepstep.protocol.policy import encode_policy
from keepstep.protocol.snapshot import encode_confirm, encode_erase, encode_snapshot
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import Place, append, create_account, enrol, read_all

if TYPE_CHECKING:
    from keepstep.model import Principal
    from tests.support.events import SignedEvent

ADA: Final = UserFixture("ada")
BEN: Final = UserFixture("ben")
FOR_EVER: Final = RetentionRules(None)
THIRTY_DAYS: Final = RetentionRules(30)
MUCH_LATER_MS: Final = NOW_MS + 60 * DAY_MS


async def prune(
    place: Place, *, now_ms: int = MUCH_LATER_MS, rules: RetentionRules = FOR_EVER, events_max: int = 100
) -> list[tuple[int, int]]:
    """Advance all tails, then take away what can go; (from_seq, to_seq) of each step."""
    steps: list[tuple[int, int]] = []
    while (step := await place.retention.advance_tail(now_ms=now_ms, rules=rules, events_max=events_max)) is not None:
        if step.to_seq > step.from_seq:
            steps.append((step.from_seq, step.to_seq))
    await place.retention.drop_partitions(now_ms=now_ms)
    while await place.retention.remove_rows(rows_max=2):
        pass
    return steps


async def hash_of(event: SignedEvent) -> bytes:
    """An event's hash."""
    return event_hash(crypto, event.header, event.sig)


async def test_what_is_too_old_goes_and_the_rest_still_verifies(place: Place) -> None:
    """In bounded steps; the chain goes on from where the tail is, and each author's last number is known there."""
    log = place.node(tail_bytes_max=0)
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    old = phone.events("notes", 3)
    await append(log, on_phone, *old)
    other = laptop.event("notes", b"of the laptop")
    await append(log, on_laptop, other)
    await append(log, on_phone, phone.event("notes", b"young"), now_ms=MUCH_LATER_MS)
    before = await read_all(log, on_phone, "notes")
    at_tail = await log.chain_at(on_phone.user_pk, "notes", 4)

    steps = await prune(place, rules=THIRTY_DAYS, events_max=3)

    assert steps == [(0, 3), (3, 4)]
    fresh = place.node()
    left = await read_all(fresh, on_phone, "notes", after=4)
    assert left.rows == before.rows[4:]
    pruned = await fresh.pruned(on_phone.user_pk, "notes")
    assert pruned is not None
    assert pruned.to == Position(4, at_tail)
    assert pruned.authors == {phone.device_id: (3, await hash_of(old[2])), laptop.device_id: (1, await hash_of(other))}
    assert pruned.kept == ()
    info = await fresh.stream(on_phone.user_pk, "notes")
    assert info.tail == pruned.to
    assert info.stored_bytes == sum(len(row[3]) + len(row[4]) + len(row[5] or b"") for row in left.rows)


async def test_reading_what_is_gone_says_where_the_stream_begins(place: Place) -> None:
    """Below the tail there is neither an event nor a chain; at it there is the chain."""
    log = place.node(tail_bytes_max=0)
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, phone)
    await append(log, principal, *phone.events("notes", 3))
    chain = await log.chain_at(principal.user_pk, "notes", 3)
    await append(log, principal, phone.event("notes"), now_ms=MUCH_LATER_MS)
    await prune(place, rules=THIRTY_DAYS)

    for after in (0, 2):
        with pytest.raises(Pruned) as gone:
            await log.read(principal.user_pk, "notes", after=after, events_max=9, bytes_max=9_999, now_ms=NOW_MS)
        assert (gone.value.code, gone.value.after, gone.value.to_seq) == ("pruned", after, 3)
    with pytest.raises(Pruned):
        await log.chain_at(principal.user_pk, "notes", 2)
    assert await log.chain_at(principal.user_pk, "notes", 3) == chain
    with pytest.raises(ProtocolError, match="unknown_position"):
        await log.chain_at(principal.user_pk, "notes", 5)


async def test_a_stream_may_lose_all_its_events_and_goes_on(place: Place) -> None:
    """The next event follows the head; sending an old one again is a duplicate that nobody looks up."""
    log = place.node(tail_bytes_max=0)
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, phone)
    events = phone.events("notes", 3)
    await append(log, principal, *events)
    assert await prune(place, rules=THIRTY_DAYS) == [(0, 3)]

    again = await append(log, principal, events[1], now_ms=MUCH_LATER_MS)
    (stored,) = await append(log, principal, phone.event("notes", b"next"), now_ms=MUCH_LATER_MS)

    assert again == [ResultDuplicate(None, None, None)]
    assert isinstance(stored, ResultAccepted)
    assert stored.first_seq == 4
    assert (await read_all(place.node(), principal, "notes", after=3)).payloads == [b"next"]
    assert await prune(place, rules=THIRTY_DAYS) == []
    assert await log.author(principal.user_pk, "notes", principal.device_pk) == (4, phone.authored["notes"][1])
    assert await prune(place, now_ms=MUCH_LATER_MS + 60 * DAY_MS, rules=THIRTY_DAYS) == [(3, 4)]


async def test_what_is_kept_for_ever_stays(place: Place) -> None:
    """``$devices``, ``$keys``, and streams that their policy has kept."""
    log = place.node(tail_bytes_max=0)
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, phone)
    keep = encode_policy(Policy.APPEND, retention_class=RetentionClass.KEEP)
    await append(log, principal, phone.event("notes", keep, kind=Kind.POLICY), *phone.events("notes", 2))

    assert await prune(place, rules=THIRTY_DAYS) == []

    assert len((await read_all(log, principal, "notes")).rows) == 3
    assert len((await read_all(log, principal, "$devices")).rows) == 1


async def test_the_shortest_retention_counts(place: Place) -> None:
    """A user's own is for that user only; a longer one than the server's changes nothing."""
    log = place.node(tail_bytes_max=0)
    principals: list[Principal] = []
    for user, days in ((ADA, 10), (BEN, None)):
        phone = DeviceFixture(user, "phone")
        principal = await create_account(place, log, phone)
        await append(log, principal, *phone.events("notes", 3))
        await place.administration.set_quota(principal.user_pk, Quota(retention_days=days))
        principals.append(principal)
    ada, ben = principals

    assert await prune(place, now_ms=NOW_MS + 9 * DAY_MS) == []
    assert await prune(place, now_ms=NOW_MS + 11 * DAY_MS) == [(0, 3)]
    assert (await log.stream(ada.user_pk, "notes")).tail is not None
    assert (await log.stream(ben.user_pk, "notes")).tail is None
    assert (await place.administration.quota(ada.user_pk)).retention_days == 10

    await place.administration.set_quota(ben.user_pk, Quota(retention_days=365))
    assert await prune(place, rules=THIRTY_DAYS) == [(0, 3)]


async def test_a_confirmed_snapshot_lets_go_of_what_it_covers(place: Place) -> None:
    """A week after another device has confirmed it, and not before."""
    log = place.node(tail_bytes_max=0)
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    await append(log, on_phone, *phone.events("notes", 4))
    chain = await log.chain_at(on_phone.user_pk, "notes", 3)
    snapshot = encode_snapshot(Position(3, chain), {phone.device_id: 3}, b"state")
    await append(log, on_phone, phone.event("notes", snapshot, kind=Kind.SNAPSHOT))
    assert await prune(place) == []
    await append(log, on_laptop, laptop.event("notes", encode_confirm(5), kind=Kind.CONFIRM), now_ms=NOW_MS + 1)

    assert await prune(place, now_ms=NOW_MS + SNAPSHOT_DELAY_MS) == []
    assert await prune(place, now_ms=NOW_MS + SNAPSHOT_DELAY_MS + 1) == [(0, 3)]

    assert len((await read_all(place.node(), on_phone, "notes", after=3)).rows) == 3
    (listed,) = await log.snapshots(on_phone.user_pk, "notes")
    assert (listed.seq, listed.covers.seq) == (5, 3)


async def test_policy_and_snapshot_are_kept_as_signed(place: Place) -> None:
    """The policy in force and the newest confirmed snapshot with its confirmation; an erasure reaches it there too."""
    log = place.node(tail_bytes_max=0)
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    policies = [
        phone.event("notes", encode_policy(policy), kind=Kind.POLICY) for policy in (Policy.APPEND, Policy.LATEST)
    ]
    await append(log, on_phone, *policies)
    chain = await log.chain_at(on_phone.user_pk, "notes", 2)
    state = encode_snapshot(Position(2, chain), {phone.device_id: 2}, b"state")
    snapshot = phone.event("notes", state, kind=Kind.SNAPSHOT)
    await append(log, on_phone, snapshot)
    confirmation = laptop.event("notes", encode_confirm(3), kind=Kind.CONFIRM)
    await append(log, on_laptop, confirmation)

    await prune(place, rules=THIRTY_DAYS, events_max=1)

    pruned = await log.pruned(on_phone.user_pk, "notes")
    assert pruned is not None
    assert [(row[0], row[1], row[3:]) for row in pruned.kept] == [
        (seq, device.device_id, (event.header, event.sig, event.payload))
        for seq, device, event in ((2, phone, policies[1]), (3, phone, snapshot), (4, laptop, confirmation))
    ]
    assert await log.snapshots(on_phone.user_pk, "notes") == []
    erase = phone.event("notes", encode_erase({phone.device_id: [3]}), kind=Kind.ERASE)
    (result,) = await append(log, on_phone, erase, now_ms=MUCH_LATER_MS)
    assert isinstance(result, ResultAccepted)
    after = await log.pruned(on_phone.user_pk, "notes")
    assert after is not None
    assert [row[5] for row in after.kept] == [policies[1].payload, None, confirmation.payload]


async def test_an_erasure_of_what_is_gone_is_stored(place: Place) -> None:
    """Other devices hold it still and are told; what is left of the stream is erased as ever."""
    log = place.node(tail_bytes_max=0)
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, phone)
    await append(log, principal, *phone.events("notes", 2))
    await append(log, principal, phone.event("notes", b"young"), now_ms=MUCH_LATER_MS)
    await prune(place, rules=THIRTY_DAYS)

    erase = phone.event("notes", encode_erase({phone.device_id: [1, 3]}), kind=Kind.ERASE)
    (result,) = await append(log, principal, erase, now_ms=MUCH_LATER_MS)
    beyond = phone.event("notes", encode_erase({phone.device_id: [1, 9]}), kind=Kind.ERASE)
    (refused,) = await append(log, principal, beyond, now_ms=MUCH_LATER_MS)

    assert isinstance(result, ResultAccepted)
    assert refused == ResultError("unprocessable", [])
    assert (await read_all(log, principal, "notes", after=2)).payloads == [None, erase.payload]


async def test_an_inbox_loses_what_its_device_has(place: Place) -> None:
    """Up to what that device has acknowledged; another device's acknowledgement changes nothing."""
    log = place.node(tail_bytes_max=0)
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    inbox = inbox_of(laptop.device_id)
    await append(log, on_phone, *phone.events(inbox, 5))
    await place.accounts.save_acks(on_phone, {inbox: (5, bytes(16))})
    await place.accounts.save_acks(on_laptop, {inbox: (3, bytes(16))})
    await place.maintenance.empty_inboxes(now_ms=NOW_MS, rows_max=10)

    assert await prune(place, now_ms=NOW_MS) == [(0, 3)]

    left = await read_all(place.node(), on_laptop, inbox, after=3)
    assert [row[0] for row in left.rows] == [4, 5]
    info = await log.stream(on_phone.user_pk, inbox)
    assert info.stored_bytes == sum(len(row[3]) + len(row[4]) + len(row[5] or b"") for row in left.rows)


async def test_payloads_below_a_tail_are_gone_for_good(place: Place) -> None:
    """What drops payloads later finds nothing there, and counts nothing twice."""
    log = place.node(tail_bytes_max=0)
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, phone)
    await append(log, principal, *(phone.event("notes", b"short", ttl_s=1) for _ in range(2)))
    await append(log, principal, phone.event("notes", b"young"), now_ms=MUCH_LATER_MS)
    await place.retention.advance_tail(now_ms=MUCH_LATER_MS, rules=THIRTY_DAYS, events_max=9)

    await place.maintenance.expire_payloads(now_ms=MUCH_LATER_MS, rows_max=10)

    left = await read_all(log, principal, "notes", after=2)
    info = await log.stream(principal.user_pk, "notes")
    assert info.stored_bytes == sum(len(row[3]) + len(row[4]) + len(row[5] or b"") for row in left.rows)


async def test_a_step_says_how_far_it_came(place: Place) -> None:
    """Whose stream, from where and to where; and what is overdue is told until it has gone."""
    log = place.node(tail_bytes_max=0)
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, phone)
    await append(log, principal, *phone.events("notes", 2))
    stream = await log.stream(principal.user_pk, "notes")
    before = await place.retention.state(now_ms=MUCH_LATER_MS, rules=THIRTY_DAYS)

    step = await place.retention.advance_tail(now_ms=MUCH_LATER_MS, rules=THIRTY_DAYS, events_max=9)

    assert step == Advanced(principal.user_pk, stream.stream_pk, 0, 2)
    assert before.oldest_at_ms == NOW_MS
    assert before.overdue_ms > 20 * DAY_MS
    await prune(place, rules=THIRTY_DAYS)
    after = await place.retention.state(now_ms=MUCH_LATER_MS, rules=THIRTY_DAYS)
    assert (after.oldest_at_ms, after.overdue_ms, after.waiting_rows, after.waiting_partitions) == (None, 0, 0, 0)
    assert (await place.retention.state(now_ms=MUCH_LATER_MS, rules=FOR_EVER)).overdue_ms == 0


async def test_what_is_not_in_the_archive_stays(place: Place) -> None:
    """Where there is an archive, only what is in it may go."""
    log = place.node(tail_bytes_max=0)
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, phone)
    await append(log, principal, *phone.events("notes", 2))

    assert await prune(place, rules=RetentionRules(30, only_archived=True)) == []

    assert len((await read_all(log, principal, "notes")).rows) == 2


async def test_nothing_is_left_of_a_deleted_account_that_was_pruned(place: Place) -> None:
    """What stood for the beginning of its streams goes with it."""
    log = place.node(tail_bytes_max=0)
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, phone)
    policy = encode_policy(Policy.LATEST)
    await append(log, principal, phone.event("notes", policy, kind=Kind.POLICY), *phone.events("notes", 2))
    await place.administration.set_quota(principal.user_pk, Quota(retention_days=1))
    while (await place.retention.advance_tail(now_ms=MUCH_LATER_MS, rules=FOR_EVER, events_max=1)) is not None:
        pass
    await place.administration.delete_user(principal.user_pk, ADA.user_key, now_ms=MUCH_LATER_MS)

    while await place.administration.remove_deleted(before_ms=MUCH_LATER_MS, rows_max=2):
        pass

    assert (await place.retention.state(now_ms=MUCH_LATER_MS, rules=FOR_EVER)).waiting_rows == 0
    assert await place.node().streams(principal.user_pk) == []


async def test_retention_is_unavailable_while_the_database_is_away(place: Place) -> None:
    """It is tried again later."""
    place.go_away()
    with pytest.raises(Unavailable):
        await place.retention.advance_tail(now_ms=NOW_MS, rules=FOR_EVER, events_max=1)
    with pytest.raises(Unavailable):
        await place.retention.remove_rows(rows_max=1)
    with pytest.raises(Unavailable):
        await place.retention.drop_partitions(now_ms=NOW_MS)
    with pytest.raises(Unavailable):
        await place.retention.state(now_ms=NOW_MS, rules=FOR_EVER)
    place.come_back()
    assert await place.retention.remove_rows(rows_max=1) == 0


@pytest.mark.parametrize("authors", [2, 20])
async def test_a_stream_comes_to_another_server_without_its_beginning(place: Place, authors: int) -> None:
    """As its old server showed it; the next events follow there, and it begins once."""
    log = place.node(tail_bytes_max=0)
    phone = DeviceFixture(ADA, "phone")
    on_phone = await create_account(place, log, phone)
    devices = [phone, *(DeviceFixture(ADA, f"device {number}") for number in range(authors - 1))]
    for device in devices[1:]:
        await enrol(place, log, phone, device)
    events = [device.event("notes", b"gone") for device in devices]
    policy = phone.event("notes", encode_policy(Policy.EXPECT), kind=Kind.POLICY)
    chain = b"c" * 32
    prefix = PrunedPrefix(
        Position(authors + 1, chain),
        {device.device_id: (event.n, await hash_of(event)) for device, event in zip(devices, events, strict=True)}
        | {phone.device_id: (2, await hash_of(policy))},
        ((authors + 1, phone.device_id, NOW_MS, policy.header, policy.sig, policy.payload),),
    )

    assert await log.begin_after(on_phone.user_pk, "notes", prefix, now_ms=NOW_MS)
    assert not await log.begin_after(on_phone.user_pk, "notes", prefix, now_ms=NOW_MS)

    fresh = place.node(tail_bytes_max=0)
    info = await fresh.stream(on_phone.user_pk, "notes")
    assert (info.head, info.tail, info.policy) == (prefix.to, prefix.to, Policy.EXPECT)
    assert await fresh.pruned(on_phone.user_pk, "notes") == prefix
    late = await append(fresh, on_phone, phone.event("notes", b"builds on nothing"))
    assert late == [ResultError("conflict", [authors + 1, chain])]
    phone.authored["notes"] = (2, await hash_of(policy))
    (stored,) = await append(fresh, on_phone, phone.event("notes", b"next", base=(authors + 1, chain)))
    assert isinstance(stored, ResultAccepted)
    assert stored.first_seq == authors + 2
    assert await append(fresh, on_phone, events[0]) == [ResultDuplicate(None, None, None)]


async def test_only_devices_of_the_user_wrote_what_is_gone(place: Place) -> None:
    """Nothing is created for others."""
    log = place.node()
    principal = await create_account(place, log, DeviceFixture(ADA, "phone"))
    prefix = PrunedPrefix(Position(1, b"c" * 32), {b"nobody's device!": (1, b"h" * 32)}, ())
    with pytest.raises(ProtocolError, match="unprocessable"):
        await log.begin_after(principal.user_pk, "notes", prefix, now_ms=NOW_MS)
    with pytest.raises(ProtocolError, match="unknown_stream"):
        await log.stream(principal.user_pk, "notes")
