"""Locking thieves out with the root key, and registering with an invite: the identity, and what REST makes of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from keepstep import _keepstep
from keepstep.errors import ProtocolError, Unavailable
from keepstep.identity import ROTATION_ATTEMPTS_MAX, ROTATIONS_PER_ADDRESS_HOUR, Identity, Registrations
from keepstep.memory.database import InviteRow
from keepstep.model import Capability
from keepstep.protocol.account_payloads import FULL_CAPABILITIES, encode_enrol
from keepstep.protocol.messages import ResultDuplicate
from keepstep.validation import format_base64url
from tests.support.events import NOW_MS, DeviceFixture, SignedEvent, UserFixture, seed, submission
from tests.support.parts import Parts
from tests.support.rest import site

ADDRESS = "192.0.2.1"
CODE = seed("invite")[:16]
MSGPACK = {"Content-Type": "application/msgpack"}


def body_of(event: SignedEvent) -> bytes:
    """What is posted."""
    return msgspec.msgpack.encode([event.header, event.sig, event.payload])


class Theft:
    """Alice's phone was stolen: its thief enrolled a device of its own and revoked her laptop."""

    def __init__(self, **arguments: Any) -> None:
        self.parts = Parts(**arguments)

    async def start(self) -> None:
        """Everything the thief did."""
        self.phone, self.laptop, self.watch = await self.parts.register("alice", "phone", "laptop", "watch")
        self.spy = DeviceFixture(self.phone.user, "spy")
        await self.parts.enrol(self.phone, self.spy)
        event, change = self.phone.revoke(self.laptop)
        await self.store(self.phone, event, change)
        self.tablet = DeviceFixture(self.phone.user, "tablet")
        self.tablet.seen = self.phone.seen.copy()

    async def store(self, device: DeviceFixture, event: SignedEvent, change: Any) -> None:
        """Append an event of ``$devices``; its author has seen the head then."""
        principal = await self.parts.principal(device)
        await self.parts.log.append([submission(principal, event)], now_ms=NOW_MS, account_change=change)
        head = (await self.parts.log.stream(principal.user_pk, "$devices")).head
        device.seen["$devices"] = head.seq, head.chain

    async def rotate(self, event: SignedEvent, user: UserFixture | None = None) -> Any:
        """Post a rotation."""
        user_key = (user or self.phone.user).user_key
        return await self.parts.identity.rotate(user_key, body_of(event), address=ADDRESS)

    async def live(self) -> set[str]:
        """Names of the devices that are let in."""
        return {
            device.name
            for device in (self.phone, self.laptop, self.watch, self.spy, self.tablet)
            if await self.parts.accounts.principal(device.user.user_key, device.device_id) is not None
        }


@pytest.fixture
async def theft() -> Theft:
    """As it is when she notices."""
    theft = Theft()
    await theft.start()
    return theft


async def test_a_rotation_leaves_whom_it_lists(theft: Theft) -> None:
    """Also the laptop, which the thief had revoked."""
    assert await theft.live() == {"phone", "watch", "spy"}
    rotated = await theft.rotate(theft.tablet.rotate(theft.laptop, theft.watch))
    assert (rotated.seq, rotated.is_new, rotated.received_at_ms) == (6, True, NOW_MS)
    assert (rotated.head.seq, rotated.head.chain) == (6, rotated.chain)
    assert await theft.live() == {"laptop", "watch", "tablet"}
    principal = await theft.parts.principal(theft.tablet)
    assert principal.capabilities_at(NOW_MS) == FULL_CAPABILITIES


async def test_a_rotation_posted_again_answers_the_same_place_and_todays_head(theft: Theft) -> None:
    """An answer may be lost; another rotation by the same device is told that the number is taken."""
    event = theft.tablet.rotate(theft.watch)
    first = await theft.rotate(event)
    theft.tablet.seen["$devices"] = first.head.seq, first.head.chain
    await theft.store(theft.tablet, *theft.tablet.enrol(DeviceFixture(theft.phone.user, "new")))
    again = await theft.rotate(event)
    assert (again.seq, again.chain, again.received_at_ms, again.is_new) == (6, first.chain, NOW_MS, False)
    assert again.head.seq == 7
    theft.tablet.authored.clear()
    with pytest.raises(ProtocolError, match="id_reused"):
        await theft.rotate(theft.tablet.rotate())


async def test_a_rotation_posted_twice_at_once_is_stored_once(theft: Theft) -> None:
    """Whose answer takes too long asks again: the one that comes second is told where the event is."""
    event = theft.tablet.rotate(theft.watch)
    rotate = theft.parts.log.rotate
    firsts: list[Any] = []

    async def overtaken(*arguments: Any, **keywords: Any) -> Any:
        theft.parts.log.rotate = rotate  # type: ignore[method-assign]
        firsts.append(await theft.rotate(event))
        return await rotate(*arguments, **keywords)

    theft.parts.log.rotate = overtaken  # type: ignore[method-assign]
    again = await theft.rotate(event)
    (first,) = firsts
    assert (first.is_new, again.is_new) == (True, False)
    assert (again.seq, again.chain) == (first.seq, first.chain)


async def test_the_id_of_a_device_that_is_there_is_no_new_devices(theft: Theft) -> None:
    """Nothing is stored."""
    theft.watch.seen = theft.tablet.seen
    with pytest.raises(ProtocolError, match="forbidden"):
        await theft.rotate(theft.watch.rotate())
    assert await theft.live() == {"phone", "watch", "spy"}


async def test_who_has_no_root_key_learns_nothing_of_devices(theft: Theft) -> None:
    """The answer is the same for an id of a device and for any other: somebody could ask whose a device is."""
    await theft.rotate(theft.tablet.rotate(theft.watch))
    for device in (theft.tablet, theft.watch, DeviceFixture(theft.phone.user, "unknown")):
        device.authored.clear()
        device.seen = theft.tablet.seen
        with pytest.raises(ProtocolError) as caught:
            await theft.rotate(device.rotate(root_secret=seed("a stranger's root")))
        assert caught.value.code == "forbidden"


async def test_a_wrong_rotation_changes_nothing(theft: Theft) -> None:
    """Another root key, another user's, an unknown user, another operation, other bytes."""
    user = theft.phone.user
    stranger = UserFixture("nobody")
    thiefs = theft.tablet.rotate(root_secret=seed("a thief's root"))
    enrolment = theft.tablet.event("$devices", encode_enrol(theft.tablet.entry), kind=5)
    for event, whose, code in (
        (thiefs, user, "forbidden"),
        (theft.tablet.rotate(), stranger, "bad_signature"),
        (theft.tablet.event("$devices", b"\x91\x03", kind=5), user, "malformed"),
        (enrolment, user, "malformed"),
    ):
        theft.tablet.authored.clear()
        with pytest.raises(ProtocolError) as caught:
            await theft.rotate(event, whose)
        assert caught.value.code == code
    unknown = DeviceFixture(stranger, "x")
    unknown.seen["$devices"] = 0, stranger.chain_0("$devices")
    with pytest.raises(ProtocolError, match="forbidden"):
        await theft.rotate(unknown.rotate(), stranger)
    with pytest.raises(ProtocolError, match="too_large"):
        await theft.parts.identity.rotate(user.user_key, bytes(70_000), address=ADDRESS)
    assert await theft.live() == {"phone", "watch", "spy"}


async def test_a_thief_who_writes_all_the_time_does_not_stop_a_rotation(theft: Theft) -> None:
    """It is checked anew, until no event came in between."""
    rotate, thefts = theft.parts.log.rotate, iter(range(3))

    async def overtaken(*arguments: Any, **keywords: Any) -> Any:
        number = next(thefts, None)
        if number is not None:
            await theft.store(
                theft.phone, *theft.phone.enrol(DeviceFixture(theft.phone.user, f"spy {number}", Capability.PUBLISH))
            )
        return await rotate(*arguments, **keywords)

    theft.parts.log.rotate = overtaken  # type: ignore[method-assign]
    assert (await theft.rotate(theft.tablet.rotate(theft.watch))).seq == 9
    assert await theft.live() == {"watch", "tablet"}


@pytest.mark.parametrize(("retry_after_ms", "attempts"), [(0, ROTATION_ATTEMPTS_MAX), (1_000, 1)])
async def test_a_rotation_is_not_tried_for_ever(theft: Theft, retry_after_ms: int, attempts: int) -> None:
    """Nor again at once while the database is away."""
    tries: list[None] = []

    async def away(*_: object, **__: object) -> None:
        tries.append(None)
        raise Unavailable(retry_after_ms=retry_after_ms)

    theft.parts.log.rotate = away  # type: ignore[method-assign,assignment]
    with pytest.raises(Unavailable):
        await theft.rotate(theft.tablet.rotate())
    assert len(tries) == attempts


async def test_rotations_from_an_address_are_counted(theft: Theft) -> None:
    """Each costs a signature."""
    for _ in range(ROTATIONS_PER_ADDRESS_HOUR):
        with pytest.raises(ProtocolError, match="malformed"):
            await theft.parts.identity.rotate(theft.phone.user.user_key, b"", address=ADDRESS)
    with pytest.raises(ProtocolError, match="rate_limited"):
        await theft.rotate(theft.tablet.rotate())


async def test_a_rotation_keeps_to_the_limit_of_devices() -> None:
    """The new one is counted."""
    theft = Theft(devices_per_user_max=2)
    await theft.start()
    with pytest.raises(ProtocolError, match="limit_exceeded"):
        await theft.rotate(theft.tablet.rotate(theft.watch, theft.laptop))
    theft.tablet.authored.clear()
    assert (await theft.rotate(theft.tablet.rotate(theft.watch))).is_new


async def test_a_stored_rotation_without_a_place_is_our_fault(theft: Theft) -> None:
    """``$devices`` is kept for ever."""
    event = theft.tablet.rotate()
    await theft.rotate(event)

    async def unchecked(*_: object, **__: object) -> Any:
        class Answer:
            results = ((ResultDuplicate(None, None, None),),)

        return Answer

    theft.parts.log.append = unchecked  # type: ignore[method-assign]
    with pytest.raises(ProtocolError, match="internal"):
        await theft.rotate(event)


async def test_a_revoked_device_may_be_rotated_away_from_over_rest() -> None:
    """The answer is where it is and the signed head; 201 for a new one, 200 for a repeated one."""
    theft = Theft()
    await theft.start()
    async with site(parts=theft.parts) as here:
        path = f"/api/v1/accounts/{theft.phone.user.user_key.hex()}/rotate"
        event = theft.tablet.rotate(theft.watch)
        first = await here.http.post(path, content=body_of(event), headers=MSGPACK)
        again = await here.http.post(path, content=body_of(event), headers=MSGPACK)
        assert (first.status_code, again.status_code) == (201, 200)
        assert msgspec.msgpack.decode(first.content)[:3] == msgspec.msgpack.decode(again.content)[:3]
        wrong = await here.http.post(path, content=b"", headers=MSGPACK)
        assert (wrong.status_code, wrong.json()["code"]) == (400, "malformed")
    assert await theft.live() == {"watch", "tablet"}


# -- invites --------------------------------------------------------------------------------------------------------


async def test_who_was_invited_registers_once() -> None:
    """With the code as it was given; everybody else is refused, in the same words."""
    parts = Parts()
    parts.database.invites[_keepstep.blake3(CODE)] = InviteRow(NOW_MS, NOW_MS + 1)
    registrations = Registrations("invite", per_address_hour=100, per_hour=100, clock=parts.clock)
    parts.identity = Identity(parts.log, parts.accounts, registrations, parts.clock, devices_per_user_max=64)
    bodies = []
    for name in ("alice", "bob"):
        genesis = DeviceFixture(UserFixture(name), "phone").genesis()
        bodies.append(msgspec.msgpack.encode([genesis.header, genesis.sig, genesis.payload]))
    good = format_base64url(CODE)
    async with site(parts=parts) as here:

        async def post(body: bytes, invite: str | None) -> Any:
            headers = MSGPACK if invite is None else MSGPACK | {"Keepstep-Invite": invite}
            return await here.http.post("/api/v1/accounts", content=body, headers=headers)

        for wrong in (None, "", "x", good[:-1], format_base64url(CODE + b"x"), format_base64url(seed("no")[:16])):
            refused = await post(bodies[0], wrong)
            assert (refused.status_code, refused.json()["code"]) == (403, "invite_invalid"), wrong
        assert (await post(bodies[0], good)).status_code == 201
        assert (await post(bodies[0], good)).status_code == 200
        assert (await post(bodies[1], good)).status_code == 403
