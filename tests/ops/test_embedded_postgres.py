"""The embedded PostgreSQL where it takes root to show it: other users, private installations, a disk that is full."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest
import trio

from keepstep.config import Settings
from keepstep.postgres import embedded
from keepstep.postgres.installation import CACHE, PACKAGE
from tests.ops.machine import ROOT, Person, fill, give, tool_output
from tests.ops.test_set_up import checkout_with_wheel

SCRIPT: Final = """
import sys, psycopg, trio
from pathlib import Path
from keepstep.config import Settings
from keepstep.errors import StartupError
from keepstep.postgres import embedded

async def main():
    async with embedded.running(Settings(data_dir=Path(sys.argv[1]))) as url:
        with psycopg.connect(url) as connection:
            print("as", connection.execute("SHOW server_version").fetchone()[0], flush=True)

try:
    trio.run(main)
except StartupError as error:
    sys.exit(str(error))
"""
RECOVERY_S: Final = 60


def start(
    person: Person, data_dir: Path, python: str = sys.executable, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Start and stop the embedded PostgreSQL as somebody."""
    return person.run(python, "-c", SCRIPT, str(data_dir), folder=ROOT, environment=person.environment(**variables))


@pytest.fixture(scope="module")
def readable_python(place: Path, ordinary: Person, wheel: Path) -> str:
    """A Python with keepstep that an ordinary user can run."""
    return str(checkout_with_wheel(place / "readable", ordinary, wheel) / ".venv" / "bin" / "python")


@pytest.fixture
def no_cache() -> Iterator[None]:
    """Without copies of PostgreSQL's programs, those that this machine has being put aside."""
    aside = CACHE.with_name(f"{CACHE.name}.aside")
    if CACHE.exists():
        CACHE.rename(aside)
    yield
    shutil.rmtree(CACHE, ignore_errors=True)
    if aside.exists():
        aside.rename(CACHE)


def test_an_ordinary_user_runs_it_as_itself(ordinary: Person, readable_python: str) -> None:
    """Everything in the data directory is the user's own."""
    data_dir = Path(ordinary.account.pw_dir) / "data"
    done = start(ordinary, data_dir, readable_python)
    assert done.returncode == 0, done.stdout
    assert {path.stat().st_uid for path in data_dir.rglob("*")} == {ordinary.account.pw_uid}


def test_root_may_have_everything_in_private_places(place: Path, root: Person, no_cache: None) -> None:
    """PostgreSQL's account can reach neither data nor programs: these are copied, and no directory is opened."""
    private = place / "private-postgres"
    private.mkdir(mode=0o700)
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations
    package = Path(next(iter(spec.submodule_search_locations)))
    tool_output("cp", "-a", package, package.with_name(f"{PACKAGE}.libs"), private)
    for _ in range(2):
        done = start(root, private / "data", PYTHONPATH=str(private))
        assert done.returncode == 0, done.stdout
    assert [oct(path.stat().st_mode & 0o777) for path in (private, private / "data")] == ["0o700", "0o700"]
    (copy,) = CACHE.iterdir()
    assert {path.stat().st_uid for path in (copy, *copy.rglob("*"))} == {0}
    assert (private / "data" / "postgres").owner() == "nobody"


def test_root_may_name_the_account(place: Path, root: Person, ordinary: Person) -> None:
    """``nobody`` is shared with other services; a machine may have an account for keepstep alone."""
    data_dir = place / "named"
    done = start(root, data_dir)
    assert done.returncode == 0, done.stdout
    refused = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("data_dir=", f"embedded_user={ordinary.name!r}, data_dir="), data_dir],
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"belongs to user nobody and this PostgreSQL would run as {ordinary.name}" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("owner", ["root", "nobody"])
def test_a_data_directory_of_another_user_is_refused(
    owner: str, place: Path, ordinary: Person, readable_python: str
) -> None:
    """The message names whose it is; nothing is written."""
    theirs = place / f"of-{owner}"
    theirs.mkdir(mode=0o755)
    give(theirs, Person(owner))
    done = start(ordinary, theirs, readable_python)
    assert done.returncode == 1
    assert f"it belongs to user {owner}" in done.stdout
    assert "Traceback" not in done.stdout
    assert list(theirs.iterdir()) == []


def test_a_full_disk_is_named_when_the_database_is_made(disk: Path, root: Person) -> None:
    """Nothing half made stays behind; with room it is made."""
    filler = fill(disk, leaving=10 << 20)
    done = start(root, disk / "data")
    assert done.returncode == 1
    assert f"cannot make the embedded PostgreSQL in {disk}/data/postgres: the disk is full" in done.stdout
    assert "Traceback" not in done.stdout
    assert [path.name for path in (disk / "data").iterdir()] == ["postgres.lock"]
    filler.unlink()
    assert start(root, disk / "data").returncode == 0


def insert_until_refused(url: str) -> int:
    """Insert numbered rows until the database does not acknowledge one; how many it did."""
    acknowledged = 0
    with psycopg.connect(url, autocommit=True) as connection, contextlib.suppress(psycopg.OperationalError):
        while True:
            connection.execute("INSERT INTO rows VALUES (%s, %s)", [acknowledged + 1, "x" * 100_000])
            acknowledged += 1
    return acknowledged


async def read_when_back(url: str) -> list[int]:
    """The numbers that are there once the database can be written again."""
    with trio.fail_after(RECOVERY_S):
        while True:
            try:
                with psycopg.connect(url, autocommit=True) as connection:
                    connection.execute("INSERT INTO rows VALUES (0, 'room again')")
                    rows = connection.execute("SELECT number FROM rows WHERE number > 0 ORDER BY number").fetchall()
                    return [number for (number,) in rows]
            except psycopg.OperationalError:
                await trio.sleep(0.05)


async def test_a_disk_that_fills_up_loses_nothing_that_was_committed(disk: Path) -> None:
    """PostgreSQL refuses or goes down; with room again it is back by itself, with every row that it acknowledged."""
    async with embedded.running(Settings(data_dir=disk / "data")) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE rows (number integer, filling text)")
        filler = fill(disk, leaving=4 << 20)
        acknowledged = await trio.to_thread.run_sync(insert_until_refused, url)
        filler.unlink()
        numbers = await read_when_back(url)
    assert acknowledged > 0
    assert numbers[:acknowledged] == list(range(1, acknowledged + 1))
    assert len(numbers) <= acknowledged + 1, "beside them, only the row whose outcome was not known may be there"
