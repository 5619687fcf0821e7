"""What ``keepstep check-config`` learns from a real PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio

from keepstep import config_check
from keepstep.archive.store import ArchiveStore
from keepstep.config import Settings
from keepstep.postgres import embedded, migrate, migrationfiles


def found(url: str, data_dir: Path, **values: object) -> dict[str, tuple[bool, str]]:
    """What is said of database and schema: whether it is a problem, and the words."""
    settings = Settings.model_validate({"database_url": url, "data_dir": data_dir, **values})
    return {one.name: (one.is_problem, one.text) for one in config_check.check(settings) if one.name != "server key"}


def test_a_database_that_can_be_used_is_described(database_url: str, tmp_path: Path) -> None:
    """Its version, its promise, and its schema's version."""
    told = found(database_url, tmp_path, unsafe=True)
    known = len(migrationfiles.read_migrations())
    assert told["schema"] == (False, f"version {known}, nothing pending")
    is_problem, text = told["database"]
    assert not is_problem
    assert text.startswith("PostgreSQL ")
    assert text.endswith("synchronous standbys: none")


async def test_an_embedded_database_that_runs_is_asked(data_dir: Path) -> None:
    """Beside the server that it belongs to, which holds the lock of the data directory."""
    settings = Settings(data_dir=data_dir)
    async with embedded.running(settings):
        _, database, slow_queries, schema = await trio.to_thread.run_sync(config_check.check, settings)
    assert not database.is_problem
    assert "keeps what it acknowledged" in database.text
    assert slow_queries.text == "logged from 1000 ms on, with plans from 1000 ms on"
    assert "pending: the start applies them" in schema.text


def test_a_database_that_may_lose_events_is_a_problem_unless_asked_for(database_url: str, tmp_path: Path) -> None:
    """As at the start."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER ROLE CURRENT_USER SET synchronous_commit = off")
        try:
            is_problem, text = found(database_url, tmp_path)["database"]
            allowed = found(database_url, tmp_path, unsafe=True)["database"]
        finally:
            connection.execute("ALTER ROLE CURRENT_USER RESET synchronous_commit")
    assert (is_problem, "may lose what it acknowledged" in text) == (True, True)
    assert (allowed[0], "may lose what it acknowledged: " in allowed[1]) == (False, True)


def test_what_is_pending_is_a_problem_only_where_the_start_does_not_apply_it(
    empty_database_url: str, tmp_path: Path
) -> None:
    """Nothing is applied by asking."""
    known = len(migrationfiles.read_migrations())
    pending = f"version 0 of {known}, {known} pending: "
    assert found(empty_database_url, tmp_path, unsafe=True)["schema"] == (False, f"{pending}the start applies them")
    told = found(empty_database_url, tmp_path, unsafe=True, migrate_at_start=False)
    assert told["schema"] == (True, f"{pending}run `keepstep migrate up`")
    assert all(row.applied_at is None for row in migrate.status(empty_database_url))


@pytest.mark.parametrize(
    ("compatible_with", "is_problem", "words"),
    [(1, False, "newer than this keepstep and compatible with it"), (900, True, "older than the database")],
)
def test_a_newer_schema_is_a_problem_unless_it_says_it_is_compatible(
    database_url: str, tmp_path: Path, compatible_with: int, is_problem: bool, words: str
) -> None:
    """As during a rolling upgrade."""
    with psycopg.connect(database_url) as connection:
        version = len(migrationfiles.read_migrations()) + 1
        connection.execute(
            "INSERT INTO schema_version (version, name, checksum, compatible_with) VALUES (%s, 'next', '', %s)",
            [version, min(compatible_with, version)],
        )
    schema = found(database_url, tmp_path, unsafe=True)["schema"]
    assert (schema[0], words in schema[1]) == (is_problem, True)


def test_an_archive_that_can_be_used_is_said_so_and_left_as_it_was(database_url: str, tmp_path: Path) -> None:
    """An object is written, read, listed and removed again."""
    archive = tmp_path / "archive"
    told = found(database_url, tmp_path, unsafe=True, archive_url=str(archive))
    assert told["archive"] == (False, f"{archive} can be written, read and listed")
    assert [path for path in archive.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        ({"archive_url": "{here}/a file/archive"}, "Not a directory"),
        (
            {
                "archive_url": "s3://nobody/here",
                "archive_s3_endpoint": "http://127.0.0.1:9",
                "archive_s3_access_key_id": "tester",
                "archive_s3_secret_access_key": "secret",
                "archive_timeout_s": 1,
            },
            "the archive does not answer",
        ),
    ],
)
def test_an_archive_that_cannot_be_used_is_a_problem(
    database_url: str, tmp_path: Path, archive: dict[str, Any], words: str
) -> None:
    """A file where a directory should be, a store that nobody answers for."""
    (tmp_path / "a file").touch()
    values = archive | {"archive_url": archive["archive_url"].format(here=tmp_path)}
    is_problem, text = found(database_url, tmp_path, unsafe=True, **values)["archive"]
    assert is_problem
    assert words in text


def test_an_archive_that_gives_back_something_else_is_a_problem(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored there would be lost."""

    async def forget(*_: object) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"something else"

    monkeypatch.setattr(ArchiveStore, "get", forget)
    is_problem, text = found(database_url, tmp_path, unsafe=True, archive_url=str(tmp_path / "archive"))["archive"]
    assert (is_problem, text.endswith("does not give back what was stored in it")) == (True, True)
