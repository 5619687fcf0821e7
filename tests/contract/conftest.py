"""The databases that every implementation of an interface is tested on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.logs import MemoryPlace, Place, PostgresPlace

if TYPE_CHECKING:
    from tests.support.database import DatabaseServer


@pytest.fixture(params=["memory", "postgres"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """An empty database."""
    if request.param == "memory":
        yield MemoryPlace()
        return
    url: str = request.getfixturevalue("database_url")
    server: DatabaseServer = request.getfixturevalue("database_server")
    place = PostgresPlace(url, server.admin_url)
    yield place
    place.close()
