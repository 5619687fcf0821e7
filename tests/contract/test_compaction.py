"""The policy latest: who wins a key, and what losers leave behind."""

from __future__ import annotations

from keepstep.eventlog.store import COMPACTION_DELAY_MS
from keepstep.interfaces import EventLog
from keepstep.model import Kind, Policy, Principal, RetentionClass
from keepstep.protocol.messages import ResultAccepted
from keepstep.protocol.policy import encode_policy
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import Place, append, create_account, enrol, read_all

ADA = UserFixture("ada")
DUE_MS = NOW_MS + COMPACTION_DELAY_MS
LATER_MS = DUE_MS + 1
HLC = NOW_MS << 16


def key(name: str) -> bytes:
    """What an event writes."""
    return name.encode().ljust(16, b"\0")


async def latest_stream(place: Place, log: EventLog, device: DeviceFixture, stream: str = "state") -> Principal:
    """A user with a stream of the policy latest, whose first event is the policy."""
    principal = await create_account(place, log, device)
    await append(log, principal, device.event(stream, encode_policy(Policy.LATEST), kind=Kind.POLICY))
    return principal


async def test_losers_keep_their_payload_for_an_hour(place: Place) -> None:
    """Then header and signature are left; winners, other keys and the policy keep everything, and the chain holds."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await latest_stream(place, log, device)
    policy = encode_policy(Policy.LATEST)
    for payload, name, hlc in ((b"a1", "a", 1), (b"b1", "b", 2), (b"a2", "a", 3), (b"a3", "a", 4)):
        await append(log, principal, device.event("state", payload, key=key(name), hlc=HLC + hlc))

    assert await place.maintenance.compact(now_ms=DUE_MS - 1, rows_max=100) == 0
    assert (await read_all(place.node(), principal, "state")).payloads == [policy, b"a1", b"b1", b"a2", b"a3"]
    assert await place.maintenance.compact(now_ms=DUE_MS, rows_max=100) == 2
    assert await place.maintenance.compact(now_ms=LATER_MS, rows_max=100) == 0
    assert (await read_all(place.node(), principal, "state")).payloads == [policy, None, b"b1", None, b"a3"]


async def test_the_highest_hlc_wins_wherever_it_is(place: Place) -> None:
    """A device that was away for long brings an old value, which loses to what is there."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await latest_stream(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)

    await append(log, on_phone, phone.event("state", b"new", key=key("a"), hlc=HLC + 9))
    await append(log, on_laptop, laptop.event("state", b"old", key=key("a"), hlc=HLC))
    assert await place.maintenance.compact(now_ms=DUE_MS, rows_max=100) == 1

    assert (await read_all(place.node(), on_phone, "state")).payloads[1:] == [b"new", None]


async def test_equal_times_are_decided_by_the_device_id_and_then_the_seq(place: Place) -> None:
    """The same on every node, whatever the order of arrival; of one device the later event wins."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await latest_stream(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    for device, principal in ((phone, on_phone), (laptop, on_laptop), (phone, on_phone), (laptop, on_laptop)):
        await append(log, principal, device.event("state", device.name.encode(), key=key("a"), hlc=HLC))

    assert await place.maintenance.compact(now_ms=DUE_MS, rows_max=100) == 3

    winner = max((phone, laptop), key=lambda device: device.device_id)
    left = dict(enumerate((await read_all(place.node(), on_phone, "state")).payloads, 1))
    assert {seq: payload for seq, payload in left.items() if payload and seq > 1} == {
        4 if winner is phone else 5: winner.name.encode()
    }


async def test_one_batch_may_hold_winners_and_losers_of_many_keys(place: Place) -> None:
    """Also of several streams, and of a key that was there before."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await latest_stream(place, log, device)
    await append(log, principal, device.event("other", encode_policy(Policy.LATEST), kind=Kind.POLICY))
    await append(log, principal, device.event("state", b"a0", key=key("a"), hlc=HLC))

    written = [("state", "a", 2), ("other", "a", 1), ("state", "a", 1), ("state", "b", 1), ("other", "a", 2)]
    events = [
        device.event(stream, f"{name}{hlc}".encode(), key=key(name), hlc=HLC + hlc) for stream, name, hlc in written
    ]
    await append(log, principal, *events)
    assert await place.maintenance.compact(now_ms=DUE_MS, rows_max=100) == 3

    assert (await read_all(place.node(), principal, "state")).payloads[1:] == [None, b"a2", None, b"b1"]
    assert (await read_all(place.node(), principal, "other")).payloads[1:] == [None, b"a2"]


async def test_only_events_after_the_policy_compete(place: Place) -> None:
    """What was appended before it with a key was promised to stay."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, device.event("state", b"before", key=key("a"), hlc=HLC))
    events = [
        device.event("state", encode_policy(Policy.LATEST), kind=Kind.POLICY),
        device.event("state", b"first", key=key("a"), hlc=HLC + 1),
        device.event("state", b"second", key=key("a"), hlc=HLC + 2),
    ]
    (result,) = await append(log, principal, *events)
    assert isinstance(result, ResultAccepted)

    assert await place.maintenance.compact(now_ms=DUE_MS, rows_max=100) == 1
    assert (await read_all(place.node(), principal, "state")).payloads == [
        b"before",
        encode_policy(Policy.LATEST),
        None,
        b"second",
    ]


async def test_compaction_goes_in_steps(place: Place) -> None:
    """Each a short transaction; what is left waits."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await latest_stream(place, log, device)
    await append(log, principal, *(device.event("state", key=key("a"), hlc=HLC + each) for each in range(6)))

    assert [await place.maintenance.compact(now_ms=DUE_MS, rows_max=2) for _ in range(4)] == [2, 2, 1, 0]


async def test_an_expired_winner_leaves_its_key_empty(place: Place) -> None:
    """Losers do not return."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await latest_stream(place, log, device)
    for hlc, ttl_s in ((1, None), (2, 60)):
        await append(log, principal, device.event("state", b"v", key=key("a"), hlc=HLC + hlc, ttl_s=ttl_s))

    assert await place.maintenance.expire_payloads(now_ms=LATER_MS, rows_max=100) == 1
    assert await place.maintenance.compact(now_ms=LATER_MS, rows_max=100) == 1

    reading = await read_all(place.node(), principal, "state", now_ms=LATER_MS)
    assert reading.payloads[1:] == [None, None]


async def test_nodes_agree_on_the_winner(place: Place) -> None:
    """Each node's own heads and transactions; one table of winners."""
    nodes = [place.node(), place.node()]
    device = DeviceFixture(ADA, "phone")
    principal = await latest_stream(place, nodes[0], device)
    for index, hlc in enumerate((1, 4, 3, 2)):
        event = device.event("state", f"{hlc}".encode(), key=key("a"), hlc=HLC + hlc)
        assert isinstance((await append(nodes[index % 2], principal, event))[0], ResultAccepted)

    assert await place.maintenance.compact(now_ms=DUE_MS, rows_max=100) == 3
    assert (await read_all(place.node(), principal, "state")).payloads[1:] == [None, b"4", None, None]


async def test_streams_that_are_kept_are_compacted_too(place: Place) -> None:
    """Their rows lie in another table."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await latest_stream(place, log, device)
    kept = encode_policy(Policy.LATEST, retention_class=RetentionClass.KEEP)
    await append(log, principal, device.event("kept", kept, kind=Kind.POLICY))
    for stream in ("state", "kept"):
        for hlc in (1, 2, 3):
            await append(log, principal, device.event(stream, b"v", key=key("a"), hlc=HLC + hlc))

    assert [await place.maintenance.compact(now_ms=DUE_MS, rows_max=3) for _ in range(3)] == [3, 1, 0]
    for stream in ("state", "kept"):
        assert (await read_all(place.node(), principal, stream)).payloads[1:] == [None, None, b"v"]
