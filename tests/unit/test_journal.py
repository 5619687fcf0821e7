"""The journal: account events on the disk before anybody is told, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio

from keepstep import journal as journals
from keepstep.client import crypto
from keepstep.errors import StartupError, Unavailable
from keepstep.journal import DIRECTORY, AccountRecord, EpochRecord, FileJournal, keep_published, read_journal
from keepstep.journal_spool import JournalSpool
from keepstep.model import DEVICES_STREAM
from keepstep.protocol.messages import ResultDuplicate, ResultError
from keepstep.replaying import AccountReplay
from keepstep.restoring import begin_epoch, replay
from keepstep.runtime import WorkerThreads
from tests.support.events import NOW_MS, DeviceFixture, UserFixture, submission
from tests.support.logs import MemoryPlace, create_account, enrol, read_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from keepstep.interfaces import Accounts, EventLog
    from keepstep.journal import Record
    from keepstep.model import Principal
    from keepstep.restoring import Replayed
    from tests.support.logs import Place

ADA = UserFixture("ada")


def record(seq: int, payload: bytes = b"payload") -> AccountRecord:
    """An event of Ada's account log."""
    return AccountRecord(ADA.user_key, seq, NOW_MS, b"d" * 16, b"header", b"s" * 64, payload)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[FileJournal]:
    """An empty one."""
    made = FileJournal(tmp_path, WorkerThreads())
    yield made
    made.close()


async def test_what_is_kept_is_read_again_in_order(tmp_path: Path, journal: FileJournal) -> None:
    """Also by another run, which begins a file of its own; a duplicate is not written twice."""
    await journal.begin_epoch(7)
    for seq in (1, 2, 2, 1):
        await journal.keep(record(seq))
    journal.close()
    later = FileJournal(tmp_path, WorkerThreads())
    await later.keep(record(3))
    later.close()
    assert list(read_journal(tmp_path)) == [EpochRecord(7), record(1), record(2), record(3)]
    assert len(list((tmp_path / DIRECTORY).iterdir())) == 2


@pytest.mark.parametrize("changes", [{"sig": b"t" * 64}, {"received_at_ms": NOW_MS + 1}])
async def test_another_event_in_the_same_place_is_kept_too(
    tmp_path: Path, journal: FileJournal, changes: dict[str, Any]
) -> None:
    """A standby that was promoted without the last events has others there, and the server runs on."""
    other = msgspec.structs.replace(record(2), **changes)
    for each in (record(1), record(2), other, record(2), other):
        await journal.keep(each)
    assert list(read_journal(tmp_path)) == [record(1), record(2), other]


async def test_a_torn_record_is_passed_over(tmp_path: Path, journal: FileJournal) -> None:
    """Wherever the power went, what was kept before is there, and what another file holds."""
    for seq in (1, 2):
        await journal.keep(record(seq))
    journal.close()
    (path,) = (tmp_path / DIRECTORY).iterdir()
    whole = path.read_bytes()
    (tmp_path / DIRECTORY / "node-2").mkdir()
    (tmp_path / DIRECTORY / "node-2" / "00000001.journal").write_bytes(whole[: len(whole) // 2])
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        expected = [record(1)] if size >= len(whole) // 2 else []
        assert list(read_journal(tmp_path)) == [*expected, record(1)], size


@pytest.mark.parametrize("at", [0, 1, 3, 5, 20, 60])
async def test_a_damaged_record_costs_no_other(tmp_path: Path, journal: FileJournal, at: int) -> None:
    """A flipped bit is found by the checksum; what was kept after it still keeps a stolen device out."""
    for seq in (1, 2, 3):
        await journal.keep(record(seq))
    journal.close()
    (path,) = (tmp_path / DIRECTORY).iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 3 + at] ^= 1
    path.write_bytes(data)
    assert list(read_journal(tmp_path)) == [record(1), record(3)]


async def test_a_record_of_no_kind_is_passed_over(tmp_path: Path) -> None:
    """A later version's journal is not guessed at."""
    data = msgspec.msgpack.encode([9, "later"])
    (tmp_path / DIRECTORY).mkdir()
    framed = len(data).to_bytes(4, "big") + crypto.blake3(data)[:8] + data
    (tmp_path / DIRECTORY / "00000001.journal").write_bytes(framed)
    assert list(read_journal(tmp_path)) == []


async def test_a_full_file_is_followed_by_the_next(
    tmp_path: Path, journal: FileJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it goes."""
    monkeypatch.setattr(journals, "FILE_BYTES_MAX", 400)
    for seq in range(1, 6):
        await journal.keep(record(seq))
    assert [each.stem for each in sorted((tmp_path / DIRECTORY).iterdir())] == ["00000001", "00000002", "00000003"]
    assert list(read_journal(tmp_path)) == [record(seq) for seq in range(1, 6)]


async def test_an_old_file_is_followed_by_the_next(
    tmp_path: Path, journal: FileJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that there are files to which nothing is written any more, and which may go one day."""
    now_s = trio.current_time()
    monkeypatch.setattr(trio, "current_time", lambda: now_s)
    await journal.keep(record(1))
    now_s += journals.FILE_AGE_S_MAX
    await journal.keep(record(2))
    now_s += 1
    await journal.keep(record(3))
    assert [each.stem for each in sorted((tmp_path / DIRECTORY).iterdir())] == ["00000001", "00000002"]
    assert list(read_journal(tmp_path)) == [record(seq) for seq in (1, 2, 3)]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 100, 5_000])
async def test_a_journal_is_read_in_pieces(
    tmp_path: Path, journal: FileJournal, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    """Wherever a piece ends, every record is whole; and behind a damaged place the next one is found."""
    monkeypatch.setattr(journals, "READ_BYTES", chunk_bytes)
    monkeypatch.setattr(journals, "RECORD_BYTES_MAX", 300)
    for seq in range(1, 9):
        await journal.keep(record(seq))
    (path,) = (tmp_path / DIRECTORY).iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2 + 30] ^= 1
    path.write_bytes(data)
    assert list(read_journal(tmp_path)) == [record(seq) for seq in range(1, 9) if seq != 5]


async def test_what_cannot_be_written_is_not_acknowledged(
    tmp_path: Path, journal: FileJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full: unavailable; the next record goes into another file."""
    await journal.keep(record(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda _file, data: len(data) - 1)
        with pytest.raises(Unavailable):
            await journal.keep(record(2))
    await journal.keep(record(2))
    assert list(read_journal(tmp_path)) == [record(1), record(2)]


async def test_nothing_is_written_behind_a_record_that_is_not_whole(
    tmp_path: Path, journal: FileJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits while a write fails goes into the next file, and so is read again."""
    await journal.keep(record(1))
    (path,) = (tmp_path / DIRECTORY).iterdir()
    whole, calls = os.write, []

    def torn(file: int, data: bytes) -> int:
        calls.append(data)
        return whole(file, data[: len(data) // 2]) if len(calls) == 1 else whole(file, data)

    async def keep(seq: int) -> None:
        with contextlib.suppress(Unavailable):
            await journal.keep(record(seq))
            acknowledged.append(seq)

    acknowledged: list[int] = []
    monkeypatch.setattr(os, "write", torn)
    async with trio.open_nursery() as nursery:
        for seq in (2, 3):
            nursery.start_soon(keep, seq)
    size = path.stat().st_size
    assert acknowledged in ([2], [3])
    assert list(read_journal(tmp_path)) == [record(1), record(acknowledged[0])]
    await journal.keep(record(4))
    assert path.stat().st_size == size


async def test_a_file_that_cannot_be_closed_is_let_go_of(journal: FileJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fails: unavailable, and not an error of its own kind."""
    await journal.keep(record(1))

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patch:
        file = journal._file
        assert file is not None
        patch.setattr(os, "fsync", fail)
        patch.setattr(os, "close", fail)
        with pytest.raises(Unavailable):
            await journal.keep(record(2))
    os.close(file)
    await journal.keep(record(2))


async def test_only_the_newest_are_remembered(journal: FileJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that is forgotten is written again where it comes again."""
    monkeypatch.setattr(journals, "REMEMBERED_MAX", 1)
    for seq in (1, 2, 1):
        await journal.keep(record(seq))
    assert len(journal._kept) == 1


class Kept:
    """A journal in memory."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    async def keep(self, record: AccountRecord) -> None:
        """As ``AccountJournal.keep``."""
        self.records.append(record)


async def put_back(records: Iterable[Record], log: EventLog, accounts: Accounts) -> Replayed:
    """What a journal with these records puts back."""
    with JournalSpool() as spool:
        spool.fill(records)
        return await replay(spool, log, accounts, WorkerThreads())


async def account(place: Place) -> tuple[Principal, Kept]:
    """An account with a second device, and the journal of it."""
    log = place.node()
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, phone)
    head = (await log.stream(principal.user_pk, DEVICES_STREAM)).head
    phone.seen[DEVICES_STREAM] = head.seq, head.chain
    await enrol(place, log, phone, DeviceFixture(ADA, "laptop"))
    kept = Kept()
    for seq, device_id, received_at_ms, header, sig, payload, _ in (
        await read_all(log, principal, DEVICES_STREAM)
    ).rows:
        kept.records.append(AccountRecord(ADA.user_key, seq, received_at_ms, device_id, header, sig, payload or b""))
    return principal, kept


async def test_a_journal_is_replayed_into_an_empty_log() -> None:
    """In the same places at the same times, whatever the order of the files; repeated, nothing changes."""
    place, empty = MemoryPlace(), MemoryPlace()
    principal, kept = await account(place)
    log = empty.node()
    done = await put_back([EpochRecord(1), *reversed(kept.records)], log, empty.accounts)
    assert (done.count, done.unplaced, done.revived) == (2, (), (ADA.user_key,))
    again = await put_back(kept.records, log, empty.accounts)
    assert (again.count, again.unplaced, again.revived) == (0, (), ())
    there = (await place.node().stream(principal.user_pk, DEVICES_STREAM)).head
    user_pk = await empty.accounts.user(ADA.user_key)
    assert user_pk is not None
    assert (await log.stream(user_pk, DEVICES_STREAM)).head == there


async def test_two_accounts_come_back_side_by_side() -> None:
    """Each event at its own time, whoever else's is put back meanwhile."""
    place = MemoryPlace()
    replaying = AccountReplay(place.node(), place.accounts)

    async def place_genesis(name: str, at_ms: int) -> None:
        first = DeviceFixture(UserFixture(name), "phone")
        genesis = first.genesis()
        row = (1, first.device_id, at_ms, genesis.header, genesis.sig, genesis.payload, None)
        await replaying.place(genesis.user_key, row)

    async with trio.open_nursery() as nursery:
        for number, name in enumerate(("ada", "bob", "eve")):
            nursery.start_soon(place_genesis, name, NOW_MS + number)


async def test_what_a_journal_cannot_put_back_is_named() -> None:
    """An event whose predecessor is nowhere."""
    _, kept = await account(MemoryPlace())
    empty = MemoryPlace()
    done = await put_back(kept.records[1:], empty.node(), empty.accounts)
    assert (done.count, done.unplaced, done.revived) == (0, ((ADA.user_key, 2),), ())


async def test_a_duplicate_is_kept_too_and_a_refusal_is_not() -> None:
    """A crash may have come between the commit and the journal."""
    place = MemoryPlace()
    principal, _ = await account(place)
    signed = DeviceFixture(ADA, "phone").event("notes")
    kept = Kept()
    sent = submission(principal, signed)
    await keep_published(kept, ADA.user_key, sent, ResultError("forbidden", []))
    await keep_published(kept, ADA.user_key, sent, ResultDuplicate(None, None, None))
    assert kept.records == []
    await keep_published(kept, ADA.user_key, sent, ResultDuplicate(3, b"c" * 32, NOW_MS))
    assert [each.seq for each in kept.records if isinstance(each, AccountRecord)] == [3]


async def test_a_journal_that_cannot_be_read_stops_a_restore(tmp_path: Path) -> None:
    """Before anything is done to the database: else a stolen device might be let in."""
    (tmp_path / DIRECTORY / "00000001.journal").mkdir(parents=True)
    with pytest.raises(StartupError, match="cannot be used"):
        await begin_epoch("postgresql://nobody@127.0.0.1:1/nothing", tmp_path, now_ms=NOW_MS)
