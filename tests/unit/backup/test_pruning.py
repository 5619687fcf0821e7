"""Of the journal goes what every backup holds that could be restored, and nothing else, whatever happens meanwhile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

from keepstep.backup import manifest, pruning
from keepstep.backup.files import PARTIAL_SUFFIX, Stop, sync_directory
from keepstep.backup.mirror import JOURNAL, Mirror
from keepstep.backup.pruning import MARGIN_MS, covered_ms, prune_journal
from keepstep.errors import BackupError
from keepstep.journal import AccountRecord, FileJournal, read_journal
from keepstep.runtime import WorkerThreads
from tests.support import backups as backups_support
from tests.support.backups import DAY_MS

SYSTEM: Final = "42"
OTHER: Final = "41"
DAY: Final = 20
BEGAN_MS: Final = DAY * DAY_MS
GOOD: Final = manifest.Verified(at=BEGAN_MS, seconds=1.0, events=1, faults=[])
BAD: Final = manifest.Verified(at=BEGAN_MS, seconds=1.0, events=1, faults=["damaged"])


def a_backup(root: Path, verified: manifest.Verified | None = GOOD, *, day: int = DAY, system: str = SYSTEM) -> None:
    """A backup that began at midnight."""
    made = backups_support.a_backup(root, day=day, system=system)
    if verified is not None:
        manifest.write_verified(made.path, verified)


def record(seq: int) -> AccountRecord:
    """An event of somebody's account log."""
    return AccountRecord(b"u" * 32, seq, 1, b"d" * 16, b"header", b"s" * 64, b"payload")


async def a_journal(data_dir: Path, *written_ms: int) -> None:
    """One file for each time of its last write, with record 1, 2, ... in it."""
    for seq, at_ms in enumerate(written_ms, 1):
        journal = FileJournal(data_dir, WorkerThreads())
        await journal.keep(record(seq))
        journal.close()
        newest = max((data_dir / JOURNAL).iterdir())
        os.utime(newest, ns=(at_ms * 1_000_000, at_ms * 1_000_000))


def left(data_dir: Path) -> list[int]:
    """Which records there are."""
    return [each.seq for each in read_journal(data_dir) if isinstance(each, AccountRecord)]


async def test_what_every_backup_holds_goes(tmp_path: Path) -> None:
    """Files that were written last before the oldest backup began, and copies that are as old; repeated: no more."""
    backups, data_dir = tmp_path / "backups", tmp_path / "data"
    a_backup(backups)
    a_backup(backups, day=DAY + 90)
    await a_journal(data_dir, BEGAN_MS - MARGIN_MS - 1, BEGAN_MS - MARGIN_MS, BEGAN_MS - MARGIN_MS + 1, BEGAN_MS)
    Mirror(data_dir, backups / SYSTEM, key=None).update(Stop())
    first = min((backups / SYSTEM / JOURNAL).rglob("*.zst"))
    os.utime(first, ns=(0, 0))
    assert prune_journal(data_dir, backups, SYSTEM, Stop()) == 3
    assert left(data_dir) == [3, 4]
    assert not first.exists()
    assert prune_journal(data_dir, backups, SYSTEM, Stop()) == 0
    assert len(list((backups / SYSTEM / JOURNAL).rglob("*.zst"))) == 3


async def test_nothing_goes_while_no_backup_is_good(tmp_path: Path) -> None:
    """Nobody looked, something was found, or it is another database's: all of the journal stays."""
    backups, data_dir = tmp_path / "backups", tmp_path / "data"
    await a_journal(data_dir, 0)
    assert prune_journal(data_dir, backups, SYSTEM, Stop()) == 0
    a_backup(backups, None)
    a_backup(backups, BAD, day=DAY + 1)
    a_backup(backups, system=OTHER)
    assert covered_ms(backups, SYSTEM) is None
    assert prune_journal(data_dir, backups, SYSTEM, Stop()) == 0
    assert left(data_dir) == [1]


async def test_the_oldest_backup_decides(tmp_path: Path) -> None:
    """It may be restored too, also where nobody verified it and where it is of the database before this one."""
    backups = tmp_path / "backups"
    for day, verified, system in ((DAY, GOOD, SYSTEM), (DAY - 1, None, SYSTEM), (DAY - 2, BAD, OTHER)):
        a_backup(backups, verified, day=day, system=system)
        assert covered_ms(backups, SYSTEM) == day * DAY_MS - MARGIN_MS


@pytest.mark.parametrize("step", range(5))
async def test_a_crash_at_any_step_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """What no backup holds is whole after each step; the next run removes the rest of what may go."""
    backups, data_dir = tmp_path / "backups", tmp_path / "data"
    a_backup(backups)
    await a_journal(data_dir, 0, 1_000, 2_000, BEGAN_MS, BEGAN_MS)

    class Crash(BaseException):
        pass

    steps: list[str] = []

    def crash(name: str) -> None:
        if len(steps) == step:
            raise Crash
        steps.append(name)

    unlink, sync = Path.unlink, sync_directory

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        crash("unlink")
        unlink(path, missing_ok=missing_ok)

    def synced(directory: Path) -> None:
        crash("fsync")
        sync(directory)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlinked)
        patch.setattr(pruning, "sync_directory", synced)
        if step < 4:
            with pytest.raises(Crash):
                prune_journal(data_dir, backups, SYSTEM, Stop())
        else:
            assert prune_journal(data_dir, backups, SYSTEM, Stop()) == 3
            assert steps == ["unlink", "unlink", "unlink", "fsync"]
    assert left(data_dir) == [*range(1 + min(step, 3), 4), 4, 5]
    prune_journal(data_dir, backups, SYSTEM, Stop())
    assert left(data_dir) == [4, 5]


async def test_a_file_that_is_written_to_stays(tmp_path: Path) -> None:
    """However old its last write: what is written next would be nowhere."""
    backups, data_dir = tmp_path / "backups", tmp_path / "data"
    a_backup(backups)
    journal = FileJournal(data_dir, WorkerThreads())
    await journal.keep(record(1))
    (path,) = (data_dir / JOURNAL).iterdir()
    os.utime(path, ns=(0, 0))
    assert prune_journal(data_dir, backups, SYSTEM, Stop()) == 0
    await journal.keep(record(2))
    journal.close()
    assert left(data_dir) == [1, 2]
    os.utime(path, ns=(0, 0))
    assert prune_journal(data_dir, backups, SYSTEM, Stop()) == 1


async def test_what_is_being_copied_and_what_others_removed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several nodes keep one directory of copies."""
    backups, data_dir = tmp_path / "backups", tmp_path / "data"
    a_backup(backups)
    await a_journal(data_dir, 0)
    draft = data_dir / JOURNAL / f"00000002.journal{PARTIAL_SUFFIX}"
    draft.touch()
    os.utime(draft, ns=(0, 0))

    def gone(*_: object) -> int:
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", gone)
        assert prune_journal(data_dir, backups, SYSTEM, Stop()) == 0
    assert prune_journal(data_dir, backups, SYSTEM, Stop()) == 1
    assert draft.exists()


async def test_what_cannot_be_removed_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fails, or the server ends meanwhile."""
    backups, data_dir = tmp_path / "backups", tmp_path / "data"
    a_backup(backups)
    await a_journal(data_dir, 0)

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        with pytest.raises(BackupError, match="covered of the journal: Input/output error"):
            prune_journal(data_dir, backups, SYSTEM, Stop())
    stop = Stop()
    stop.set()
    with pytest.raises(BackupError, match="interrupted"):
        prune_journal(data_dir, backups, SYSTEM, stop)
    assert left(data_dir) == [1]
