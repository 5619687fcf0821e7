"""An account file is taken into a server's storage as a whole, or nothing of it is, where histories differ."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import pytest

from keepstep.account_file import AccountFile, AccountFileError
from keepstep.account_import import import_account
from keepstep.account_intake import AccountIntake
from keepstep.diskspace import EnoughRoom
from keepstep.errors import Unavailable
from keepstep.eventlog.retention import DAY_MS, RetentionRules
from keepstep.journal_spool import JournalSpool
from keepstep.memory import MemoryAccounts, MemoryAdministration, MemoryDatabase, MemoryLog
from keepstep.memory.retention import MemoryRetention
from keepstep.restoring import replay
from keepstep.runtime import WorkerThreads
from tests.support.events import DeviceFixture
from tests.support.parts import Parts
from tests.unit.test_account_file import append, export, of_user, rewritten, see_devices

if TYPE_CHECKING:
    from keepstep.account_import import Imported
    from keepstep.journal import AccountRecord

RULES: Final = RetentionRules(30)


class KeptJournal:
    """A journal in memory, whose disk may be full."""

    def __init__(self) -> None:
        self.records: list[AccountRecord] = []
        self.room_for = 1_000

    async def keep(self, record: AccountRecord) -> None:
        """As ``AccountJournal.keep``."""
        if len(self.records) >= self.room_for:
            raise Unavailable("the journal cannot be written")
        self.records.append(record)


class Taking:
    """Another server's storage, which takes files."""

    def __init__(self) -> None:
        self.database = MemoryDatabase()
        self.log = MemoryLog(self.database)
        self.accounts, administration = MemoryAccounts(self.database), MemoryAdministration(self.database)
        self.room = EnoughRoom()
        self.journal = KeptJournal()
        self._intake = AccountIntake(
            self.log, self.accounts, administration, WorkerThreads(), self.room, journal=self.journal
        )

    async def take(self, data: bytes, *, verify_only: bool = False) -> Imported:
        """As over REST."""
        return await self._intake.take(data, verify_only=verify_only)


async def a_life() -> tuple[Parts, DeviceFixture, DeviceFixture]:
    """The same life each time: two devices that wrote."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    for stream in ("archive", "notes"):
        await append(parts, phone, *phone.events(stream, 2))
    return parts, phone, laptop


async def refused_whole(taking: Taking, data: bytes, reason: str) -> None:
    """The file is refused, and what is here stays as it is."""
    before = of_user(taking.database, AccountFile(io.BytesIO(data)).begin.user_key)
    with pytest.raises(AccountFileError, match=reason):
        await taking.take(data)
    assert of_user(taking.database, AccountFile(io.BytesIO(data)).begin.user_key) == before


async def test_nothing_is_stored_of_a_file_with_another_history() -> None:
    """Not even of its other streams, which would be new here; nor of the same stream."""
    taking = Taking()
    parts, phone, _ = await a_life()
    await append(parts, phone, phone.event("notes", b"here"), *phone.events("notes", 3))
    await taking.take(await export(parts, phone))
    others, phone, _ = await a_life()
    await append(others, phone, *phone.events("archive", 3), phone.event("another"))
    await append(others, phone, phone.event("notes", b"there"), *phone.events("notes", 4))
    await refused_whole(taking, await export(others, phone), r"notes#3: another history")


async def test_another_account_log_is_another_history() -> None:
    """What devices there are differs: nothing of the streams is stored."""
    taking = Taking()
    parts, phone, laptop = await a_life()
    await see_devices(parts, phone)
    event, change = phone.revoke(laptop)
    await append(parts, phone, event, change=change)
    await taking.take(await export(parts, phone))
    others, phone, _ = await a_life()
    await others.enrol(phone, DeviceFixture(phone.user, "tablet"))
    await append(others, phone, phone.event("archive"))
    await refused_whole(taking, await export(others, phone), r"\$devices#3: another history")


async def test_the_life_of_days_is_read_in_again_and_goes_on() -> None:
    """What is here already is no matter of the clock, nor of an import that stopped half-way."""
    taking = Taking()
    parts, phone, laptop = await a_life()
    files: list[bytes] = []
    for _ in range(2):
        parts.clock.at_ms += 3 * DAY_MS
        await append(parts, laptop, laptop.event("notes"))
        await parts.enrol(phone, DeviceFixture(phone.user, f"tablet {len(files)}"))
        parts.clock.at_ms += DAY_MS
        await append(parts, phone, *phone.events("notes", 2))
        files.append(await export(parts, phone))
    assert [(await taking.take(file)).stored for file in (*files, *files)] == [10, 4, 0, 0]
    here, there = (of_user(each.database, phone.user.user_key) for each in (taking, parts))
    assert (here["events"], here["heads"]) == (there["events"], there["heads"])


async def test_an_older_file_brings_nothing_and_takes_nothing() -> None:
    """It is the beginning of what is here."""
    taking = Taking()
    parts, phone, _ = await a_life()
    old = await export(parts, phone)
    await append(parts, phone, phone.event("notes"), phone.event("another"))
    await taking.take(await export(parts, phone))
    assert (await taking.take(old)).stored == 0


async def test_streams_that_went_on_on_either_server_come_together() -> None:
    """Each has one history, and the devices are the same."""
    taking = Taking()
    parts, phone, _ = await a_life()
    await append(parts, phone, phone.event("notes"))
    await taking.take(await export(parts, phone))
    others, phone, _ = await a_life()
    await append(others, phone, phone.event("archive"))
    assert (await taking.take(await export(others, phone))).stored == 1


async def a_stolen_laptop() -> tuple[Parts, DeviceFixture, DeviceFixture]:
    """A life in which the second device was revoked."""
    parts, phone, laptop = await a_life()
    await see_devices(parts, phone)
    event, change = phone.revoke(laptop)
    await append(parts, phone, event, change=change)
    return parts, phone, laptop


async def test_a_restore_from_before_an_import_brings_no_revoked_device_back() -> None:
    """The whole account log is in the journal as if the account had been made here: all of it is put back."""
    taking, restored = Taking(), Taking()
    parts, phone, laptop = await a_stolen_laptop()
    await taking.take(await export(parts, phone))
    with JournalSpool() as spool:
        spool.fill(taking.journal.records)
        replayed = await replay(spool, restored.log, restored.accounts, WorkerThreads())
    assert (replayed.count, replayed.unplaced) == (3, ())
    for where in (taking, restored):
        stolen = await where.accounts.device(laptop.user.user_key, laptop.device_id)
        assert stolen is not None
        assert stolen.revoked_seq == 3


async def test_an_import_that_stopped_before_the_journal_writes_it_when_repeated() -> None:
    """What is stored and was not written down is written down then; and what is verified only is not."""
    taking = Taking()
    parts, phone, _ = await a_stolen_laptop()
    data = await export(parts, phone)
    for room_for in range(3):
        taking.journal.room_for, taking.journal.records = room_for, []
        with pytest.raises(Unavailable):
            await taking.take(data)
    taking.journal.room_for, taking.journal.records = 1_000, []
    await taking.take(data)
    assert sorted({each.seq for each in taking.journal.records}) == [1, 2, 3]
    taking.journal.records = []
    await taking.take(data, verify_only=True)
    assert taking.journal.records == []


@pytest.mark.parametrize("revoked_here", [True, False])
async def test_a_device_that_one_side_ended_has_not_written_on_the_other(*, revoked_here: bool) -> None:
    """Else its events and its end would stand side by side, in an order that there never was."""
    taking = Taking()
    parts, phone, laptop = await a_life()
    await see_devices(parts, phone)
    event, change = phone.revoke(laptop)
    parts.clock.at_ms += 1
    await append(parts, phone, event, change=change)
    revoking = await export(parts, phone)
    others, phone, laptop = await a_life()
    others.clock.at_ms += 2
    await append(others, laptop, laptop.event("notes"))
    writing = await export(others, phone)
    here, there = (revoking, writing) if revoked_here else (writing, revoking)
    await taking.take(here)
    await refused_whole(taking, there, "the devices changed")


def without_first_row(frames: list[Any]) -> list[Any]:
    """An event of the last stream is left out."""
    return [*frames[:-1], [3, frames[-1][1][1:]]]


def without_rows(frames: list[Any]) -> list[Any]:
    """All of them are."""
    return frames[:-1]


def without_head(frames: list[Any]) -> list[Any]:
    """A head is none."""
    return [*frames[:-2], [2, frames[-2][1], [b"none", frames[-2][2][1]]], frames[-1]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_first_row, "notes#1: another history"),
        (without_rows, "notes#1: another history"),
        (without_head, "notes: the head is not signed"),
    ],
)
async def test_a_file_that_is_none_is_not_the_same_history(change: Any, reason: str) -> None:
    """Also where nobody has verified it before."""
    taking = Taking()
    parts, phone, _ = await a_life()
    data = await export(parts, phone)
    await taking.take(data)
    with pytest.raises(AccountFileError, match=reason):
        await import_account(AccountFile(io.BytesIO(rewritten(data, change))), taking.log, taking.accounts)


async def test_a_file_that_begins_after_what_is_here_is_refused() -> None:
    """What lies between is in neither."""
    taking = Taking()
    parts, phone, _ = await a_life()
    await taking.take(await export(parts, phone))
    await append(parts, phone, *phone.events("notes", 2))
    await prune(parts, phone)
    await refused_whole(taking, await export(parts, phone), r"notes: the file has it after #4, and it ends at #2 here")


async def test_of_a_stream_whose_events_are_gone_here_an_older_file_brings_nothing() -> None:
    """They cannot be compared, and do not come back."""
    taking = Taking()
    parts, phone, _ = await a_life()
    old = await export(parts, phone)
    await append(parts, phone, *phone.events("notes", 2))
    await prune(parts, phone)
    await taking.take(await export(parts, phone))
    before = of_user(taking.database, phone.user.user_key)
    assert (await taking.take(old)).stored == 0
    assert of_user(taking.database, phone.user.user_key) == before


async def test_a_newer_file_brings_what_is_new_where_the_beginning_is_gone() -> None:
    """The file still has what is gone here."""
    parts, phone, _ = await a_life()
    taking = Taking()
    await taking.take(await export(parts, phone))
    await retain(taking.database, parts.clock.now_ms() + 60 * DAY_MS)
    await append(parts, phone, phone.event("notes"))
    data = await export(parts, phone)
    assert (await taking.take(data)).stored == 1
    assert (await taking.take(data)).stored == 0


async def retain(database: MemoryDatabase, now_ms: int) -> None:
    """What is old is gone."""
    retention = MemoryRetention(database)
    while await retention.advance_tail(now_ms=now_ms, rules=RULES, events_max=9) is not None:
        pass


async def prune(parts: Parts, phone: DeviceFixture) -> None:
    """Everything so far is gone, and the device writes once more."""
    parts.clock.at_ms += 60 * DAY_MS
    await retain(parts.database, parts.clock.now_ms())
    await append(parts, phone, phone.event("notes"))


async def test_without_room_no_file_is_stored() -> None:
    """It is verified, and to be taken in later; where the room ends meanwhile the next call goes on."""
    taking = Taking()
    parts, phone, _ = await a_life()
    data = await export(parts, phone)
    user_key = phone.user.user_key
    taking.room.is_low = True
    with pytest.raises(Unavailable):
        await taking.take(data)
    assert not taking.database.users
    taking.room.is_low = False
    taking.log.subscribe_commits(lambda _: setattr(taking.room, "is_low", True))
    with pytest.raises(Unavailable):
        await taking.take(data)
    assert taking.database.user_pk(user_key) is not None
    stored = 0
    while True:
        taking.room.is_low = False
        try:
            stored = (await taking.take(data)).stored
        except Unavailable:
            continue
        break
    assert stored >= 1
    taking.room.is_low = False
    assert (await taking.take(data)).stored == 0
