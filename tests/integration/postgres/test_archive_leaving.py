"""What leaves the archive: what is erased, what has run out, deleted accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from keepstep.archive.segment import unpack, user_folder
from keepstep.errors import ArchiveError, Pruned
from keepstep.eventlog.retention import DAY_MS
from keepstep.model import Kind, inbox_of
from keepstep.protocol.messages import ResultAccepted
from keepstep.protocol.snapshot import encode_erase
from tests.support.archives import ADA, LATER_MS, Archives, fill, flipped
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import append, create_account, enrol, principal_of, read_all

if TYPE_CHECKING:
    from keepstep.model import UserPk

BEN: Final = UserFixture("ben")


async def test_what_is_erased_leaves_the_archive(archives: Archives) -> None:
    """At once for readers, and then the object that held it: also of events that are still in the database."""
    principal, phone = await fill(archives)
    await archives.archive(now_ms=LATER_MS, events_max=3)
    await archives.prune()
    old = await archives.names()
    log = archives.reader()
    before = await read_all(log, principal, "notes", now_ms=LATER_MS)

    erase = phone.event("notes", encode_erase({phone.device_id: [2, 5]}), kind=Kind.ERASE)
    (erased,) = await append(log, principal, erase, now_ms=LATER_MS)
    assert isinstance(erased, ResultAccepted), erased
    expected = [(*row[:5], None, *row[6:]) if row[0] in (2, 5) else row for row in before.rows]
    assert (await read_all(log, principal, "notes", now_ms=LATER_MS)).rows[:8] == expected
    assert await archives.names() == old

    done = await archives.archive(now_ms=LATER_MS)
    assert done.rewritten == 1
    new = await archives.names()
    assert (new[0] != old[0], new[1] != old[1], new[2]) == (True, True, old[2])
    for name in old[:2]:
        with pytest.raises(ArchiveError, match="is not there"):
            await archives.store.get(name)
    assert await archives.index.erasures(skip=()) is None
    assert (await read_all(archives.reader(), principal, "notes", now_ms=LATER_MS)).rows[:8] == expected
    assert (await archives.verify()).is_clean


async def test_a_damaged_segment_keeps_no_erasure_of_others_waiting(kept: Archives) -> None:
    """What cannot be written anew stays hidden, and waits for somebody who mends it."""
    phones = [(await fill(kept, user=user))[1] for user in (ADA, BEN)]
    await kept.archive(now_ms=LATER_MS)
    for phone in phones:
        erase = phone.event("notes", encode_erase({phone.device_id: [2]}), kind=Kind.ERASE)
        principal = await principal_of(kept.place, phone)
        await append(kept.place.node(), principal, erase, now_ms=LATER_MS)
    first, second = await kept.names()
    good = await kept.store.get(first)
    await kept.store.put(first, flipped(good))

    assert (await kept.archive(now_ms=LATER_MS)).rewritten == 1
    assert [name == old for name, old in zip(await kept.names(), (first, second), strict=True)] == [True, False]
    await kept.store.put(first, good)
    assert (await kept.archive(now_ms=LATER_MS)).rewritten == 1
    assert first not in await kept.names()
    assert (await kept.verify()).is_clean


async def test_an_erasure_of_what_has_no_payload_there_writes_nothing(kept: Archives) -> None:
    """It was erased before it was archived."""
    _, phone = await fill(kept)
    principal = await principal_of(kept.place, phone)
    erase = phone.event("notes", encode_erase({phone.device_id: [2]}), kind=Kind.ERASE)
    await append(kept.place.node(), principal, erase, now_ms=LATER_MS)
    await kept.archive(now_ms=LATER_MS)
    names = await kept.names()
    again = phone.event("notes", encode_erase({phone.device_id: [2]}), kind=Kind.ERASE)
    await append(kept.place.node(), principal, again, now_ms=LATER_MS)
    assert (await kept.archive(now_ms=LATER_MS)).rewritten == 1
    assert await kept.names() == names


async def test_a_user_gone_meanwhile_gets_no_segment(kept: Archives, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was stored for it is removed again."""
    principal, _ = await fill(kept)
    begin = kept.index.begin_user

    async def delete_meanwhile(user_pk: UserPk) -> None:
        await begin(user_pk)
        await kept.place.administration.delete_user(principal.user_pk, ADA.user_key, now_ms=LATER_MS)

    monkeypatch.setattr(kept.index, "begin_user", delete_meanwhile)
    assert (await kept.archive(now_ms=LATER_MS)).segments == 0
    assert await kept.store.delete_below(user_folder(ADA.user_key)) == 0


async def test_a_restored_database_finds_what_was_written_anew(archives: Archives) -> None:
    """It names the object of before an erasure; the one in its place answers, without what was erased."""
    principal, phone = await fill(archives)
    await archives.archive(now_ms=LATER_MS)
    await archives.prune()
    (old,) = await archives.names()
    erase = phone.event("notes", encode_erase({phone.device_id: [2]}), kind=Kind.ERASE)
    await append(archives.reader(), principal, erase, now_ms=LATER_MS)
    await archives.archive(now_ms=LATER_MS)
    archives.place.execute(f"UPDATE archive_segments SET name = '{old}'")  # noqa: S608  # ours

    reading = await read_all(archives.reader(), principal, "notes", now_ms=LATER_MS)
    assert [row[0] for row in reading.rows if row[5] is None] == [2]
    assert (await archives.verify()).is_clean


async def test_an_erasure_while_a_segment_is_made_is_not_undone(
    kept: Archives, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The segment was read before the payload went: it is thrown away, and the next run archives without it."""
    principal, phone = await fill(kept)
    log = kept.place.node(tail_bytes_max=0)
    begin = kept.index.begin_user

    async def erase_meanwhile(user_pk: UserPk) -> None:
        await begin(user_pk)
        erase = phone.event("notes", encode_erase({phone.device_id: [2]}), kind=Kind.ERASE)
        await append(log, principal, erase, now_ms=LATER_MS)

    with monkeypatch.context() as racing:
        racing.setattr(kept.index, "begin_user", erase_meanwhile)
        await kept.archive(now_ms=LATER_MS)
    assert await kept.names() == []
    assert await kept.prune() == 0

    await kept.archive(now_ms=LATER_MS)
    (name,) = await kept.names()
    segment = unpack(await kept.store.get(name), kept.keys.public)
    assert [row[0] for row in segment.rows if row[5] is None] == [2]


async def test_payloads_with_a_lifetime_leave_the_archive_when_it_is_over(kept: Archives) -> None:
    """Until then they are read; what was over before does not go there; the events verify all the same."""
    log = kept.place.node(tail_bytes_max=0)
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(kept.place, log, phone)
    lifetimes_s = (3_600, 41 * 86_400, 60 * 86_400, None)
    await append(log, principal, *(phone.event("notes", b"%d" % n, ttl_s=ttl) for n, ttl in enumerate(lifetimes_s)))
    await append(log, principal, phone.event("notes", b"young"), now_ms=LATER_MS)

    held: list[list[bytes | None]] = []
    shown: list[list[bytes | None]] = []
    names: set[str] = set()
    for days in (40, 42, 61):
        now_ms = NOW_MS + days * DAY_MS
        reader = kept.reader()
        if held:
            shown.append([row[5] for row in (await read_all(reader, principal, "notes", now_ms=now_ms)).rows[:4]])
        await kept.archive(now_ms=now_ms)
        await kept.prune()
        (name,) = await kept.names()
        names.add(name)
        held.append([row[5] for row in unpack(await kept.store.get(name), kept.keys.public).rows][:4])
        assert (await kept.verify()).is_clean
    assert held == [[None, b"1", b"2", b"3"], [None, None, b"2", b"3"], [None, None, None, b"3"]]
    assert shown == held[1:]
    assert len(names) == 3
    assert await kept.index.expired(now_ms=NOW_MS + 999 * DAY_MS, skip=()) is None
    assert await kept.index.old_object() is None


async def test_a_deleted_account_leaves_nothing_in_the_store(archives: Archives) -> None:
    """Not even what a crash left there; the user's row goes only after it, and other users' segments stay."""
    principal, _ = await fill(archives)
    await fill(archives, user=BEN)
    await archives.archive(now_ms=LATER_MS)
    await archives.prune()
    stray = f"{user_folder(ADA.user_key)}left-by-a-crash"
    await archives.store.put(stray, b"anything")
    names = await archives.names()
    administration = archives.place.administration
    await administration.delete_user(principal.user_pk, ADA.user_key, now_ms=LATER_MS)
    while await administration.remove_deleted(before_ms=LATER_MS, rows_max=100):
        pass
    assert not await administration.forget_deleted(ADA.user_key)

    done = await archives.archive(now_ms=LATER_MS)
    assert done.removed_users == 1
    while await administration.remove_deleted(before_ms=LATER_MS, rows_max=100):
        pass
    assert await administration.forget_deleted(ADA.user_key)
    left = await archives.names()
    assert len(left) == 1
    for name in (stray, *(name for name in names if name not in left)):
        with pytest.raises(ArchiveError):
            await archives.store.get(name)


async def test_inboxes_are_pruned_and_not_archived(kept: Archives) -> None:
    """What their devices have is of use to nobody else: by their acknowledgement, and by age."""
    place = kept.place
    log = place.node(tail_bytes_max=0)
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    inbox = inbox_of(laptop.device_id)
    await append(log, on_phone, *phone.events(inbox, 5))
    await place.accounts.save_acks(on_laptop, {inbox: (3, bytes(16))})
    await append(log, on_phone, phone.event(inbox, b"young"), now_ms=LATER_MS)

    await kept.archive(now_ms=NOW_MS)
    assert await kept.prune(now_ms=NOW_MS) == 3
    assert (await kept.archive(now_ms=LATER_MS)).segments == 0
    assert await kept.prune(now_ms=LATER_MS) == 2
    with pytest.raises(Pruned):
        await kept.reader().read(on_phone.user_pk, inbox, after=0, events_max=9, bytes_max=9_999, now_ms=LATER_MS)
