"""What ``keepstep check-config`` asks beyond the settings themselves: data directory, key, certificate, database.

Nothing is changed, made or started: an embedded database that does not run is not asked. Only in the archive an object
is written, and removed again: without that nobody knows whether it may be.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from keepstep import _keepstep, certificates, keys
from keepstep.archive.opening import store_of
from keepstep.errors import ArchiveError, ArchiveUnavailable, StartupError
from keepstep.postgres import migrate, migrationfiles
from keepstep.postgres.backups import find_source, is_reached
from keepstep.postgres.opening import check_promises
from keepstep.postgres.slowqueries import read_slow_query_log
from keepstep.protocol.succession import verify_announcement
from keepstep.runtime import SystemClock, WorkerThreads
from keepstep.settings.edge import certificate_files

if TYPE_CHECKING:
    from keepstep.config import Settings
    from keepstep.postgres.migrate import Status


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        name: of what was checked.
        is_problem: whether the server would not start, or not work, like this.
        text: in words, without secrets.
    """

    name: str
    is_problem: bool
    text: str


def check(settings: Settings) -> list[Finding]:
    """Everything, in the order in which a start would come upon it. Blocks."""
    unusable = _find_unusable(settings)
    if unusable is not None:
        return [Finding("data directory", True, unusable)]
    return [
        _check_key(settings),
        *_check_certificate(settings),
        *_check_database(settings),
        *_check_archive(settings),
    ]


def _find_unusable(settings: Settings) -> str | None:
    """Why the data directory cannot be used, or made; then nothing in it can be asked."""
    place = settings.data_dir
    while not os.path.lexists(place):  # where the way there is shut this says no, too
        place = place.parent
    if not os.path.isdir(place):  # noqa: PTH112 - pathlib's raises where a link leads to what is shut
        return f"{place} is no directory"
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        return f"this user may not write into {place}"
    return None


def _check_key(settings: Settings) -> Finding:
    """The identity key is a pair, and so is its successor where one is announced."""
    name = "server key"
    if not (settings.data_dir / keys.FILE_NAME).exists():
        return Finding(name, False, f"none in {settings.data_dir} yet; the first start makes it")
    try:
        key = keys.load(settings.data_dir)
        announcements = keys.load_announcements(settings.data_dir)
        if announcements:
            succession = verify_announcement(_keepstep, announcements[-1])
            if succession.old_key == key.public:
                successor = keys.load(settings.data_dir, name=keys.NEXT_FILE_NAME)
                if successor.public != succession.new_key:
                    raise StartupError(
                        f"{settings.data_dir / keys.NEXT_FILE_NAME} is not the key that was announced: "
                        "restore it from your backup"
                    )
    except StartupError as error:
        return Finding(name, True, str(error))
    return Finding(name, False, key.public.hex())


def _check_certificate(settings: Settings) -> list[Finding]:
    """How long the TLS certificate is good, where there is one; that it can be used the settings have shown."""
    files = certificate_files(settings)
    if files is None:
        return []
    certificate = certificates.load(files)
    begins, ends = (
        datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
        for at_s in (certificate.begins_at_s, certificate.ends_at_s)
    )
    name, now_s = "certificate", SystemClock().now_ms() // 1000
    if now_s < certificate.begins_at_s:
        return [Finding(name, True, f"{files.certificate} is not valid before {begins}: clients refuse it")]
    if now_s >= certificate.ends_at_s:
        return [Finding(name, True, f"{files.certificate} has expired on {ends}: clients refuse it")]
    return [Finding(name, False, f"{files.certificate} is valid until {ends}")]


def _check_database(settings: Settings) -> list[Finding]:
    """Whether it can be reached, what it promises, and how far its schema is."""
    url = find_source(settings).owner_url
    if settings.database_url is None and not is_reached(url):
        home = settings.data_dir / "postgres"
        made = "it does not run, so it was not asked" if home.exists() else "the first start makes it"
        return [Finding("database", False, f"the embedded PostgreSQL in {home}: {made}")]
    try:
        rows = migrate.status(url)
        migrated = all(row.applied_at is not None and not row.problem for row in rows)
        durability = check_promises(url, settings, migrated=migrated)
        slow_queries = read_slow_query_log(url, connect_timeout_s=settings.database_connect_timeout_s)
    except StartupError as error:
        return [Finding("database", True, str(error))]
    off = durability.unsafe_settings
    promise = f"may lose what it acknowledged: {', '.join(off)} off" if off else "keeps what it acknowledged"
    standbys = durability.standby_names or "none"
    return [
        Finding("database", False, f"PostgreSQL {durability.release}; {promise}; synchronous standbys: {standbys}"),
        Finding("slow queries", False, slow_queries.text),
        _schema(rows, migrate_at_start=settings.migrate_at_start),
    ]


def _check_archive(settings: Settings) -> list[Finding]:
    """Whether the archive can be written, read and listed, where there is one."""
    if settings.archive_url is None:
        return []
    try:
        store = store_of(settings, WorkerThreads(), SystemClock())
        assert store is not None
        trio.run(store.probe)
    except (ArchiveError, ArchiveUnavailable, OSError) as error:
        return [Finding("archive", True, f"{settings.archive_url}: {error}")]
    return [Finding("archive", False, f"{settings.archive_url} can be written, read and listed")]


def _schema(rows: list[Status], *, migrate_at_start: bool) -> Finding:
    """The version of the schema, what is pending, and whether it is one that this keepstep can use."""
    problems = [f"{row.version:04}_{row.name}: {row.problem}" for row in rows if row.problem]
    if problems:
        return Finding("schema", True, "; ".join(problems))
    applied = [row.version for row in rows if row.applied_at is not None]
    version, known = max(applied, default=0), len(migrationfiles.read_migrations())
    pending = len(rows) - len(applied)
    if pending:
        how = "the start applies them" if migrate_at_start else "run `keepstep migrate up`"
        return Finding("schema", not migrate_at_start, f"version {version} of {known}, {pending} pending: {how}")
    newer = ", newer than this keepstep and compatible with it" if version > known else ""
    return Finding("schema", False, f"version {version}{newer}, nothing pending")
