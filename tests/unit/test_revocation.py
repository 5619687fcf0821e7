"""Devices that end lose their sessions, on every node; users learn of clones; inboxes are read by their device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from keepstep.client import crypto
from keepstep.errors import ERRORS, DeviceRevoked, Unavailable
from keepstep.gateway import REPLACED_MAX
from keepstep.model import Capability, inbox_of
from keepstep.polling import LOOK_BACK_MS, POLL_INTERVAL_S
from keepstep.protocol.account import AccountLog
from keepstep.protocol.messages import (
    Cloned,
    Error,
    Events,
    Ping,
    Pong,
    Read,
    ReadResult,
    ResultAccepted,
    ResultError,
    Resumed,
    Revoked,
    Subscribe,
)
from keepstep.publish import AwaitedAnswer
from tests.support.events import NOW_MS, DeviceFixture, submission
from tests.support.parts import SERVER_KEY, Parts
from tests.support.scripted_log import account_event
from tests.support.wire import Closed, WireDevice, closing_reason

if TYPE_CHECKING:
    from keepstep.interfaces import Page

REVOKED = (ERRORS["revoked"].close_code, "revoked")


async def see_devices(parts: Parts, *devices: DeviceFixture) -> None:
    """What they sign next names the head of ``$devices``."""
    head = (await parts.log.stream((await parts.principal(devices[0])).user_pk, "$devices")).head
    for device in devices:
        device.seen["$devices"] = head.seq, head.chain


async def test_a_revoked_devices_session_is_told_and_closed(autojump_clock: trio.testing.MockClock) -> None:
    """By the signed event, at the commit; its author's session and other users' go on."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    (bobs,) = await parts.register("bob")
    async with parts.running() as nursery:
        on_phone, on_laptop = await parts.connect(nursery, phone), await parts.connect(nursery, laptop)
        on_bobs = await parts.connect(nursery, bobs)
        event, _ = phone.revoke(laptop)
        started_s = trio.current_time()
        (accepted,) = await on_phone.publish(event)
        revoked = await on_laptop.expect(Revoked)
        assert (accepted.first_seq, revoked.row[0], revoked.row[1], revoked.row[3]) == (
            *(3, 3, phone.device_id),
            event.header,
        )
        assert await closing_reason(on_laptop.receive) == "revoked"
        assert trio.current_time() - started_s < POLL_INTERVAL_S
        for device in (on_phone, on_bobs):
            await device.send(Ping(1))
            await device.expect(Pong)


async def test_the_session_on_another_node_is_closed_within_a_second(autojump_clock: trio.testing.MockClock) -> None:
    """By polling, as without any hint."""
    parts = Parts()
    other = Parts(database=parts.database)
    phone, laptop = await parts.register("alice", "phone", "laptop")
    async with parts.running() as nursery, other.running() as elsewhere:
        on_phone, on_laptop = await parts.connect(nursery, phone), await other.connect(elsewhere, laptop)
        started_s = trio.current_time()
        await on_phone.publish(phone.revoke(laptop)[0])
        assert isinstance(await on_laptop.receive(), Revoked)
        assert await closing_reason(on_laptop.receive) == "revoked"
        assert trio.current_time() - started_s <= 1


async def test_a_revoked_device_that_takes_nothing_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    """Its last message waits a quarter of a second."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    async with parts.running() as nursery:
        on_phone, on_laptop = await parts.connect(nursery, phone), await parts.connect(nursery, laptop)
        on_laptop.end.stuck = True  # type: ignore[attr-defined]
        started_s = trio.current_time()
        await on_phone.publish(phone.revoke(laptop)[0])
        with pytest.raises(Closed):
            await on_laptop.end.receive_message()
        assert trio.current_time() - started_s < 1


async def test_the_holder_of_a_revoked_key_is_shown_the_revocation(autojump_clock: trio.testing.MockClock) -> None:
    """After the proof, in place of a session; it verifies upon what the device knew. A stranger learns nothing."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    known = AccountLog(crypto, phone.user.user_key)
    async with parts.running() as nursery:
        on_phone = await parts.connect(nursery, phone)
        await on_phone.send(Subscribe({"$devices": "start"}))
        for row in await on_phone.receive_events("$devices", 2):
            known.apply(account_event(row))
        await on_phone.publish(phone.revoke(laptop)[0])
        end = parts.serve(nursery)
        with pytest.raises(DeviceRevoked) as caught:
            await WireDevice.connect(laptop, end, SERVER_KEY)
        event = caught.value.event
        known.verify_end(laptop.device_id, account_event(event), event[0])
        with pytest.raises(Closed):
            await end.receive_message()
        assert end.closed == REVOKED
        stranger = DeviceFixture(laptop.user, "stranger")
        end = parts.serve(nursery)
        with pytest.raises(Closed) as closed:
            await WireDevice.connect(laptop, end, SERVER_KEY, device_secret=stranger.device_secret)
        assert closed.value.reason == "auth_failed"


async def test_a_revocation_that_cannot_be_read_closes_all_the_same(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """In a session and at the door; the event is a courtesy."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")

    read = parts.log.read

    async def away(*arguments: Any, events_max: int, **keywords: Any) -> Page:
        if events_max == 1:
            raise Unavailable
        return await read(*arguments, events_max=events_max, **keywords)

    async with parts.running() as nursery:
        on_phone, on_laptop = await parts.connect(nursery, phone), await parts.connect(nursery, laptop)
        event, _ = phone.revoke(laptop)
        monkeypatch.setattr(parts.log, "read", away)
        await on_phone.start_publish(event)
        assert await closing_reason(on_laptop.receive) == "revoked"
        end = parts.serve(nursery)
        with pytest.raises(Closed) as closed:
            await WireDevice.connect(laptop, end, SERVER_KEY)
        assert (closed.value.code, closed.value.reason) == REVOKED


async def test_many_revocations_that_cannot_be_read_close_within_a_second(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Those that end together wait together for the events that ended them."""
    parts = Parts()
    other = Parts(database=parts.database)
    phone, *others = await parts.register("alice", "phone", "laptop", "tablet", "watch", "desk")
    async with parts.running() as nursery, other.running() as elsewhere:
        on_phone = await other.connect(elsewhere, phone)
        sessions = [await parts.connect(nursery, each) for each in others]
        monkeypatch.setattr(parts.log, "read", sleep_forever)
        started_s = trio.current_time()
        for each in others:
            await see_devices(other, phone)
            await on_phone.publish(phone.revoke(each)[0])
        for session in sessions:
            assert await closing_reason(session.receive) == "revoked"
        assert trio.current_time() - started_s <= 1


async def sleep_forever(*_: Any, **_keywords: Any) -> Page:
    """A database that does not answer."""
    await trio.sleep_forever()
    raise AssertionError


async def test_a_database_that_is_away_is_asked_again(autojump_clock: trio.testing.MockClock) -> None:
    """What ended meanwhile is found when it is back, however long that took."""
    parts = Parts()
    other = Parts(database=parts.database)
    phone, laptop = await parts.register("alice", "phone", "laptop")
    async with parts.running() as nursery:
        on_laptop = await parts.connect(nursery, laptop)
        asked = parts.accounts.revoked_since
        times = []

        async def away(since_ms: int) -> object:
            times.append(since_ms)
            if len(times) < 4:
                raise Unavailable
            return await asked(since_ms)

        parts.accounts.revoked_since = away  # type: ignore[method-assign,assignment]
        event, change = phone.revoke(laptop)
        async with other.running() as elsewhere:
            on_phone = await other.connect(elsewhere, phone)
            await on_phone.publish(event)
            parts.clock.at_ms += 2 * LOOK_BACK_MS
            assert isinstance(await on_laptop.receive(), Revoked)
        assert len(set(times[:4])) == 1
        assert change.changes_access


async def test_a_device_signs_itself_out(autojump_clock: trio.testing.MockClock) -> None:
    """Also one that does not manage; what it does after that is refused."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    watch = DeviceFixture(phone.user, "watch", capabilities=Capability.PUBLISH)
    await parts.enrol(phone, watch)
    async with parts.running() as nursery:
        on_watch = await parts.connect(nursery, watch)
        await on_watch.start_publish(watch.revoke(watch)[0])
        assert isinstance(await on_watch.expect(Revoked), Revoked)
        assert await closing_reason(on_watch.receive) == "revoked"
    assert await parts.accounts.principal(watch.user.user_key, watch.device_id) is None


async def test_a_revoked_devices_account_events_are_forbidden(autojump_clock: trio.testing.MockClock) -> None:
    """Whatever its session has under way."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    principal = await parts.principal(laptop)
    await see_devices(parts, phone, laptop)
    answers: list[object] = []
    async with parts.running() as nursery:
        on_phone = await parts.connect(nursery, phone)
        await on_phone.publish(phone.revoke(laptop)[0])
        for event in (laptop.revoke(phone)[0], laptop.event("notes")):
            answer = AwaitedAnswer()
            await parts.publisher.submit(principal, submission(principal, event), answer)
            answers += await answer.wait()
    assert answers == [ResultError("forbidden", [])] * 2


async def test_the_third_managing_device_waits_for_its_day(autojump_clock: trio.testing.MockClock) -> None:
    """It publishes at once and manages after the cool-down, also in a session from before."""
    parts = Parts()
    phone, _ = await parts.register("alice", "phone", "laptop")
    await see_devices(parts, phone)
    tablet = DeviceFixture(phone.user, "tablet")
    async with parts.running() as nursery:
        on_phone = await parts.connect(nursery, phone)
        await on_phone.publish(phone.enrol(tablet)[0])
        await see_devices(parts, phone, tablet)
        on_tablet = await parts.connect(nursery, tablet)
        watch = DeviceFixture(phone.user, "watch", capabilities=Capability.PUBLISH)
        before = tablet.authored.copy()
        first, second = await on_tablet.publish(tablet.event("notes"), tablet.enrol(watch)[0])
        assert (type(first), second) == (ResultAccepted, ResultError("forbidden", []))
        tablet.authored = before | {"notes": tablet.authored["notes"]}
        parts.clock.at_ms += 24 * 60 * 60 * 1000
        (accepted,) = await on_tablet.publish(tablet.enrol(watch)[0])
        assert isinstance(accepted, ResultAccepted)


# -- clones ---------------------------------------------------------------------------------------------------------


async def test_every_device_learns_of_a_clone(autojump_clock: trio.testing.MockClock) -> None:
    """Those of the user, on every node, once; the copy that is there stays, and nothing goes back and forth."""
    parts = Parts()
    other = Parts(database=parts.database)
    phone, laptop = await parts.register("alice", "phone", "laptop")
    (bobs,) = await parts.register("bob")
    async with parts.running() as nursery, other.running() as elsewhere:
        on_laptop, on_bobs = await other.connect(elsewhere, laptop), await parts.connect(nursery, bobs)
        sessions = [await parts.connect(nursery, phone, nonce=f"{number}") for number in range(REPLACED_MAX + 1)]
        for earlier in sessions[:-1]:
            assert await closing_reason(earlier.receive) == "replaced"
        with pytest.raises(Closed) as closed:
            await parts.connect(nursery, phone, nonce="one more")
        assert closed.value.reason == "cloned"
        for device in (sessions[-1], on_laptop):
            cloned = await device.expect(Cloned)
            assert (cloned.device_id, cloned.at_ms) == (phone.device_id, NOW_MS)
            await device.send(Ping(1))
            assert isinstance(await device.receive(), Pong)
        await on_bobs.send(Ping(1))
        assert isinstance(await on_bobs.receive(), Pong)


async def test_a_clone_that_cannot_be_recorded_is_refused_all_the_same(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """The database is away for a moment."""
    parts = Parts()
    (phone,) = await parts.register("alice")

    async def away(*_: object, **__: object) -> None:
        raise Unavailable

    monkeypatch.setattr(parts.accounts, "record_clone", away)
    async with parts.running() as nursery:
        for number in range(REPLACED_MAX + 1):
            await parts.connect(nursery, phone, nonce=f"{number}")
        with pytest.raises(Closed) as closed:
            await parts.connect(nursery, phone, nonce="one more")
        assert closed.value.reason == "cloned"


# -- inboxes --------------------------------------------------------------------------------------------------------


async def test_only_its_device_reads_an_inbox(autojump_clock: trio.testing.MockClock) -> None:
    """Others write into it; reading and subscribing is forbidden, and ``all`` leaves it out."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    inbox = inbox_of(laptop.device_id)
    async with parts.running() as nursery:
        on_phone = await parts.connect(nursery, phone, resume="all")
        on_laptop = await parts.connect(nursery, laptop, resume="all")
        (accepted,) = await on_phone.publish(phone.event(inbox, b"for the laptop"))
        assert isinstance(accepted, ResultAccepted)
        while (events := await on_laptop.expect(Events)).stream != inbox:
            pass
        assert [row[5] for row in events.rows] == [b"for the laptop"]
        await on_phone.send(Subscribe({inbox: "start", "$inbox/other": "start"}), Read(1, inbox, 0, 10))
        refused: dict[str, str] = {}
        while len(refused) < 2:
            resumed = await on_phone.expect(Resumed)
            refused |= {resumed.stream: resumed.answer} if resumed.answer != "contiguous" else {}
        assert refused == {inbox: "forbidden", "$inbox/other": "unknown_stream"}
        assert (await on_phone.expect(Error)).code == "forbidden"
        await on_laptop.send(Read(2, inbox, 0, 10))
        assert len((await on_laptop.expect(ReadResult)).rows) == 1
        await trio.sleep(60)  # the slow timer lists all streams once more
        await on_phone.send(Ping(3))
        while not isinstance(message := await on_phone.receive(), Pong):
            assert getattr(message, "stream", "") != inbox
