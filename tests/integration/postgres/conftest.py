"""PostgreSQL as these tests need it: a database with controls, and one behind a breakable connection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.database import temporary_directory
from tests.support.logs import PostgresPlace
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from tests.support.database import DatabaseServer


@pytest.fixture
def place(database_url: str, database_server: DatabaseServer) -> Iterator[PostgresPlace]:
    """A fresh database."""
    place = PostgresPlace(database_url, database_server.admin_url)
    yield place
    place.close()


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    """Another way to the same database."""
    with temporary_directory() as folder:
        proxy = Proxy(database_url, folder)
        yield proxy
        proxy.close()
