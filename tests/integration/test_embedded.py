"""The embedded PostgreSQL: a real one, started, stopped, killed, and found again."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NoReturn

import psutil
import psycopg
import pytest
import trio

from keepstep.config import Settings
from keepstep.errors import StartupError
from keepstep.postgres import cluster, embedded, guardian
from keepstep.postgres.cluster import Cluster, open_cluster
from keepstep.postgres.durability import check_durability
from keepstep.postgres.installation import Account, Installation, find_account, find_installation
from tests.support.database import temporary_directory

pytestmark = pytest.mark.slow

WAIT_S = 60
"""Bound on every wait here; they take milliseconds."""


@pytest.fixture(scope="module")
def made_directory() -> Iterator[Path]:
    """A data directory with a cluster in it that has been started and stopped: made once, copied by the tests."""
    with temporary_directory() as path:
        trio.run(_start_and_stop, path)
        yield path


async def _start_and_stop(data_dir: Path) -> None:
    async with embedded.running(Settings(data_dir=data_dir)) as url:
        await execute(url, "CREATE TABLE kept (value integer)")


@pytest.fixture
def settings(made_directory: Path, data_dir: Path) -> Settings:
    """Settings with such a directory of the test's own."""
    subprocess.run(["cp", "-a", made_directory / "postgres", data_dir], check=True)
    return Settings(data_dir=data_dir)


async def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    """Run one statement; its rows where it has any."""

    def run() -> list[tuple[object, ...]]:
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    return await trio.to_thread.run_sync(run)


async def execute_when_back(url: str, statement: str) -> list[tuple[object, ...]]:
    """As ``execute``, trying until PostgreSQL accepts connections again."""
    with trio.fail_after(WAIT_S):
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                return await execute(url, statement)
            await trio.sleep(0.01)


def postgres_process(settings: Settings) -> psutil.Process:
    """The running PostgreSQL, by its own record."""
    record = settings.data_dir / "postgres" / "data" / "postmaster.pid"
    return psutil.Process(int(record.read_text().splitlines()[0]))


def wait_until_ended(process: psutil.Process) -> None:
    """Return when a process that is not ours to reap has ended."""
    give_up_s = time.monotonic() + WAIT_S
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < give_up_s, process
            time.sleep(0.01)


def names(directory: Path) -> list[str]:
    """What is in a directory."""
    return sorted(path.name for path in directory.iterdir())


def is_being_made(data_dir: Path) -> bool:
    """Whether initdb is at work in a data directory."""
    return any(data_dir.glob("*/data/PG_VERSION"))


async def message_of_failed_start(settings: Settings) -> str:
    """What the person who started the server is told."""
    with pytest.raises(StartupError) as caught:
        async with embedded.running(settings):
            pytest.fail("it started")
    return str(caught.value)


async def test_a_fresh_directory_becomes_a_durable_database(data_dir: Path) -> None:
    """Without a DATABASE_URL the server needs nothing else: UTF-8, byte order, fsync on, no port open."""
    settings = Settings(data_dir=data_dir / "made")
    async with embedded.running(settings) as url:
        ((encoding, collation, listening, role, owner, superuser),) = await execute(
            url,
            "SELECT current_setting('server_encoding'), datcollate, current_setting('listen_addresses'), current_user, "
            "pg_get_userbyid(datdba), usesuper FROM pg_database, pg_user "
            "WHERE datname = current_database() AND usename = current_user",
        )
        assert (encoding, collation, listening) == ("UTF8", "C", "")
        assert (role, owner, superuser) == ("keepstep", "keepstep", False)
        with psycopg.connect(url) as connection:
            assert check_durability(connection, unsafe=False).unsafe_settings == ()
        home = settings.data_dir / "postgres"
        for directory in (settings.data_dir, home, home / "data", home / "socket", home / "log"):
            assert directory.stat().st_mode & 0o777 == 0o700, directory
        assert not postgres_process(settings).net_connections("inet")


async def test_data_survives_a_clean_stop(settings: Settings) -> None:
    """And the stop is clean: nothing to recover, nobody left."""
    async with embedded.running(settings) as url:
        await execute(url, "INSERT INTO kept VALUES (1)")
        process = postgres_process(settings)
    assert not process.is_running()
    assert not (settings.data_dir / "postgres" / "data" / "postmaster.pid").exists()
    async with embedded.running(settings) as url:
        assert await execute(url, "SELECT value FROM kept") == [(1,)]
    log = "".join(file.read_text() for file in (settings.data_dir / "postgres" / "log").iterdir())
    assert "not properly shut down" not in log


async def test_a_killed_postgresql_comes_back_with_what_was_committed(settings: Settings) -> None:
    """The server restarts it; clients reconnect to the same URL."""
    async with embedded.running(settings) as url:
        await execute(url, "INSERT INTO kept VALUES (1)")
        first = postgres_process(settings)
        first.kill()
        assert await execute_when_back(url, "SELECT value FROM kept") == [(1,)]
        assert postgres_process(settings) != first


async def test_a_killed_guardian_leaves_no_postgresql_behind(settings: Settings) -> None:
    """Its PostgreSQL ends and the server starts both anew."""
    async with embedded.running(settings) as url:
        await execute(url, "INSERT INTO kept VALUES (1)")
        first = postgres_process(settings)
        first.parent().kill()
        await trio.to_thread.run_sync(wait_until_ended, first)
        assert await execute_when_back(url, "SELECT value FROM kept") == [(1,)]


@contextlib.asynccontextmanager
async def server_process(settings: Settings) -> AsyncIterator[tuple[trio.Process, str]]:
    """A server in a process of its own, with PostgreSQL running; killed afterwards if the test has not."""
    command = [sys.executable, "-m", "tests.support.embedded_server", str(settings.data_dir)]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        with trio.fail_after(WAIT_S):
            url = (await process.stdout.receive_some()).decode().strip()
        yield process, url
    finally:
        process.kill()
        with trio.move_on_after(WAIT_S, shield=True):
            await process.wait()
            await process.stdout.aclose()


async def test_a_killed_server_leaves_no_postgresql_behind(settings: Settings) -> None:
    """The guardian sees its pipe end and stops PostgreSQL cleanly; what was committed is there."""
    async with server_process(settings) as (server, url):
        await execute(url, "INSERT INTO kept VALUES (1)")
        process = postgres_process(settings)
        server.kill()
        await trio.to_thread.run_sync(wait_until_ended, process)
    async with embedded.running(settings) as url:
        assert await execute(url, "SELECT value FROM kept") == [(1,)]


async def test_a_server_started_at_once_after_a_kill_waits_for_the_old_postgresql(settings: Settings) -> None:
    """A service manager restarts within milliseconds, while the old PostgreSQL is still shutting down."""
    async with server_process(settings) as (server, url):
        await execute(url, "INSERT INTO kept VALUES (1)")
        old = postgres_process(settings)
        server.kill()
        await server.wait()
        async with embedded.running(settings) as new_url:
            assert await execute(new_url, "SELECT value FROM kept") == [(1,)]
            assert postgres_process(settings) != old


async def test_server_and_postgresql_killed_together_come_back(settings: Settings) -> None:
    """Nothing was shut down in order: PostgreSQL recovers from its log."""
    async with server_process(settings) as (server, url):
        await execute(url, "INSERT INTO kept VALUES (1)")
        process = postgres_process(settings)
        process.parent().kill()
        process.kill()
        server.kill()
    async with embedded.running(settings) as url:
        assert await execute(url, "SELECT value FROM kept") == [(1,)]


@contextlib.contextmanager
def abandoned_postgresql(settings: Settings) -> Iterator[tuple[Cluster, int]]:
    """A PostgreSQL in the directory that no server looks after, and the cluster that started it."""
    made = open_cluster(settings)
    made.prepare()
    with subprocess.Popen(made.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        while not made.is_ready(pid):
            assert process.poll() is None
            time.sleep(0.01)
        yield made, pid


async def test_an_orphaned_postgresql_is_stopped_before_a_new_one_starts(settings: Settings) -> None:
    """Where the kernel does not stop it with its guardian (other systems than Linux), the next start does."""
    with abandoned_postgresql(settings) as (made, pid):
        made.close()
        async with embedded.running(settings):
            assert not psutil.pid_exists(pid)


def test_a_postgresql_that_cannot_be_stopped_is_reported(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one beside it must not be started."""
    with abandoned_postgresql(settings) as (made, pid):
        monkeypatch.setattr(guardian, "STOP_SIGNALS", [(signal.SIGCONT, 0.01)])
        with pytest.raises(StartupError, match=f"process {pid}.* cannot be stopped"):
            made.prepare()
        made.close()


async def test_a_process_id_given_to_somebody_else_does_not_stop_the_start(settings: Settings) -> None:
    """After a power cut the recorded process id may be another program's, in a container it often is."""
    home = settings.data_dir / "postgres"
    account = find_account(settings.embedded_user)
    stranger = await trio.lowlevel.open_process(["sleep", "60"], **account.popen_arguments)
    try:
        for name in ("data/postmaster.pid", "socket/.s.PGSQL.5432.lock"):
            (home / name).write_text(f"{stranger.pid}\n/elsewhere\n1\n5432\n../socket\n\n0 0\nready\n")
        async with embedded.running(settings):
            assert stranger.poll() is None
    finally:
        stranger.kill()
        with trio.move_on_after(WAIT_S, shield=True):
            await stranger.wait()


async def test_a_record_that_makes_no_sense_is_left_to_postgresql(settings: Settings) -> None:
    """It knows best what is wrong with its own file; the message is passed on."""
    (settings.data_dir / "postgres" / "data" / "postmaster.pid").write_text("nonsense\n")
    assert "bogus data in lock file" in await message_of_failed_start(settings)


async def test_two_servers_cannot_share_a_directory(settings: Settings) -> None:
    """The second is told who has it."""
    async with embedded.running(settings):
        message = await message_of_failed_start(settings)
    assert f"another keepstep (process {os.getpid()}) runs with the data directory {settings.data_dir}" in message


async def test_the_directory_is_free_again_after_a_failed_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A problem that was mended does not leave the lock behind."""
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "find_installation", lambda _account: Installation(Path("/nonexistent"), 18))
        assert "does not start" in await message_of_failed_start(settings)
    async with embedded.running(settings):
        pass


async def test_a_directory_of_another_user_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL would refuse it in words that do not help."""
    mine = find_account(settings.embedded_user)
    someone = Account("someone", mine.uid + 1, mine.gid, other=False)
    monkeypatch.setattr(cluster, "find_account", lambda _embedded_user: someone)
    message = await message_of_failed_start(settings)
    assert f"belongs to user {mine.name} and this PostgreSQL would run as someone" in message


async def test_an_owner_without_a_name_is_called_by_number(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories come from other machines and containers."""
    mine = find_account(settings.embedded_user)

    def no_name(uid: int) -> NoReturn:
        raise KeyError(uid)

    monkeypatch.setattr(cluster, "find_account", lambda _user: Account("someone", mine.uid + 1, mine.gid, other=False))
    monkeypatch.setattr(pwd, "getpwuid", no_name)
    assert f"belongs to user {mine.uid} " in await message_of_failed_start(settings)


async def test_a_directory_of_another_major_version_is_refused(settings: Settings) -> None:
    """Each major version has its own files; the message says how to move."""
    (settings.data_dir / "postgres" / "data" / "PG_VERSION").write_text("17\n")
    message = await message_of_failed_start(settings)
    assert "was made by PostgreSQL 17 and this keepstep carries 18" in message
    assert "keepstep database upgrade" in message


async def test_a_directory_that_cannot_be_made_is_refused(data_dir: Path) -> None:
    """The message names the path and the setting."""
    (data_dir / "file").touch()
    message = await message_of_failed_start(Settings(data_dir=data_dir / "file" / "below"))
    assert f"cannot keep the embedded PostgreSQL in {data_dir}/file/below" in message
    assert "KEEPSTEP_DATA_DIR" in message


async def test_a_data_directory_that_may_not_be_written_names_its_owner(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most often it was made by another user."""
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    message = await message_of_failed_start(Settings(data_dir=data_dir))
    assert f"{data_dir}: it belongs to user {pwd.getpwuid(os.geteuid()).pw_name}, " in message
    assert names(data_dir) == []


async def test_making_the_cluster_may_be_interrupted_at_any_time(data_dir: Path) -> None:
    """Killed in the middle of it, the server makes it anew at the next start."""
    real = find_installation(find_account(Settings(data_dir=data_dir).embedded_user)).programs / "initdb"
    programs = make_programs(data_dir, f'{real} "$@" && exec sleep 600')  # it never comes to its end
    command = [sys.executable, "-m", "tests.support.embedded_server", str(data_dir), str(programs)]
    server = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    with trio.fail_after(WAIT_S):
        while not is_being_made(data_dir):
            assert server.poll() is None
            await trio.sleep(0.005)
    server.kill()
    await server.wait()
    assert not (data_dir / "postgres").exists()
    async with embedded.running(Settings(data_dir=data_dir)) as url:
        assert await execute(url, "SELECT 1") == [(1,)]
    async with embedded.running(Settings(data_dir=data_dir)):
        assert names(data_dir) == ["postgres", "postgres.lock", "programs"]


def make_programs(data_dir: Path, initdb: str) -> Path:
    """PostgreSQL programs of which one is a shell script, where any account can run it."""
    programs = data_dir / "programs"
    programs.mkdir()
    data_dir.chmod(0o755)
    (programs / "initdb").write_text(f"#!/bin/sh\n{initdb}\n")
    (programs / "initdb").chmod(0o755)
    return programs


@pytest.mark.parametrize(
    ("initdb", "fragment", "timeout_s"),
    [
        ("echo 'could not write to file: No space left on device'; exit 1", "the disk is full", WAIT_S),
        ("echo 'something else'; exit 1", "something else", WAIT_S),
        ("exec sleep 600", "initdb took too long", 0.5),
    ],
)
async def test_a_cluster_that_cannot_be_made_leaves_nothing_behind(
    initdb: str, fragment: str, timeout_s: float, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says why, and the next start begins anew."""
    programs = make_programs(data_dir, initdb)
    monkeypatch.setattr(cluster, "find_installation", lambda _account: Installation(programs, 18))
    monkeypatch.setattr(cluster, "INIT_TIMEOUT_S", timeout_s)
    message = await message_of_failed_start(Settings(data_dir=data_dir))
    assert f"cannot make the embedded PostgreSQL in {data_dir}/postgres: " in message
    assert fragment in message
    assert names(data_dir) == ["postgres.lock", "programs"]


async def test_settings_that_postgresql_refuses_are_shown(settings: Settings) -> None:
    """An operator's ALTER SYSTEM may be wrong; PostgreSQL's own words say where."""
    (settings.data_dir / "postgres" / "data" / "postgresql.auto.conf").write_text("shared_buffers = 'nonsense'\n")
    message = await message_of_failed_start(settings)
    assert "does not start" in message
    assert 'invalid value for parameter "shared_buffers"' in message


async def test_operators_may_tune_but_not_make_it_unsafe(settings: Settings) -> None:
    """ALTER SYSTEM goes before our choices, and never before what an ack promises."""
    auto = settings.data_dir / "postgres" / "data" / "postgresql.auto.conf"
    auto.write_text("shared_buffers = '16MB'\nfsync = off\nsynchronous_commit = off\nlisten_addresses = '*'\n")
    async with embedded.running(settings) as url:
        assert await execute(
            url,
            "SELECT current_setting('shared_buffers'), current_setting('fsync'), "
            "current_setting('synchronous_commit'), current_setting('listen_addresses')",
        ) == [("16MB", "on", "on", "")]


async def test_links_of_the_database_account_are_not_followed(settings: Settings) -> None:
    """Root must not write where that account, which others may share, points it to."""
    data = settings.data_dir / "postgres" / "data"
    elsewhere = data.rename(settings.data_dir / "elsewhere")
    data.symlink_to(elsewhere)
    before = (elsewhere / "postgresql.conf").read_bytes()
    (elsewhere / "postgresql.conf").write_bytes(before + b"# as it was\n")
    assert "does not start" in await message_of_failed_start(settings)
    assert (elsewhere / "postgresql.conf").read_bytes().endswith(b"# as it was\n")


async def test_a_long_path_is_reached_by_a_short_one(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket's path has at most 107 bytes; the link to it goes when PostgreSQL does."""
    run, long = settings.data_dir / "run", settings.data_dir / ("long" * 30)
    run.mkdir()
    long.mkdir()
    (settings.data_dir / "postgres").rename(long / "postgres")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    async with embedded.running(Settings(data_dir=long)) as url:
        assert await execute(url, "SELECT 1") == [(1,)]
        assert [path.stat().st_mode & 0o777 for path in run.iterdir()] == [0o700]
    assert not list(run.iterdir())


async def test_the_block_may_use_the_database_while_it_is_cancelled(settings: Settings) -> None:
    """A commit under way is finished before PostgreSQL stops."""
    with trio.CancelScope() as scope:
        async with embedded.running(settings) as url:
            scope.cancel()
            try:
                await trio.sleep_forever()
            finally:
                with trio.move_on_after(WAIT_S, shield=True):
                    await execute(url, "INSERT INTO kept VALUES (2)")
    async with embedded.running(settings) as url:
        assert await execute(url, "SELECT value FROM kept") == [(2,)]


async def test_a_cancelled_start_leaves_nothing_running(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was started by then is stopped."""
    started: list[int] = []
    with trio.CancelScope() as scope:

        def cancel_instead(_cluster: Cluster, pid: int) -> bool:
            started.append(pid)
            scope.cancel()
            return False

        monkeypatch.setattr(Cluster, "is_ready", cancel_instead)
        async with embedded.running(settings):
            pytest.fail("it started")
    assert scope.cancelled_caught
    assert started
    assert not psutil.pid_exists(started[0])


async def test_a_postgresql_that_does_not_become_ready_is_given_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait is bounded, and what was started is stopped."""
    monkeypatch.setattr(Cluster, "is_ready", lambda _cluster, _pid: False)
    monkeypatch.setattr(Cluster, "start_timeout_s", 0.3)
    assert "does not start" in await message_of_failed_start(settings)
    assert not (settings.data_dir / "postgres" / "data" / "postmaster.pid").exists()


async def test_the_restart_waits_for_the_killed_ones_children(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child attached to the old shared memory could still write: PostgreSQL refuses until it is gone."""
    refusals: list[StartupError] = []
    start_once = embedded._start_once

    async with embedded.running(settings) as url:
        with psycopg.connect(url) as connection:
            child = psutil.Process(connection.info.backend_pid)

            async def start_and_resume(made: Cluster) -> trio.Process:
                try:
                    return await start_once(made)
                except embedded._BusyError as error:
                    if not refusals:  # later it may be gone, and others not yet
                        child.resume()
                    refusals.append(error)
                    raise

            monkeypatch.setattr(embedded, "_start_once", start_and_resume)
            child.suspend()
            postgres_process(settings).kill()
            assert await execute_when_back(url, "SELECT 1") == [(1,)]
    assert "pre-existing shared memory block" in str(refusals[0])


async def test_waiting_for_children_is_bounded(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that never lets go becomes an error with PostgreSQL's own words."""

    async def busy(_cluster: Cluster) -> NoReturn:
        raise embedded._BusyError("pre-existing shared memory block")

    monkeypatch.setattr(embedded, "_start_once", busy)
    monkeypatch.setattr(embedded, "BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(embedded, "BACKOFF_FIRST_S", 0.01)
    assert await message_of_failed_start(settings) == "pre-existing shared memory block"


async def test_a_restart_that_fails_is_tried_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk may take long to be mended; the server goes on trying, and comes back by itself."""
    start = embedded.start
    attempts: list[Callable[[Cluster], object]] = []

    async def fail_twice(made: Cluster) -> trio.Process:
        attempts.append(start)
        if len(attempts) <= 2:
            raise StartupError("the disk is full")
        return await start(made)

    async with embedded.running(settings) as url:
        monkeypatch.setattr(embedded, "start", fail_twice)
        monkeypatch.setattr(embedded, "BACKOFF_FIRST_S", 0.01)
        postgres_process(settings).kill()
        assert await execute_when_back(url, "SELECT 1") == [(1,)]
    assert len(attempts) == 3


async def test_the_back_off_starts_anew_after_a_steady_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One crash a week is answered at once each time."""
    monkeypatch.setattr(embedded, "STEADY_S", 0)
    monkeypatch.setattr(embedded, "BACKOFF_MAX_S", 600)
    async with embedded.running(settings) as url:
        for _ in range(2):
            monkeypatch.setattr(embedded, "BACKOFF_FIRST_S", 0.01)
            postgres_process(settings).kill()
            assert await execute_when_back(url, "SELECT 1") == [(1,)]


async def test_a_guardian_that_hangs_is_killed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping is bounded whatever happens; the kernel then stops PostgreSQL."""
    monkeypatch.setattr(embedded, "STOP_TIMEOUT_S", 0.05)
    async with embedded.running(settings):
        process = postgres_process(settings)
        process.parent().suspend()
    await trio.to_thread.run_sync(wait_until_ended, process)


async def test_a_start_that_the_system_refuses_is_reported(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many open files, no memory for a process: a message, not a traceback."""

    def refuse(_cluster: Cluster) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Cluster, "prepare", refuse)
    assert "Too many open files" in await message_of_failed_start(settings)
