"""The key of backups: made once, private, and refused where it is no key."""

from __future__ import annotations

from pathlib import Path

import pytest

from keepstep.backup.keyfile import load_key, make_key
from keepstep.errors import BackupError


def test_a_key_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    """The file can be read again, and by nobody else."""
    path = tmp_path / "keys" / "backup.key"
    made = make_key(path, now_ms=0)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path).public == made.public
    assert "AGE-SECRET" not in repr(made)
    assert "# keepstep backup key of 1970-01-01" in path.read_text()


def test_a_key_is_never_written_over(tmp_path: Path) -> None:
    """Old backups take the old one."""
    make_key(tmp_path / "key", now_ms=0)
    with pytest.raises(BackupError, match="already"):
        make_key(tmp_path / "key", now_ms=0)


def test_the_public_half_encrypts_only(tmp_path: Path) -> None:
    """A server that has only that makes backups it cannot read."""
    made = make_key(tmp_path / "key", now_ms=0)
    (tmp_path / "public").write_text(f"# away from here\n\n{made.public}\n")
    half = load_key(tmp_path / "public")
    assert half.public == made.public
    with pytest.raises(BackupError, match="only the public half"):
        half.identity()


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """The message says what to do."""
    make_key(tmp_path / "key", now_ms=0)
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(BackupError, match="chmod 600"):
        load_key(tmp_path / "key")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "must hold one key, and holds 0"),
        ("age1a\nage1b\n", "must hold one key, and holds 2"),
        ("age1nonsense\n", "is damaged"),
        ("AGE-SECRET-KEY-1NONSENSE\n", "is damaged"),
        ("hello\n", "is damaged"),
    ],
)
def test_what_is_no_key_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    """In words; the content is not repeated."""
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_text(content)
    with pytest.raises(BackupError, match=problem):
        load_key(path)


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    """Reading, and writing where nothing can be written."""
    with pytest.raises(BackupError, match="cannot be read: No such file"):
        load_key(tmp_path / "key")
    (tmp_path / "file").touch()
    with pytest.raises(BackupError, match="cannot be written"):
        make_key(tmp_path / "file" / "key", now_ms=0)
