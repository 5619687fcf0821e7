"""Devices of one user over real sockets and a real database: pages and live, crashes, and a server that dies."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from keepstep.client import Device, Server, create_user, find_server, open_device
from keepstep.client.store import open_store
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.server import running_server

STREAM = "notes"


async def new_user(server: Server, directory: Path) -> Path:
    """The file of a user's first device."""
    path = directory / "laptop.sqlite3"
    await create_user(
        server,
        path=path,
        name="laptop",
        recovery_path=directory / "recovery.txt",
        passphrase=PASSPHRASE,
        cost=CHEAP,
    )
    return path


async def publish(device: Device, first: int, last: int) -> None:
    """Publish numbers, and wait until the server has them on its disk."""
    for publication in await device.publish_many(STREAM, [b"%d" % number for number in range(first, last + 1)]):
        await publication.accepted()


async def read(device: Device, count: int, *, after: int = 0) -> list[int]:
    """The next numbers."""
    subscription = await device.subscribe(STREAM, after=after)
    return [int((await anext(subscription)).data or b"-1") for _ in range(count)]


async def test_a_device_catches_up_over_pages_while_another_one_writes_on(
    database_url: str, data_dir: Path, tmp_path: Path
) -> None:
    """Everything arrives once and in order, from the first page to what is published meanwhile."""
    settings = {"page_events_max": 50}
    async with running_server(data_dir, database_url=database_url, settings=settings) as server:
        path = await new_user(await find_server(server.rest_url), tmp_path)
        async with open_device(path) as laptop:
            await laptop.enrol(tmp_path / "phone.sqlite3", "phone")
            await publish(laptop, 1, 500)
            async with open_device(tmp_path / "phone.sqlite3") as phone, trio.open_nursery() as nursery:
                nursery.start_soon(publish, laptop, 501, 1000)
                assert await read(phone, 1000) == list(range(1, 1001))
                assert phone.position(STREAM) == await position_of(laptop, 1000)
                assert await phone.alarms() == await laptop.alarms() == []


async def position_of(device: Device, seq: int) -> object:
    """Where a device is, once it has read so far itself."""
    await read(device, seq)
    return device.position(STREAM)


async def test_a_crashed_device_resumes_where_its_disk_is(database_url: str, data_dir: Path, tmp_path: Path) -> None:
    """The file as it was at any moment is enough: nothing is lost, nothing comes twice."""
    async with running_server(data_dir, database_url=database_url) as server:
        path = await new_user(await find_server(server.rest_url), tmp_path)
        async with open_device(path) as laptop:
            await publish(laptop, 1, 100)
            assert await read(laptop, 100) == list(range(1, 101))
            crashed = tmp_path / "crashed.sqlite3"
            for suffix in ("", "-wal"):
                (tmp_path / f"crashed.sqlite3{suffix}").write_bytes((tmp_path / f"laptop.sqlite3{suffix}").read_bytes())
        async with open_device(crashed) as laptop:
            await publish(laptop, 101, 150)
            assert await read(laptop, 150) == list(range(1, 151))
            assert await laptop.alarms() == []


@pytest.mark.slow
async def test_the_outbox_outlives_the_server(database_url: str, data_dir: Path, tmp_path: Path) -> None:
    """A server that is stopped at once while events are on their way: they are all there after it came back, once."""
    with trio.CancelScope() as first_life:
        async with running_server(data_dir, database_url=database_url) as server:
            path = await new_user(await find_server(server.rest_url), tmp_path)
            async with open_device(path) as laptop:
                publications = await laptop.publish_many(STREAM, [b"%d" % number for number in range(1, 3001)])
                await publications[300].accepted()
                first_life.cancel()
                await trio.sleep_forever()
    store = open_store(path)
    waiting = store.row("SELECT count(*) FROM outbox")[0]
    store.close()
    assert waiting > 0
    async with (
        running_server(data_dir, database_url=database_url) as server,
        open_device(path, device_url=server.device_url) as laptop,
    ):
        assert await read(laptop, 3000) == list(range(1, 3001))
        assert (await (await laptop.publish(STREAM, b"3001")).accepted()).seq == 3001
        assert await laptop.alarms() == []
