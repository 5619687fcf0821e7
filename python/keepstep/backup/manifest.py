"""What is known of a backup, as a JSON file beside it, and which backups a directory holds.

``backup_dir/<system>/<id>/manifest.json``: <system> is the number PostgreSQL gave the database when it was made, so
that an empty server that was started by mistake never touches the backups of the one before it. A directory is a
backup once it has its name, which it gets when all of it is on the disk.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from keepstep.backup.files import PARTIAL_SUFFIX, sync_directory, write_whole
from keepstep.errors import BackupError

T = TypeVar("T")

FORMAT: Final = 1
"""Of the manifest; a later keepstep reads earlier ones."""
FILE_NAME: Final = "manifest.json"
VERIFIED_FILE_NAME: Final = "verified.json"
"""What became of verifying the backup, the last time."""
MANIFEST_BYTES_MAX: Final = 1 << 20
BACKUPS_MAX: Final = 10_000
"""Directories looked at in one system's directory."""
REMOVING_SUFFIX: Final = ".removing"
_ID: Final = re.compile(r"\d{8}T\d{6}Z")
_SYSTEM: Final = re.compile(r"\d{1,20}")
DAY_MS: Final = 86_400_000


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a backup: its name, bytes on the disk, BLAKE3 in hexadecimal, and bytes of content."""

    name: str
    bytes: int
    blake3: str
    content_bytes: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of a backup. Times are unix milliseconds of the database's clock."""

    format: int
    id: str
    system: str
    started_at: int
    finished_at: int
    timeline: int
    start_lsn: str
    end_lsn: str
    wal_segment_bytes: int
    postgres_version: int
    """As 180006 for 18.6."""
    schema_version: int
    keepstep_version: str
    database: str
    superuser: str
    embedded: bool
    """Whether it is of keepstep's own PostgreSQL."""
    server_key: str
    """Public key of the server, hexadecimal: its id."""
    encrypted_to: str | None
    """The public half of the key; ``None``: not encrypted."""
    keys: str
    """Where the server's own keys are: ``included``, or ``kept separately``."""
    files: list[File]


class Verified(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became of verifying a backup. ``at`` is unix milliseconds, ``seconds`` how long it took."""

    at: int
    seconds: float
    events: int
    faults: list[str]


class Backup(msgspec.Struct, frozen=True):
    """A backup that is there.

    Attributes:
        path: its directory.
        manifest: what it says of itself.
        verified: what became of verifying it the last time; ``None`` where nobody did.
    """

    path: Path
    manifest: Manifest
    verified: Verified | None

    @property
    def size_bytes(self) -> int:
        """Of its files."""
        return sum(file.bytes for file in self.manifest.files)

    @property
    def is_good(self) -> bool:
        """Whether it was verified and nothing was found."""
        return self.verified is not None and not self.verified.faults


def backup_id(started_at_ms: int) -> str:
    """The name of a backup: when it began, in UTC."""
    return f"{datetime.fromtimestamp(started_at_ms // 1000, UTC):%Y%m%dT%H%M%SZ}"


def systems(backup_dir: Path) -> list[Path]:
    """Directories of the databases that a directory holds backups of. Raises BackupError."""
    return [path for path in _children(backup_dir) if _SYSTEM.fullmatch(path.name)]


def backups(system_dir: Path) -> list[Backup]:
    """The whole backups of one database, the oldest first. Raises BackupError where one has a damaged manifest."""
    return [read_backup(path) for path in _children(system_dir) if _ID.fullmatch(path.name)]


def all_backups(backup_dir: Path) -> list[Backup]:
    """The whole backups of all databases, the oldest first. Raises BackupError."""
    found = [backup for system in systems(backup_dir) for backup in backups(system)]
    return sorted(found, key=lambda backup: backup.manifest.started_at)


def read_backup(path: Path) -> Backup:
    """One backup. Raises BackupError where its manifest is missing, damaged, or of a later keepstep."""
    manifest = _read(path / FILE_NAME, Manifest)
    if manifest.format != FORMAT or manifest.id != path.name or manifest.system != path.parent.name:
        raise BackupError(f"{path / FILE_NAME} is not of this directory, or of a later keepstep")
    if any(Path(file.name).name != file.name for file in manifest.files):
        raise BackupError(f"{path / FILE_NAME} names files outside its directory")
    verified = path / VERIFIED_FILE_NAME
    return Backup(path, manifest, _read(verified, Verified) if verified.exists() else None)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Say what a backup is. Raises OSError."""
    write_whole(directory / FILE_NAME, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


def write_verified(directory: Path, verified: Verified) -> None:
    """Say what became of verifying it. Raises OSError."""
    write_whole(directory / VERIFIED_FILE_NAME, msgspec.json.format(msgspec.json.encode(verified), indent=2) + b"\n")


def superfluous(found: Sequence[Backup], *, kept: int, days: int, now_ms: int) -> list[Backup]:
    """The backups that need not be kept, of all of one database, the oldest first.

    The newest ``kept`` stay, those of the last ``days``, the one before these, from which the first second of that
    time is restored, and the last that was verified to be good.
    """
    since_ms = now_ms - days * DAY_MS
    recent = [backup for backup in found if backup.manifest.finished_at >= since_ms]
    before = [backup for backup in found if backup.manifest.finished_at < since_ms]
    good = [backup for backup in found if backup.is_good]
    stay = {backup.path for backup in (*found[-kept:], *recent, *(before[-1:] if days else ()), *good[-1:])}
    return [backup for backup in found if backup.path not in stay]


def remove(backup: Backup) -> None:
    """Remove a backup: first it is one no longer, then its files go. Raises OSError."""
    removing = backup.path.with_name(f"{backup.path.name}{REMOVING_SUFFIX}")
    backup.path.rename(removing)
    sync_directory(removing.parent)
    shutil.rmtree(removing)


def remove_remains(system_dir: Path) -> None:
    """Remove what an interrupted run left; to be called while no other runs. Raises OSError."""
    for path in _children(system_dir):
        if path.name.endswith((PARTIAL_SUFFIX, REMOVING_SUFFIX)):
            shutil.rmtree(path)


def _read(path: Path, form: type[T]) -> T:
    try:
        with path.open("rb") as file:
            content = file.read(MANIFEST_BYTES_MAX)
        return msgspec.json.decode(content, type=form)
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise BackupError(f"{path} is damaged, or of a later keepstep") from error


def _children(directory: Path) -> list[Path]:
    try:
        found = sorted(path for path in directory.iterdir() if path.is_dir()) if directory.exists() else []
    except OSError as error:
        raise BackupError(f"{directory} cannot be read: {error.strerror}") from error
    if len(found) > BACKUPS_MAX:
        raise BackupError(f"{directory} holds more than {BACKUPS_MAX} directories")
    return found
