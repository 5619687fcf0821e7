"""The databases that every implementation of an interface is tested on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.logs import MemoryPlace, Place, PostgresPlace, without_flights

if TYPE_CHECKING:
    from tests.support.database import DatabaseServer


APPENDING = {"test_append", "test_nodes", "test_quotas", "test_policies", "test_seen", "test_restore"}
"""Modules whose tests are run over both ways to commit on PostgreSQL."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Which databases a test is run on."""
    if "place" in metafunc.fixturenames:
        name = metafunc.module.__name__.rpartition(".")[2]
        places = ["memory", "postgres", *(["psycopg"] if name in APPENDING else [])]
        metafunc.parametrize("place", places, indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """An empty database."""
    if request.param == "memory":
        yield MemoryPlace()
        return
    if request.param == "psycopg":
        without_flights(monkeypatch)
    url: str = request.getfixturevalue("database_url")
    server: DatabaseServer = request.getfixturevalue("database_server")
    place = PostgresPlace(url, server.admin_url)
    yield place
    place.close()
