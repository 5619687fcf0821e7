"""Which backup a restore begins with."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from keepstep.backup import wal
from keepstep.backup.choosing import make_plan
from keepstep.backup.files import Stop
from keepstep.errors import BackupError
from tests.support.backups import SEGMENT_BYTES, a_backup


def at(day: int, second: int = 0) -> datetime:
    """A time of the tests' backups, which are of midnights in January 1970."""
    return datetime(1970, 1, 1 + day, 0, 0, second, tzinfo=UTC)


def keep_log(root: Path, *numbers: int) -> None:
    """Segments of the log."""
    spool = root / "spool"
    spool.mkdir()
    for number in numbers:
        (spool / wal.segment_name(1, number, SEGMENT_BYTES)).write_bytes(b"\0" * 10)
    wal.Shipper(spool, root / "backups" / "42" / wal.DIRECTORY, key=None).ship(Stop())


def test_the_latest_is_restored_by_default(tmp_path: Path) -> None:
    """With all of the log after it, on the latest timeline."""
    a_backup(tmp_path / "backups", day=1)
    newest = a_backup(tmp_path / "backups", day=2)
    keep_log(tmp_path, 31, 32, 33, 34)
    plan = make_plan(tmp_path / "backups", target=None, name=None)
    assert plan.backup == newest
    assert [one.number for one in plan.segments] == [32, 33, 34]
    assert plan.timeline == "latest"
    assert plan.disk_bytes == 5_000 + 3 * SEGMENT_BYTES


def test_a_second_is_restored_from_the_last_backup_before_it(tmp_path: Path) -> None:
    """Which must have been whole by then; of the log only as much as it takes."""
    for day in (1, 2, 3):
        a_backup(tmp_path / "backups", day=day)
    keep_log(tmp_path, *range(16, 60))
    for moment, day, numbers in (
        (at(1, 1), 1, range(16, 33)),
        (at(2, 0), 1, range(16, 49)),
        (at(2, 1), 2, range(32, 49)),
        (at(5), 3, range(48, 60)),
    ):
        plan = make_plan(tmp_path / "backups", target=moment, name=None)
        assert plan.backup.manifest.started_at == day * 86_400_000
        assert [one.number for one in plan.segments] == list(numbers)
        assert plan.timeline == "current"


def test_a_time_before_the_first_backup_is_refused(tmp_path: Path) -> None:
    """The message says which is the first that can be restored."""
    first = a_backup(tmp_path, day=3)
    with pytest.raises(BackupError, match="the first second that can be restored is 1970-01-04 00:00:01 UTC"):
        make_plan(tmp_path, target=at(3), name=None)
    with pytest.raises(BackupError, match="begin with an earlier one"):
        make_plan(tmp_path, target=at(3), name=first.manifest.id)


def test_a_backup_is_named(tmp_path: Path) -> None:
    """By its id, with its database where that is not clear."""
    a_backup(tmp_path, day=1)
    two = a_backup(tmp_path, day=2)
    a_backup(tmp_path, day=3)
    assert make_plan(tmp_path, target=None, name=two.manifest.id).backup == two
    assert make_plan(tmp_path, target=None, name=f"42/{two.manifest.id}", timeline="current").backup == two
    with pytest.raises(BackupError, match="there is no backup nonsense"):
        make_plan(tmp_path, target=None, name="nonsense")


def test_backups_of_an_empty_server_are_never_taken_by_mistake(tmp_path: Path) -> None:
    """Somebody started a server after the disk was lost, and it made backups of nothing."""
    a_backup(tmp_path, day=1)
    other = a_backup(tmp_path, day=2, system="77")
    with pytest.raises(BackupError, match=r"backups of 2 databases.*42/19700102T000000Z, 77/19700103T000000Z"):
        make_plan(tmp_path, target=None, name=None)
    assert make_plan(tmp_path, target=None, name="77/19700103T000000Z").backup == other


def test_an_empty_directory_is_said_so(tmp_path: Path) -> None:
    """There is nothing to restore."""
    with pytest.raises(BackupError, match="there is no backup in"):
        make_plan(tmp_path, target=None, name=None)
