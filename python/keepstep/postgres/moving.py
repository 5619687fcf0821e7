"""Moving the whole log from one PostgreSQL to another: copied as SQL in one transaction, compared, then verified.

pg_dump and psql of the embedded server read and write every PostgreSQL from 15 on. Nobody may use the database
meanwhile. Nothing changes in the log, so devices notice nothing: keys, epoch and heads are the same.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from keepstep.errors import StartupError
from keepstep.postgres import guardian
from keepstep.postgres.backups import credentials
from keepstep.postgres.cluster import tail
from keepstep.postgres.isolation import READER_ROLE

if TYPE_CHECKING:
    from psycopg import Connection

CONNECT_TIMEOUT_S: Final = 10
FINISH_TIMEOUT_S: Final = 3_600.0
"""Seconds for psql to build the last index and commit once it was given everything."""
OTHERS_GONE_S: Final = 3.0
"""How long a server that was stopped just now may take to be gone from its database, seconds."""
_LOOK_S: Final = 0.1
LINE_BYTES_MAX: Final = 1 << 26
"""A longer line is passed on in pieces."""
_OF_ONE_VERSION: Final = re.compile(
    rb"SET transaction_timeout = 0;\n|ALTER TABLE ONLY \S+ ALTER COLUMN \S+ SET \(pg_attver=\d+\);\n"
)
"""What pg_dump says since PostgreSQL 17, and what it finds in catalogues of 15.20: neither is known everywhere."""
_ROWS_BEGIN: Final = re.compile(rb"COPY .* FROM stdin;\n")
_ROWS_END: Final = b"\\.\n"
_TABLES: Final = """
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1
"""
_OTHERS: Final = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


def move(source_url: str, target_url: str, *, programs: Path, private: Path) -> dict[str, int]:
    """Copy everything; all of it is there afterwards, or nothing. Blocks for as long as that takes.

    Args:
        source_url: which nobody uses; as a superuser or the owner of the tables.
        target_url: an empty database, as the role that is to own the tables.
        programs: where pg_dump and psql are.
        private: a directory of ours alone, for passwords.

    Returns:
        Rows of each table, which were counted on both sides.

    Raises:
        StartupError: it cannot be done; the message says why. The target is empty still.
    """
    with _reported("the database to move", source_url) as connection:
        give_up_s = time.monotonic() + OTHERS_GONE_S
        while connection.execute(_OTHERS).fetchone() != (0,):
            if time.monotonic() >= give_up_s:
                raise StartupError("somebody is connected to the database that is to be moved: stop every server first")
            time.sleep(_LOOK_S)
    with _reported("the new database", target_url) as connection:
        tables = [str(row[0]) for row in connection.execute(_TABLES)]
        if tables:
            raise StartupError(f"the new database is not empty: it has {', '.join(tables[:5])}")
        _ensure_reader(connection)
    with credentials(source_url, private) as source, credentials(target_url, private) as target:
        _copy(source, target, programs)
    before, after = _count(source_url), _count(target_url)
    if before != after:
        differing = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        raise StartupError(f"the new database does not have what the old one has in {', '.join(differing)}")
    return after


def _copy(source: str, target: str, programs: Path) -> None:
    """pg_dump into psql. Raises StartupError."""
    dump = [str(programs / "pg_dump"), "-d", source, "--no-owner", "--no-tablespaces", "--no-password"]
    load = [str(programs / "psql"), "-d", target, "-X", "-q", "--no-password", "--single-transaction"]
    load += ["-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-f", "-"]
    with (
        tempfile.TemporaryFile() as dump_said,
        tempfile.TemporaryFile() as load_said,
        _running(dump, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=dump_said) as dumping,
        _running(load, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=load_said) as loading,
    ):
        assert dumping.stdout is not None
        assert loading.stdin is not None
        try:
            _pass_on(dumping.stdout, loading.stdin)
        except BrokenPipeError:
            dumping.terminate()
        failed = dumping.wait(FINISH_TIMEOUT_S) != 0
        if failed:
            loading.kill()  # or it would commit the half of it
        try:
            loading.stdin.close()
        except BrokenPipeError:
            failed = True
        if loading.wait(FINISH_TIMEOUT_S) != 0 or failed:
            said = tail(load_said) or tail(dump_said)
            raise StartupError(f"the database cannot be copied: {said.splitlines()[0] if said else 'pg_dump failed'}")


def _pass_on(stream: IO[bytes], sink: IO[bytes]) -> None:
    """Everything but what some versions of PostgreSQL do not know; rows as they are. Raises BrokenPipeError."""
    begins_line, is_row = True, False
    while line := stream.readline(LINE_BYTES_MAX):
        if is_row:
            is_row = not (begins_line and line == _ROWS_END)
        elif begins_line:
            is_row = _ROWS_BEGIN.fullmatch(line) is not None
        if is_row or not (begins_line and _OF_ONE_VERSION.fullmatch(line)):
            sink.write(line)
        begins_line = line.endswith(b"\n")
    sink.flush()


@contextmanager
def _running(command: list[str], *, stdin: int, stdout: int, stderr: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(  # noqa: S603  # PostgreSQL's own program
        command, cwd="/", env=guardian.ENVIRONMENT, stdin=stdin, stdout=stdout, stderr=stderr
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue


def _ensure_reader(connection: Connection) -> None:
    """The role that reads is there, and the server's role may become it. Raises StartupError, psycopg.Error."""
    reader = sql.Identifier(READER_ROLE)
    try:
        if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [READER_ROLE]).rowcount:
            connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(reader))
            connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(reader))
        connection.execute("SELECT set_config('role', %s, false), set_config('role', 'none', false)", [READER_ROLE])
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidParameterValue) as error:
        raise StartupError(
            f"the new database lacks the role {READER_ROLE}: as a superuser run CREATE ROLE {READER_ROLE} NOLOGIN "
            f"(where it is not there) and GRANT {READER_ROLE} TO the server's role"
        ) from error


def _count(url: str) -> dict[str, int]:
    """Rows of each table. Raises StartupError."""
    with _reported("the database", url) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        counts = {}
        for (name,) in connection.execute(_TABLES).fetchall():
            row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(name))).fetchone()
            assert row is not None
            counts[name] = int(row[0])
        return counts


@contextmanager
def _reported(what: str, url: str) -> Iterator[Connection]:
    """A connection in autocommit. Raises StartupError where it fails."""
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
            yield connection
    except psycopg.Error as error:
        reason = error.diag.message_primary or str(error).partition("\n")[0] or type(error).__name__
        raise StartupError(f"{what} cannot be used: {reason}") from error
