"""Fixtures that every test may ask for; ``conftest`` imports them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.database import DatabaseServer, running_postgres, temporary_directory


@pytest.fixture(scope="session")
def database_server() -> Iterator[DatabaseServer]:
    """The PostgreSQL of this test process."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_server(database_server: DatabaseServer) -> DatabaseServer:
    """The same, with the template of migrated databases in it."""
    database_server.make_template()
    return database_server


@pytest.fixture
def database_url(migrated_server: DatabaseServer) -> Iterator[str]:
    """URL of a fresh database with all migrations applied."""
    with migrated_server.database() as url:
        yield url


@pytest.fixture
def empty_database_url(database_server: DatabaseServer) -> Iterator[str]:
    """URL of a fresh database with nothing in it."""
    with database_server.database("template1") as url:
        yield url


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """An empty data directory with a short path."""
    with temporary_directory() as path:
        yield path
