"""Clean-up of what nobody needs any more, and what a database says of its size."""

from __future__ import annotations

import pytest

from keepstep.cleanup import TURN, TURN_MS
from keepstep.errors import Unavailable
from keepstep.model import Principal, inbox_of
from keepstep.protocol.messages import ResultAccepted
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import Place, acks_of, append, create_account, enrol, principal_of, read_all

ADA = UserFixture("ada")
HERE, THERE = b"h" * 16, b"t" * 16
DAY_MS = 86_400_000
ROWS = 100


async def session(place: Place, principal: Principal, number: int, *, opened_ms: int, closed_ms: int | None) -> None:
    """One session of a device."""
    session_id = bytes([number]) * 16
    await place.accounts.open_session(principal, session_id, now_ms=opened_ms)
    if closed_ms is not None:
        await place.accounts.close_session(session_id, now_ms=closed_ms, reason="bye")


async def test_one_node_at_a_time_has_the_turn(place: Place) -> None:
    """It may keep it; another one gets it when it is over, and other work has a turn of its own."""
    take = place.housekeeping.take_turn
    assert await take(TURN, HERE, now_ms=NOW_MS, until_ms=NOW_MS + TURN_MS)
    assert not await take(TURN, THERE, now_ms=NOW_MS + TURN_MS - 1, until_ms=NOW_MS + 2 * TURN_MS)
    assert await take("other", THERE, now_ms=NOW_MS, until_ms=NOW_MS + TURN_MS)
    assert await take(TURN, HERE, now_ms=NOW_MS + 1, until_ms=NOW_MS + TURN_MS + 1)
    assert not await take(TURN, THERE, now_ms=NOW_MS + TURN_MS, until_ms=NOW_MS + 2 * TURN_MS)
    assert await take(TURN, THERE, now_ms=NOW_MS + TURN_MS + 1, until_ms=NOW_MS + 2 * TURN_MS)
    assert not await take(TURN, HERE, now_ms=NOW_MS + TURN_MS + 1, until_ms=NOW_MS + 2 * TURN_MS)


async def test_sessions_closed_long_ago_are_forgotten(place: Place) -> None:
    """In bounded steps; open ones and those closed since stay."""
    log = place.node()
    principal = await create_account(place, log, DeviceFixture(ADA, "phone"))
    for number in range(3):
        await session(place, principal, number, opened_ms=NOW_MS, closed_ms=NOW_MS + 1)
    await session(place, principal, 3, opened_ms=NOW_MS, closed_ms=NOW_MS + DAY_MS)
    await session(place, principal, 4, opened_ms=NOW_MS, closed_ms=None)

    before_ms = NOW_MS + DAY_MS
    steps = [await place.housekeeping.drop_sessions(before_ms=before_ms, rows_max=2) for _ in range(3)]

    assert steps == [2, 1, 0]
    assert await place.housekeeping.drop_sessions(before_ms=before_ms + 1, rows_max=ROWS) == 1
    assert [each.session_no for each in await place.administration.sessions(user_pk=None, after=b"", limit=9)] == [5]


async def test_of_a_device_that_connects_again_and_again_the_last_sessions_stay(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes takes the record of one long before it, open or closed; those of other devices stay."""
    monkeypatch.setattr("keepstep.postgres.accounts.SESSIONS_PER_DEVICE_MAX", 3)
    monkeypatch.setattr("keepstep.memory.accounts.SESSIONS_PER_DEVICE_MAX", 3)
    log = place.node()
    phone = DeviceFixture(ADA, "phone")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, DeviceFixture(ADA, "laptop"))
    await session(place, on_laptop, 0, opened_ms=NOW_MS, closed_ms=NOW_MS + 1)
    await session(place, on_phone, 1, opened_ms=NOW_MS, closed_ms=None)
    for number in range(2, 7):
        await session(place, on_phone, number, opened_ms=NOW_MS, closed_ms=NOW_MS + 1)

    assert await open_sessions(place) == []
    assert await place.housekeeping.drop_sessions(before_ms=NOW_MS + 2, rows_max=ROWS) == 1 + 3


async def test_invites_that_are_over_are_forgotten(place: Place) -> None:
    """Used or run out before then."""
    log = place.node()
    for number, lifetime_ms in enumerate((1, DAY_MS, 3 * DAY_MS, 3 * DAY_MS)):
        await place.administration.add_invite(
            bytes([number]) * 32, note="", now_ms=NOW_MS, expires_at_ms=NOW_MS + lifetime_ms
        )
    await log.create_account(DeviceFixture(ADA, "phone").genesis(), now_ms=NOW_MS, invite_hash=bytes([2]) * 32)

    steps = [await place.housekeeping.drop_invites(before_ms=NOW_MS + DAY_MS, rows_max=1) for _ in range(3)]

    assert steps == [1, 1, 0]
    left = await place.administration.invites(after=b"", limit=9)
    assert [each.code_hash[0] for each in left] == [1, 3]


async def test_an_inactive_device_is_cleaned_and_stays_live(place: Place) -> None:
    """Step by step, once, and again after it has come back; nothing of an active device goes."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    inboxes = [inbox_of(device.device_id) for device in (phone, laptop)]
    await append(log, on_phone, *phone.events("notes", 2), *(phone.event(inbox, b"sealed") for inbox in inboxes))
    for number, (principal, seen_ms) in enumerate(((on_phone, NOW_MS + DAY_MS), (on_laptop, NOW_MS))):
        await session(place, principal, number, opened_ms=seen_ms, closed_ms=seen_ms)
        await place.accounts.save_acks(principal, {"notes": (2, bytes(16))})
    before_ms, now_ms = NOW_MS + 1, NOW_MS + 2 * DAY_MS

    async def clean(rows_max: int = ROWS) -> int:
        return await place.housekeeping.clean_devices(before_ms=before_ms, now_ms=now_ms, rows_max=rows_max)

    steps = [await clean(1) for _ in range(5)]

    assert steps[-1] == 0
    assert sum(steps) == 4  # a message, a session, a position, the mark
    assert (await read_all(place.node(), on_phone, inboxes[1])).payloads == [None]
    assert (await read_all(place.node(), on_phone, inboxes[0])).payloads == [b"sealed"]
    info = await log.stream(on_phone.user_pk, inboxes[1])
    assert info.stored_bytes < (await log.stream(on_phone.user_pk, inboxes[0])).stored_bytes
    assert await acks_of(place.node(), on_laptop) == {}
    assert await acks_of(place.node(), on_phone) == {"notes": 2}
    assert await principal_of(place, laptop) == on_laptop
    assert isinstance((await append(log, on_laptop, laptop.event("notes")))[0], ResultAccepted)

    await session(place, on_laptop, 9, opened_ms=now_ms + 1, closed_ms=now_ms + 1)
    assert await clean() == 0
    before_ms, now_ms = now_ms + 2, now_ms + 3
    assert await clean() == 6  # of the phone: message, session, position; of the laptop its new session; two marks


async def test_a_database_says_how_large_it_is(place: Place) -> None:
    """Its tables by name, partitions with their parent; nothing there yet is no age."""
    log = place.node()
    assert (await place.housekeeping.measure()).oldest_event_ms is None
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, *device.events("notes", 3))

    size = await place.housekeeping.measure()

    names = {table.name for table in size.tables}
    assert names == {"events"} or names >= {"events_standard", "events_keep", "streams", "users"}
    assert not any("20" in name for name in names)
    assert all(min(table.rows, table.dead_rows, table.size_bytes) >= 0 for table in size.tables)


async def test_clean_up_is_unavailable_while_the_database_is_away(place: Place) -> None:
    """It is tried again at the next run."""
    place.go_away()
    with pytest.raises(Unavailable):
        await place.housekeeping.take_turn(TURN, HERE, now_ms=NOW_MS, until_ms=NOW_MS)
    with pytest.raises(Unavailable):
        await place.housekeeping.measure()
    place.come_back()
    assert await place.housekeeping.take_turn(TURN, HERE, now_ms=NOW_MS, until_ms=NOW_MS)


async def open_sessions(place: Place) -> list[int]:
    """As an operator sees them, by the number in their id."""
    sessions = await place.administration.sessions(user_pk=None, after=b"", limit=9)
    return [each.session_id[0] for each in sessions]


async def test_sessions_of_a_node_that_died_are_closed(place: Place) -> None:
    """In bounded steps, when nobody has said for long that they are open; one that is said to be open is."""
    log, node = place.node(), place.accounts
    phone, laptop, tablet = (DeviceFixture(ADA, name) for name in ("phone", "laptop", "tablet"))
    on_phone = await create_account(place, log, phone)
    principals = [on_phone, await enrol(place, log, phone, laptop), await enrol(place, log, phone, tablet)]
    for number, principal in enumerate(principals):
        await node.open_session(principal, bytes([number]) * 16, now_ms=NOW_MS + number)
    close = place.housekeeping.close_lost_sessions
    assert await close(before_ms=NOW_MS, rows_max=ROWS) == 0
    assert [await close(before_ms=NOW_MS + 2, rows_max=1) for _ in range(3)] == [1, 1, 0]
    assert await open_sessions(place) == [2]
    assert (await place.administration.statistics()).open_sessions == 1
    # They ended when they were last known to be open, and are forgotten by that time.
    assert await place.housekeeping.drop_sessions(before_ms=NOW_MS + 1, rows_max=ROWS) == 1

    await node.keep_sessions(now_ms=NOW_MS + DAY_MS)

    assert await open_sessions(place) == [1, 2]  # its node was cut off from the database, and is there after all
    assert await close(before_ms=NOW_MS + DAY_MS, rows_max=ROWS) == 0
    seen_ms = [each.last_seen_ms for each in await place.accounts.devices(on_phone.user_pk)]
    assert seen_ms[1:] == [NOW_MS + DAY_MS] * 2


async def test_a_session_says_nothing_after_its_end(place: Place) -> None:
    """Whether its end was recorded by its node, also after it was taken for lost, or it is gone."""
    log, node = place.node(), place.accounts
    on_phone = await create_account(place, log, DeviceFixture(ADA, "phone"))
    for number in (1, 2):
        await node.open_session(on_phone, bytes([number]) * 16, now_ms=NOW_MS)
    await node.close_session(bytes([1]) * 16, now_ms=NOW_MS + 5, reason="bye")
    assert await place.housekeeping.close_lost_sessions(before_ms=NOW_MS + 1, rows_max=ROWS) == 1
    await node.close_session(bytes([2]) * 16, now_ms=NOW_MS + 7, reason="bye")
    await node.keep_sessions(now_ms=NOW_MS + DAY_MS)
    assert await open_sessions(place) == []
    assert await place.housekeeping.drop_sessions(before_ms=NOW_MS + 7, rows_max=ROWS) == 1
    assert await place.housekeeping.drop_sessions(before_ms=NOW_MS + 8, rows_max=ROWS) == 1


async def test_a_device_is_seen_when_it_gets_tokens(place: Place) -> None:
    """One that only speaks REST is not inactive; before its first time it was never seen."""
    log = place.node()
    on_phone = await create_account(place, log, DeviceFixture(ADA, "phone"))

    async def last_seen_ms() -> int | None:
        (listed,) = await place.accounts.devices(on_phone.user_pk)
        return listed.last_seen_ms

    assert await last_seen_ms() is None
    await place.tokens.begin_family(
        *(on_phone.user_pk, on_phone.device_pk),
        family_id=b"f" * 16,
        token_hash=b"t" * 32,
        now_ms=NOW_MS,
        expires_at_ms=NOW_MS + DAY_MS,
        families_max=2,
    )
    assert await last_seen_ms() == NOW_MS
    for next_hash, expected_ms in ((b"u" * 32, NOW_MS + 9), (b"v" * 32, NOW_MS + 9)):
        await place.tokens.refresh(
            *(on_phone.user_key, b"t" * 32),
            next_hash=next_hash,
            now_ms=expected_ms,
            expires_at_ms=NOW_MS + DAY_MS,
            refreshes_max=9,
        )
        assert await last_seen_ms() == expected_ms
