"""Registration, authentication, and what may enter the account log."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from keepstep import _keepstep
from keepstep.errors import ProtocolError, Unavailable
from keepstep.identity import (
    ADDRESSES_MAX,
    GENESIS_BYTES_MAX,
    HOUR_S,
    INVITE_BYTES,
    Identity,
    OutOfOrder,
    Registrations,
    check_genesis,
    decode_posted,
)
from keepstep.interfaces import Genesis
from keepstep.model import Capability
from keepstep.protocol.account_payloads import encode_enrol
from keepstep.protocol.messages import ResultDuplicate
from keepstep.validation import format_base64url
from tests.support.events import NOW_MS, DeviceFixture, SignedEvent, UserFixture, parse, submission
from tests.support.parts import Parts, TestClock


def body_of(genesis: Genesis) -> bytes:
    """What is posted."""
    return msgspec.msgpack.encode([genesis.header, genesis.sig, genesis.payload])


# -- registration ---------------------------------------------------------------------------------------------------


async def test_a_posted_genesis_makes_an_account() -> None:
    """User, device and the first event of ``$devices``, whose head is the new one."""
    parts = Parts()
    phone = DeviceFixture(UserFixture("alice"), "phone")
    registered = await parts.identity.register(body_of(phone.genesis()), address="192.0.2.1")
    principal = await parts.principal(phone)
    head = (await parts.log.stream(principal.user_pk, "$devices")).head
    assert (registered.user_key, registered.seq, registered.is_new) == (phone.user.user_key, 1, True)
    assert registered.received_at_ms == NOW_MS
    assert registered.head == head
    assert registered.chain == head.chain


async def test_a_genesis_posted_again_answers_the_same_place_and_todays_head() -> None:
    """The account has moved on meanwhile; a head signed for the old place would be a lie."""
    parts = Parts()
    phone, laptop = (DeviceFixture(UserFixture("alice"), name) for name in ("phone", "laptop"))
    genesis = phone.genesis()
    first = await parts.identity.register(body_of(genesis), address="192.0.2.1")
    await parts.enrol(phone, laptop)
    again = await parts.identity.register(body_of(genesis), address="192.0.2.1")
    assert (again.seq, again.chain, again.received_at_ms) == (first.seq, first.chain, first.received_at_ms)
    assert again.head.seq == 2
    assert not again.is_new


async def test_another_genesis_of_a_user_is_refused() -> None:
    """A root key makes one account."""
    parts = Parts()
    user = UserFixture("alice")
    await parts.identity.register(body_of(DeviceFixture(user, "phone").genesis()), address="192.0.2.1")
    with pytest.raises(ProtocolError, match="id_reused"):
        await parts.identity.register(body_of(DeviceFixture(user, "laptop").genesis()), address="192.0.2.1")


async def test_a_genesis_that_is_stored_nowhere_is_our_fault() -> None:
    """A duplicate always has a place: ``$devices`` is kept for ever."""
    parts = Parts()
    body = body_of(DeviceFixture(UserFixture("alice"), "phone").genesis())
    await parts.identity.register(body, address="192.0.2.1")

    async def duplicate(*_arguments: object, **_keywords: object) -> ResultDuplicate:
        await trio.lowlevel.checkpoint()
        return ResultDuplicate(None, None, None)

    parts.log.create_account = duplicate  # type: ignore[method-assign]
    with pytest.raises(ProtocolError, match="internal"):
        await parts.identity.register(body, address="192.0.2.1")


async def test_an_invited_account_is_registered_again_without_its_invite() -> None:
    """The answer was lost, the invite is used up: it is a duplicate; a stranger without one is refused."""
    parts = Parts()
    registrations = Registrations("invite", per_address_hour=99, per_hour=99, clock=parts.clock)
    identity = Identity(parts.log, parts.accounts, registrations, parts.clock, devices_per_user_max=9)
    code = b"c" * INVITE_BYTES
    await parts.administration.add_invite(_keepstep.blake3(code), note="", now_ms=NOW_MS, expires_at_ms=NOW_MS + 60_000)
    body = body_of(DeviceFixture(UserFixture("alice"), "phone").genesis())
    for invite in (None, "", "not base64url!", format_base64url(b"short"), format_base64url(bytes(INVITE_BYTES))):
        with pytest.raises(ProtocolError, match="invite_invalid"):
            await identity.register(body, address="192.0.2.1", invite=invite)
    made = await identity.register(body, address="192.0.2.1", invite=format_base64url(code))
    again = await identity.register(body, address="192.0.2.1")
    assert (made.is_new, again.is_new, again.seq) == (True, False, 1)


async def test_a_genesis_of_a_disabled_account_is_told_so() -> None:
    """Whoever posts it has it, and learns nothing that it did not know."""
    parts = Parts()
    phone, *_ = await parts.register("alice", "phone")
    principal = await parts.principal(phone)
    await parts.administration.set_disabled(principal.user_pk, disabled=True, now_ms=NOW_MS)
    genesis = DeviceFixture(UserFixture("alice"), "phone").genesis()
    with pytest.raises(ProtocolError, match="account_disabled"):
        await parts.identity.register(body_of(genesis), address="192.0.2.1")


async def test_an_account_that_is_not_stored_is_not_answered_as_stored() -> None:
    """While the database is away."""
    parts = Parts()
    parts.database.away = True
    with pytest.raises(Unavailable):
        await parts.identity.register(
            body_of(DeviceFixture(UserFixture("alice"), "phone").genesis()), address="192.0.2.1"
        )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        msgspec.msgpack.encode([b"header", b"sig", b"payload"]),
        msgspec.msgpack.encode([b"header", bytes(64)]),
        msgspec.msgpack.encode([b"header", bytes(64), b"payload", 1]),
        b"\xdc\x00\x03" + msgspec.msgpack.encode([b"header", bytes(64), b"payload"])[1:],
    ],
)
def test_a_registration_of_another_form_is_malformed(body: bytes) -> None:
    """No extra fields, nothing missing, minimal encoding."""
    with pytest.raises(ProtocolError, match="malformed"):
        decode_posted(body, bytes_max=GENESIS_BYTES_MAX)


def test_a_registration_above_its_limit_is_too_large() -> None:
    """Before anything in it is looked at."""
    with pytest.raises(ProtocolError, match="too_large"):
        decode_posted(bytes(GENESIS_BYTES_MAX + 1), bytes_max=GENESIS_BYTES_MAX)


def test_a_genesis_with_a_wrong_signature_is_refused() -> None:
    """The first device's."""
    genesis = DeviceFixture(UserFixture("alice"), "phone").genesis()
    with pytest.raises(ProtocolError, match="bad_signature"):
        check_genesis(genesis.header, bytes(64), genesis.payload, now_ms=NOW_MS)


def test_an_enrolment_is_no_genesis() -> None:
    """An account begins with its genesis."""
    payload = encode_enrol(DeviceFixture(UserFixture("alice"), "phone").entry)
    with pytest.raises(ProtocolError, match=r"malformed.*begins with its genesis"):
        check_genesis(b"header", bytes(64), payload, now_ms=NOW_MS)


# -- policy and rates -----------------------------------------------------------------------------------------------


def registrations(policy: str = "open", *, per_address_hour: int = 2, per_hour: int = 3) -> Registrations:
    """Narrow rates."""
    return Registrations(
        policy,  # type: ignore[arg-type]
        per_address_hour=per_address_hour,
        per_hour=per_hour,
        clock=TestClock(),
    )


async def test_a_closed_server_registers_nobody() -> None:
    """Whatever is posted."""
    with pytest.raises(ProtocolError, match="registration_closed"):
        registrations("closed").enter("192.0.2.1")


async def test_one_network_registers_so_many_an_hour(autojump_clock: trio.testing.MockClock) -> None:
    """Counted by prefix; the answer says when there is room again."""
    gate = registrations()
    gate.enter("192.0.2.1")
    await trio.sleep(600)
    gate.enter("192.0.2.200")
    with pytest.raises(ProtocolError, match="rate_limited") as caught:
        gate.enter("192.0.2.3")
    assert caught.value.retry_after_ms == pytest.approx((HOUR_S - 600) * 1000, abs=1)
    gate.enter("198.51.100.1")
    await trio.sleep(HOUR_S - 600)
    gate.enter("192.0.2.3")


async def test_all_networks_together_register_so_many_an_hour(autojump_clock: trio.testing.MockClock) -> None:
    """A refused attempt does not count, nor, for all of them, one that is wrong in itself."""
    gate = registrations()
    gate.enter("198.51.100.77")
    for address in ("192.0.2.1", "198.51.100.1", "203.0.113.1"):
        gate.enter(address)
        gate.count()
    for _ in range(3):
        with pytest.raises(ProtocolError, match="rate_limited"):
            gate.enter("2001:db8::1")
    await trio.sleep(HOUR_S)
    gate.enter("2001:db8::1")


async def test_the_memory_of_rates_is_bounded() -> None:
    """Beyond it the networks seen longest ago are forgotten."""
    gate = registrations(per_address_hour=1, per_hour=10 * ADDRESSES_MAX)
    gate.enter("192.0.2.1")
    for number in range(ADDRESSES_MAX):
        gate.enter(f"2001:db8:{number // 65536:x}:{number % 65536:x}::1")
    gate.enter("192.0.2.1")
    with pytest.raises(ProtocolError, match="rate_limited"):
        gate.enter("192.0.2.1")


async def test_garbage_takes_nobodys_room() -> None:
    """From however many networks it comes: only a genesis that is right in itself counts for all."""
    parts = Parts()
    gate = registrations(per_address_hour=5, per_hour=2)
    identity = Identity(parts.log, parts.accounts, gate, parts.clock, devices_per_user_max=4)
    for number in range(5):
        with pytest.raises(ProtocolError, match="malformed"):
            await identity.register(b"garbage", address=f"192.0.{number}.1")

    for number in range(2):
        genesis = DeviceFixture(UserFixture(f"user{number}"), "phone").genesis()
        await identity.register(body_of(genesis), address="198.51.100.1")
    with pytest.raises(ProtocolError, match="rate_limited"):
        await identity.register(b"garbage", address="203.0.113.1")


# -- the account log ------------------------------------------------------------------------------------------------


class AccountBench:
    """Alice's account, and enrolments of hers to check."""

    def __init__(self, **arguments: int) -> None:
        self.parts = Parts(**arguments)  # type: ignore[arg-type]

    async def start(self) -> DeviceFixture:
        """Her phone, which knows the head of ``$devices``."""
        (self.phone,) = await self.parts.register("alice")
        await self.read_head()
        return self.phone

    async def read_head(self) -> None:
        """The phone reads up to the head."""
        principal = await self.parts.principal(self.phone)
        head = (await self.parts.log.stream(principal.user_pk, "$devices")).head
        self.phone.seen["$devices"] = head.seq, head.chain

    def enrolment(self, name: str, **changes: object) -> SignedEvent:
        """The phone's next event: it enrols a device."""
        device = DeviceFixture(self.phone.user, name, capabilities=Capability.PUBLISH)
        return self.phone.enrol(replace_entry(device, **changes))[0]

    async def check(self, event: SignedEvent) -> object:
        """Ask the identity."""
        return await self.parts.identity.check_account_event(
            await self.parts.principal(self.phone), parse(event).event(0), now_ms=NOW_MS
        )

    async def store(self, event: SignedEvent) -> None:
        """Check and append."""
        principal = await self.parts.principal(self.phone)
        change = await self.parts.identity.check_account_event(principal, parse(event).event(0), now_ms=NOW_MS)
        await self.parts.log.append([submission(principal, event)], now_ms=NOW_MS, account_change=change)


def replace_entry(device: DeviceFixture, **changes: Any) -> DeviceFixture:
    """A device whose entry says something else."""
    return DeviceFixture(device.user, device.name, device.capabilities, changes=changes)


async def test_an_enrolment_by_a_managing_device_is_accepted() -> None:
    """It names the device it makes live and the head it was checked against."""
    bench = AccountBench()
    await bench.start()
    change = await bench.check(bench.enrolment("watch"))
    assert change.enrolled.device_id == DeviceFixture(bench.phone.user, "watch").device_id  # type: ignore[attr-defined]
    assert change.checked_seq == 1  # type: ignore[attr-defined]


async def test_an_enrolment_is_checked_against_what_came_before_it() -> None:
    """The same id or key again is refused, also when the first one was enrolled a moment ago."""
    bench = AccountBench()
    await bench.start()
    await bench.store(bench.enrolment("watch"))
    await bench.read_head()
    with pytest.raises(ProtocolError, match="unprocessable"):
        await bench.check(bench.enrolment("watch"))


async def test_an_enrolment_that_is_stored_already_needs_no_check() -> None:
    """The log answers the duplicate; today the account would refuse it."""
    bench = AccountBench()
    await bench.start()
    event = bench.enrolment("watch")
    await bench.store(event)
    assert await bench.check(event) is None


async def test_an_enrolment_out_of_order_names_the_authors_last_event() -> None:
    """By number or by ``prev``: as for every event, before anything else is looked at."""
    bench = AccountBench()
    phone = await bench.start()
    last_n, last_hash = phone.authored["$devices"]
    payload = encode_enrol(DeviceFixture(phone.user, "watch").entry)
    for n, prev in ((last_n + 2, last_hash[:16]), (last_n + 1, bytes(16))):
        with pytest.raises(OutOfOrder) as caught:
            await bench.check(phone.sign("$devices", payload, n=n, prev=prev, kind=5))
        assert (caught.value.last_n, caught.value.last_hash) == (last_n, last_hash)


async def test_a_device_that_never_wrote_begins_with_no_prev() -> None:
    """n = 1 with 16 zeros; a device without ``manage`` is then told that it may not."""
    bench = AccountBench()
    await bench.start()
    watch = DeviceFixture(bench.phone.user, "watch", capabilities=Capability.PUBLISH)
    await bench.parts.enrol(bench.phone, watch)
    principal = await bench.parts.principal(watch)
    event, _ = watch.enrol(DeviceFixture(watch.user, "thief"))
    with pytest.raises(ProtocolError, match="forbidden"):
        await bench.parts.identity.check_account_event(principal, parse(event).event(0), now_ms=NOW_MS)


async def test_an_account_has_so_many_devices() -> None:
    """``devices_per_user_max``, the first one included."""
    bench = AccountBench(devices_per_user_max=2)
    await bench.start()
    await bench.store(bench.enrolment("watch"))
    await bench.read_head()
    with pytest.raises(ProtocolError, match="limit_exceeded"):
        await bench.check(bench.enrolment("tablet"))


async def test_the_account_log_is_read_once_until_it_moves() -> None:
    """Ten checks, one reading; after a commit one more."""
    bench = AccountBench()
    await bench.start()
    reads = []
    read = bench.parts.log.read

    async def counted(*arguments: object, **keywords: object) -> object:
        reads.append(arguments)
        return await read(*arguments, **keywords)  # type: ignore[arg-type]

    bench.parts.log.read = counted  # type: ignore[method-assign,assignment]
    event = bench.enrolment("watch")
    for _ in range(10):
        await bench.check(event)
    assert len(reads) == 1
    await bench.store(event)
    await bench.read_head()
    await bench.check(bench.enrolment("tablet"))
    assert len(reads) == 2


async def test_the_account_log_of_another_log_is_not_remembered() -> None:
    """After a restore it is read again, also where nothing seems to have moved."""
    bench = AccountBench()
    await bench.start()
    event = bench.enrolment("watch")
    await bench.check(event)
    (before,) = bench.parts.identity._account_logs.values()
    bench.parts.database.generation += 1
    await bench.check(event)
    (after,) = bench.parts.identity._account_logs.values()
    assert after.log is not before.log


async def test_a_commit_in_another_stream_leaves_the_account_log_cached() -> None:
    """Only ``$devices`` makes it old; ``forget`` does too."""
    bench = AccountBench()
    phone = await bench.start()
    await bench.check(bench.enrolment("watch"))
    (cached,) = bench.parts.identity._account_logs.values()
    principal = await bench.parts.principal(phone)
    await bench.parts.log.append([submission(principal, phone.event("notes"))], now_ms=NOW_MS)
    assert cached.is_current
    bench.parts.identity.forget(principal.user_pk)
    assert not cached.is_current


async def test_an_account_log_of_several_pages_is_followed_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """With pages of two events."""
    monkeypatch.setattr("keepstep.identity.LOAD_EVENTS_MAX", 2)
    bench = AccountBench()
    await bench.start()
    for name in ("watch", "tablet", "clock", "car"):
        await bench.store(bench.enrolment(name))
        await bench.read_head()
    bench.parts.identity.forget((await bench.parts.principal(bench.phone)).user_pk)
    change = await bench.check(bench.enrolment("lamp"))
    assert change.checked_seq == 5  # type: ignore[attr-defined]


async def test_the_memory_of_account_logs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those used last stay."""
    monkeypatch.setattr("keepstep.identity.ACCOUNT_LOGS_MAX", 2)
    parts = Parts()
    principals = []
    for name in ("alice", "bob", "carol"):
        (phone,) = await parts.register(name)
        principal = await parts.principal(phone)
        head = (await parts.log.stream(principal.user_pk, "$devices")).head
        phone.seen["$devices"] = head.seq, head.chain
        event, _ = phone.enrol(DeviceFixture(phone.user, "watch", capabilities=Capability.PUBLISH))
        await parts.identity.check_account_event(principal, parse(event).event(0), now_ms=NOW_MS)
        principals.append(principal.user_pk)
    assert list(parts.identity._account_logs) == principals[1:]


async def test_an_account_log_that_cannot_be_read_is_not_remembered_by_half() -> None:
    """The next check begins anew, and succeeds when the database is back."""
    bench = AccountBench()
    await bench.start()
    event = bench.enrolment("watch")
    read = bench.parts.log.read

    async def away(*_arguments: object, **_keywords: object) -> object:
        raise Unavailable

    bench.parts.log.read = away  # type: ignore[method-assign,assignment]
    with pytest.raises(Unavailable):
        await bench.check(event)
    bench.parts.log.read = read  # type: ignore[method-assign]
    assert await bench.check(event) is not None


async def test_a_stored_account_log_that_does_not_verify_is_our_fault() -> None:
    """``internal``: the device did nothing wrong, and nothing is accepted on top of it."""
    bench = AccountBench()
    await bench.start()
    event = bench.enrolment("watch")
    key, rows = next((key, rows) for key, rows in bench.parts.database.events.items() if rows)
    bench.parts.database.events[key] = [replace(row, sig=bytes(64)) for row in rows]
    bench.parts.log.tail.clear()
    with pytest.raises(ProtocolError, match="internal"):
        await bench.check(event)


def test_identity_listens_to_commits_from_the_start() -> None:
    """So that no account log can be older than its last commit."""
    heard: list[object] = []

    class Log:
        """Remembers its listeners."""

        def subscribe_device_commits(self, listener: object) -> None:
            """As ``EventLog.subscribe_device_commits``."""
            heard.append(listener)

    identity = Identity(Log(), None, registrations(), TestClock(), devices_per_user_max=1)  # type: ignore[arg-type]
    assert heard == [identity._committed]


async def test_a_full_account_log_takes_revocations_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept for ever; a thief must not be able to fill it so that nobody can revoke it."""
    monkeypatch.setattr("keepstep.identity.ACCOUNT_EVENTS_MAX", 2)
    bench = AccountBench()
    phone = await bench.start()
    await bench.store(bench.enrolment("watch"))
    await bench.read_head()
    before = phone.authored.copy()
    with pytest.raises(ProtocolError, match="limit_exceeded"):
        await bench.check(bench.enrolment("tablet"))
    phone.authored = before
    watch = DeviceFixture(phone.user, "watch")
    change = await bench.check(phone.revoke(watch)[0])
    assert change.revoked == (watch.device_id,)  # type: ignore[attr-defined]


async def test_devices_that_have_ended_leave_room_for_others() -> None:
    """The limit is on live ones."""
    bench = AccountBench(devices_per_user_max=2)
    phone = await bench.start()
    await bench.store(bench.enrolment("watch"))
    await bench.read_head()
    event, change = phone.revoke(DeviceFixture(phone.user, "watch"))
    await bench.parts.log.append(
        [submission(await bench.parts.principal(phone), event)], now_ms=NOW_MS, account_change=change
    )
    await bench.read_head()
    assert await bench.check(bench.enrolment("tablet")) is not None


async def test_an_account_log_that_does_not_continue_what_was_followed_is_read_anew() -> None:
    """Nothing is decided upon another database under the same row number; the next check reads from the start."""
    bench = AccountBench()
    await bench.start()
    await bench.store(bench.enrolment("watch"))
    await bench.read_head()
    event = bench.enrolment("tablet")
    await bench.check(event)
    (cached,) = bench.parts.identity._account_logs.values()
    cached.log._chains[-1] = bytes(32)
    cached.is_current = False
    with pytest.raises(Unavailable):
        await bench.check(event)
    assert await bench.check(event) is not None
