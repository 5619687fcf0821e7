"""From the embedded database to a PostgreSQL of one's own: devices come back by themselves and notice nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import IO

import psycopg
import pytest
import trio
from pydantic import SecretStr

from keepstep import database_cli, server
from keepstep.client import create_user, find_server, open_device
from keepstep.config import Settings
from keepstep.errors import StartupError
from keepstep.postgres import embedded, moving
from keepstep.postgres.installation import find_account, find_installation
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.server import free_listeners

STREAM = "notes"
PROGRAMS = find_installation(find_account("nobody")).programs


@pytest.mark.slow
async def test_devices_go_on_after_the_database_was_moved(
    data_dir: Path, tmp_path: Path, empty_database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log is the same: nothing is lost, no alarm, and what is published next continues it."""
    settings = Settings(data_dir=data_dir, drain_timeout_s=2)
    path = tmp_path / "laptop.sqlite3"
    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        started = await nursery.start(partial(server.run, settings, stop=stop, listeners=free_listeners()))
        await create_user(
            await find_server(started.rest_url),
            path=path,
            name="laptop",
            recovery_path=tmp_path / "recovery.txt",
            passphrase=PASSPHRASE,
            cost=CHEAP,
        )
        async with open_device(path) as laptop:
            await (await laptop.publish(STREAM, b"before")).accepted()
        stop.set()

    await database_cli._move(settings, empty_database_url)
    said = capsys.readouterr().out
    assert "events of 1 user verified" in said
    assert "Set DATABASE_URL" in said

    moved = settings.model_copy(update={"database_url": SecretStr(empty_database_url)})
    async with trio.open_nursery() as nursery:
        started = await nursery.start(partial(server.run, moved, listeners=free_listeners()))
        async with open_device(path, device_url=started.device_url) as laptop:
            assert (await (await laptop.publish(STREAM, b"after")).accepted()).seq == 2
            subscription = await laptop.subscribe(STREAM, after=0)
            assert [(await anext(subscription)).data for _ in range(2)] == [b"before", b"after"]
            assert await laptop.alarms() == []
        nursery.cancel_scope.cancel()


async def test_a_database_is_moved_whole_or_not_at_all(
    database_url: str, empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not into one that has tables, not while somebody uses it, and not in part."""

    def move(source_url: str, target_url: str) -> dict[str, int]:
        return moving.move(source_url, target_url, programs=PROGRAMS, private=tmp_path)

    with monkeypatch.context() as patched:
        patched.setattr(moving, "OTHERS_GONE_S", 0.0)
        with (
            psycopg.connect(database_url),
            pytest.raises(StartupError, match="somebody is connected to the database that is to be moved"),
        ):
            move(database_url, empty_database_url)
    with pytest.raises(StartupError, match="the new database is not empty: it has "):
        move(empty_database_url, database_url)
    with pytest.raises(StartupError, match="the new database cannot be used"):
        move(database_url, "postgresql://nobody@127.0.0.1:1/none")

    def spoil(stream: IO[bytes], sink: IO[bytes]) -> None:
        sink.write(stream.readline() + b"nonsense;\n")
        stream.read()

    with monkeypatch.context() as patched:
        patched.setattr(moving, "_pass_on", spoil)
        with pytest.raises(StartupError, match="the database cannot be copied"):
            move(database_url, empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute(moving._TABLES).fetchall() == []
    rows = move(database_url, empty_database_url)
    assert rows["server_state"] == 1


async def test_a_copy_that_lacks_rows_is_noticed(
    database_url: str, empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every table is counted on both sides."""
    counts = iter(({"users": 2}, {"users": 1}))
    monkeypatch.setattr(moving, "_count", lambda _url: next(counts))
    with pytest.raises(StartupError, match="does not have what the old one has in users"):
        moving.move(database_url, empty_database_url, programs=PROGRAMS, private=tmp_path)


async def test_a_database_of_this_version_needs_no_upgrade(data_dir: Path) -> None:
    """It is said so, as it is where there is none at all."""
    settings = Settings(data_dir=data_dir)
    with pytest.raises(StartupError, match="there is no embedded PostgreSQL in"):
        await database_cli._upgrade(settings, None)
    async with embedded.running(settings):
        pass
    with pytest.raises(StartupError, match="already"):
        await database_cli._upgrade(settings, None)
    (data_dir / "postgres" / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(StartupError, match="there is no postgres of PostgreSQL 9 on this machine: install it"):
        await database_cli._upgrade(settings, None)
    (data_dir / "postgres.9").mkdir()
    with pytest.raises(StartupError, match="is in the way: it was kept by an earlier upgrade"):
        await database_cli._upgrade(settings, PROGRAMS)
