"""Which backup a restore begins with, and what else it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from keepstep.backup import manifest, wal
from keepstep.errors import BackupError


@dataclass(frozen=True, slots=True)
class Plan:
    """What a restore takes.

    Attributes:
        backup: the whole copy it begins with.
        segments: the log that is replayed.
        target: replayed up to and including this time; ``None``: to the log's end.
        timeline: which of PostgreSQL's histories: ``current`` (the backup's) or ``latest``.
    """

    backup: manifest.Backup
    segments: list[wal.Segment]
    target: datetime | None
    timeline: str

    @property
    def disk_bytes(self) -> int:
        """What it takes on the disk."""
        copy = sum(file.content_bytes for file in self.backup.manifest.files)
        return copy + len(self.segments) * self.backup.manifest.wal_segment_bytes


def make_plan(backup_dir: Path, *, target: datetime | None, name: str | None, timeline: str | None = None) -> Plan:
    """Choose what to restore.

    Args:
        backup_dir: where backups are.
        target: the time to restore to; ``None``: the latest there is.
        name: id of the backup to begin with; ``None``: the last one that was whole by then.
        timeline: ``current`` or ``latest``; ``None``: the latest where there is no target, else the backup's.

    Raises:
        BackupError: there is none, or it is not clear of which database.
    """
    found = manifest.all_backups(backup_dir)
    if not found:
        raise BackupError(f"there is no backup in {backup_dir}")
    chosen = _named(found, name) if name is not None else _latest(found, target)
    system = manifest.backups(chosen.path.parent)
    if target is not None and _time(chosen.manifest.finished_at) > target:
        raise BackupError(
            f"backup {chosen.manifest.id} was whole at {_time(chosen.manifest.finished_at):%Y-%m-%d %H:%M:%S} UTC, "
            "after the time asked for: begin with an earlier one"
        )
    return Plan(chosen, _segments(chosen, system, target), target, timeline or ("current" if target else "latest"))


def _named(found: Sequence[manifest.Backup], name: str) -> manifest.Backup:
    for backup in found:
        if name in (backup.manifest.id, f"{backup.manifest.system}/{backup.manifest.id}"):
            return backup
    raise BackupError(f"there is no backup {name}: keepstep backup list")


def _latest(found: Sequence[manifest.Backup], target: datetime | None) -> manifest.Backup:
    systems = sorted({backup.manifest.system for backup in found})
    if len(systems) > 1:
        newest = [[one for one in found if one.manifest.system == system][-1] for system in systems]
        names = ", ".join(f"{one.manifest.system}/{one.manifest.id}" for one in newest)
        raise BackupError(
            f"there are backups of {len(systems)} databases, perhaps one of them of an empty server that was started "
            f"by mistake: say which one by --backup; the newest of each: {names}"
        )
    whole = [one for one in found if target is None or _time(one.manifest.finished_at) <= target]
    if not whole:
        first = _time(found[0].manifest.finished_at)
        raise BackupError(f"the first second that can be restored is {first:%Y-%m-%d %H:%M:%S} UTC")
    return whole[-1]


def _segments(chosen: manifest.Backup, system: Sequence[manifest.Backup], target: datetime | None) -> list[wal.Segment]:
    """The log after the backup, up to what the first backup begun after the target has. Raises BackupError."""
    size = chosen.manifest.wal_segment_bytes
    later = [one.manifest for one in system if target is not None and _time(one.manifest.started_at) > target]
    last = min((wal.lsn_bytes(one.end_lsn) // size for one in later), default=None)
    try:
        found = wal.segments(chosen.path.parent / wal.DIRECTORY, size)
    except OSError as error:
        raise BackupError(f"the write-ahead log cannot be read: {error.strerror}") from error
    first = wal.lsn_bytes(chosen.manifest.start_lsn) // size
    return wal.needed(found, timeline=chosen.manifest.timeline, first=first, last=last)


def _time(unix_ms: int) -> datetime:
    return datetime.fromtimestamp(unix_ms / 1000, UTC)
