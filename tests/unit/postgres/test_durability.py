"""A database that may lose what it acknowledged is refused."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from keepstep.errors import StartupError
from keepstep.postgres import durability
from keepstep.postgres.durability import Durability, check_durability


@pytest.fixture
def connection(empty_database_url: str) -> Iterator[psycopg.Connection]:
    """A connection to a database with PostgreSQL's own, safe defaults."""
    with psycopg.connect(empty_database_url, autocommit=True) as made:
        yield made


def test_a_durable_database_is_accepted(connection: psycopg.Connection) -> None:
    """And described, for health reports and benchmarks."""
    found = check_durability(connection, unsafe=False)
    assert found == Durability(connection.info.server_version, "on", "on", "on", "")
    assert found.unsafe_settings == ()


def test_a_database_that_acknowledges_before_it_writes_is_refused(connection: psycopg.Connection) -> None:
    """The message names the setting and the way out."""
    connection.execute("SET synchronous_commit = off")
    with pytest.raises(StartupError, match=r"synchronous_commit off.*KEEPSTEP_UNSAFE"):
        check_durability(connection, unsafe=False)


def test_unsafe_accepts_it_and_reports_it(connection: psycopg.Connection) -> None:
    """For experiments, which then say so."""
    connection.execute("SET synchronous_commit = off")
    assert check_durability(connection, unsafe=True).unsafe_settings == ("synchronous_commit",)


@pytest.mark.parametrize("level", ["local", "remote_write", "remote_apply"])
def test_every_level_that_flushes_here_is_safe(level: str, connection: psycopg.Connection) -> None:
    """They differ in what a standby has to do."""
    connection.execute(f"SET synchronous_commit = {level}")
    assert check_durability(connection, unsafe=False).synchronous_commit == level


def test_all_unsafe_settings_are_named() -> None:
    """Each of the three loses acknowledged events in its own way."""
    assert Durability(180_000, "off", "off", "off", "").unsafe_settings == (
        "fsync",
        "full_page_writes",
        "synchronous_commit",
    )


@pytest.mark.parametrize(("name", "value"), [("VERSION_MIN", 99), ("VERSION_MAX", 1)])
def test_a_version_outside_the_tested_ones_is_refused(
    name: str, value: int, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where unsafe was asked for: it would fail later, in words that do not help."""
    monkeypatch.setattr(durability, name, value)
    with pytest.raises(StartupError, match=r"the database is PostgreSQL \d+; keepstep works with"):
        check_durability(connection, unsafe=True)


def test_a_standby_is_refused(connection: psycopg.Connection) -> None:
    """Nothing can be written there."""
    connection.execute("CREATE FUNCTION public.pg_is_in_recovery() RETURNS boolean LANGUAGE sql RETURN true")
    connection.execute("SET search_path = public, pg_catalog")
    with pytest.raises(StartupError, match=r"standby.*primary"):
        check_durability(connection, unsafe=True)
