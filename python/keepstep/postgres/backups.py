"""What backups need of a running PostgreSQL: facts, locks, replication slots, and its own tools run against it.

The tools are the embedded server's, which read every PostgreSQL up to their own version. They are given the
connection's password in a file, for others can read the command line of a process. All of it blocks.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import psycopg
from psycopg import Connection, sql

from keepstep.errors import BackupBusyError, BackupError, DamagedBackupError, StartupError
from keepstep.postgres import guardian
from keepstep.postgres.cluster import ADMIN_ROLE, DATABASE, PORT, ROLE, tail
from keepstep.postgres.directory import SOCKET_PATH_BYTES_MAX, short_link
from keepstep.postgres.installation import find_account, find_installation
from keepstep.settings.types import KIB

if TYPE_CHECKING:
    from keepstep.config import Settings

SLOT: Final = "keepstep_backup"
"""Holds the write-ahead log back until it was received; its database bounds how much (max_slot_wal_keep_size)."""
RUN_LOCK: Final = int.from_bytes(b"ks backup", "big") & (2**63 - 1)
"""Key of the advisory lock of whoever makes a backup."""
RECEIVER_LOCK: Final = int.from_bytes(b"ks wal rc", "big") & (2**63 - 1)
"""Key of the advisory lock of the node that receives the write-ahead log and keeps the schedule."""
CONNECT_TIMEOUT_S: Final = 10
STATEMENT_TIMEOUT_MS: Final = 60_000
STATUS_INTERVAL_S: Final = 1
"""Seconds between pg_receivewal's reports of what it has on the disk, upon which PostgreSQL lets go of it."""
TOOL_STOP_S: Final = 10.0
"""Seconds for a tool to end once its output is not read any more."""
SLOT_RELEASE_S: Final = 5.0
"""Seconds that the database may take to notice the end of who received the log."""
VERSION_UNIT: Final = 10_000
_POLL_S: Final = 0.05
_STANDARD_PROGRAMS: Final = (
    "/usr/lib/postgresql/{major}/bin",
    "/usr/pgsql-{major}/bin",
    "/usr/libexec/postgresql{major}",
)
"""Where distributions keep the programs of a major version."""
_FACTS: Final = """
SELECT (SELECT system_identifier::text FROM pg_control_system()), current_setting('server_version_num')::int,
       (SELECT timeline_id FROM pg_control_checkpoint()), current_database(),
       (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'),
       (SELECT rolname FROM pg_roles WHERE rolsuper AND rolcanlogin ORDER BY oid LIMIT 1),
       (SELECT count(*) FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global')),
       (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
       (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user)
"""
_KEPT_MAX: Final = "SELECT setting::int FROM pg_settings WHERE name = 'max_slot_wal_keep_size'"
_SCHEMA: Final = "SELECT max(version) FROM schema_version"
_IS_RECEIVED: Final = """
SELECT coalesce(bool_or(r.write_lsn >= %s::pg_lsn), true)
FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid WHERE s.slot_name = %s
"""
_SLOT_STATE: Final = "SELECT coalesce(wal_status, 'lost'), active FROM pg_replication_slots WHERE slot_name = %s"
_START: Final = re.compile(r"start point: ([0-9A-F]+/[0-9A-F]+) on timeline (\d+)")
_END: Final = re.compile(r"end point: ([0-9A-F]+/[0-9A-F]+)")


Calling = Callable[[Callable[[], object]], contextlib.AbstractContextManager[None]]
"""Has a function called, while a block runs, when the work is to end."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a backup says of its database.

    Attributes:
        system: the number PostgreSQL gave it when it was made.
        version: of PostgreSQL, 180006 for 18.6.
        timeline: its history; each restore begins one.
        database: its name.
        segment_bytes: of a segment of its write-ahead log.
        superuser: the name of one.
        now_ms: its clock, unix milliseconds.
    """

    system: str
    version: int
    timeline: int
    database: str
    segment_bytes: int
    superuser: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class Copied:
    """Where a whole copy begins and ends in the write-ahead log."""

    start_lsn: str
    end_lsn: str
    timeline: int


@dataclass(frozen=True, slots=True, repr=False)
class Source:
    """How backups reach a database; the URLs may hold passwords and are never shown.

    Attributes:
        url: of a role that may replicate.
        owner_url: of the role that owns the tables.
    """

    url: str
    owner_url: str


def find_source(settings: Settings) -> Source:
    """How backups reach the settings' database; the embedded server must be running."""
    if settings.database_url is not None:
        owner = settings.database_url.get_secret_value()
        other = settings.backup_database_url
        return Source(owner if other is None else other.get_secret_value(), owner)
    directory = settings.data_dir / "postgres" / "socket"
    if len(os.fsencode(directory / f".s.PGSQL.{PORT}")) > SOCKET_PATH_BYTES_MAX:
        directory = short_link(directory)
    place = f"@/{DATABASE}?host={quote(str(directory), safe='')}&port={PORT}"
    return Source(f"postgresql://{ADMIN_ROLE}{place}", f"postgresql://{ROLE}{place}")


def is_reached(url: str) -> bool:
    """Whether the database answers."""
    try:
        with _connect(url):
            return True
    except psycopg.Error:
        return False


def read_facts(url: str) -> Facts:
    """What a backup says of its database.

    Raises:
        BackupError: it does not answer, or cannot be backed up this way; the message says what to do.
    """
    with _reported("ask the database"), _connect(url) as connection:
        row = connection.execute(_FACTS).fetchone()
    assert row is not None
    system, version, timeline, database, segment_bytes, superuser, tablespaces, now_ms, may_replicate = row
    if not may_replicate:
        raise BackupError(
            "the database's role may not make backups: as a superuser run ALTER ROLE … REPLICATION and allow it "
            "replication connections in pg_hba.conf, or set KEEPSTEP_BACKUP_DATABASE_URL to a role that may; "
            "docs/how-to/back-up-and-restore.md has the way with pgBackRest"
        )
    if tablespaces:
        raise BackupError("the database has tablespaces of its own, which only other tools back up (pgBackRest)")
    return Facts(system, version, timeline, database, segment_bytes, superuser, now_ms)


def read_schema_version(url: str) -> int:
    """The last migration, asked by the role that owns the tables. Raises BackupError."""
    with _reported("read the schema's version"), _connect(url) as connection:
        row = connection.execute(_SCHEMA).fetchone()
    assert row is not None
    return int(row[0] or 0)


class Held:
    """An advisory lock, which is held for as long as its connection is."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def is_held(self) -> bool:
        """Whether the connection still is one."""
        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True


@contextlib.contextmanager
def held(url: str, key: int, what: str) -> Iterator[Held]:
    """An advisory lock for as long as the block runs; others can have it as soon as the block is left. Blocks.

    Raises:
        BackupBusyError: another has it; the message begins with ``what`` it does.
        BackupError: the database does not answer.
    """
    with _reported("lock the database's backups"), _connect(url) as connection:
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", [key]).fetchone()
        if row != (True,):
            raise BackupBusyError(f"{what} already: wait until it is done")
        try:
            yield Held(connection)
        finally:
            # Closing would do, but only once the server's end has noticed. A lost connection has no lock any more.
            with contextlib.suppress(psycopg.Error):
                connection.execute("SELECT pg_advisory_unlock(%s)", [key])


@contextlib.contextmanager
def retained(url: str) -> Iterator[None]:
    """Keep the database from removing write-ahead log for as long as the block runs. Raises BackupError."""
    with _reported("make a replication slot"), _connect(url) as connection:
        name = f"keepstep_copy_{connection.info.backend_pid}"
        connection.execute("SELECT pg_create_physical_replication_slot(%s, true, true)", [name])
        try:
            yield
        finally:
            # It would go with the connection, but only once the server's end has noticed.
            with contextlib.suppress(psycopg.Error):
                connection.execute("SELECT pg_drop_replication_slot(%s)", [name])


def ensure_slot(url: str) -> bool:
    """Have the slot, a new one where the database gave the old one up; whether it is a new one. Raises BackupError."""
    with _reported("make a replication slot"), _connect(url) as connection:
        row = connection.execute(_SLOT_STATE, [SLOT]).fetchone()
        if row is not None and row[0] != "lost":
            return False
        if row is not None:
            connection.execute("SELECT pg_drop_replication_slot(%s)", [SLOT])
        if connection.execute(_KEPT_MAX).fetchone() == (-1,):
            raise BackupError(
                "the database would keep write-ahead log for backups without bound, until its disk is full: as a "
                "superuser run ALTER SYSTEM SET max_slot_wal_keep_size = '8GB' and SELECT pg_reload_conf()"
            )
        connection.execute("SELECT pg_create_physical_replication_slot(%s, true)", [SLOT])
        return True


def wait_until_received(url: str, *, bound_s: float) -> None:
    """Wait until all that is committed by now was received, where it is being received. Raises BackupError."""
    give_up_s = time.monotonic() + bound_s
    with _reported("ask the database"), _connect(url) as connection:
        row = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        assert row is not None
        while connection.execute(_IS_RECEIVED, [row[0], SLOT]).fetchone() == (False,):
            if time.monotonic() > give_up_s:
                return
            time.sleep(_POLL_S)


def drop_slot(url: str) -> None:
    """Give the slot up: the database keeps no write-ahead log for backups any more.

    A receiver that has just ended may have it for a moment yet; that is waited for, up to ``SLOT_RELEASE_S``.

    Raises:
        BackupError: somebody receives the log, or the database does not answer.
    """
    give_up_s = time.monotonic() + SLOT_RELEASE_S
    with _reported("drop the replication slot"), _connect(url) as connection:
        while (row := connection.execute(_SLOT_STATE, [SLOT]).fetchone()) is not None:
            _, is_active = row
            if is_active and time.monotonic() < give_up_s:
                time.sleep(_POLL_S)
                continue
            connection.execute("SELECT pg_drop_replication_slot(%s)", [SLOT])


def record_safe_at(url: str, safe_at_ms: int) -> None:
    """Note that what was received by then is in a verified backup; never goes back. Raises BackupError."""
    with _reported("record the verified backup"), _connect(url) as connection:
        connection.execute("UPDATE server_state SET safe_at = greatest(safe_at, %s)", [safe_at_ms])


def client_programs(settings: Settings, version: int) -> Path:
    """The directory of pg_basebackup and pg_receivewal that read a PostgreSQL of this version. Raises BackupError."""
    with contextlib.suppress(StartupError):
        installation = find_installation(find_account(settings.embedded_user))
        if installation.major >= version // VERSION_UNIT:
            return installation.programs
    return server_programs(version // VERSION_UNIT, "pg_basebackup")


def server_programs(major: int, program: str = "postgres") -> Path:
    """The directory of an installed PostgreSQL of exactly this major version. Raises BackupError."""
    for pattern in _STANDARD_PROGRAMS:
        directory = Path(pattern.format(major=major))
        if (directory / program).is_file():
            return directory
    found = shutil.which(program)
    if found is not None and _major(Path(found)) == major:
        return Path(found).resolve().parent
    raise BackupError(f"there is no {program} of PostgreSQL {major} on this machine: install it (postgresql-{major})")


def _major(program: Path) -> int | None:
    try:
        said = subprocess.run(  # noqa: S603  # a program that was found
            [program, "--version"], capture_output=True, text=True, timeout=CONNECT_TIMEOUT_S, env=guardian.ENVIRONMENT
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"\(PostgreSQL\) (\d+)", said)
    return int(version[1]) if version is not None else None


@contextlib.contextmanager
def copying(url: str, programs: Path, private: Path, *, bytes_per_s_max: int | None = None) -> Iterator[Copying]:
    """A whole copy of the database as one tar stream, with the write-ahead log that it needs to be started.

    Args:
        url: of a role that may replicate.
        programs: where pg_basebackup is.
        private: a directory of ours alone, for the password.
        bytes_per_s_max: read from the database's files a second at most; ``None`` for no bound.

    Raises:
        BackupError: it failed; raised at the end of the block, which has been given a stream that ends early.
    """
    with credentials(url, private) as target, tempfile.TemporaryFile() as said:
        command = [str(programs / "pg_basebackup"), "-d", target, "-D", "-", "-F", "tar", "-X", "fetch"]
        command += ["--checkpoint=fast", "--verbose", "--no-password", "--no-sync", "--label=keepstep"]
        command += [] if bytes_per_s_max is None else [f"--max-rate={bytes_per_s_max // KIB}"]
        with subprocess.Popen(  # noqa: S603  # PostgreSQL's own program
            command, cwd="/", env=guardian.ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
        ) as process:
            assert process.stdout is not None
            copying = Copying(process.stdout, process.terminate)
            try:
                yield copying
                process.wait(TOOL_STOP_S)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise BackupError("pg_basebackup does not end") from error
            except BaseException:
                process.kill()
                raise
        words = tail(said)
        if process.returncode != 0:
            raise BackupError(f"pg_basebackup failed: {words.splitlines()[-1] if words else process.returncode}")
        start, end = _START.search(words), _END.search(words)
        if start is None or end is None:
            raise BackupError("pg_basebackup did not say where its copy begins and ends")
        copying.copied = Copied(start[1], end[1], int(start[2]))


class Copying:
    """A copy under way: ``stream`` gives the tar file, ``end`` ends it; ``copied`` is there once the block is left."""

    def __init__(self, stream: IO[bytes], end: Callable[[], None]) -> None:
        self.stream = stream
        self.end = end
        self.copied: Copied | None = None


def receiving_command(target: str, programs: Path, spool: Path) -> list[str]:
    """The command line that receives the write-ahead log into ``spool`` for as long as its standard input is open."""
    return [
        *(sys.executable, "-I", guardian.__file__, "--directory", str(spool), "--"),
        *(str(programs / "pg_receivewal"), "-d", target, "-D", str(spool), "--slot", SLOT),
        *("--no-loop", "--no-password", "--status-interval", str(STATUS_INTERVAL_S)),
    ]


def check_copy(programs: Path, directory: Path, *, calling: Calling) -> None:
    """Every file of a copy is as PostgreSQL's own manifest in it says.

    Args:
        programs: where pg_verifybackup is.
        directory: the copy.
        calling: has what it is given called to end this from another thread.

    Raises:
        DamagedBackupError: it is not.
        BackupError: it was ended.
    """
    with tempfile.TemporaryFile() as said:
        with (
            subprocess.Popen(  # noqa: S603  # PostgreSQL's own program
                [programs / "pg_verifybackup", "--quiet", directory],
                cwd="/",
                env=guardian.ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
            ) as process,
            calling(process.kill),
        ):
            process.wait()
        if process.returncode < 0:
            raise BackupError("pg_verifybackup was ended")
        if process.returncode != 0:
            raise DamagedBackupError(f"the copy is damaged: {tail(said)}")


@contextlib.contextmanager
def credentials(url: str, private: Path) -> Iterator[str]:
    """A URL without the password, which is in a file of ours alone for as long as the block runs. Raises OSError."""
    parts = urlsplit(url)
    if parts.password is None:
        yield url
        return
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix="password.", dir=private)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            password = unquote(parts.password).replace("\\", "\\\\").replace(":", "\\:")
            file.write(f"*:*:*:*:{password}\n")
        user, _, place = parts.netloc.rpartition("@")
        query = f"{parts.query}&" if parts.query else ""
        bare = parts._replace(
            netloc=f"{user.partition(':')[0]}@{place}", query=f"{query}passfile={quote(name, safe='')}"
        )
        yield urlunsplit(bare)
    finally:
        Path(name).unlink(missing_ok=True)


def _connect(url: str) -> Connection:
    connection = psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S)
    connection.execute(sql.SQL("SET statement_timeout = {}").format(STATEMENT_TIMEOUT_MS))
    return connection


@contextlib.contextmanager
def _reported(what: str) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        message = error.diag.message_primary or str(error).partition("\n")[0] or type(error).__name__
        raise BackupError(f"cannot {what}: {message}") from error
