"""The administration key, its audit trail, and sessions that are cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest
import structlog
import trio
import trio.testing

from keepstep.admin import (
    CUT_KEPT_MS,
    FAILURES_MAX,
    FAILURES_WINDOW_S,
    PREFIXES_MAX,
    REMOVAL_DELAY_MS,
    AdminKey,
    administration_step,
    deleted_accounts_step,
)
from keepstep.administration import AuditEntry
from keepstep.cleanup import DAY_MS
from keepstep.errors import ProtocolError
from keepstep.polling import POLL_INTERVAL_S
from tests.support.events import NOW_MS
from tests.support.parts import Parts
from tests.support.wire import Closed, closing_reason

KEY: Final = "correct-horse-battery-staple-0123456789"
RIGHT: Final = f"Bearer {KEY}"


def admin_key(parts: Parts) -> AdminKey:
    """The access that a server with ``KEY`` gives."""
    return AdminKey(KEY, parts.administration, parts.clock, parts.metrics, structlog.get_logger())


@pytest.mark.parametrize("authorization", [RIGHT, f"bearer {KEY}"])
async def test_the_key_is_let_in(authorization: str) -> None:
    """By whatever spelling of the scheme (RFC 9110 section 11.1)."""
    await admin_key(Parts()).authenticate(authorization, address="192.0.2.1")


@pytest.mark.parametrize(
    "authorization",
    [None, "", KEY, f"Basic {KEY}", "Bearer ", f"Bearer {KEY} ", f"Bearer {KEY[:-1]}", "Bearer é\udc80"],
)
async def test_anything_else_is_not(authorization: str | None) -> None:
    """And is told nothing but that."""
    with pytest.raises(ProtocolError, match="invalid_token"):
        await admin_key(Parts()).authenticate(authorization, address="192.0.2.1")


async def test_the_key_itself_is_not_kept() -> None:
    """Only its hash."""
    assert KEY not in repr(vars(admin_key(Parts())))


async def test_a_prefix_that_fails_too_often_is_not_looked_at(autojump_clock: trio.testing.MockClock) -> None:
    """Not even with the right key, which a guesser would otherwise find out; others are."""
    parts = Parts()
    access = admin_key(parts)
    for _ in range(FAILURES_MAX):
        with pytest.raises(ProtocolError, match="invalid_token"):
            await access.authenticate("Bearer wrong", address="192.0.2.1")
    with pytest.raises(ProtocolError, match="rate_limited") as refused:
        await access.authenticate(RIGHT, address="192.0.2.1")
    refusals = parts.metrics.registry.get_sample_value("keepstep_admin_refusals_total")
    assert refusals == FAILURES_MAX + 1
    assert refused.value.retry_after_ms == FAILURES_WINDOW_S * 1000
    await access.authenticate(RIGHT, address="198.51.100.1")
    await trio.sleep(FAILURES_WINDOW_S)
    await access.authenticate(RIGHT, address="192.0.2.1")


async def test_prefixes_that_failed_are_bounded_in_number() -> None:
    """The oldest is forgotten."""
    access = admin_key(Parts())
    for number in range(PREFIXES_MAX + 1):
        with pytest.raises(ProtocolError, match="invalid_token"):
            await access.authenticate(None, address=f"test-{number}")
    assert len(access._failures) == PREFIXES_MAX
    assert "test-0" not in access._failures


async def test_a_call_is_recorded_and_logged() -> None:
    """Cut to what a row takes; without the key."""
    parts = Parts()
    with structlog.testing.capture_logs() as lines:
        await admin_key(parts).audit(
            "patch_admin_users_by_user_id",
            {"user_id": "x" * 300},
            status=200,
            address="192.0.2.1",
            request_id="r" * 100,
        )
    (entry,) = await parts.administration.audit(before=None, limit=9)
    target = '{"user_id":"' + "x" * 244
    assert entry == AuditEntry(1, NOW_MS, "r" * 64, "192.0.2.1", "patch_admin_users_by_user_id", target, 200)
    assert parts.metrics.registry.get_sample_value("keepstep_admin_calls_total", {"status": "200"}) == 1
    (line,) = lines
    assert (line["event"], line["status"], line["target"]) == ("admin_call", 200, target)


async def test_a_wrong_key_is_logged_without_itself() -> None:
    """Where it came from is what an operator needs."""
    with structlog.testing.capture_logs() as lines, pytest.raises(ProtocolError):
        await admin_key(Parts()).authenticate("Bearer almost-the-key", address="192.0.2.1")
    assert [(line["event"], line["address"]) for line in lines] == [("admin_key_refused", "192.0.2.1")]
    assert "almost" not in repr(lines)


async def test_old_entries_and_cuts_are_cleaned_up_until_none_is_left() -> None:
    """Step by step."""
    parts = Parts()
    entry = AuditEntry(0, NOW_MS - 2 * DAY_MS - 1, "r", "a", "o", "{}", 200)
    for _ in range(5):
        await parts.administration.add_audit(entry)
    await parts.administration.add_audit(replace(entry, at_ms=NOW_MS - 2 * DAY_MS))
    parts.database.cuts = {(1, 0, 0): NOW_MS - CUT_KEPT_MS - 1, (2, 0, 0): NOW_MS}
    step = administration_step(parts.administration, lambda: 2)
    steps = [await step(now_ms=NOW_MS, rows_max=2) for _ in range(4)]
    assert steps == [3, 2, 1, 0]
    assert [left.at_ms for left in parts.database.audit] == [NOW_MS - 2 * DAY_MS]
    assert parts.database.cuts == {(2, 0, 0): NOW_MS}


async def test_a_cut_session_ends_at_once_where_it_was_cut(autojump_clock: trio.testing.MockClock) -> None:
    """Its device is told that it may come back, and may; no other session ends."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    async with parts.running() as nursery:
        on_phone, on_laptop = [await parts.connect(nursery, device) for device in (phone, laptop)]
        principal = await parts.principal(phone)
        listed = await parts.administration.sessions(user_pk=principal.user_pk, after=b"", limit=9)
        (session,) = [each for each in listed if each.device_id == phone.device_id]
        started_s = trio.current_time()
        assert await parts.administration.cut_session(session.session_id, now_ms=NOW_MS)
        parts.cuts.look_now()
        assert await closing_reason(on_phone.receive) == "session_cut"
        assert trio.current_time() - started_s < POLL_INTERVAL_S
        await parts.connect(nursery, phone)
        await trio.sleep(2 * POLL_INTERVAL_S)
        assert parts.gateway.sessions == 2
        assert parts.gateway.session(principal.user_pk, (await parts.principal(laptop)).device_pk) is not None
        del on_laptop


async def test_a_session_on_another_node_is_cut_within_a_second(autojump_clock: trio.testing.MockClock) -> None:
    """By what both nodes find in the database."""
    parts = Parts()
    other = Parts(database=parts.database)
    (phone,) = await parts.register("alice", "phone")
    async with parts.running(), other.running() as nursery:
        session = await other.connect(nursery, phone)
        (listed,) = await parts.administration.sessions(user_pk=None, after=b"", limit=9)
        started_s = trio.current_time()
        assert await parts.administration.cut_session(listed.session_id, now_ms=NOW_MS)
        parts.cuts.look_now()
        assert await closing_reason(session.receive) == "session_cut"
        assert trio.current_time() - started_s < 1


async def test_the_sessions_of_a_disabled_user_end_within_a_second(autojump_clock: trio.testing.MockClock) -> None:
    """Also on a node that is not told, and while the database is away for a while; nobody else's do."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    (other,) = await parts.register("bob", "phone")
    async with parts.running() as nursery:
        sessions = [await parts.connect(nursery, device) for device in (phone, laptop)]
        await parts.connect(nursery, other)
        principal = await parts.principal(phone)
        parts.database.away = True
        await trio.sleep(3 * POLL_INTERVAL_S)
        parts.database.away = False
        started_s = trio.current_time()
        await parts.administration.set_disabled(principal.user_pk, disabled=True, now_ms=NOW_MS)
        for session in sessions:
            assert await closing_reason(session.receive) == "account_disabled"
        assert trio.current_time() - started_s < 1
        assert parts.gateway.sessions == 1
        with pytest.raises(Closed) as closed:
            await parts.connect(nursery, phone)
        assert closed.value.reason == "auth_failed"


async def test_what_is_left_of_a_deleted_account_is_removed_after_a_minute() -> None:
    """By then every node has ended its sessions, whatever its clock says."""
    parts = Parts()
    (phone,) = await parts.register("alice", "phone")
    principal = await parts.principal(phone)
    await parts.administration.delete_user(principal.user_pk, phone.user.user_key, now_ms=parts.clock.now_ms())
    step = deleted_accounts_step(parts.administration)
    assert await step(now_ms=NOW_MS, rows_max=100) == 0
    assert principal.user_pk in parts.database.users
    assert await step(now_ms=NOW_MS + REMOVAL_DELAY_MS, rows_max=100) == 1
    assert not parts.database.users
