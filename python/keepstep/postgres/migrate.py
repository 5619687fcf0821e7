"""Brings a database's schema to the version this keepstep needs: plain SQL files, up and down, each applied once.

``migrations/NNNN_name.up.sql`` and its ``.down.sql`` are numbered from 0001 without a gap and never edited once
released: the table ``schema_version`` keeps the checksum of what was applied, and a difference is refused. Each runs in
a transaction of its own, under an advisory lock, with bounded waits for other transactions' locks.

A line ``-- compatible-with: N`` in an up file says that a keepstep which knows only versions up to N may go on working
with the schema it makes; without it such a keepstep refuses to start. So servers can be upgraded one after the other.

Everything here blocks and uses one connection of its own. The lock belongs to the session: through a connection pooler
in transaction mode it does not hold, so connect directly.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import class_row

from keepstep.errors import StartupError

if TYPE_CHECKING:
    from datetime import datetime
    from importlib.resources.abc import Traversable

FILE_BYTES_MAX: Final = 1_048_576
"""A larger migration file is a mistake: data belongs elsewhere."""
CONNECT_TIMEOUT_S: Final = 5
"""Seconds for the connection; libpq takes whole ones."""
RUNNER_WAIT_S: Final = 120.0
"""Seconds to wait for another runner, most often another server that starts."""
RUNNER_POLL_S: Final = 0.1
"""Seconds between attempts. A blocked ``pg_advisory_lock`` would hold a snapshot, on which others then wait."""
LOCK_TIMEOUT_MS: Final = 2_000
"""Milliseconds to wait for a table's lock: while a migration waits for it, everybody behind it does too."""
LOCK_ATTEMPTS_MAX: Final = 10
"""Attempts to get the locks of one migration, with a pause between them that lets the others through."""
LOCK_PAUSE_S: Final = 1.0
STATEMENT_TIMEOUT_MS: Final = 600_000
"""Milliseconds for one statement of a migration; what takes longer has to be written to run in steps."""
RUNNER_LOCK: Final = 0x6B_65_65_70_73_74_65_70
"""Key of the advisory lock: "keepstep" in ASCII."""

_FILE_NAME: Final = re.compile(r"(?P<version>\d{4})_(?P<name>[a-z0-9_]{1,60})\.(?P<direction>up|down)\.sql")
_COMPATIBLE_WITH: Final = re.compile(r"^-- compatible-with: (\d+)$", re.MULTILINE)
_TRANSACTION_CONTROL: Final = re.compile(
    r"^\s*(BEGIN|START|COMMIT|ROLLBACK)(\s+(TRANSACTION|WORK))?\s*;", re.IGNORECASE | re.MULTILINE
)

_CREATE_TABLE: Final = """
CREATE TABLE IF NOT EXISTS schema_version (
    version integer PRIMARY KEY CHECK (version > 0),
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    compatible_with integer NOT NULL CHECK (compatible_with BETWEEN 1 AND version)
)"""
_READ: Final = "SELECT version, name, checksum, applied_at, compatible_with FROM schema_version ORDER BY version"
_INSERT: Final = "INSERT INTO schema_version (version, name, checksum, compatible_with) VALUES (%s, %s, %s, %s)"
_DELETE: Final = "DELETE FROM schema_version WHERE version = %s"


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema, as its two files have it.

    Attributes:
        version: 1, 2, 3 …
        name: what it does, in one word or a few.
        checksum: SHA-256 of the up file, in hex.
        compatible_with: the oldest version a keepstep may know and still use the schema.
        up_sql: the statements.
        down_sql: what undoes them, data in what they made included.
    """

    version: int
    name: str
    checksum: str
    compatible_with: int
    up_sql: str = field(repr=False)
    down_sql: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.version:04}_{self.name}"


@dataclass(frozen=True, slots=True)
class Applied:
    """A row of ``schema_version``."""

    version: int
    name: str
    checksum: str
    applied_at: datetime
    compatible_with: int

    def __str__(self) -> str:
        return f"{self.version:04}_{self.name}"


@dataclass(frozen=True, slots=True)
class Status:
    """Where one version stands.

    Attributes:
        version: 1, 2, 3 …
        name: as in the database where it was applied, else as in the files.
        applied_at: when; ``None`` where it is pending.
        problem: why the database cannot be used as it is, in words; empty where it can.
    """

    version: int
    name: str
    applied_at: datetime | None
    problem: str


def read_migrations(folder: Traversable | None = None) -> tuple[Migration, ...]:
    """All migrations, ascending: those of this keepstep, or of another folder.

    Raises:
        StartupError: a file is not what it should be: its name, a gap, a pair that is not one, its contents.
    """
    found: dict[tuple[int, str], tuple[str, str]] = {}
    for file in sorted((folder or files("keepstep") / "migrations").iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".sql"):
            continue
        match = _FILE_NAME.fullmatch(file.name)
        if match is None:
            raise StartupError(f"migration file {file.name}: its name must be NNNN_name.up.sql or NNNN_name.down.sql")
        key = int(match["version"]), match["direction"]
        if key in found:
            raise StartupError(f"migration file {file.name}: there is another one with this number")
        found[key] = match["name"], _read_sql(file)
    versions = sorted({version for version, _ in found})
    if versions != list(range(1, len(versions) + 1)):
        raise StartupError(f"the migrations must be numbered 1, 2, 3 … without a gap, and are {versions}")
    return tuple(_pair(version, found.get((version, "up")), found.get((version, "down"))) for version in versions)


def up(url: str, *, to: int | None = None, migrations: Sequence[Migration] | None = None) -> list[Migration]:
    """Apply what is pending, up to version ``to`` (all of it by default); returns what was applied now.

    A schema newer than this keepstep, but compatible with it, is left as it is.

    Raises:
        StartupError: the database cannot be reached, its schema is not one this keepstep can use, another runner does
            not finish, or a migration failed. What was applied before it stays; of itself nothing does.
    """
    known = read_migrations() if migrations is None else migrations
    with _session(url) as connection:
        connection.execute(_CREATE_TABLE)
        applied = _read_applied(connection)
        _refuse(_problems(known, applied))
        pending = [migration for migration in known[len(applied) :] if to is None or migration.version <= to]
        for migration in pending:
            values = (migration.version, migration.name, migration.checksum, migration.compatible_with)
            _run(connection, migration, migration.up_sql, record=(_INSERT, values))
        return pending


def down(url: str, *, to: int, migrations: Sequence[Migration] | None = None) -> list[Migration]:
    """Undo everything above version ``to`` (0 for all), the newest first; returns what was undone.

    What the versions stored goes with them.

    Raises:
        StartupError: as ``up``; and a version to be undone is not known to this keepstep.
    """
    known = read_migrations() if migrations is None else migrations
    with _session(url) as connection:
        connection.execute(_CREATE_TABLE)
        applied = _read_applied(connection)
        _refuse(_problems(known, applied, newer_allowed=False))
        undone = [migration for migration in reversed(known[: len(applied)]) if migration.version > to]
        for migration in undone:
            _run(connection, migration, migration.down_sql, record=(_DELETE, (migration.version,)))
        return undone


def status(url: str, *, migrations: Sequence[Migration] | None = None) -> list[Status]:
    """Every version, applied or pending, ascending; changes nothing and takes no lock.

    Raises:
        StartupError: the database cannot be reached or read.
    """
    known = read_migrations() if migrations is None else migrations
    with _connected(url) as connection:
        exists = connection.execute("SELECT to_regclass('schema_version') IS NOT NULL").fetchone() == (True,)
        applied = _read_applied(connection) if exists else []
    problems = _problems(known, applied)
    rows = [Status(row.version, row.name, row.applied_at, problems.pop(row.version, "")) for row in applied]
    seen = {row.version for row in applied}
    rows += [
        Status(migration.version, migration.name, None, problems.pop(migration.version, ""))
        for migration in known
        if migration.version not in seen
    ]
    return sorted(rows, key=lambda row: row.version)


def _read_sql(file: Traversable) -> str:
    """The text of a migration file. Raises StartupError."""
    data = file.read_bytes()
    if len(data) > FILE_BYTES_MAX:
        raise StartupError(
            f"migration file {file.name}: it has {len(data)} bytes, at most {FILE_BYTES_MAX} are allowed"
        )
    text = data.decode()
    if not text.strip():
        raise StartupError(f"migration file {file.name}: it is empty")
    if _TRANSACTION_CONTROL.search(text):
        raise StartupError(f"migration file {file.name}: it must not begin or end transactions, it runs in one")
    return text


def _pair(version: int, up_file: tuple[str, str] | None, down_file: tuple[str, str] | None) -> Migration:
    """The migration of two files, each (name, text). Raises StartupError."""
    if up_file is None or down_file is None or up_file[0] != down_file[0]:
        raise StartupError(f"migration {version:04}: it needs an .up.sql and a .down.sql of the same name")
    name, up_sql = up_file
    declared = _COMPATIBLE_WITH.search(up_sql)
    compatible_with = int(declared[1]) if declared else version
    if not 1 <= compatible_with <= version:
        raise StartupError(f"migration {version:04}_{name}: compatible-with must be from 1 to {version}")
    checksum = hashlib.sha256(up_sql.encode()).hexdigest()
    return Migration(version, name, checksum, compatible_with, up_sql, down_file[1])


def _problems(known: Sequence[Migration], applied: Sequence[Applied], *, newer_allowed: bool = True) -> dict[int, str]:
    """What speaks against using a database, by version."""
    problems = {}
    by_version = {migration.version: migration for migration in known}
    for place, row in enumerate(applied, start=1):
        migration = by_version.get(row.version)
        if migration is None:
            if not newer_allowed or applied[-1].compatible_with > len(known):
                problems[row.version] = (
                    "unknown to this keepstep, which is older than the database: install the newer one"
                )
        elif row.name != migration.name:
            problems[row.version] = f"applied as {row} and now called {migration}: another program's database?"
        elif row.checksum != migration.checksum:
            problems[row.version] = "changed after it was applied: restore the file as it was released"
        if row.version > place:
            problems.setdefault(place, "not applied although a later one is: restore the database from a backup")
    return problems


def _refuse(problems: dict[int, str]) -> None:
    if problems:
        lines = "".join(f"\n  {version:04}: {problem}" for version, problem in sorted(problems.items()))
        raise StartupError(f"the database's schema cannot be used; nothing was changed{lines}")


@contextlib.contextmanager
def _connected(url: str) -> Iterator[psycopg.Connection]:
    """A connection of its own, in autocommit. Every psycopg error leaves as StartupError, without the password."""
    try:
        place = conninfo_to_dict(url)
        where = f"{place.get('dbname', '')} at {place.get('host', 'localhost')}"
    except psycopg.ProgrammingError:
        raise StartupError("DATABASE_URL must be postgresql://user:password@host:port/database") from None
    try:
        with psycopg.connect(
            url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, application_name="keepstep migrate"
        ) as connection:
            yield connection
    except psycopg.Error as error:
        raise StartupError(f"the PostgreSQL database {where} cannot be used: {_first_line(error)}") from error


@contextlib.contextmanager
def _session(url: str) -> Iterator[psycopg.Connection]:
    """As ``_connected``, as the only runner on this database."""
    with _connected(url) as connection:
        give_up_s = time.monotonic() + RUNNER_WAIT_S
        while connection.execute("SELECT pg_try_advisory_lock(%s)", [RUNNER_LOCK]).fetchone() != (True,):
            if time.monotonic() > give_up_s:
                raise StartupError(
                    f"another keepstep has been migrating this database for {RUNNER_WAIT_S:g} s: try again"
                )
            time.sleep(RUNNER_POLL_S)
        yield connection  # the lock goes with the connection


def _read_applied(connection: psycopg.Connection) -> list[Applied]:
    with connection.cursor(row_factory=class_row(Applied)) as cursor:
        return cursor.execute(_READ).fetchall()


def _run(
    connection: psycopg.Connection, migration: Migration, sql: str, *, record: tuple[str, Sequence[object]]
) -> None:
    """Run one direction of a migration and record it, in one transaction. Raises StartupError."""
    blocked: psycopg.errors.LockNotAvailable | None = None
    for _attempt in range(LOCK_ATTEMPTS_MAX):
        if blocked is not None:
            time.sleep(LOCK_PAUSE_S)
        try:
            with connection.transaction():
                connection.execute("SELECT set_config('lock_timeout', %s, true)", [str(LOCK_TIMEOUT_MS)])
                connection.execute("SELECT set_config('statement_timeout', %s, true)", [str(STATEMENT_TIMEOUT_MS)])
                connection.execute(sql)  # several statements
                connection.execute(*record)
            return
        except psycopg.errors.LockNotAvailable as error:
            blocked = error
        except psycopg.Error as error:
            raise StartupError(f"migration {migration} failed and changed nothing: {_first_line(error)}") from error
    raise StartupError(
        f"migration {migration} changed nothing: in {LOCK_ATTEMPTS_MAX} attempts of {LOCK_TIMEOUT_MS} ms it did not "
        "get its locks, for other transactions hold them; try again, or stop what holds them"
    ) from blocked


def _first_line(error: psycopg.Error) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
