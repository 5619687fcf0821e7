"""Backups that look like backups, for tests that choose among them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from keepstep.backup import manifest

DAY_MS: Final = 86_400_000
SEGMENT_BYTES: Final = 1 << 24


def a_backup(root: Path, *, day: int, system: str = "42", good: bool = False, timeline: int = 1) -> manifest.Backup:
    """One that began at midnight of a day and took a second; the log grows by 16 segments a day."""
    started_at = day * DAY_MS
    name = manifest.backup_id(started_at)
    path = root / system / name
    path.mkdir(parents=True)
    described = manifest.Manifest(
        format=manifest.FORMAT,
        id=name,
        system=system,
        started_at=started_at,
        finished_at=started_at + 1_000,
        timeline=timeline,
        start_lsn=f"0/{day << 28:X}",
        end_lsn=f"0/{(day << 28) + 0x100:X}",
        wal_segment_bytes=SEGMENT_BYTES,
        postgres_version=180_006,
        schema_version=11,
        keepstep_version="0.1.0",
        database="keepstep",
        superuser="postgres",
        embedded=True,
        server_key="",
        encrypted_to=None,
        keys="kept separately",
        files=[manifest.File("database.tar.zst", 1_000, "00" * 32, 5_000)],
    )
    manifest.write_manifest(path, described)
    if good:
        manifest.write_verified(path, manifest.Verified(at=started_at, seconds=1.0, events=1, faults=[]))
    return manifest.read_backup(path)
