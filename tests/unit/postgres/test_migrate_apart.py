"""Migrations that cannot run in a transaction: statement by statement, interrupted, resumed, undone in part."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from keepstep.errors import StartupError
from keepstep.postgres import migrate
from keepstep.postgres.migrate import Status, down, status, up
from keepstep.postgres.migrationfiles import Migration, statements
from tests.unit.postgres.test_migrate import execute, read

HEADER = "-- no-transaction\n"
FILES = {
    "0001_notes.up.sql": "CREATE TABLE notes (text text NOT NULL);",
    "0001_notes.down.sql": "DROP TABLE notes;",
    "0002_indexes.up.sql": (
        "-- Looked up by text; one statement; \n-- no-transaction\n-- compatible-with: 1\n"
        "ALTER TABLE notes ADD COLUMN IF NOT EXISTS author text;\n"
        "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS notes_text\n    ON notes (text); \n"
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS notes_author ON notes (author);\n"
    ),
    "0002_indexes.down.sql": (
        "-- no-transaction\nDROP INDEX CONCURRENTLY IF EXISTS notes_author;\n"
        "DROP INDEX CONCURRENTLY IF EXISTS notes_text;\nALTER TABLE notes DROP COLUMN IF EXISTS author;\n"
    ),
}


@pytest.fixture
def migrations(tmp_path: Path) -> tuple[Migration, ...]:
    """A table, and what is added to it without a transaction."""
    return read(tmp_path / "migrations", FILES)


@pytest.fixture
def interrupted(empty_database_url: str, migrations: tuple[Migration, ...]) -> str:
    """A database in which the unique index could not be built: it is there, and invalid."""
    up(empty_database_url, to=1, migrations=migrations)
    execute(empty_database_url, "INSERT INTO notes VALUES ('twice'), ('twice')")
    with pytest.raises(StartupError, match="0002_indexes failed at its statement 2; those before it stay"):
        up(empty_database_url, migrations=migrations)
    return empty_database_url


def indexes(url: str) -> dict[str, bool]:
    """The indexes of the table, and whether each is valid."""
    statement = (
        "SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indrelid = 'notes'::regclass ORDER BY 1"
    )
    return dict(execute(url, statement))


def test_statements_are_told_apart_by_a_semicolon_at_the_end_of_a_line(migrations: tuple[Migration, ...]) -> None:
    """Comments are none."""
    assert [statement.split()[0] for statement in statements(migrations[1].up_sql)] == ["ALTER", "CREATE", "CREATE"]


def test_it_goes_up_and_down_and_leaves_no_trace_of_the_way(
    empty_database_url: str, migrations: tuple[Migration, ...]
) -> None:
    """As any other."""
    url = empty_database_url
    for _time in range(2):
        assert [str(one) for one in up(url, migrations=migrations)] == ["0001_notes", "0002_indexes"]
        assert indexes(url) == {"notes_author": True, "notes_text": True}
        assert [row.problem for row in status(url, migrations=migrations)] == ["", ""]
        assert execute(url, "SELECT to_regclass('schema_progress')") == [(None,)]
        assert len(down(url, to=0, migrations=migrations)) == 2


def test_an_interrupted_one_goes_on_where_it_ended(interrupted: str, migrations: tuple[Migration, ...]) -> None:
    """The invalid index, which IF NOT EXISTS would take for the one to be built, is dropped first."""
    assert indexes(interrupted) == {"notes_text": False}
    row = status(interrupted, migrations=migrations)[1]
    assert row == Status(2, "indexes", None, "up was run in part, 1 statements of it: run it again")
    execute(interrupted, "DELETE FROM notes")
    # Were the first statement run again, it would add the column once more.
    execute(interrupted, "ALTER TABLE notes RENAME author TO writer")
    with pytest.raises(StartupError, match=r'failed at its statement 3; .* column "author" does not exist'):
        up(interrupted, migrations=migrations)
    execute(interrupted, "ALTER TABLE notes RENAME writer TO author")
    assert [one.version for one in up(interrupted, migrations=migrations)] == [2]
    assert indexes(interrupted) == {"notes_author": True, "notes_text": True}


def test_a_mended_file_begins_anew(interrupted: str, migrations: tuple[Migration, ...], tmp_path: Path) -> None:
    """A newer keepstep brings it; every statement can be repeated."""
    mended = FILES | {"0002_indexes.up.sql": FILES["0002_indexes.up.sql"].replace("CREATE UNIQUE", "CREATE")}
    assert len(up(interrupted, migrations=read(tmp_path / "migrations", mended))) == 1
    assert indexes(interrupted) == {"notes_author": True, "notes_text": True}


def test_what_is_applied_in_part_can_be_undone(interrupted: str, migrations: tuple[Migration, ...]) -> None:
    """Also what is undone in part can be applied again."""
    assert [one.version for one in down(interrupted, to=1, migrations=migrations)] == [2]
    assert indexes(interrupted) == {}
    assert [row.problem for row in status(interrupted, migrations=migrations)] == ["", ""]


def test_what_is_undone_in_part_counts_as_not_applied(
    empty_database_url: str, migrations: tuple[Migration, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the next start makes it whole."""
    url = empty_database_url
    up(url, migrations=migrations)
    monkeypatch.setattr(migrate, "STATEMENT_APART_TIMEOUT_MS", 50)
    with psycopg.connect(url) as reader:
        reader.execute("SELECT * FROM notes")
        with pytest.raises(StartupError, match="0002_indexes failed at its statement 1"):
            down(url, to=0, migrations=migrations)
    assert [row.applied_at is not None for row in status(url, migrations=migrations)] == [True, False]
    monkeypatch.undo()
    assert [one.version for one in up(url, migrations=migrations)] == [2]
    assert indexes(url) == {"notes_author": True, "notes_text": True}


@pytest.mark.parametrize(
    ("statement", "fragment"),
    [
        ("CREATE INDEX CONCURRENTLY notes_text ON notes (text);", "CREATE INDEX needs"),
        ("CREATE UNIQUE INDEX IF NOT EXISTS notes_text ON notes (text);", "CREATE UNIQUE INDEX needs"),
        ("DROP INDEX notes_text;", "DROP INDEX needs"),
        ("CREATE TABLE others ();", "CREATE TABLE needs"),
        ("DROP TABLE others;", "DROP TABLE needs"),
        ("ALTER TABLE notes ADD COLUMN author text;", "ADD COLUMN needs"),
        ("ALTER TABLE notes DROP COLUMN author;", "DROP COLUMN needs"),
        ("ALTER TYPE colour ADD VALUE 'red';", "ADD VALUE needs"),
        ("DO $body$ BEGIN NULL; END $body$;", "cannot have a body"),
    ],
)
def test_what_cannot_be_repeated_is_refused(statement: str, fragment: str, tmp_path: Path) -> None:
    """An interrupted migration is run again; the check is on the files."""
    files = FILES | {"0002_indexes.up.sql": f"{HEADER}{statement}\n"}
    with pytest.raises(StartupError, match=f"migration 0002_indexes: .*{fragment}"):
        read(tmp_path / "migrations", files)


def test_both_files_of_a_pair_say_so(tmp_path: Path) -> None:
    """What can be applied in part must be possible to undo in part."""
    files = FILES | {"0002_indexes.down.sql": "SELECT 1;"}
    with pytest.raises(StartupError, match="0002_indexes: both of its files say -- no-transaction, or neither"):
        read(tmp_path / "migrations", files)
