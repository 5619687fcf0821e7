"""The migration runner, on a real database: forwards, backwards, two at once, and everything it refuses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from keepstep.errors import StartupError
from keepstep.postgres import migrate, migrationfiles
from keepstep.postgres.migrate import Status, check, down, status, up
from keepstep.postgres.migrationfiles import Migration, read_migrations

WAIT_S = 60
"""Bound on every wait here; they take milliseconds."""

FILES = {
    "0001_notes.up.sql": "CREATE TABLE notes (text text NOT NULL);",
    "0001_notes.down.sql": "DROP TABLE notes;",
    "0002_authors.up.sql": (
        "-- compatible-with: 1\nALTER TABLE notes ADD author text;\nUPDATE notes SET author = 'unknown';\n"
    ),
    "0002_authors.down.sql": "ALTER TABLE notes DROP author;",
    "0003_length.up.sql": "ALTER TABLE notes ADD CONSTRAINT short CHECK (length(text) < 10);",
    "0003_length.down.sql": "ALTER TABLE notes DROP CONSTRAINT short;",
}


def read(folder: Path, files: dict[str, str]) -> tuple[Migration, ...]:
    """The migrations of files that are written for it."""
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    for name, text in files.items():
        (folder / name).write_text(text)
    return read_migrations(folder)


@pytest.fixture
def migrations(tmp_path: Path) -> tuple[Migration, ...]:
    """Three migrations; the second is compatible with a keepstep that knows the first only."""
    return read(tmp_path / "migrations", FILES)


def execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Run one statement; its rows where it has any."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def versions(rows: list[Migration]) -> list[int]:
    """Their numbers."""
    return [row.version for row in rows]


# -- the files


def test_our_own_migrations_are_in_order() -> None:
    """Numbered from 1, in pairs, named, and they begin or end no transaction."""
    ours = read_migrations()
    assert [migration.version for migration in ours] == list(range(1, len(ours) + 1))
    assert str(ours[0]) == "0001_log"


def test_files_become_migrations(migrations: tuple[Migration, ...]) -> None:
    """Number, name and compatibility come from the up file."""
    assert [(row.version, row.name, row.compatible_with) for row in migrations] == [
        (1, "notes", 1),
        (2, "authors", 1),
        (3, "length", 3),
    ]


def test_the_checksums_are_of_the_files(migrations: tuple[Migration, ...]) -> None:
    """SHA-256, as sha256sum prints it, of each of the two."""
    assert migrations[0].checksum == "2a6033ad1bae1e7aa7c27ac7a327a1950f01074da10d563fe2849e650b3a2386"
    assert migrations[0].down_checksum == "328fd0a5aea43e632fb0430ef84d4c03f5bfa2177de6e381c842479cc2e1982a"


def test_other_files_do_not_matter(tmp_path: Path) -> None:
    """A package marker, an editor's copy."""
    assert len(read(tmp_path / "migrations", FILES | {"__init__.py": "", "0001_notes.up.sql~": ""})) == 3


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"4_short.up.sql": "SELECT 1;"}, "4_short.up.sql: its name must be NNNN_name"),
        ({"0004-dash.up.sql": "SELECT 1;"}, "its name must be NNNN_name"),
        ({"0004_sideways.sql": "SELECT 1;"}, "its name must be NNNN_name"),
        ({"0005_gap.up.sql": "SELECT 1;", "0005_gap.down.sql": "SELECT 1;"}, r"without a gap, and are \[1, 2, 3, 5\]"),
        (
            {"0000_zero.up.sql": "SELECT 1;", "0000_zero.down.sql": "SELECT 1;"},
            r"without a gap, and are \[0, 1, 2, 3\]",
        ),
        ({"0003_other.up.sql": "SELECT 1;"}, "0003_other.up.sql: there is another one with this number"),
        ({"0004_alone.up.sql": "SELECT 1;"}, "migration 0004: it needs an .up.sql and a .down.sql"),
        ({"0004_alone.down.sql": "SELECT 1;"}, "migration 0004: it needs an .up.sql and a .down.sql"),
        ({"0004_a.up.sql": "SELECT 1;", "0004_b.down.sql": "SELECT 1;"}, "of the same name"),
        ({"0001_notes.down.sql": " \n"}, "0001_notes.down.sql: it is empty"),
        ({"0001_notes.up.sql": "SELECT 1;\n  commit ;"}, "must not begin or end transactions"),
        ({"0001_notes.up.sql": "BEGIN;\nSELECT 1;"}, "must not begin or end transactions"),
        ({"0001_notes.up.sql": "START TRANSACTION;"}, "must not begin or end transactions"),
        ({"0001_notes.up.sql": "-- compatible-with: 2\nSELECT 1;"}, "compatible-with must be from 1 to 1"),
        ({"0001_notes.up.sql": "-- compatible-with: 0\nSELECT 1;"}, "compatible-with must be from 1 to 1"),
        ({"0001_notes.up.sql": "x" * (migrationfiles.FILE_BYTES_MAX + 1)}, "it has 1048577 bytes"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_refused(
    changes: dict[str, str], fragment: str, tmp_path: Path
) -> None:
    """Before any database is touched, naming the file."""
    with pytest.raises(StartupError, match=fragment):
        read(tmp_path / "migrations", FILES | changes)


def test_functions_in_a_migration_may_have_a_body(tmp_path: Path) -> None:
    """BEGIN and END of PL/pgSQL are no transaction."""
    body = "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$\nBEGIN\n  RETURN 1;\nEND;\n$$;"
    assert read(tmp_path / "migrations", {"0001_f.up.sql": body, "0001_f.down.sql": "DROP FUNCTION f();"})


# -- forwards and backwards


def test_our_own_schema_goes_up_down_and_up(empty_database_url: str) -> None:
    """Going down leaves nothing of it, so that going up again finds nothing in its way."""
    applied = up(empty_database_url)
    assert versions(applied) == [migration.version for migration in read_migrations()]
    assert versions(down(empty_database_url, to=0)) == versions(applied)[::-1]
    left = execute(
        empty_database_url,
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'S') "
        "UNION ALL SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typtype = 'd' "
        "UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    )
    assert left == [("schema_version",)]
    assert up(empty_database_url) == applied


def test_data_goes_up_down_and_up(empty_database_url: str, migrations: tuple[Migration, ...]) -> None:
    """What a migration does to the rows that are there is part of it."""
    url = empty_database_url
    assert versions(up(url, to=1, migrations=migrations)) == [1]
    execute(url, "INSERT INTO notes VALUES ('kept')")
    assert versions(up(url, migrations=migrations)) == [2, 3]
    assert execute(url, "SELECT * FROM notes") == [("kept", "unknown")]
    assert versions(down(url, to=1, migrations=migrations)) == [3, 2]
    assert execute(url, "SELECT * FROM notes") == [("kept",)]
    assert versions(up(url, migrations=migrations)) == [2, 3]
    assert execute(url, "SELECT * FROM notes") == [("kept", "unknown")]


def test_applying_again_changes_nothing(empty_database_url: str, migrations: tuple[Migration, ...]) -> None:
    """Every start of a server does it."""
    assert len(up(empty_database_url, migrations=migrations)) == 3
    assert up(empty_database_url, migrations=migrations) == []
    assert down(empty_database_url, to=3, migrations=migrations) == []


def test_status_tells_applied_from_pending(empty_database_url: str, migrations: tuple[Migration, ...]) -> None:
    """Before the first migration too, without making anything."""
    url = empty_database_url
    before = status(url, migrations=migrations)
    assert before == [Status(1, "notes", None, ""), Status(2, "authors", None, ""), Status(3, "length", None, "")]
    assert execute(url, "SELECT to_regclass('schema_version')") == [(None,)]
    up(url, to=1, migrations=migrations)
    first, *pending = status(url, migrations=migrations)
    assert (first.version, first.name, first.problem) == (1, "notes", "")
    assert first.applied_at is not None
    assert pending == before[1:]


def test_status_reads_our_own_migrations(database_url: str) -> None:
    """A migrated database has nothing pending."""
    assert all(row.applied_at and not row.problem for row in status(database_url))


def test_a_failed_migration_leaves_those_before_it_and_nothing_of_itself(
    empty_database_url: str, tmp_path: Path
) -> None:
    """Each has its own transaction; the message is PostgreSQL's first line."""
    broken = read(tmp_path / "migrations", FILES | {"0002_authors.up.sql": "CREATE TABLE half ();\nSELECT nonsense;\n"})
    with pytest.raises(StartupError, match=r'^migration 0002_authors failed and changed nothing: column "nonsense"'):
        up(empty_database_url, migrations=broken)
    assert [row.applied_at is not None for row in status(empty_database_url, migrations=broken)] == [True, False, False]
    assert execute(empty_database_url, "SELECT to_regclass('half')") == [(None,)]


def test_two_runners_at_once_apply_each_migration_once(
    empty_database_url: str, migrations: tuple[Migration, ...]
) -> None:
    """Two servers start together on an empty database."""
    results: list[list[int]] = []
    barrier = threading.Barrier(2)

    def run() -> None:
        barrier.wait(WAIT_S)
        results.append(versions(up(empty_database_url, migrations=migrations)))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(results) == [[], [1, 2, 3]]


@pytest.fixture
def other_runner(empty_database_url: str) -> Iterator[psycopg.Connection]:
    """A connection that holds the runners' lock."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [migrate.RUNNER_LOCK])
        yield connection


def test_waiting_for_another_runner_is_bounded(
    empty_database_url: str, other_runner: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner that hangs does not hang all others."""
    monkeypatch.setattr(migrate, "RUNNER_WAIT_S", 0.02)
    monkeypatch.setattr(migrate, "RUNNER_POLL_S", 0.01)
    with pytest.raises(StartupError, match=r"another keepstep has been migrating this database for 0.02 s"):
        up(empty_database_url)


def test_a_waiting_runner_holds_no_snapshot(
    empty_database_url: str, other_runner: psycopg.Connection, migrations: tuple[Migration, ...]
) -> None:
    """CREATE INDEX CONCURRENTLY waits for every snapshot: with a blocked waiter it would never end."""
    waiting = threading.Thread(target=up, args=(empty_database_url,), kwargs={"migrations": migrations})
    waiting.start()
    other_runner.execute("CREATE TABLE busy (value integer)")
    other_runner.execute("CREATE INDEX CONCURRENTLY ON busy (value)")
    other_runner.execute("SELECT pg_advisory_unlock_all()")
    waiting.join(WAIT_S)
    assert not waiting.is_alive()
    assert all(row.applied_at for row in status(empty_database_url, migrations=migrations))


@pytest.fixture
def blocker(
    empty_database_url: str, migrations: tuple[Migration, ...], monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection]:
    """A transaction that reads the table which the second migration changes."""
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT_MS", 10)
    up(empty_database_url, to=1, migrations=migrations)
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("SELECT * FROM notes")
        yield connection


def test_a_migration_that_does_not_get_its_locks_tries_again(
    empty_database_url: str,
    migrations: tuple[Migration, ...],
    blocker: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In between it lets go, so that nobody waits behind it for long."""
    pauses: list[float] = []

    def finish_the_transaction(seconds: float) -> None:
        pauses.append(seconds)
        blocker.rollback()

    monkeypatch.setattr(time, "sleep", finish_the_transaction)
    assert versions(up(empty_database_url, migrations=migrations)) == [2, 3]
    assert set(pauses) == {migrate.LOCK_PAUSE_S}, "once, or more where the database itself held a lock meanwhile"


def test_a_migration_that_never_gets_its_locks_gives_up(
    empty_database_url: str,
    migrations: tuple[Migration, ...],
    blocker: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A start that cannot succeed says so, and has changed nothing."""
    monkeypatch.setattr(migrate, "LOCK_PAUSE_S", 0)
    with pytest.raises(StartupError, match=r"0002_authors changed nothing: in 10 attempts of 10 ms .* try again"):
        up(empty_database_url, migrations=migrations)
    assert not status(empty_database_url, migrations=migrations)[1].applied_at


def test_a_statement_of_a_migration_is_bounded(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread it runs in cannot be cancelled otherwise."""
    monkeypatch.setattr(migrate, "STATEMENT_TIMEOUT_MS", 20)
    slow = read(
        tmp_path / "migrations", {"0001_slow.up.sql": "SELECT pg_sleep(60);", "0001_slow.down.sql": "SELECT 1;"}
    )
    with pytest.raises(StartupError, match="0001_slow failed and changed nothing: canceling statement"):
        up(empty_database_url, migrations=slow)


# -- what is refused


@pytest.mark.parametrize(
    "action",
    [
        lambda url, migrations: up(url, migrations=migrations),
        lambda url, migrations: down(url, to=0, migrations=migrations),
    ],
    ids=["up", "down"],
)
class TestRefusal:
    """Both directions refuse a schema that is not what the files say, and change nothing."""

    def test_a_file_edited_after_it_was_applied_is_noticed(
        self, action: Callable[..., object], empty_database_url: str, migrations: tuple[Migration, ...], tmp_path: Path
    ) -> None:
        """Two databases of one version would differ."""
        up(empty_database_url, migrations=migrations)
        edited = read(tmp_path / "migrations", FILES | {"0001_notes.up.sql": "CREATE TABLE notes (text varchar);"})
        with pytest.raises(StartupError, match=r"nothing was changed\n  0001: changed after it was applied"):
            action(empty_database_url, edited)

    def test_another_migration_under_that_number_is_noticed(
        self, action: Callable[..., object], empty_database_url: str, migrations: tuple[Migration, ...], tmp_path: Path
    ) -> None:
        """Two branches each added one."""
        up(empty_database_url, migrations=migrations)
        other = {name.replace("0003_length", "0003_width"): text for name, text in FILES.items()}
        with pytest.raises(StartupError, match="0003: applied as 0003_length and now called 0003_width"):
            action(empty_database_url, read(tmp_path / "migrations", other))

    def test_a_missing_one_is_noticed(
        self, action: Callable[..., object], empty_database_url: str, migrations: tuple[Migration, ...]
    ) -> None:
        """A row of the version table was lost."""
        up(empty_database_url, migrations=migrations)
        execute(empty_database_url, "DELETE FROM schema_version WHERE version = 2")
        with pytest.raises(StartupError, match="0002: not applied although a later one is"):
            action(empty_database_url, migrations)
        assert [bool(row.problem) for row in status(empty_database_url, migrations=migrations)] == [False, True, False]

    def test_a_newer_schema_is_refused(
        self, action: Callable[..., object], empty_database_url: str, migrations: tuple[Migration, ...]
    ) -> None:
        """An older keepstep would write what the newer one's rules forbid."""
        up(empty_database_url, migrations=migrations)
        with pytest.raises(StartupError, match="0003: unknown to this keepstep, which is older than the database"):
            action(empty_database_url, migrations[:2])
        assert status(empty_database_url, migrations=migrations[:2])[2].problem


def test_a_newer_schema_that_is_compatible_is_left_as_it_is(
    empty_database_url: str, migrations: tuple[Migration, ...]
) -> None:
    """Servers are upgraded one after the other: the older ones may start again meanwhile."""
    up(empty_database_url, to=2, migrations=migrations)
    assert up(empty_database_url, migrations=migrations[:1]) == []
    assert [row.problem for row in status(empty_database_url, migrations=migrations[:1])] == ["", ""]


def test_a_down_file_edited_after_its_version_was_applied_is_not_run(
    empty_database_url: str, migrations: tuple[Migration, ...], tmp_path: Path
) -> None:
    """Going up and starting do not need it and go on; status shows it."""
    up(empty_database_url, to=2, migrations=migrations)
    edited = read(tmp_path / "migrations", FILES | {"0001_notes.down.sql": "SELECT 1;"})
    with pytest.raises(StartupError, match="nothing was changed\n  0001: its down file changed after it was applied"):
        down(empty_database_url, to=0, migrations=edited)
    assert [bool(row.problem) for row in status(empty_database_url, migrations=edited)] == [True, False, False]
    assert versions(up(empty_database_url, migrations=edited)) == [3]


def test_a_version_table_of_an_earlier_keepstep_is_taken_over(
    empty_database_url: str, migrations: tuple[Migration, ...], tmp_path: Path
) -> None:
    """It knew no checksums of down files: nothing is said about those of what it applied."""
    up(empty_database_url, to=1, migrations=migrations)
    execute(empty_database_url, "ALTER TABLE schema_version DROP down_checksum")
    assert [row.problem for row in status(empty_database_url, migrations=migrations)] == ["", "", ""]
    assert versions(up(empty_database_url, migrations=migrations)) == [2, 3]
    assert execute(empty_database_url, "SELECT version FROM schema_version WHERE down_checksum IS NULL") == [(1,)]
    edited = read(tmp_path / "migrations", FILES | {"0001_notes.down.sql": "DROP TABLE notes CASCADE;"})
    assert versions(down(empty_database_url, to=0, migrations=edited)) == [3, 2, 1]


def test_a_check_passes_where_nothing_is_pending(empty_database_url: str, migrations: tuple[Migration, ...]) -> None:
    """It changes nothing; a newer schema that is compatible is none of its business."""
    with pytest.raises(StartupError, match=r"3 migrations are pending, from 0001_notes to 0003_length, .* migrate up"):
        check(empty_database_url, migrations=migrations)
    assert execute(empty_database_url, "SELECT to_regclass('schema_version')") == [(None,)]
    up(empty_database_url, to=2, migrations=migrations)
    check(empty_database_url, migrations=migrations[:2])
    check(empty_database_url, migrations=migrations[:1])
    up(empty_database_url, migrations=migrations)
    with pytest.raises(StartupError, match="0003: unknown to this keepstep, which is older than the database"):
        check(empty_database_url, migrations=migrations[:2])


def test_a_newer_schema_is_never_taken_down(empty_database_url: str, migrations: tuple[Migration, ...]) -> None:
    """Only the files that made it can undo it."""
    up(empty_database_url, to=2, migrations=migrations)
    with pytest.raises(StartupError, match="0002: unknown to this keepstep"):
        down(empty_database_url, to=0, migrations=migrations[:1])


def test_a_database_that_cannot_be_reached_is_named_without_its_password(tmp_path: Path) -> None:
    """The log of a failed start may be shown to anyone."""
    with pytest.raises(StartupError) as caught:
        up(f"postgresql://user:hunter2@/somewhere?host={tmp_path}")
    assert str(caught.value).startswith(f"the PostgreSQL database somewhere at {tmp_path} cannot be used: ")
    assert "No such file" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_url_that_is_none_is_refused_without_showing_it() -> None:
    """It may hold a password all the same."""
    with pytest.raises(StartupError, match="DATABASE_URL must be postgresql://") as caught:
        status("postgresql://user:hunter2@[broken/")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_database_that_may_not_be_changed_is_told(empty_database_url: str) -> None:
    """In PostgreSQL's words, for it knows which right is missing."""
    read_only = make_conninfo(empty_database_url, options="-c default_transaction_read_only=on")
    with pytest.raises(StartupError, match="cannot be used: cannot execute CREATE TABLE in a read-only transaction"):
        up(read_only)
