"""Which backups there are, and which need not be kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from keepstep.backup import manifest
from keepstep.errors import BackupError
from tests.support.backups import DAY_MS, a_backup


def test_backups_are_found_by_their_manifests(tmp_path: Path) -> None:
    """The oldest first, of every database; what is not whole yet is none."""
    second = a_backup(tmp_path, day=2)
    first = a_backup(tmp_path, day=1)
    other = a_backup(tmp_path, day=3, system="77")
    (first.path.parent / "19700105T000000Z.writing").mkdir()
    (first.path.parent / "wal").mkdir()
    (tmp_path / "lost+found").mkdir()
    assert manifest.backups(first.path.parent) == [first, second]
    assert manifest.all_backups(tmp_path) == [first, second, other]
    assert [path.name for path in manifest.systems(tmp_path)] == ["42", "77"]
    assert manifest.all_backups(tmp_path / "nowhere") == []
    assert first.size_bytes == 1_000


def test_the_result_of_verifying_stays_with_a_backup(tmp_path: Path) -> None:
    """A backup with faults is not good, nor one that nobody verified."""
    backup = a_backup(tmp_path, day=1)
    assert not backup.is_good
    manifest.write_verified(backup.path, manifest.Verified(at=1, seconds=0.5, events=7, faults=[]))
    assert manifest.read_backup(backup.path).is_good
    manifest.write_verified(backup.path, manifest.Verified(at=1, seconds=0.5, events=7, faults=["a#1: bad"]))
    assert not manifest.read_backup(backup.path).is_good


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    """Also one of another directory, of a later keepstep, and one that names files elsewhere."""
    backup = a_backup(tmp_path, day=1)
    path = backup.path / manifest.FILE_NAME
    text = path.read_text()
    for wrong, problem in (
        ("{", "is damaged, or of a later keepstep"),
        (text.replace('"format": 1', '"format": 2'), "later keepstep"),
        (text.replace('"system": "42"', '"system": "43"'), "not of this directory"),
        (text.replace("database.tar.zst", "../server.key"), "outside its directory"),
    ):
        path.write_text(wrong)
        with pytest.raises(BackupError, match=problem):
            manifest.backups(backup.path.parent)
    path.unlink()
    with pytest.raises(BackupError, match="cannot be read: No such file"):
        manifest.backups(backup.path.parent)


def test_a_directory_that_cannot_be_read_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In words; and one with more directories than anybody makes is refused."""
    a_backup(tmp_path, day=1)
    monkeypatch.setattr(manifest, "BACKUPS_MAX", 0)
    with pytest.raises(BackupError, match="more than 0 directories"):
        manifest.all_backups(tmp_path)

    def broken(_path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "iterdir", broken)
    with pytest.raises(BackupError, match="Input/output error"):
        manifest.all_backups(tmp_path)


def test_what_need_not_be_kept(tmp_path: Path) -> None:
    """The newest, the recent, the one before these, and the last good one stay."""
    found = [a_backup(tmp_path, day=day, good=day == 2) for day in range(1, 11)]

    def removed(kept: int, days: int) -> list[int]:
        old = manifest.superfluous(found, kept=kept, days=days, now_ms=10 * DAY_MS + 1)
        return [found.index(backup) + 1 for backup in old]

    assert removed(kept=3, days=0) == [1, 3, 4, 5, 6, 7]
    assert removed(kept=1, days=4) == [1, 3, 4]
    assert removed(kept=20, days=0) == []
    assert removed(kept=1, days=100) == []


def test_a_removed_backup_is_gone_at_once(tmp_path: Path) -> None:
    """By its name first; what an interrupted removal or run left goes with the next."""
    backup = a_backup(tmp_path, day=1)
    manifest.remove(backup)
    assert list(backup.path.parent.iterdir()) == []
    for name in ("19700101T000000Z.removing", "19700101T000000Z.writing"):
        (backup.path.parent / name / "inner").mkdir(parents=True)
    manifest.remove_remains(backup.path.parent)
    assert list(backup.path.parent.iterdir()) == []


def test_a_backup_is_called_by_when_it_began() -> None:
    """In UTC, to the second."""
    assert manifest.backup_id(1_795_384_973_209) == "20261122T220253Z"
