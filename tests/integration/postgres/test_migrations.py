"""The schema over the years: the sum of its migrations, and both ways from every version with rows in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from pydantic import SecretStr

from keepstep.config import Settings
from keepstep.errors import StartupError
from keepstep.postgres import migrate
from keepstep.postgres.migrationfiles import Migration, read_migrations
from keepstep.postgres.opening import opened
from keepstep.postgres.verification import verify_database
from keepstep.runtime import SystemClock, WorkerThreads
from tests.support.catalogue import catalogue, expected
from tests.support.logs import PostgresPlace
from tests.support.populated import LATER_MS, Populated, populate

if TYPE_CHECKING:
    from tests.support.database import DatabaseServer

VERSIONS = tuple(migration.version for migration in read_migrations())
LAST = VERSIONS[-1]
FROM_THE_START = ("users", "devices", "streams", "authors", "events_keep", "events_standard", "positions", "sessions")
"""Tables of version 1: every later one has them, and nothing in them may get lost on the way."""


@pytest.fixture(scope="module")
def whole(migrated_server: DatabaseServer) -> list[str]:
    """What all migrations make."""
    with migrated_server.database() as url:
        return catalogue(url)


POLICIES_FROM = 3
"""Before it there are no policies and no winners of keys: who goes below it loses them."""
COLUMNS = "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"


def rows(url: str, columns: dict[str, list[str]]) -> dict[str, list[Any]]:
    """What the tables hold in those columns."""
    with psycopg.connect(url) as connection:
        return {
            table: sorted(connection.execute(f"SELECT {', '.join(names)} FROM {table}").fetchall(), key=repr)  # noqa: S608
            for table, names in columns.items()
        }


def columns_of(url: str, *tables: str) -> dict[str, list[str]]:
    """The columns that tables have."""
    with psycopg.connect(url) as connection:
        return {table: [row[0] for row in connection.execute(COLUMNS, [table])] for table in tables}


def test_the_schema_is_the_sum_of_the_migrations(empty_database_url: str) -> None:
    """As it was last read by somebody: ``python -m tests.support.catalogue`` writes it after a migration was added."""
    migrate.up(empty_database_url)
    assert catalogue(empty_database_url) == expected()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_the_same_whichever_way_it_was_come_to(empty_database_url: str, version: int) -> None:
    """Up to it, and down to it from the last: what a down file leaves behind would be in the next one's way."""
    migrate.up(empty_database_url, to=version)
    fresh = catalogue(empty_database_url)
    migrate.up(empty_database_url)
    migrate.down(empty_database_url, to=version)
    assert catalogue(empty_database_url) == fresh


@pytest.mark.parametrize("version", VERSIONS)
def test_an_account_goes_down_to_every_version_and_up_again(
    populated_url: str, populated: tuple[str, Populated], whole: list[str], version: int
) -> None:
    """Every row of the log survives in what the version knows; afterwards the schema is whole and all verifies."""
    before = rows(populated_url, columns_of(populated_url, *FROM_THE_START))
    migrate.down(populated_url, to=version)
    known = columns_of(populated_url, *FROM_THE_START)
    there = rows(populated_url, known)
    assert {table: len(each) for table, each in there.items()} == {table: len(each) for table, each in before.items()}
    assert len(there["events_keep"]) + len(there["events_standard"]) == populated[1].events

    assert [migration.version for migration in migrate.up(populated_url)] == list(range(version + 1, LAST + 1))
    assert rows(populated_url, known) == there
    if version >= POLICIES_FROM:
        assert verify_database(populated_url, now_ms=LATER_MS).faults == ()
    with psycopg.connect(populated_url, autocommit=True) as connection:
        for (partition,) in connection.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE c.relkind = 'r'"
        ).fetchall():
            connection.execute(f"DROP TABLE {partition}")
    assert catalogue(populated_url) == whole


def test_everything_goes_down_to_nothing_and_up_again(populated_url: str, whole: list[str]) -> None:
    """An operator who begins anew need not know what is in the database."""
    migrate.down(populated_url, to=0)
    assert catalogue(populated_url) == []
    migrate.up(populated_url)
    assert catalogue(populated_url) == whole


# -- starting


def later(*, compatible_with: int) -> Migration:
    """What a newer keepstep adds."""
    return Migration(
        LAST + 1,
        "colours",
        "0" * 64,
        compatible_with,
        "ALTER TABLE streams ADD COLUMN colour text NOT NULL DEFAULT 'none';",
        "ALTER TABLE streams DROP COLUMN colour;",
    )


async def start(url: str, data_dir: Path, **settings: Any) -> None:
    """Open a server's database and let it work: an account is created and written to."""
    chosen = Settings(data_dir=data_dir, database_url=SecretStr(url), unsafe=True, **settings)
    async with opened(chosen, clock=SystemClock(), threads=WorkerThreads(), probe=None):
        pass
    place = PostgresPlace(url, url)
    try:
        await populate(place)
    finally:
        place.close()


async def test_an_older_keepstep_works_beside_a_newer_one(database_url: str, data_dir: Path) -> None:
    """Servers are upgraded one after the other: with a schema that says so, the older ones start and write."""
    migrations = (*read_migrations(), later(compatible_with=LAST))
    assert [str(one) for one in migrate.up(database_url, migrations=migrations)] == [f"{LAST + 1:04}_colours"]

    await start(database_url, data_dir)

    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT DISTINCT colour FROM streams").fetchall() == [("none",)]
        assert connection.execute("SELECT max(version) FROM schema_version").fetchone() == (LAST + 1,)


async def test_an_older_keepstep_refuses_a_schema_that_is_not_for_it(database_url: str, data_dir: Path) -> None:
    """It would write what the newer one's rules forbid."""
    migrate.up(database_url, migrations=(*read_migrations(), later(compatible_with=LAST + 1)))
    with pytest.raises(StartupError, match=f"{LAST + 1:04}: unknown to this keepstep, which is older"):
        await start(database_url, data_dir)


async def test_migrating_at_the_start_can_be_switched_off(empty_database_url: str, data_dir: Path) -> None:
    """Where somebody else migrates: the server starts on a schema that is ready, and on no other."""
    with pytest.raises(StartupError, match=rf"{LAST} migrations are pending, .* run `keepstep migrate up` first"):
        await start(empty_database_url, data_dir, migrate_at_start=False)
    assert catalogue(empty_database_url) == []
    migrate.up(empty_database_url)
    await start(empty_database_url, data_dir, migrate_at_start=False)
