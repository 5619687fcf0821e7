"""Making a whole backup: copied from the running database, whole on the disk before it is listed, old ones removed."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import keepstep
from keepstep import keys
from keepstep.backup import manifest, wal
from keepstep.backup.files import PARTIAL_SUFFIX, Stop, sync_directory, write_sealed
from keepstep.backup.keyfile import load_key
from keepstep.backup.mirror import Mirror
from keepstep.errors import BackupError
from keepstep.postgres import backups as source

if TYPE_CHECKING:
    from keepstep.backup.keyfile import BackupKey
    from keepstep.config import Settings
    from keepstep.postgres.backups import Facts, Source

COPY_NAME: Final = "database.tar"
NAME_WAIT_S: Final = 3.0
"""Seconds to wait for one in which no other backup was made."""
_NAME_POLL_S: Final = 0.05
WORK_DIRECTORY: Final = "backup"
"""In ``data_dir``: what is received of the write-ahead log and not kept yet, and passwords for PostgreSQL's tools."""


def backup_dir(settings: Settings) -> Path:
    """Where backups are. Raises BackupError where the settings say nothing."""
    if settings.backup_dir is None:
        raise BackupError("nothing says where backups are: set KEEPSTEP_BACKUP_DIR")
    return settings.backup_dir


def encryption_key(settings: Settings) -> BackupKey | None:
    """What backups are encrypted with, if they are. Raises BackupError."""
    return None if settings.backup_key_file is None else load_key(settings.backup_key_file)


def make(settings: Settings, database: Source, *, now_ms: int, stop: Stop) -> manifest.Backup:
    """Make one backup and remove those that need not be kept. Blocks for as long as copying the database takes.

    Args:
        settings: where to, encrypted how, how many are kept.
        database: running.
        now_ms: this machine's clock, for how old the others are.
        stop: ends it within one chunk; nothing is left behind.

    Raises:
        BackupError: it failed, or another one is being made; the message says what to do. Nothing is left behind.
        StartupError: the server's own key is damaged.
    """
    key = encryption_key(settings)
    root = backup_dir(settings)
    facts = source.read_facts(database.url)
    with source.held(database.url, source.RUN_LOCK, "a backup is being made"):
        system = root / facts.system
        try:
            system.mkdir(mode=0o700, parents=True, exist_ok=True)
            manifest.remove_remains(system)
            facts = _in_a_second_of_its_own(system, database, facts, stop)
            name = manifest.backup_id(facts.now_ms)
            draft = system / f"{name}{PARTIAL_SUFFIX}"
            try:
                draft.mkdir(mode=0o700)
                _fill(settings, database, facts, draft, name, key, stop)
                sync_directory(draft)
                draft.rename(system / name)
                sync_directory(system)
            finally:
                with contextlib.suppress(OSError):
                    shutil.rmtree(draft)
            Mirror(settings.data_dir, system, key=key).update(stop)
            made = manifest.read_backup(system / name)
            tidy(system, settings, now_ms=now_ms)
        except OSError as error:
            raise BackupError(f"cannot keep a backup in {system}: {error.strerror}") from error
    return made


def _in_a_second_of_its_own(system: Path, database: Source, facts: Facts, stop: Stop) -> Facts:
    """The database's facts in a second in which no other backup was made, for that would have the same name.

    Raises:
        BackupError: none came within ``NAME_WAIT_S``; or ``stop`` is set.
    """
    give_up_s = time.monotonic() + NAME_WAIT_S
    while (system / (name := manifest.backup_id(facts.now_ms))).exists():
        if time.monotonic() >= give_up_s:
            raise BackupError(f"there is a backup {name} already, of this second")
        stop.check()
        time.sleep(_NAME_POLL_S)
        facts = source.read_facts(database.url)
    return facts


def _fill(
    settings: Settings,
    database: Source,
    facts: Facts,
    draft: Path,
    name: str,
    key: BackupKey | None,
    stop: Stop,
) -> None:
    """Write a backup's files into its directory. Raises BackupError, OSError."""
    programs = source.client_programs(settings, facts.version)
    private = settings.data_dir / WORK_DIRECTORY
    with (
        source.retained(database.url),
        source.copying(database.url, programs, private, bytes_per_s_max=settings.backup_bytes_per_s_max) as copying,
        stop.calling(copying.end),
    ):
        written = write_sealed(copying.stream, draft, COPY_NAME, key=key, stop=stop)
    copied = copying.copied
    assert copied is not None
    manifest.write_manifest(
        draft,
        manifest.Manifest(
            format=manifest.FORMAT,
            id=name,
            system=facts.system,
            started_at=facts.now_ms,
            finished_at=source.read_facts(database.url).now_ms,
            timeline=copied.timeline,
            start_lsn=copied.start_lsn,
            end_lsn=copied.end_lsn,
            wal_segment_bytes=facts.segment_bytes,
            postgres_version=facts.version,
            schema_version=source.read_schema_version(database.owner_url),
            keepstep_version=keepstep.__version__,
            database=facts.database,
            superuser=facts.superuser,
            embedded=settings.database_url is None,
            server_key=_server_key(settings.data_dir),
            encrypted_to=None if key is None else key.public,
            keys="kept separately" if key is None else "included",
            files=[manifest.File(written.name, written.size_bytes, written.hash.hex(), written.content_bytes)],
        ),
    )


def _server_key(data_dir: Path) -> str:
    """The server's id, or nothing where it never ran. Raises StartupError where the key is damaged."""
    return keys.load(data_dir).public.hex() if (data_dir / keys.FILE_NAME).exists() else ""


def tidy(system: Path, settings: Settings, *, now_ms: int) -> int:
    """Remove the backups that need not be kept, and the log before the oldest; returns how many. Raises OSError."""
    found = manifest.backups(system)
    old = manifest.superfluous(found, kept=settings.backups_kept, days=settings.backup_kept_days, now_ms=now_ms)
    for backup in old:
        manifest.remove(backup)
    removed = {backup.path for backup in old}
    kept = [backup.manifest for backup in found if backup.path not in removed]
    if kept:
        first = min(kept, key=lambda one: wal.lsn_bytes(one.start_lsn))
        number = wal.lsn_bytes(first.start_lsn) // first.wal_segment_bytes
        wal.remove_before(system / wal.DIRECTORY, number, first.wal_segment_bytes)
    return len(old)
