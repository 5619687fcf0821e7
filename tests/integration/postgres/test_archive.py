"""The archive over a real database, in a directory and in a bucket: what is written, pruned, read back and verified."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from keepstep.archive import writing
from keepstep.archive.segment import MAGIC, edges, pack, unpack, user_folder
from keepstep.archive.store import S3Access
from keepstep.client import crypto
from keepstep.errors import ArchiveUnavailable, Pruned, Unavailable
from keepstep.eventlog.retention import DAY_MS, SNAPSHOT_DELAY_MS, RetentionRules
from keepstep.model import Kind, Position
from keepstep.postgres.verification import verify_database
from keepstep.protocol.snapshot import encode_confirm, encode_snapshot
from tests.support.archives import ACCESS, ADA, BUCKET, LATER_MS, SECRET, Archives, fill, flipped
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import append, create_account, enrol, read_all

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.logs import PostgresPlace

BEN: Final = UserFixture("ben")
RULES: Final = RetentionRules(30)


async def test_what_goes_is_archived_first_and_read_back_as_it_was(archives: Archives) -> None:
    """Nothing is pruned that is not archived; the pages, chains and the whole stream are as before."""
    principal, _ = await fill(archives)
    before = await read_all(archives.place.node(tail_bytes_max=0), principal, "notes")
    assert await archives.prune(now_ms=LATER_MS) == 0

    done = await archives.archive(now_ms=LATER_MS, events_max=3)
    assert (done.segments, done.is_done) == (3, True)
    assert await archives.prune() == 7

    log = archives.reader()
    after = await read_all(log, principal, "notes", now_ms=LATER_MS, events_max=2)
    assert after.rows == before.rows
    assert after.chain == before.chain
    for seq in (0, 1, 3, 5, 6, 7):
        reading = await read_all(log, principal, "notes", after=seq, now_ms=LATER_MS)
        assert reading.rows == before.rows[seq:], seq
    report = await archives.verify()
    assert report.is_clean, report.faults
    assert (report.streams, report.segments, report.events, report.notes) == (1, 3, 7, [])
    assert archives.metric("keepstep_archive_segments") == 3
    assert archives.metric("keepstep_archive_overdue_seconds") == 0
    assert archives.metric("keepstep_archived_events_total") == 7
    left = verify_database(archives.place.url, now_ms=LATER_MS)
    assert [fault for fault in left.faults if fault.stream == "notes"] == []


async def test_without_an_archive_the_same_reader_is_told_pruned(kept: Archives) -> None:
    """What is in the store is of no use to a server that does not know of it; a position above the head is none."""
    principal, _ = await fill(kept)
    await kept.archive(now_ms=LATER_MS)
    await kept.prune()
    with pytest.raises(Pruned):
        await read_all(kept.place.node(tail_bytes_max=0), principal, "notes", chain=bytes(32))


async def test_archiving_again_changes_nothing(archives: Archives) -> None:
    """The same events make the same object; what is archived already is not due."""
    await fill(archives)
    await archives.archive(now_ms=LATER_MS)
    names = await archives.names()
    again = await archives.archive(now_ms=LATER_MS)
    assert (again.segments, await archives.names()) == (0, names)


async def test_a_crash_between_upload_and_record_is_harmless(
    archives: Archives, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object lies there unknown to anybody; the next run stores it again under the same name and goes on."""
    principal, _ = await fill(archives)
    stored: list[str] = []

    async def crash(*_: object) -> bool:
        raise Unavailable("the database went away")

    put = archives.store.put

    async def watch(name: str, data: bytes) -> None:
        stored.append(name)
        await put(name, data)

    monkeypatch.setattr(archives.store, "put", watch)
    with monkeypatch.context() as crashing:
        crashing.setattr(archives.index, "add", crash)
        with pytest.raises(Unavailable):
            await archives.archive(now_ms=LATER_MS)
    assert await archives.prune() == 0

    await archives.archive(now_ms=LATER_MS)
    assert stored[0] == stored[1]
    assert await archives.names() == stored[:1]
    assert await archives.prune() == 7
    assert len((await read_all(archives.reader(), principal, "notes", now_ms=LATER_MS)).rows) == 8


async def test_names_tell_neither_user_nor_stream(kept: Archives) -> None:
    """Each user has a folder of its own, which only its user id leads to."""
    await fill(kept)
    await fill(kept, user=BEN)
    await kept.archive(now_ms=LATER_MS)
    names = await kept.names()
    assert sorted(name.split("/")[0] + "/" for name in names) == sorted(
        user_folder(user.user_key) for user in (ADA, BEN)
    )
    assert not any("notes" in name or ADA.user_key.hex() in name for name in names)


def forged(data: bytes) -> bytes:
    """The same events, in a segment that somebody else signed."""
    segment = unpack(data, [crypto.ed25519_public(SECRET)])
    start, end = edges(segment.manifest)
    manifest = segment.manifest
    other = crypto.blake3(b"somebody else's key")
    return pack(other, manifest.user_key, manifest.stream, start=start, end=end, rows=segment.rows)[1]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param(flipped, "segment_damaged", id="flipped bit"),
        pytest.param(lambda data: data[:-7], "segment_damaged", id="truncated"),
        pytest.param(lambda data: data[: len(MAGIC) + 2], "segment_damaged", id="cut off in its manifest"),
        pytest.param(lambda _: b"", "segment_damaged", id="empty"),
        pytest.param(forged, "segment_forged", id="forged manifest"),
        pytest.param(lambda data: data[:40] + b"\xff" + data[41:], "segment_forged", id="changed manifest"),
    ],
)
async def test_a_segment_that_was_changed_is_named_and_never_read(
    archives: Archives, change: Callable[[bytes], bytes], code: str
) -> None:
    """A reader is asked to come again; the other segments answer."""
    principal, _ = await fill(archives)
    await archives.archive(now_ms=LATER_MS, events_max=4)
    await archives.prune()
    _, second = await archives.names()
    await archives.store.put(second, change(await archives.store.get(second)))

    (fault,) = (await archives.verify()).faults
    assert (fault.code, fault.user_key, fault.stream, fault.seq) == (code, ADA.user_key, "notes", 5)
    log = archives.reader()
    page = await log.read(principal.user_pk, "notes", after=0, events_max=9, bytes_max=9_999, now_ms=LATER_MS)
    assert page.count == 4
    with pytest.raises(ArchiveUnavailable):
        await log.read(principal.user_pk, "notes", after=4, events_max=9, bytes_max=9_999, now_ms=LATER_MS)
    assert archives.metrics.registry.get_sample_value("keepstep_archive_failures_total", {"step": "read"}) == 1


async def test_a_missing_segment_is_named(archives: Archives) -> None:
    """With the events that were in it."""
    principal, _ = await fill(archives)
    await archives.archive(now_ms=LATER_MS, events_max=4)
    await archives.prune()
    first, _ = await archives.names()
    await archives.store.delete(first)
    await archives.store.delete(first)

    (fault,) = (await archives.verify()).faults
    assert (fault.code, fault.seq) == ("segment_missing", 1)
    with pytest.raises(ArchiveUnavailable):
        await read_all(archives.reader(), principal, "notes", now_ms=LATER_MS)


async def test_segments_in_each_others_places_are_named(archives: Archives) -> None:
    """Each is signed, but for another place."""
    await fill(archives)
    await archives.archive(now_ms=LATER_MS, events_max=4)
    first, second = await archives.names()
    one, other = await archives.store.get(first), await archives.store.get(second)
    await archives.store.put(first, other)
    await archives.store.put(second, one)
    assert [fault.code for fault in (await archives.verify()).faults] == ["segment_misplaced"] * 2


async def test_a_segment_the_database_has_forgotten_is_missed(kept: Archives) -> None:
    """At the end by ``archived_seq``; in the middle it looks as if there had been no archive, which is said."""
    await fill(kept)
    await kept.archive(now_ms=LATER_MS, events_max=3)
    kept.place.execute("DELETE FROM archive_segments WHERE to_seq = 7")
    assert [(fault.code, fault.seq) for fault in (await kept.verify()).faults] == [("segment_missing", 7)]
    kept.place.execute("DELETE FROM archive_segments WHERE to_seq = 3")
    assert len((await kept.verify()).notes) == 1


async def test_segments_that_do_not_follow_each_other_are_named(kept: Archives) -> None:
    """The database says that one ends where the next does not begin."""
    await fill(kept)
    await kept.archive(now_ms=LATER_MS, events_max=4)
    kept.place.execute("UPDATE archive_segments SET to_chain = decode(repeat('00', 32), 'hex') WHERE to_seq = 4")
    assert [(fault.code, fault.seq) for fault in (await kept.verify()).faults] == [
        ("segment_misplaced", 1),
        ("segment_gap", 5),
    ]


async def test_where_the_archive_leads_to_another_tail_that_is_named(kept: Archives) -> None:
    """The database begins with another chain than the one that was archived."""
    await fill(kept)
    await kept.archive(now_ms=LATER_MS)
    await kept.prune()
    kept.place.execute("UPDATE streams SET tail_chain = decode(repeat('00', 32), 'hex') WHERE tail_seq > 0")
    assert [fault.code for fault in (await kept.verify()).faults] == ["tail_differs"]


async def test_segments_of_the_keys_before_still_verify(kept: Archives) -> None:
    """And those of a key that the server never had do not."""
    principal, _ = await fill(kept)
    await kept.archive(now_ms=LATER_MS)
    await kept.prune()
    new = crypto.ed25519_public(crypto.blake3(b"the next key"))
    (old,) = kept.keys.public
    assert (await read_all(kept.reader(keys=(new, old)), principal, "notes", now_ms=LATER_MS)).rows
    with pytest.raises(ArchiveUnavailable):
        await read_all(kept.reader(keys=(new,)), principal, "notes", now_ms=LATER_MS)


async def test_a_damaged_row_is_not_archived_and_stays(kept: Archives) -> None:
    """What does not verify in the database is not signed as if it did; other streams go on."""
    await fill(kept)
    await fill(kept, user=BEN)
    kept.place.execute(
        "UPDATE events_standard SET sig = decode(repeat('00', 64), 'hex')"  # noqa: S608  # ours
        f" WHERE seq = 2 AND user_pk = (SELECT user_pk FROM users WHERE user_id = '\\x{ADA.user_key.hex()}')"
    )
    done = await kept.archive(now_ms=LATER_MS)
    assert done.is_done
    assert len(await kept.names()) == 1
    assert kept.metrics.registry.get_sample_value("keepstep_archive_failures_total", {"step": "verify"}) == 1
    assert await kept.prune() == 7


async def test_a_store_that_is_away_keeps_everything_in_the_database(kept: Archives, tmp_path: Path) -> None:
    """Readers of what is archived are asked to come again, soon without even trying; the rest is read as ever."""
    principal, _ = await fill(kept)
    await kept.archive(now_ms=LATER_MS)
    await kept.prune()
    folder, away = tmp_path / "archive", tmp_path / "away"
    folder.rename(away)
    folder.write_bytes(b"no directory")
    log = kept.reader()
    for _ in range(4):
        with pytest.raises(ArchiveUnavailable) as refused:
            await read_all(log, principal, "notes", now_ms=LATER_MS)
        assert refused.value.retry_after_ms == 10_000
    assert len((await read_all(log, principal, "notes", after=7, now_ms=LATER_MS)).rows) == 1

    await fill(kept, user=BEN)
    with pytest.raises(Unavailable):
        await kept.archive(now_ms=LATER_MS)
    assert await kept.prune() == 0

    folder.unlink()
    away.rename(folder)
    kept.clock.at_s += 60
    assert len((await read_all(log, principal, "notes", now_ms=LATER_MS)).rows) == 8
    await kept.archive(now_ms=LATER_MS)
    assert await kept.prune() == 7


async def test_a_bucket_nobody_answers_for_is_away(place: PostgresPlace) -> None:
    """Retries, and then an answer."""
    archives = Archives(place, f"s3://{BUCKET}", S3Access(endpoint="http://127.0.0.1:9", **ACCESS))
    with pytest.raises(ArchiveUnavailable):
        await archives.store.get("any")


async def test_a_store_that_gives_back_something_else_is_not_relied_on(
    kept: Archives, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was stored is read back before the database says that it is there."""
    await fill(kept)
    put = kept.store.put

    async def damage(name: str, data: bytes) -> None:
        await put(name, flipped(data))

    with monkeypatch.context() as damaging:
        damaging.setattr(kept.store, "put", damage)
        with pytest.raises(Unavailable, match="does not give back"):
            await kept.archive(now_ms=LATER_MS)
    assert (await kept.names(), await kept.prune()) == ([], 0)


async def test_what_a_snapshot_covers_is_archived_before_it_goes(kept: Archives) -> None:
    """Without any rule about age."""
    log = kept.place.node(tail_bytes_max=0)
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(kept.place, log, phone)
    on_laptop = await enrol(kept.place, log, phone, laptop)
    await append(log, on_phone, *phone.events("notes", 3))
    chain = await log.chain_at(on_phone.user_pk, "notes", 3)
    state = encode_snapshot(Position(3, chain), {phone.device_id: 3}, b"sealed")
    await append(log, on_phone, phone.event("notes", state, kind=Kind.SNAPSHOT))
    await append(log, on_laptop, laptop.event("notes", encode_confirm(4), kind=Kind.CONFIRM))
    at_ms = NOW_MS + SNAPSHOT_DELAY_MS + DAY_MS

    assert await kept.prune(days=None, now_ms=at_ms) == 0
    await kept.archive(days=None, now_ms=at_ms)
    assert await kept.prune(days=None, now_ms=at_ms) == 3
    assert len((await read_all(kept.reader(), on_phone, "notes", now_ms=at_ms)).rows) == 5


async def test_segments_are_bounded_in_bytes_too(kept: Archives) -> None:
    """One event goes in any case."""
    principal, _ = await fill(kept)
    kept.clock.at_ms = LATER_MS
    assert (await kept.run(days=30, bytes_max=1).run()).segments == 7
    assert await kept.prune() == 7
    assert len((await read_all(kept.reader(), principal, "notes", now_ms=LATER_MS)).rows) == 8
    assert (await kept.verify()).is_clean


async def test_a_run_is_bounded_and_the_next_goes_on(kept: Archives, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing keeps the other jobs of a node waiting for long."""
    await fill(kept)
    monkeypatch.setattr(writing, "STEPS_MAX", 2)
    done = [await kept.archive(now_ms=LATER_MS, events_max=3) for _ in range(3)]
    assert [(each.segments, each.is_done) for each in done] == [(2, False), (1, True), (0, True)]


async def test_a_stream_that_only_seemed_due_is_looked_at_once(kept: Archives) -> None:
    """When its next event was received is noted, and nothing of it is archived before its time."""
    await fill(kept)
    await kept.archive(now_ms=LATER_MS)
    names = await kept.names()
    kept.place.execute("UPDATE streams SET unarchived_at = 0 WHERE archived_seq > 0")
    done = await kept.archive(now_ms=LATER_MS)
    assert (done.segments, done.is_done, await kept.names()) == (0, True, names)
    assert await kept.index.find_due(now_ms=LATER_MS, days=30, skip=()) is None


async def test_one_node_archives_at_a_time(kept: Archives) -> None:
    """Whoever has not got the turn does nothing."""
    await fill(kept)
    kept.clock.at_ms = LATER_MS
    done = await kept.run(days=30, has_turn=False).run()
    assert (done.segments, done.is_done, await kept.names()) == (0, False, [])


async def test_what_was_pruned_before_there_was_an_archive_is_gone(kept: Archives) -> None:
    """Reading from the beginning is told so; from where the archive begins it goes on; verify notes it."""
    principal, phone = await fill(kept)
    place = kept.place
    while await place.retention.advance_tail(now_ms=LATER_MS, rules=RULES, events_max=100):
        pass
    log = place.node(tail_bytes_max=0)
    later_ms = LATER_MS + 60 * DAY_MS
    await append(log, principal, phone.event("notes", b"much later"), now_ms=later_ms)
    await kept.archive(now_ms=later_ms)
    assert await kept.prune() == 1

    reader = kept.reader()
    with pytest.raises(Pruned):
        await reader.read(principal.user_pk, "notes", after=0, events_max=9, bytes_max=9_999, now_ms=later_ms)
    with pytest.raises(Pruned):
        await reader.chain_at(principal.user_pk, "notes", 3)
    assert len((await read_all(reader, principal, "notes", after=7, now_ms=later_ms)).rows) == 2
    report = await kept.verify()
    assert report.is_clean
    assert len(report.notes) == 1


async def test_memory_for_segments_is_bounded(kept: Archives, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of one segment fetch it once; where there is no memory for it, each page does."""
    principal, _ = await fill(kept)
    await kept.archive(now_ms=LATER_MS)
    await kept.prune()
    fetched: list[str] = []
    get = kept.store.get

    async def watch(name: str) -> bytes:
        fetched.append(name)
        return await get(name)

    monkeypatch.setattr(kept.store, "get", watch)
    await read_all(kept.reader(), principal, "notes", now_ms=LATER_MS, events_max=1)
    assert len(fetched) == 1
    small = kept.reader(cache_bytes_max=0)
    await read_all(small, principal, "notes", now_ms=LATER_MS, bytes_max=1)
    assert len(fetched) == 1 + 7
