"""Conflict policies: what each does with events that do not know of each other, applied at the policy's own seq."""

from __future__ import annotations

import pytest

from keepstep.errors import ProtocolError
from keepstep.model import Capability, Kind, Policy, RetentionClass
from keepstep.protocol.messages import ResultAccepted, ResultError
from keepstep.protocol.policy import encode_policy
from tests.support.events import DeviceFixture, SignedEvent, UserFixture
from tests.support.logs import Place, append, create_account, enrol, read_all

ADA = UserFixture("ada")


def policy_event(
    device: DeviceFixture, policy: Policy, *, stream: str = "notes", ttl_max_s: int | None = None
) -> SignedEvent:
    """The device's next event: from here on that policy."""
    return device.event(stream, encode_policy(policy, ttl_max_s=ttl_max_s), kind=Kind.POLICY)


async def test_a_policy_creates_its_stream_and_stays(place: Place) -> None:
    """Also on a node that has not seen it: policy, retention class and longest ttl are the stream's."""
    device = DeviceFixture(ADA, "phone")
    log = place.node()
    principal = await create_account(place, log, device)
    payload = encode_policy(Policy.EXPECT, retention_class=RetentionClass.KEEP, ttl_max_s=60)

    assert isinstance(
        (await append(log, principal, device.event("notes", payload, kind=Kind.POLICY)))[0], ResultAccepted
    )

    for node in (log, place.node()):
        info = await node.stream(principal.user_pk, "notes")
        assert (info.policy, info.retention_class, info.ttl_max_s) == (Policy.EXPECT, RetentionClass.KEEP, 60)
        assert [each.policy for each in await node.streams(principal.user_pk)] == [0, 0, Policy.EXPECT]
    assert (await read_all(log, principal, "notes")).payloads == [payload]


async def test_a_policy_holds_from_the_event_after_its_own_on(place: Place) -> None:
    """In the same batch too: the event before it needs no base, the one after it does."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    before = [device.event("notes", b"free"), policy_event(device, Policy.EXPECT)]

    results = await append(log, principal, *before, device.event("notes", b"without a base"))

    accepted, refused = results
    assert isinstance(accepted, ResultAccepted)
    assert accepted.count == 2
    assert refused == ResultError("conflict", [2, accepted.chain])
    assert (await log.stream(principal.user_pk, "notes")).policy is Policy.EXPECT


async def test_expect_stores_only_what_builds_on_the_head(place: Place) -> None:
    """Of two devices that write at once one learns where the head is and writes anew; a conflict stores nothing."""
    log, other_node = place.node(), place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    (created,) = await append(log, on_phone, policy_event(phone, Policy.EXPECT))
    assert isinstance(created, ResultAccepted)
    head = (1, created.chain)

    (won,) = await append(log, on_phone, phone.event("notes", b"phone", base=head))
    (lost,) = await append(other_node, on_laptop, laptop.sign("notes", b"laptop", n=1, prev=bytes(16), base=head))
    assert isinstance(won, ResultAccepted)
    assert lost == ResultError("conflict", [2, won.chain])
    (again,) = await append(other_node, on_laptop, laptop.event("notes", b"laptop", base=(2, won.chain)))

    assert isinstance(again, ResultAccepted)
    assert (await read_all(place.node(), on_phone, "notes")).payloads[1:] == [b"phone", b"laptop"]


async def test_a_conflict_names_the_head_as_it_is_not_as_it_was_remembered(place: Place) -> None:
    """A node that does not know what another one stored looks before it refuses."""
    stale, fresh = place.node(), place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, stale, device)
    await append(stale, principal, policy_event(device, Policy.EXPECT))
    (moved,) = await append(fresh, principal, device.event("notes", b"one", base=1))
    assert isinstance(moved, ResultAccepted)

    event = device.event("notes", b"two", base=(2, moved.chain))
    assert isinstance((await append(stale, principal, event))[0], ResultAccepted)


async def test_expect_takes_a_chain_of_own_events_in_one_batch(place: Place) -> None:
    """An integer base says: my own previous event; it is the head as long as nobody else wrote."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    await append(log, on_phone, policy_event(phone, Policy.EXPECT))

    (run,) = await append(log, on_phone, *(phone.event("notes", base=n) for n in (1, 2, 3)))
    assert isinstance(run, ResultAccepted)
    assert run.count == 3
    not_its_own = laptop.sign("notes", n=1, prev=bytes(16), base=0)
    assert await append(log, on_laptop, not_its_own) == [ResultError("conflict", [4, run.chain])]
    assert isinstance((await append(log, on_laptop, laptop.event("notes", base=(4, run.chain))))[0], ResultAccepted)
    last_n, last_hash = phone.authored["notes"]
    overtaken = phone.sign("notes", n=last_n + 1, prev=last_hash[:16], base=last_n)
    (answer,) = await append(log, on_phone, overtaken)
    assert isinstance(answer, ResultError)
    assert (answer.code, answer.detail[0]) == ("conflict", 5)


async def test_fork_stores_whatever_the_base_is(place: Place) -> None:
    """Readers see from the signed base what an event did not know."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, policy_event(device, Policy.FORK))

    results = await append(log, principal, *(device.event("notes", base=base) for base in (None, 0, (9, bytes(32)))))

    assert [each.count for each in results if isinstance(each, ResultAccepted)] == [3]


async def test_latest_asks_for_a_key(place: Place) -> None:
    """The event is over, and stores nothing; one with a key goes on."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, policy_event(device, Policy.LATEST))
    authored = dict(device.authored)

    assert await append(log, principal, device.event("notes")) == [ResultError("unprocessable", [])]
    device.authored = authored
    assert isinstance((await append(log, principal, device.event("notes", key=b"k" * 16)))[0], ResultAccepted)


async def test_a_longest_ttl_is_kept(place: Place) -> None:
    """Neither for ever nor longer."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, policy_event(device, Policy.APPEND, ttl_max_s=60))

    for ttl_s, stored in ((None, False), (61, False), (60, True)):
        authored = dict(device.authored)
        (result,) = await append(log, principal, device.event("notes", ttl_s=ttl_s))
        assert isinstance(result, ResultAccepted) == stored
        if not stored:
            assert result == ResultError("unprocessable", [])
            device.authored = authored


@pytest.mark.parametrize("policy", list(Policy))
async def test_a_stream_with_events_changes_from_append_only(place: Place, policy: Policy) -> None:
    """Every other policy has promised something to those who wrote under it; saying it again is no change."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, policy_event(device, policy))

    for then in Policy:
        authored = dict(device.authored)
        (result,) = await append(log, principal, policy_event(device, then))
        if policy in (Policy.APPEND, then):
            assert isinstance(result, ResultAccepted)
            break
        assert result == ResultError("unprocessable", [])
        device.authored = authored
    assert (await log.stream(principal.user_pk, "notes")).policy is policy


async def test_a_stream_with_events_keeps_its_retention_class(place: Place) -> None:
    """Its rows lie in the table of that class."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, device.event("notes"))

    payload = encode_policy(Policy.APPEND, retention_class=RetentionClass.KEEP)
    assert await append(log, principal, device.event("notes", payload, kind=Kind.POLICY)) == [
        ResultError("unprocessable", [])
    ]


async def test_only_a_managing_device_sets_a_policy(place: Place) -> None:
    """And a stream is not created by one that may not."""
    log = place.node()
    phone, pen = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "pen", capabilities=Capability.PUBLISH)
    await create_account(place, log, phone)
    on_pen = await enrol(place, log, phone, pen)

    assert await append(log, on_pen, policy_event(pen, Policy.FORK)) == [ResultError("forbidden", [])]
    with pytest.raises(ProtocolError, match="unknown_stream"):
        await log.stream(on_pen.user_pk, "notes")


async def test_a_policy_set_on_another_node_is_in_force_here(place: Place) -> None:
    """The head that this node remembers is not the stream's any more, so what it decided is decided again."""
    here, there = place.node(), place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, here, device)
    await append(here, principal, device.event("notes"))
    (changed,) = await append(there, principal, policy_event(device, Policy.EXPECT))
    assert isinstance(changed, ResultAccepted)

    assert await append(here, principal, device.event("notes", b"without a base")) == [
        ResultError("conflict", [2, changed.chain])
    ]
