"""Removing journal files that every backup which could be restored holds already.

Only whole files go, by the time of their last write: whatever is in the journal was committed before it was written
there, so a backup that began later holds it, also what was imported or put back and has older times of its own. The
oldest backup decides, for it may be restored too. Removing a file is one step of the file system: whenever the power
goes, a file is there whole, or was covered.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Final

from keepstep.backup import manifest
from keepstep.backup.files import PARTIAL_SUFFIX, sync_directory
from keepstep.backup.mirror import JOURNAL
from keepstep.errors import BackupError
from keepstep.journal import FILE_AGE_S_MAX

if TYPE_CHECKING:
    from pathlib import Path

    from keepstep.backup.files import Stop

MARGIN_MS: Final = 2 * round(FILE_AGE_S_MAX) * 1_000
"""So long before the oldest backup began a file was written last: clocks of nodes and of their disks differ, and a file
is written to for half of that."""


def covered_ms(backup_dir: Path, system: str) -> int | None:
    """Journal files that were last written by then, unix milliseconds, are in every backup that could be restored.

    Args:
        backup_dir: with the backups of all databases there were: who restores an older one needs the journal since.
        system: the database of now.

    Returns:
        ``None`` while no backup of this database is verified to be good.

    Raises:
        BackupError: what backups there are cannot be read.
    """
    if not any(backup.is_good for backup in manifest.backups(backup_dir / system)):
        return None
    return manifest.all_backups(backup_dir)[0].manifest.started_at - MARGIN_MS


def prune_journal(data_dir: Path, backup_dir: Path, system: str, stop: Stop) -> int:
    """Remove what is covered of the journal and of its copies; how many files. Blocks.

    It may be interrupted anywhere and repeated.

    Raises:
        BackupError: a file could not be removed, or ``stop`` was set.
    """
    until_ms = covered_ms(backup_dir, system)
    if until_ms is None:
        return 0
    try:
        return sum(_prune(top, until_ms, stop) for top in (data_dir / JOURNAL, backup_dir / system / JOURNAL))
    except OSError as error:
        raise BackupError(f"cannot remove what is covered of the journal: {error.strerror}") from error


def _prune(top: Path, until_ms: int, stop: Stop) -> int:
    removed = []
    for path in sorted(top.rglob("*")):
        stop.check()
        if path.is_file() and not path.name.endswith(PARTIAL_SUFFIX) and _remove(path, until_ms):
            removed.append(path)
    for directory in {path.parent for path in removed}:
        sync_directory(directory)
    return len(removed)


def _remove(path: Path, until_ms: int) -> bool:
    """Remove a file that is old enough, and that no journal is writing to. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # another node was first
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before looking: what is written next is looked at
        if os.fstat(descriptor).st_mtime_ns // 1_000_000 > until_ms:
            return False
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
