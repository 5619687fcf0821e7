"""Users, sessions, invites, cuts and the audit trail, as administrators see them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from keepstep.administration import AuditEntry, Cut, ListedInvite, ListedSession, ListedUser, Quota
from keepstep.errors import Unavailable
from keepstep.model import UserPk
from keepstep.protocol.messages import ResultAccepted, ResultDuplicate, ResultError
from tests.support.events import NOW_MS, DeviceFixture, UserFixture, seed
from tests.support.logs import Place, append, create_account, enrol, session_no

if TYPE_CHECKING:
    from keepstep.model import Principal

ADA: Final = UserFixture("ada")
BEN: Final = UserFixture("ben")
ENTRY: Final = AuditEntry(0, NOW_MS, "request", "192.0.2.1", "get_admin_users", "{}", 200)
DAY_MS: Final = 24 * 60 * 60 * 1000


async def open_session(place: Place, principal: Principal, session_id: bytes) -> ListedSession:
    """A session, as it is listed."""
    number = await session_no(place, principal, session_id)
    return ListedSession(session_id, principal.user_key, principal.device_id, number, NOW_MS)


async def test_the_audit_trail_is_read_from_its_end(place: Place) -> None:
    """Page by page; older entries stay until they are cleaned up, the oldest first."""
    for number in range(3):
        await place.administration.add_audit(replace(ENTRY, at_ms=NOW_MS + number, target=str(number)))

    newest = await place.administration.audit(before=None, limit=2)
    assert [entry.target for entry in newest] == ["2", "1"]
    assert newest[0] == replace(ENTRY, audit_no=newest[0].audit_no, at_ms=NOW_MS + 2, target="2")
    (oldest,) = await place.administration.audit(before=newest[-1].audit_no, limit=2)
    assert oldest.target == "0"

    older = {"audit_before_ms": NOW_MS + 2, "cuts_before_ms": 0, "rows_max": 1}
    assert [await place.administration.clean_up(**older) for _ in range(3)] == [1, 1, 0]
    assert await place.administration.audit(before=None, limit=9) == [newest[0]]


async def test_users_are_listed_in_the_order_in_which_they_came(place: Place) -> None:
    """With what each has: live devices, streams, quotas."""
    log = place.node()
    phone = DeviceFixture(ADA, "phone")
    ada = await create_account(place, log, phone)
    await enrol(place, log, phone, DeviceFixture(ADA, "laptop"))
    await append(log, ada, phone.event("notes"))
    ben = await create_account(place, log, DeviceFixture(BEN, "phone"))
    await place.administration.set_quota(ben.user_pk, Quota(streams_max=9))

    expected = [
        ListedUser(ada.user_pk, ADA.user_key, NOW_MS, None, devices=2, streams=3, quota=Quota()),
        ListedUser(ben.user_pk, BEN.user_key, NOW_MS, None, devices=1, streams=2, quota=Quota(streams_max=9)),
    ]
    expected = [
        replace(each, stored_bytes=listed.stored_bytes, reserved_bytes=listed.reserved_bytes)
        for each, listed in zip(expected, await place.administration.users(after=0, limit=9), strict=True)
    ]
    assert await place.administration.users(after=0, limit=9) == expected
    assert await place.administration.users(after=0, limit=1) == expected[:1]
    assert await place.administration.users(after=ada.user_pk, limit=9) == expected[1:]
    assert await place.administration.user(BEN.user_key) == expected[1]
    assert await place.administration.user(seed("nobody")) is None
    assert await place.administration.quota(ben.user_pk) == Quota(streams_max=9)
    assert await place.administration.quota(UserPk(99)) == Quota()


async def test_nothing_of_a_disabled_user_is_let_in(place: Place) -> None:
    """No node takes a new event, what is stored is still a duplicate; its sessions are cut, and nobody else's."""
    log, other = place.node(), place.node()
    phone, tablet = DeviceFixture(ADA, "phone"), DeviceFixture(BEN, "tablet")
    ada = await create_account(place, log, phone)
    ben = await create_account(place, log, tablet)
    first = phone.event("notes")
    assert isinstance((await append(log, ada, first))[0], ResultAccepted)
    assert isinstance((await append(other, ada, phone.event("notes")))[0], ResultAccepted)

    for _ in range(2):
        await place.administration.set_disabled(ada.user_pk, disabled=True, now_ms=NOW_MS + 1)

    following = phone.event("notes")
    for node in (log, other):
        (result,) = await append(node, ada, following)
        assert isinstance(result, ResultError)
        assert result.code == "forbidden"
    assert isinstance((await append(log, ada, first))[0], ResultDuplicate)
    assert isinstance((await append(log, ben, tablet.event("notes")))[0], ResultAccepted)
    assert await place.accounts.principal(ADA.user_key, phone.device_id) is None
    assert await place.accounts.user(ADA.user_key) is None
    assert await place.administration.cuts_since(NOW_MS + 1) == [Cut(ada.user_pk, None)]
    assert await place.administration.cuts_since(NOW_MS + 2) == []
    user = await place.administration.user(ADA.user_key)
    assert user is not None
    assert user.disabled_at_ms == NOW_MS + 1

    await place.administration.set_disabled(ada.user_pk, disabled=False, now_ms=NOW_MS + 2)
    assert await place.administration.cuts_since(0) == []
    for node in (log, other):
        assert not isinstance((await append(node, ada, following))[0], ResultError)
    assert await place.accounts.principal(ADA.user_key, phone.device_id) == ada


async def test_a_session_that_is_cut_is_named_to_every_node(place: Place) -> None:
    """Only one that is open; the newest of its device, for an older one ended with its node."""
    log = place.node()
    phone, tablet = DeviceFixture(ADA, "phone"), DeviceFixture(BEN, "tablet")
    ada = await create_account(place, log, phone)
    ben = await create_account(place, log, tablet)
    abandoned = await open_session(place, ada, b"a" * 16)
    newest = await open_session(place, ada, b"n" * 16)
    of_ben = await open_session(place, ben, b"b" * 16)

    assert await place.administration.sessions(user_pk=None, after=b"", limit=9) == [of_ben, newest]
    assert await place.administration.sessions(user_pk=None, after=b"", limit=1) == [of_ben]
    assert await place.administration.sessions(user_pk=None, after=b"b" * 16, limit=9) == [newest]
    assert await place.administration.sessions(user_pk=ada.user_pk, after=b"", limit=9) == [newest]

    assert await place.administration.cut_session(newest.session_id, now_ms=NOW_MS)
    assert await place.administration.cut_session(newest.session_id, now_ms=NOW_MS + 1)
    assert not await place.administration.cut_session(abandoned.session_id, now_ms=NOW_MS)
    assert not await place.administration.cut_session(b"?" * 16, now_ms=NOW_MS)
    assert await place.administration.cuts_since(NOW_MS + 1) == [Cut(ada.user_pk, (ada.device_pk, 2))]
    await place.accounts.close_session(newest.session_id, now_ms=NOW_MS, reason="session_cut")
    assert not await place.administration.cut_session(newest.session_id, now_ms=NOW_MS)

    older = {"audit_before_ms": 0, "cuts_before_ms": NOW_MS + 2, "rows_max": 9}
    assert [await place.administration.clean_up(**older) for _ in range(2)] == [1, 0]
    assert await place.administration.cuts_since(0) == []


async def test_invites_are_listed_by_hash_and_can_be_taken_back(place: Place) -> None:
    """One that was deleted lets nobody in; one that was used says who came with it."""
    hashes = sorted(seed(str(number)) for number in range(3))
    for number, code_hash in enumerate(hashes):
        await place.administration.add_invite(
            code_hash, note=f"for {number}", now_ms=NOW_MS, expires_at_ms=NOW_MS + DAY_MS
        )
    expected = [
        ListedInvite(code_hash, NOW_MS, NOW_MS + DAY_MS, f"for {number}", None)
        for number, code_hash in enumerate(hashes)
    ]
    assert await place.administration.invites(after=b"", limit=9) == expected
    assert await place.administration.invites(after=hashes[0], limit=1) == expected[1:2]

    assert await place.administration.delete_invite(hashes[1])
    assert not await place.administration.delete_invite(hashes[1])
    log = place.node()
    refused = await log.create_account(DeviceFixture(ADA, "phone").genesis(), now_ms=NOW_MS, invite_hash=hashes[1])
    assert isinstance(refused, ResultError)
    created = await log.create_account(DeviceFixture(ADA, "phone").genesis(), now_ms=NOW_MS, invite_hash=hashes[0])
    assert isinstance(created, ResultAccepted)
    left = await place.administration.invites(after=b"", limit=9)
    assert left == [replace(expected[0], used=(NOW_MS, ADA.user_key)), expected[2]]


async def test_statistics_count_what_is_there(place: Place) -> None:
    """Users, devices, streams, events and open sessions."""
    log = place.node()
    phone = DeviceFixture(ADA, "phone")
    ada = await create_account(place, log, phone)
    ben = await create_account(place, log, DeviceFixture(BEN, "tablet"))
    await append(log, ada, phone.event("notes"))
    await open_session(place, ada, b"a" * 16)
    await place.administration.set_disabled(ben.user_pk, disabled=True, now_ms=NOW_MS)

    statistics = await place.administration.statistics()
    assert (statistics.users, statistics.disabled_users, statistics.devices) == (2, 1, 2)
    assert (statistics.streams, statistics.events, statistics.open_sessions) == (5, 3, 1)
    assert statistics.database_bytes is None or statistics.database_bytes > 1_000_000


async def test_administration_is_unavailable_while_the_database_is_away(place: Place) -> None:
    """It says so, and works again afterwards."""
    place.go_away()
    with pytest.raises(Unavailable):
        await place.administration.add_audit(ENTRY)
    with pytest.raises(Unavailable):
        await place.administration.cuts_since(0)
    place.come_back()
    assert await place.administration.audit(before=None, limit=9) == []
