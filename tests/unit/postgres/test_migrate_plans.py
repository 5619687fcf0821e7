"""Dry runs of migrations, and the files of a new one."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from keepstep.errors import StartupError
from keepstep.postgres import migrate, migrationfiles
from keepstep.postgres.migrate import down, plan_down, plan_up, status, up
from keepstep.postgres.migrationfiles import new, read_migrations
from tests.unit.postgres.test_migrate import FILES, execute, read

APART = {
    "0002_looked_up.up.sql": "-- no-transaction\nCREATE INDEX CONCURRENTLY IF NOT EXISTS notes_text ON notes (text);\n",
    "0002_looked_up.down.sql": "-- no-transaction\nDROP INDEX CONCURRENTLY IF EXISTS notes_text;\n",
}
FIRST = {name: text for name, text in FILES.items() if name.startswith("0001")}
LATER = {
    name.replace("0003", "0004").replace("0002", "0003"): text for name, text in FILES.items() if "0001" not in name
}


# -- trying


def test_a_dry_run_tries_everything_and_changes_nothing(empty_database_url: str, tmp_path: Path) -> None:
    """Each migration is run on what those before it made, and all is rolled back."""
    migrations = read(tmp_path / "migrations", FILES)
    planned = plan_up(empty_database_url, migrations=migrations)
    assert [(str(one.migration), one.tried) for one in planned] == [
        ("0001_notes", True),
        ("0002_authors", True),
        ("0003_length", True),
    ]
    assert execute(empty_database_url, "SELECT to_regclass('notes'), to_regclass('schema_version')") == [(None, None)]
    up(empty_database_url, migrations=migrations)
    assert plan_up(empty_database_url, migrations=migrations) == []
    assert [one.migration.version for one in plan_down(empty_database_url, to=1, migrations=migrations)] == [3, 2]
    assert all(row.applied_at for row in status(empty_database_url, migrations=migrations))


def test_our_own_schema_can_be_tried_both_ways(empty_database_url: str) -> None:
    """None of our migrations hides from a dry run."""
    ours = read_migrations()
    assert [one.tried for one in plan_up(empty_database_url)] == [True] * len(ours)
    up(empty_database_url)
    assert [one.tried for one in plan_down(empty_database_url, to=0)] == [True] * len(ours)


def test_a_dry_run_says_what_would_fail(empty_database_url: str, tmp_path: Path) -> None:
    """With data that the files' author did not think of."""
    migrations = read(tmp_path / "migrations", FILES)
    up(empty_database_url, to=2, migrations=migrations)
    execute(empty_database_url, "INSERT INTO notes VALUES ('longer than ten', 'me')")
    with pytest.raises(StartupError, match="migration 0003_length would fail; nothing was changed: check constraint"):
        plan_up(empty_database_url, migrations=migrations)


def test_a_dry_run_waits_for_locks_no_longer_than_a_run(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody else would wait behind it."""
    migrations = read(tmp_path / "migrations", FILES)
    up(empty_database_url, to=1, migrations=migrations)
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT_MS", 10)
    with psycopg.connect(empty_database_url) as reader:
        reader.execute("SELECT * FROM notes")
        with pytest.raises(StartupError, match="0002_authors would fail; nothing was changed: canceling statement"):
            plan_up(empty_database_url, migrations=migrations)


def test_what_runs_outside_of_transactions_is_named_and_not_tried(empty_database_url: str, tmp_path: Path) -> None:
    """Nor is what comes after it, which may need it."""
    migrations = read(tmp_path / "migrations", FIRST | APART | LATER)
    assert [one.tried for one in plan_up(empty_database_url, migrations=migrations)] == [True, False, False, False]
    up(empty_database_url, migrations=migrations)
    assert [one.tried for one in plan_down(empty_database_url, to=0, migrations=migrations)] == [
        True,
        True,
        False,
        False,
    ]
    assert [one.version for one in down(empty_database_url, to=0, migrations=migrations)] == [4, 3, 2, 1]


# -- a new one


def test_a_new_migration_has_the_next_number_and_a_header(tmp_path: Path, empty_database_url: str) -> None:
    """Its files are ready to be written to, and do nothing as they are."""
    first = new("notes", tmp_path)
    assert [file.name for file in first] == ["0001_notes.up.sql", "0001_notes.down.sql"]
    second = new("authors", tmp_path)
    assert [file.name for file in second] == ["0002_authors.up.sql", "0002_authors.down.sql"]
    assert "-- compatible-with: 1\n" in second[0].read_text()
    migrations = read_migrations(tmp_path)
    assert [migration.compatible_with for migration in migrations] == [1, 1]
    up(empty_database_url, migrations=migrations)
    assert [one.version for one in down(empty_database_url, to=0, migrations=migrations)] == [2, 1]


@pytest.mark.parametrize("name", ["", "Notes", "two words", "../notes", "x" * 61])
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    """Before a file is written."""
    with pytest.raises(StartupError, match="is no name for a migration"):
        new(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_new_migration_goes_to_this_keepsteps_own_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where those are files."""
    monkeypatch.setattr(migrationfiles, "files", lambda _package: tmp_path)
    (tmp_path / "migrations").mkdir()
    assert new("notes")[0] == tmp_path / "migrations" / "0001_notes.up.sql"


def test_migrations_in_an_archive_take_no_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package may be imported from a zip file."""

    class Archive:
        def __truediv__(self, _name: str) -> Archive:
            return self

    monkeypatch.setattr(migrationfiles, "files", lambda _package: Archive())
    with pytest.raises(StartupError, match="inside an archive: name a folder"):
        new("notes")
