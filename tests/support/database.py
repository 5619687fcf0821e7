"""One PostgreSQL for each test process, the server's own embedded one, and a fresh database in it for each test.

It needs no root, works as root, listens on no port, and ends with the test process even where that is killed. Its
data is in memory where there is enough of it (fsync stays on, and costs nothing there).

``TEST_DATABASE_URL``, the URL of a superuser on a disposable server, runs the tests on that one instead.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg

from keepstep.config import Settings
from keepstep.postgres import migrate
from keepstep.postgres.cluster import ADMIN_ROLE, ROLE, open_cluster
from keepstep.postgres.isolation import READER_ROLE

SERVER_VARIABLE: Final = "TEST_DATABASE_URL"
TEMPLATE: Final = "keepstep_template"
START_TIMEOUT_S: Final = 60
MEMORY_BYTES_MIN: Final = 1 << 30
_POLL_S: Final = 0.01
_PREFIX: Final = "keepstep-test-"

_numbers = itertools.count(1)


class DatabaseServer:
    """A PostgreSQL server and how to make databases in it. ``admin_url`` is a superuser's."""

    def __init__(self, admin_url: str, url: str) -> None:
        self.admin_url = admin_url
        self._url = url

    def url(self, database: str) -> str:
        """The URL of a database, as the server under test would connect: no superuser."""
        parts = urlsplit(self._url)
        return urlunsplit(parts._replace(path=f"/{database}"))

    def make_template(self) -> None:
        """Make the database that ``database`` copies: all migrations applied."""
        with self._admin() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {TEMPLATE}")
            connection.execute(f"CREATE DATABASE {TEMPLATE} OWNER {ROLE}")
        migrate.up(self.url(TEMPLATE))

    @contextlib.contextmanager
    def database(self, template: str = TEMPLATE) -> Iterator[str]:
        """The URL of a new database, dropped afterwards whoever is still connected."""
        name = f"test_{os.getpid()}_{next(_numbers)}"
        with self._admin() as connection:
            connection.execute(f"CREATE DATABASE {name} OWNER {ROLE} TEMPLATE {template}")
        try:
            yield self.url(name)
        finally:
            with self._admin() as connection:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _admin(self) -> psycopg.Connection:
        return psycopg.connect(self.admin_url, autocommit=True)


@contextlib.contextmanager
def running_postgres() -> Iterator[DatabaseServer]:
    """The server that the environment names, or one of our own."""
    given = os.environ.get(SERVER_VARIABLE)
    if given:
        with psycopg.connect(given, autocommit=True) as connection:
            if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [ROLE]).rowcount:
                connection.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{ROLE}' IN ROLE pg_monitor")
            if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [READER_ROLE]).rowcount:
                connection.execute(f"CREATE ROLE {READER_ROLE} NOLOGIN ROLE {ROLE}")
        parts = urlsplit(given)
        place = parts.netloc.rpartition("@")[2]
        yield DatabaseServer(given, urlunsplit(parts._replace(netloc=f"{ROLE}:{ROLE}@{place}")))
        return
    with temporary_directory() as data_dir:
        cluster = open_cluster(Settings(data_dir=data_dir))
        try:
            cluster.prepare()
            with (data_dir / "output").open("wb") as output:
                process = subprocess.Popen(
                    cluster.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    start_new_session=True,
                )
            with process:  # leaving closes its standard input, upon which it stops
                assert process.stdout is not None
                pid = int(process.stdout.readline())
                give_up_s = time.monotonic() + START_TIMEOUT_S
                while not cluster.is_ready(pid):
                    assert process.poll() is None, (data_dir / "output").read_text()
                    assert time.monotonic() < give_up_s, "PostgreSQL does not become ready"
                    time.sleep(_POLL_S)
                cluster.ensure_database()
                yield DatabaseServer(cluster.url("postgres", role=ADMIN_ROLE), cluster.url())
        finally:
            cluster.close()


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """A short path for a data directory, in memory where there is enough, removed afterwards.

    Those of test processes that were killed are removed too, for memory does not come back by itself.
    """
    memory = Path("/dev/shm")  # noqa: S108  # mkdtemp makes a private directory in it
    in_memory = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > MEMORY_BYTES_MIN
    parent = memory if in_memory else Path(tempfile.gettempdir())
    for abandoned in parent.glob(f"{_PREFIX}*-*"):
        if not psutil.pid_exists(int(abandoned.name.removeprefix(_PREFIX).partition("-")[0])):
            shutil.rmtree(abandoned, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path)
