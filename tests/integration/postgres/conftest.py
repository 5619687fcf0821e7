"""PostgreSQL as these tests need it: with controls, behind a breakable connection, with everything in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import trio

from keepstep.archive.store import S3Access
from tests.support.archives import ACCESS, BUCKET, Archives, s3_server
from tests.support.database import temporary_directory
from tests.support.logs import PostgresPlace, with_prepared_flights, without_flights
from tests.support.populated import Populated, populate
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.database import DatabaseServer


@pytest.fixture(scope="session")
def populated(migrated_server: DatabaseServer) -> Iterator[tuple[str, Populated]]:
    """The name of the database that is copied, and what is in it."""
    with migrated_server.database() as url:
        place = PostgresPlace(url, migrated_server.admin_url)
        contents = trio.run(populate, place)
        place.close()
        yield place.name, contents


@pytest.fixture
def populated_url(migrated_server: DatabaseServer, populated: tuple[str, Populated]) -> Iterator[str]:
    """URL of a copy of it."""
    with migrated_server.database(populated[0]) as url:
        yield url


@pytest.fixture
def place(database_url: str, database_server: DatabaseServer) -> Iterator[PostgresPlace]:
    """A fresh database."""
    place = PostgresPlace(database_url, database_server.admin_url)
    yield place
    place.close()


@pytest.fixture(params=["thread", "flight", "psycopg"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a node commits what only moves heads: on a thread of the extension, or in one of Python's."""
    if request.param == "thread":
        with_prepared_flights(monkeypatch)
    elif request.param == "psycopg":
        without_flights(monkeypatch)
    return str(request.param)


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    """Another way to the same database."""
    with temporary_directory() as folder:
        proxy = Proxy(database_url, folder)
        yield proxy
        proxy.close()


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """An S3 API."""
    with s3_server() as url:
        yield url


@pytest.fixture(params=["directory", "s3"])
def archives(request: pytest.FixtureRequest, place: PostgresPlace, tmp_path: Path) -> Archives:
    """An empty archive of either kind."""
    if request.param == "directory":
        return Archives(place, str(tmp_path / "archive"))
    url = request.getfixturevalue("s3_url")
    return Archives(place, f"s3://{BUCKET}/{place.name}", S3Access(endpoint=url, **ACCESS))


@pytest.fixture
def kept(place: PostgresPlace, tmp_path: Path) -> Archives:
    """An empty archive in a directory."""
    return Archives(place, (tmp_path / "archive").as_uri())
