"""The drill: a server loses its disk, is restored to a second in between, and its devices come back."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import trio

from keepstep import keys, server
from keepstep.backup import manifest
from keepstep.backup.choosing import make_plan
from keepstep.backup.keyfile import make_key
from keepstep.backup.restoring import restore
from keepstep.client import Device, create_user, find_server, open_device
from keepstep.config import Settings
from keepstep.postgres import embedded
from keepstep.postgres.backups import find_source
from keepstep.postgres.verification import verify_database
from keepstep.restoring import begin_epoch
from keepstep.runtime import SystemClock
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.server import RunningServer, free_listeners

if TYPE_CHECKING:
    from keepstep.backup.manifest import Backup

STREAM = "notes"


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[RunningServer]:
    """A server with its own PostgreSQL and scheduled backups."""
    stop, stopped = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        run = partial(server.run, settings, stop=stop, listeners=free_listeners())
        yield RunningServer(await nursery.start(run), stop, stopped)
        stop.set()


async def until(found: Callable[[], bool]) -> None:
    """Wait for what another process or task does on the disk."""
    with trio.fail_after(60):
        while not found():  # noqa: ASYNC110 - the disk tells nobody
            await trio.sleep(0.05)


def good_backups(settings: Settings) -> list[Backup]:
    """Those that the server verified."""
    assert settings.backup_dir is not None
    return [one for one in manifest.all_backups(settings.backup_dir) if one.is_good]


async def publish(device: Device, first: int, last: int) -> None:
    """Publish numbers, and wait until the server has them on its disk."""
    for publication in await device.publish_many(STREAM, [b"%d" % number for number in range(first, last + 1)]):
        await publication.accepted()


async def read(device: Device, count: int) -> list[int]:
    """The first numbers of the stream."""
    subscription = await device.subscribe(STREAM, after=0)
    return [int((await anext(subscription)).data or b"-1") for _ in range(count)]


@pytest.mark.slow
async def test_a_server_is_restored_to_a_second_in_between(data_dir: Path, tmp_path: Path) -> None:
    """What that second had is there and verifies; devices take the new epoch for a restore, not for an attack."""
    make_key(tmp_path / "backup.key", now_ms=0)
    settings = Settings(
        data_dir=data_dir / "server",
        backup_dir=tmp_path / "backups",
        backup_key_file=tmp_path / "backup.key",
        backup_wal_interval_s=1,
        drain_timeout_s=2,
    )
    async with serving(settings) as running:
        found = await find_server(running.rest_url)
        laptop_path, phone_path = tmp_path / "laptop.sqlite3", tmp_path / "phone.sqlite3"
        await create_user(
            found, path=laptop_path, name="laptop", recovery_path=tmp_path / "r.txt", passphrase=PASSPHRASE, cost=CHEAP
        )
        async with open_device(laptop_path) as laptop:
            await laptop.enrol(phone_path, "phone")
            await publish(laptop, 1, 20)
            await until(lambda: bool(good_backups(settings)))
            await publish(laptop, 21, 40)
            between = datetime.now(UTC)
            async with open_device(phone_path) as phone:
                assert await read(phone, 40) == list(range(1, 41))
            await publish(laptop, 41, 60)
            assert await read(laptop, 60) == list(range(1, 61))
        server_key = keys.load(settings.data_dir).public

    shutil.rmtree(settings.data_dir)
    plan = make_plan(tmp_path / "backups", target=between, name=None)
    restored = await restore(settings, plan, begin_epoch=begin_epoch, clock=SystemClock())
    assert restored.reached_target
    assert restored.begun is not None
    assert restored.begun.epoch > 0
    assert restored.begun.rewinds >= 1
    assert restored.last_at is not None
    assert restored.last_at <= between

    assert keys.load(settings.data_dir).public == server_key
    async with embedded.running(settings):
        assert events_in_notes(settings) == 40, "of that second, not one more or less"

    async with (
        serving(settings) as running,
        open_device(laptop_path, device_url=running.device_url) as laptop,
        open_device(phone_path, device_url=running.device_url) as phone,
    ):
        with trio.fail_after(60):
            assert await read(phone, 60) == await read(laptop, 60) == list(range(1, 61))
            await publish(phone, 61, 61)
            assert await read(laptop, 61) == list(range(1, 62))
        await until(lambda: len(good_backups(settings)) == 2)
        assert events_in_notes(settings) == 61
        print(f"restored to {between:%H:%M:%S} with 40 of 60 events; devices healed 20; lost 0")
        assert await laptop.alarms() == await phone.alarms() == []
        url = find_source(settings).owner_url
        report = await trio.to_thread.run_sync(lambda: verify_database(url, now_ms=SystemClock().now_ms()))
        assert report.is_clean, report.faults


def events_in_notes(settings: Settings) -> int:
    """How many the server's log has."""
    with psycopg.connect(find_source(settings).owner_url) as connection:
        row = connection.execute("SELECT head_seq FROM streams WHERE name = %s", [STREAM]).fetchone()
    assert row is not None
    return int(row[0])
