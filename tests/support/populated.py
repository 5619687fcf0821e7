"""A database with everything in it that a log can hold, written by the server's own code: for migrations and verify."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keepstep.client import crypto
from keepstep.eventlog.store import COMPACTION_DELAY_MS
from keepstep.model import (
    DEVICES_STREAM,
    AccountChange,
    Kind,
    Policy,
    Position,
    RetentionClass,
    Rotation,
    inbox_of,
)
from keepstep.protocol.account import AccountEvent, AccountLog
from keepstep.protocol.messages import ResultAccepted
from keepstep.protocol.policy import encode_policy
from keepstep.protocol.snapshot import encode_confirm, encode_erase, encode_snapshot
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import append, principal_of

if TYPE_CHECKING:
    from keepstep.eventlog.log import StoredLog
    from keepstep.model import Principal
    from tests.support.events import SignedEvent
    from tests.support.logs import PostgresPlace

ADA: Final = UserFixture("ada")
BOB: Final = UserFixture("bob")
HLC: Final = NOW_MS << 16
LATER_MS: Final = NOW_MS + COMPACTION_DELAY_MS
AUTHORS: Final = 18
"""Devices that write into ``crowd``: more than fit into a stream's row."""


@dataclass(frozen=True)
class Populated:
    """What there is, to be looked for.

    Attributes:
        ada: key of the user who has all of it.
        bob: key of another user, with a stream of the same name.
        events: how many rows there are in all event tables.
    """

    ada: bytes
    bob: bytes
    events: int


class Account:
    """A user's account log as the server follows it, with devices that know how far it is."""

    def __init__(self, place: PostgresPlace, log: StoredLog, user: UserFixture) -> None:
        self.place = place
        self.log = log
        self.user = user
        self.followed = AccountLog(crypto, user.user_key)
        self._devices: list[DeviceFixture] = []

    def device(self, name: str) -> DeviceFixture:
        """One that is not enrolled yet."""
        device = DeviceFixture(self.user, name)
        self._devices.append(device)
        self._show()
        return device

    async def begin(self, device: DeviceFixture) -> Principal:
        """Create the user with its first device."""
        genesis = device.genesis()
        result = await self.log.create_account(genesis, now_ms=NOW_MS)
        assert isinstance(result, ResultAccepted), result
        self._apply(device, genesis.header, genesis.sig, genesis.payload)
        return await principal_of(self.place, device)

    async def enrol(self, by: DeviceFixture, device: DeviceFixture) -> Principal:
        """Let ``by`` enrol ``device``."""
        await self.change(by, by.enrol(device)[0])
        return await principal_of(self.place, device)

    async def change(self, by: DeviceFixture, event: SignedEvent) -> None:
        """Append an event of ``$devices``."""
        principal = await principal_of(self.place, by)
        change = self._apply(by, event.header, event.sig, event.payload or b"")
        await accepted(self.log, principal, event, account_change=change)

    async def rotate(self, device: DeviceFixture, *staying: DeviceFixture) -> None:
        """Enter the account by its root key; all devices but ``staying`` end."""
        user_pk = (await principal_of(self.place, staying[0])).user_pk
        event = device.rotate(*staying)
        payload = event.payload or b""
        change = self._apply(device, event.header, event.sig, payload)
        rotation = Rotation(user_pk, self.user.user_key, device.entry, event.header, event.sig, payload)
        result = await self.log.rotate(rotation, change, now_ms=NOW_MS)
        assert isinstance(result, ResultAccepted), result

    def _apply(self, by: DeviceFixture, header: bytes, sig: bytes, payload: bytes) -> AccountChange:
        before, known = self.followed.position, dict(self.followed.devices)
        effect = self.followed.apply(AccountEvent(by.device_id, header, sig, payload, NOW_MS))
        self._show()
        return AccountChange(
            enrolled=None if effect.enrolled is None else effect.enrolled.entry,
            checked_seq=before.seq,
            checked_chain=before.chain,
            manage_from_ms=0 if effect.enrolled is None else effect.enrolled.manage_from_ms,
            revoked=tuple(each.entry.device_id for each in effect.ended),
            restored=tuple(
                each.entry.device_id for each in effect.staying if known[each.entry.device_id].ended is not None
            ),
            next_root_hash=effect.next_root_hash,
        )

    def _show(self) -> None:
        """Every device sees where the account log is."""
        for device in self._devices:
            device.seen[DEVICES_STREAM] = (self.followed.position.seq, self.followed.position.chain)


async def populate(place: PostgresPlace) -> Populated:
    """Fill an empty database: every kind of event and policy, dropped payloads, devices that ended, a rotation."""
    log = place.node()
    account = Account(place, log, ADA)
    phone, laptop, lost = (account.device(name) for name in ("phone", "laptop", "lost"))
    on_phone = await account.begin(phone)
    on_laptop = await account.enrol(phone, laptop)
    on_lost = await account.enrol(phone, lost)
    await _notes(log, (phone, on_phone), (laptop, on_laptop))
    await accepted(log, on_lost, *lost.events("notes", 2))
    await _state(log, on_phone, phone)
    await _policies(log, on_phone, phone)
    for number in range(AUTHORS):
        member = account.device(f"member {number}")
        await accepted(log, await account.enrol(phone, member), member.event("crowd", b"here"))
    inbox = inbox_of(laptop.device_id)
    await accepted(log, on_phone, *phone.events(inbox, 3))
    head = (await log.stream(on_phone.user_pk, "notes")).head
    await place.accounts.save_acks(on_laptop, {inbox: (2, bytes(16)), "notes": (head.seq, head.chain[:16])})
    await account.change(phone, phone.revoke(lost)[0])
    await account.rotate(account.device("rescue"), laptop)
    await place.accounts.open_session(on_laptop, bytes(range(16)), now_ms=NOW_MS)

    other = Account(place, log, BOB)
    of_bob = other.device("phone")
    await accepted(log, await other.begin(of_bob), *of_bob.events("notes", 5))

    for work in (place.maintenance.expire_payloads, place.maintenance.compact, place.maintenance.empty_inboxes):
        assert await work(now_ms=LATER_MS, rows_max=100) > 0
    (count,) = place.execute("SELECT (SELECT count(*) FROM events_keep) + (SELECT count(*) FROM events_standard)")
    return Populated(ADA.user_key, BOB.user_key, count[0])


async def accepted(
    log: StoredLog,
    principal: Principal,
    *events: SignedEvent,
    now_ms: int = NOW_MS,
    account_change: AccountChange | None = None,
) -> None:
    """Append events that are all taken."""
    results = await append(log, principal, *events, now_ms=now_ms, account_change=account_change)
    assert {type(result) for result in results} == {ResultAccepted}, results


async def _notes(
    log: StoredLog, phone: tuple[DeviceFixture, Principal], laptop: tuple[DeviceFixture, Principal]
) -> None:
    """Two authors, a life that is over, an erasure, a snapshot that another device confirmed."""
    (on_phone, phone_principal), (on_laptop, laptop_principal) = phone, laptop
    await accepted(log, phone_principal, *on_phone.events("notes", 4))
    await accepted(log, laptop_principal, *on_laptop.events("notes", 3))
    await accepted(log, phone_principal, on_phone.event("notes", b"short-lived", ttl_s=60))
    await accepted(
        log, phone_principal, on_phone.event("notes", encode_erase({on_phone.device_id: [2]}), kind=Kind.ERASE)
    )
    covers = Position(7, await log.chain_at(phone_principal.user_pk, "notes", 7))
    snapshot = encode_snapshot(covers, {on_phone.device_id: 4, on_laptop.device_id: 3}, b"sealed state")
    await accepted(log, phone_principal, on_phone.event("notes", snapshot, kind=Kind.SNAPSHOT))
    await accepted(log, laptop_principal, on_laptop.event("notes", encode_confirm(10), kind=Kind.CONFIRM))


async def _state(log: StoredLog, principal: Principal, device: DeviceFixture) -> None:
    """Keys with winners and losers."""
    await accepted(log, principal, device.event("state", encode_policy(Policy.LATEST), kind=Kind.POLICY))
    for payload, name, hlc in ((b"a1", b"a", 1), (b"b1", b"b", 5), (b"a2", b"a", 3), (b"b2", b"b", 2)):
        await accepted(log, principal, device.event("state", payload, key=name.ljust(16, b"\0"), hlc=HLC + hlc))


async def _policies(log: StoredLog, principal: Principal, device: DeviceFixture) -> None:
    """The other policies, one of them kept for ever, one with a longest life."""
    keep = encode_policy(Policy.EXPECT, retention_class=RetentionClass.KEEP)
    await accepted(log, principal, device.event("expecting", keep, kind=Kind.POLICY))
    fork = encode_policy(Policy.FORK, ttl_max_s=3600)
    await accepted(log, principal, device.event("forking", fork, kind=Kind.POLICY))
    await accepted(log, principal, device.event("forking", b"with a life", ttl_s=60))
