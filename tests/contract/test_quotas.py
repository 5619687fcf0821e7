"""Bytes that streams and accounts hold: counted to the byte, bounded, and free again when payloads go."""

from __future__ import annotations

from keepstep.administration import Quota
from keepstep.eventlog.rooms import GRANT_BYTES
from keepstep.eventlog.store import COMPACTION_DELAY_MS
from keepstep.interfaces import EventLog
from keepstep.model import Kind, Policy, Principal, inbox_of
from keepstep.protocol.messages import Result, ResultAccepted, ResultDuplicate, ResultError
from keepstep.protocol.policy import encode_policy
from keepstep.protocol.snapshot import encode_erase
from tests.support.events import NOW_MS, DeviceFixture, SignedEvent, UserFixture
from tests.support.logs import Place, append, create_account, enrol, read_all

ADA = UserFixture("ada")
FULL = ResultError("quota_exceeded", [])


def size(*events: SignedEvent) -> int:
    """What events take: header, signature, payload."""
    return sum(len(event.header) + len(event.sig) + len(event.payload or b"") for event in events)


def bounded(device: DeviceFixture, bytes_max: int | None, policy: Policy = Policy.APPEND) -> SignedEvent:
    """The device's next event of ``notes``: from here on that bound."""
    return device.event("notes", encode_policy(policy, stream_bytes_max=bytes_max), kind=Kind.POLICY)


async def attempt(log: EventLog, principal: Principal, device: DeviceFixture, stream: str, payload: bytes) -> Result:
    """Append the device's next event of a stream; a refused one takes no author number."""
    last = device.authored.get(stream, (0, bytes(32)))
    (result,) = await append(log, principal, device.event(stream, payload))
    if isinstance(result, ResultError):
        device.authored[stream] = last
    return result


async def stored(log: EventLog, principal: Principal, stream: str = "notes") -> int:
    """What a stream holds as the log says."""
    return (await log.stream(principal.user_pk, stream)).stored_bytes


async def held(place: Place, principal: Principal, stream: str = "notes") -> int:
    """What the rows of a stream take."""
    rows = (await read_all(place.node(), principal, stream)).rows
    return sum(len(header) + len(sig) + len(payload or b"") for _, _, _, header, sig, payload, _ in rows)


async def test_bytes_are_counted_by_stream_and_by_user(place: Place) -> None:
    """Whichever node stores them; what is refused or a duplicate does not count."""
    log, other = place.node(), place.node()
    phone, tablet = DeviceFixture(ADA, "phone"), DeviceFixture(UserFixture("ben"), "tablet")
    ada, ben = await create_account(place, log, phone), await create_account(place, log, tablet)
    first, second, third = phone.event("notes", b"one"), phone.event("notes", b"three"), phone.event("more", b"")
    await append(log, ada, first, third)
    await append(other, ada, second, first)
    await append(log, ada, phone.event("notes", b"four"), first)
    await append(log, ben, tablet.event("notes", b"of another"))

    assert await stored(log, ada) == await held(place, ada) > size(first, second)
    listed = await place.administration.user(ADA.user_key)
    assert listed is not None
    assert listed.stored_bytes == await stored(other, ada) + size(third)
    assert listed.reserved_bytes == await held(place, ada, "$devices")


async def test_a_stream_takes_what_its_policy_says_to_the_byte(place: Place) -> None:
    """The first event above it is refused, on every node; a new policy lifts the bound."""
    log, other = place.node(), place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    policy = bounded(device, 2_000)
    await append(log, principal, policy)
    info = await log.stream(principal.user_pk, "notes")
    assert (info.bytes_max, info.stored_bytes) == (2_000, size(policy))
    assert isinstance(await attempt(log, principal, device, "notes", b"x" * 1_000), ResultAccepted)
    room = 2_000 - await stored(log, principal)
    last = device.authored["notes"]
    overhead = size(device.event("notes", b"y" * 600)) - 600
    device.authored["notes"] = last
    for node in (log, other):
        assert await attempt(node, principal, device, "notes", b"y" * (room - overhead + 1)) == FULL
    fitting = device.event("notes", b"y" * (room - overhead))
    assert isinstance((await append(other, principal, fitting))[0], ResultAccepted)
    assert await stored(log, principal) == 2_000

    assert isinstance((await append(log, principal, fitting))[0], ResultDuplicate)
    lifted = bounded(device, None)
    assert isinstance((await append(log, principal, lifted))[0], ResultAccepted)
    assert isinstance((await append(other, principal, device.event("notes", b"z" * 4_000)))[0], ResultAccepted)
    assert (await other.stream(principal.user_pk, "notes")).bytes_max is None


async def test_what_goes_makes_room_at_once(place: Place) -> None:
    """Also on nodes that remember the stream as it was: expired, erased, compacted."""
    log, other = place.node(), place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, bounded(device, 3_500))
    await append(log, principal, device.event("notes", b"x" * 1_000, ttl_s=1))
    await append(log, principal, device.event("notes", b"x" * 1_000))
    for node in (other, log):
        assert await attempt(node, principal, device, "notes", b"x" * 1_000) == FULL

    assert await place.maintenance.expire_payloads(now_ms=NOW_MS + 1_000, rows_max=9) == 1
    assert await stored(log, principal) == await held(place, principal)
    assert isinstance((await append(log, principal, device.event("notes", b"x" * 900)))[0], ResultAccepted)
    erasure = device.event("notes", encode_erase({device.device_id: [3]}), kind=Kind.ERASE)
    assert isinstance((await append(other, principal, erasure))[0], ResultAccepted)
    assert await stored(log, principal) == await held(place, principal)
    assert isinstance((await append(log, principal, device.event("notes", b"x" * 900)))[0], ResultAccepted)
    assert await stored(log, principal) == await held(place, principal)


async def test_compacted_and_acknowledged_payloads_go_off_the_count_once(place: Place) -> None:
    """Erased before they were due, they do not go off again."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    principal = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    await append(log, principal, bounded(phone, None, Policy.LATEST))
    for hlc in range(4):
        await append(log, principal, phone.event("notes", b"state", key=bytes(16), hlc=(NOW_MS << 16) + hlc))
    erasure = phone.event("notes", encode_erase({phone.device_id: [2]}), kind=Kind.ERASE)
    await append(log, principal, erasure)
    inbox = inbox_of(laptop.device_id)
    await append(log, principal, *phone.events(inbox, 3))
    await place.accounts.save_acks(on_laptop, {inbox: (2, bytes(16))})

    assert await place.maintenance.compact(now_ms=NOW_MS + COMPACTION_DELAY_MS, rows_max=9) == 3
    assert await place.maintenance.empty_inboxes(now_ms=NOW_MS, rows_max=9) == 2

    for stream in ("notes", inbox):
        assert await stored(log, principal, stream) == await held(place, principal, stream)


async def test_an_account_takes_what_its_quota_says_to_the_byte(place: Place) -> None:
    """Over all its streams; duplicates are still answered, and what its own quota gives another node sees at once."""
    log, other = place.node(bytes_per_user_max=2_000), place.node(bytes_per_user_max=2_000)
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    first = device.event("notes", b"x" * 1_000)
    assert isinstance((await append(log, principal, first))[0], ResultAccepted)
    fits = 2_000 - size(first) - (size(device.event("more", b"x" * 600)) - 600)
    device.authored["more"] = (0, bytes(32))
    assert await attempt(log, principal, device, "more", b"x" * (fits + 1)) == FULL
    assert isinstance(await attempt(log, principal, device, "more", b"x" * fits), ResultAccepted)
    assert isinstance((await append(log, principal, first))[0], ResultDuplicate)
    for node in (log, other):
        assert await attempt(node, principal, device, "notes", b"") == FULL

    await place.administration.set_quota(principal.user_pk, Quota(bytes_max=3_000))
    for node in (log, other):
        assert isinstance(await attempt(node, principal, device, "notes", b""), ResultAccepted)
    listed = await place.administration.user(ADA.user_key)
    assert listed is not None
    assert listed.quota == Quota(bytes_max=3_000)


async def test_a_full_account_is_still_revoked_written_keys_for_and_freed(place: Place) -> None:
    """``$devices`` and ``$keys`` have bytes of their own, and what frees a stream goes a little beyond the quota."""
    log = place.node(bytes_per_user_max=0)
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    principal = await create_account(place, log, phone)
    await enrol(place, log, phone, laptop)
    assert await append(log, principal, phone.event("notes")) == [FULL]
    phone.authored.pop("notes")

    (keys,) = await append(log, principal, phone.event("$keys", b"wraps", kind=Kind.KEYS))
    event, change = phone.revoke(laptop)
    (revoked,) = await append(log, principal, event, account_change=change)
    (policy,) = await append(log, principal, bounded(phone, 0))

    assert [type(each) for each in (keys, revoked, policy)] == [ResultAccepted] * 3


async def test_each_other_node_overshoots_by_its_grant_at_most(place: Place) -> None:
    """A node stores on what it was granted; two that were granted the same room store no more than one grant above."""
    quota = GRANT_BYTES + 4_000
    here, there = place.node(bytes_per_user_max=quota), place.node(bytes_per_user_max=quota)
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, here, phone)
    on_laptop = await enrol(place, here, phone, laptop)
    writers = ((here, on_phone, phone), (there, on_laptop, laptop))
    for node, principal, device in writers:
        assert isinstance(await attempt(node, principal, device, device.name, b"x"), ResultAccepted)
    for node, principal, device in writers * 5:
        await attempt(node, principal, device, device.name, b"x" * 250_000)
    listed = await place.administration.user(ADA.user_key)
    assert listed is not None
    assert quota - 250_000 < listed.stored_bytes <= quota + GRANT_BYTES
