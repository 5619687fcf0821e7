"""Brings a database's schema to the version this keepstep needs: plain SQL files, up and down, each applied once.

The files (``migrationfiles``) are never edited once released: the table ``schema_version`` keeps the checksums of what
was applied, and a difference is refused. Each runs in a transaction of its own, under an advisory lock, with bounded
waits for other transactions' locks. What cannot run in a transaction runs statement by statement; the table
``schema_progress`` keeps how far it came, so that the next run goes on there.

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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import class_row

from keepstep.errors import StartupError
from keepstep.postgres.migrationfiles import Migration, read_migrations, statements

if TYPE_CHECKING:
    from datetime import datetime

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
STATEMENT_APART_TIMEOUT_MS: Final = 21_600_000
"""Milliseconds for one statement outside of a transaction, six hours: it is one that others do not wait for, such as
an index on a large table that is built beside them; until it gets its locks counts too."""
RUNNER_LOCK: Final = 0x6B_65_65_70_73_74_65_70
"""Key of the advisory lock: "keepstep" in ASCII."""

Direction = Literal["up", "down"]

_INDEX_BUILT: Final = re.compile(
    r"CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+IF\s+NOT\s+EXISTS\s+(?P<name>[a-z0-9_]+)", re.IGNORECASE
)

_CREATE_TABLE: Final = """
CREATE TABLE IF NOT EXISTS schema_version (
    version integer PRIMARY KEY CHECK (version > 0),
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    compatible_with integer NOT NULL CHECK (compatible_with BETWEEN 1 AND version),
    down_checksum text
)"""
_HAS_DOWN_CHECKSUM: Final = (
    "SELECT FROM pg_attribute WHERE attrelid = 'schema_version'::regclass AND attname = 'down_checksum'"
)
_ADD_DOWN_CHECKSUM: Final = "ALTER TABLE schema_version ADD COLUMN IF NOT EXISTS down_checksum text"
_READ: Final = (
    "SELECT version, name, checksum, applied_at, compatible_with, to_jsonb(v) ->> 'down_checksum' AS down_checksum"
    " FROM schema_version v ORDER BY version"
)
_INSERT: Final = (
    "INSERT INTO schema_version (version, name, checksum, compatible_with, down_checksum) VALUES (%s, %s, %s, %s, %s)"
)
_DELETE: Final = "DELETE FROM schema_version WHERE version = %s"
_CREATE_PROGRESS: Final = """
CREATE TABLE IF NOT EXISTS schema_progress (
    version integer PRIMARY KEY,
    direction text NOT NULL,
    checksum text NOT NULL,
    statements_done integer NOT NULL
)"""
_READ_PROGRESS: Final = "SELECT version, direction, checksum, statements_done FROM schema_progress"
_SET_PROGRESS: Final = """
INSERT INTO schema_progress (version, direction, checksum, statements_done) VALUES (%s, %s, %s, %s)
ON CONFLICT (version) DO UPDATE SET
    direction = excluded.direction, checksum = excluded.checksum, statements_done = excluded.statements_done"""
_DROP_PROGRESS: Final = "DROP TABLE schema_progress"
_IS_THERE: Final = "SELECT to_regclass(%s) IS NOT NULL"
_IS_INVALID: Final = "SELECT NOT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"


@dataclass(frozen=True, slots=True)
class Applied:
    """A row of ``schema_version``."""

    version: int
    name: str
    checksum: str
    applied_at: datetime
    compatible_with: int
    down_checksum: str | None

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


@dataclass(frozen=True, slots=True)
class Progress:
    """A row of ``schema_progress``: a migration without a transaction that is, or was, under way."""

    version: int
    direction: str
    checksum: str
    statements_done: int


@dataclass(frozen=True, slots=True)
class Planned:
    """What would be done.

    Attributes:
        migration: what would be applied or undone.
        tried: whether it was done and rolled back; not where it, or one before it, runs outside of a transaction.
    """

    migration: Migration
    tried: bool


def up(url: str, *, to: int | None = None, migrations: Sequence[Migration] | None = None) -> list[Migration]:
    """Apply what is pending, up to version ``to`` (all of it by default); returns what was applied now.

    A schema newer than this keepstep, but compatible with it, is left as it is.

    Raises:
        StartupError: the database cannot be reached, its schema is not one this keepstep can use, another runner does
            not finish, or a migration failed. What was applied before it stays; of itself nothing does, or, of one
            without a transaction, the statements that were run, after which the next run goes on.
    """
    known = read_migrations() if migrations is None else migrations
    with _session(url) as connection:
        _make_tables(connection)
        applied = _read_applied(connection)
        _refuse(_problems(known, applied))
        pending = _pending(known, applied, to)
        for migration in pending:
            _run(connection, migration, "up")
        return pending


def down(url: str, *, to: int, migrations: Sequence[Migration] | None = None) -> list[Migration]:
    """Undo everything above version ``to`` (0 for all), the newest first; returns what was undone.

    What the versions stored goes with them. A version that is applied in part is undone too.

    Raises:
        StartupError: as ``up``; and a version to be undone is not known to this keepstep, or its down file was edited.
    """
    known = read_migrations() if migrations is None else migrations
    with _session(url) as connection:
        _make_tables(connection)
        applied = _read_applied(connection)
        _refuse(_problems(known, applied, newer_allowed=False) | _edited_down(known, applied))
        undone = _undone(known, applied, _read_progress(connection), to)
        for migration in undone:
            _run(connection, migration, "down")
        return undone


def plan_up(url: str, *, to: int | None = None, migrations: Sequence[Migration] | None = None) -> list[Planned]:
    """What ``up`` would apply, each tried on the database as it is, in one transaction that is rolled back.

    The locks of all of them are held until then: on a database in use, others wait for as long as it takes.

    Raises:
        StartupError: as ``up``, whatever it is that would fail.
    """
    known = read_migrations() if migrations is None else migrations
    with _session(url) as connection:
        applied = _read_applied(connection)
        _refuse(_problems(known, applied))
        return _try(connection, _pending(known, applied, to), "up")


def plan_down(url: str, *, to: int, migrations: Sequence[Migration] | None = None) -> list[Planned]:
    """What ``down`` would undo, tried as by ``plan_up``.

    Raises:
        StartupError: as ``down``, whatever it is that would fail.
    """
    known = read_migrations() if migrations is None else migrations
    with _session(url) as connection:
        applied = _read_applied(connection)
        _refuse(_problems(known, applied, newer_allowed=False) | _edited_down(known, applied))
        return _try(connection, _undone(known, applied, _read_progress(connection), to), "down")


def status(url: str, *, migrations: Sequence[Migration] | None = None) -> list[Status]:
    """Every version, applied or pending, ascending; changes nothing and takes no lock.

    Raises:
        StartupError: the database cannot be reached or read.
    """
    known = read_migrations() if migrations is None else migrations
    with _connected(url) as connection:
        applied = _read_applied(connection)
        progress = _read_progress(connection)
    problems = _edited_down(known, applied) | _problems(known, applied)
    if progress is not None:
        problems.setdefault(
            progress.version,
            f"{progress.direction} was run in part, {progress.statements_done} statements of it: run it again",
        )
    rows = [Status(row.version, row.name, row.applied_at, problems.pop(row.version, "")) for row in applied]
    seen = {row.version for row in applied}
    rows += [
        Status(migration.version, migration.name, None, problems.pop(migration.version, ""))
        for migration in known
        if migration.version not in seen
    ]
    return sorted(rows, key=lambda row: row.version)


def check(url: str, *, migrations: Sequence[Migration] | None = None) -> None:
    """Pass only where the schema is one this keepstep can use as it is; changes nothing and takes no lock.

    Raises:
        StartupError: something is pending, or the schema is refused as by ``up``.
    """
    known = read_migrations() if migrations is None else migrations
    with _connected(url) as connection:
        applied = _read_applied(connection)
    _refuse(_problems(known, applied))
    pending = _pending(known, applied, None)
    if pending:
        raise StartupError(
            f"{len(pending)} migrations are pending, from {pending[0]} to {pending[-1]}, and KEEPSTEP_MIGRATE_AT_START "
            "is false: run `keepstep migrate up` first"
        )


def _pending(known: Sequence[Migration], applied: Sequence[Applied], to: int | None) -> list[Migration]:
    """Ascending."""
    return [migration for migration in known[len(applied) :] if to is None or migration.version <= to]


def _undone(
    known: Sequence[Migration], applied: Sequence[Applied], progress: Progress | None, to: int
) -> list[Migration]:
    """Descending; first what is applied in part."""
    last = len(applied) if progress is None else progress.version
    return [migration for migration in reversed(known[:last]) if migration.version > to]


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


def _edited_down(known: Sequence[Migration], applied: Sequence[Applied]) -> dict[int, str]:
    """Which down files are not those that were there when their version was applied, by version."""
    problem = "its down file changed after it was applied: restore the file as it was released before undoing it"
    by_version = {migration.version: migration for migration in known}
    return {
        row.version: problem
        for row in applied
        if row.down_checksum is not None
        and row.version in by_version
        and row.down_checksum != by_version[row.version].down_checksum
    }


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


def _make_tables(connection: psycopg.Connection) -> None:
    """The table of versions, also where an earlier keepstep made it."""
    connection.execute(_CREATE_TABLE)
    if connection.execute(_HAS_DOWN_CHECKSUM).fetchone() is None:
        connection.execute(_ADD_DOWN_CHECKSUM)


def _is_there(connection: psycopg.Connection, table: str) -> bool:
    return connection.execute(_IS_THERE, [table]).fetchone() == (True,)


def _read_applied(connection: psycopg.Connection) -> list[Applied]:
    if not _is_there(connection, "schema_version"):
        return []
    with connection.cursor(row_factory=class_row(Applied)) as cursor:
        return cursor.execute(_READ).fetchall()


def _read_progress(connection: psycopg.Connection) -> Progress | None:
    if not _is_there(connection, "schema_progress"):
        return None
    with connection.cursor(row_factory=class_row(Progress)) as cursor:
        return cursor.execute(_READ_PROGRESS).fetchone()


def _run(connection: psycopg.Connection, migration: Migration, direction: Direction) -> None:
    """Run one direction of a migration and record it. Raises StartupError."""
    if not migration.in_transaction:
        _run_apart(connection, migration, direction)
        return
    blocked: psycopg.errors.LockNotAvailable | None = None
    for _attempt in range(LOCK_ATTEMPTS_MAX):
        if blocked is not None:
            time.sleep(LOCK_PAUSE_S)
        try:
            with connection.transaction():
                _execute(connection, migration, direction)
                _record(connection, migration, direction)
            return
        except psycopg.errors.LockNotAvailable as error:
            blocked = error
        except psycopg.Error as error:
            raise StartupError(f"migration {migration} failed and changed nothing: {_first_line(error)}") from error
    raise StartupError(
        f"migration {migration} changed nothing: in {LOCK_ATTEMPTS_MAX} attempts of {LOCK_TIMEOUT_MS} ms it did not "
        "get its locks, for other transactions hold them; try again, or stop what holds them"
    ) from blocked


def _execute(connection: psycopg.Connection, migration: Migration, direction: Direction) -> None:
    """All statements of a direction, in the transaction that is open, with its bounds."""
    connection.execute("SELECT set_config('lock_timeout', %s, true)", [str(LOCK_TIMEOUT_MS)])
    connection.execute("SELECT set_config('statement_timeout', %s, true)", [str(STATEMENT_TIMEOUT_MS)])
    connection.execute(_sql(migration, direction))


def _record(connection: psycopg.Connection, migration: Migration, direction: Direction) -> None:
    """That the direction is done."""
    if direction == "down":
        connection.execute(_DELETE, [migration.version])
        return
    values = (
        migration.version,
        migration.name,
        migration.checksum,
        migration.compatible_with,
        migration.down_checksum,
    )
    connection.execute(_INSERT, values)


def _sql(migration: Migration, direction: Direction) -> str:
    return migration.up_sql if direction == "up" else migration.down_sql


def _try(connection: psycopg.Connection, migrations: Sequence[Migration], direction: Direction) -> list[Planned]:
    """Run those that come before the first without a transaction, and roll them back. Raises StartupError."""
    planned: list[Planned] = []
    with connection.transaction(force_rollback=True):
        for migration in migrations:
            tried = migration.in_transaction and all(one.tried for one in planned)
            if tried:
                try:
                    _execute(connection, migration, direction)
                except psycopg.Error as error:
                    raise StartupError(
                        f"migration {migration} would fail; nothing was changed: {_first_line(error)}"
                    ) from error
            planned.append(Planned(migration, tried))
    return planned


def _run_apart(connection: psycopg.Connection, migration: Migration, direction: Direction) -> None:
    """Run a direction statement by statement, going on where an earlier run of the same file ended.

    While it is under way its version counts as not applied. Raises StartupError.
    """
    sql = _sql(migration, direction)
    checksum = hashlib.sha256(sql.encode()).hexdigest()
    before = _read_progress(connection)
    same = before is not None and (before.direction, before.checksum) == (direction, checksum)
    done = before.statements_done if before is not None and same else 0
    with connection.transaction():
        connection.execute(_CREATE_PROGRESS)
        connection.execute(_SET_PROGRESS, [migration.version, direction, checksum, done])
        connection.execute(_DELETE, [migration.version])
    for number, statement in enumerate(statements(sql), 1):
        if number <= done:
            continue
        try:
            connection.execute("SELECT set_config('statement_timeout', %s, false)", [str(STATEMENT_APART_TIMEOUT_MS)])
            _drop_unfinished_index(connection, statement)
            connection.execute(statement)
        except psycopg.Error as error:
            raise StartupError(
                f"migration {migration} failed at its statement {number}; those before it stay, and the next run goes "
                f"on there: {_first_line(error)}"
            ) from error
        connection.execute(_SET_PROGRESS, [migration.version, direction, checksum, number])
    with connection.transaction():
        if direction == "up":
            _record(connection, migration, direction)
        connection.execute(_DROP_PROGRESS)
    connection.execute("RESET statement_timeout")


def _drop_unfinished_index(connection: psycopg.Connection, statement: str) -> None:
    """Drop what a build that was interrupted left: IF NOT EXISTS would take the invalid index for the one it builds."""
    built = _INDEX_BUILT.search(statement)
    if built is not None and connection.execute(_IS_INVALID, [built["name"]]).fetchone() == (True,):
        connection.execute(f"DROP INDEX CONCURRENTLY {built['name']}")


def _first_line(error: psycopg.Error) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
