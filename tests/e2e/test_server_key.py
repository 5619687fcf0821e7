"""The server's identity key is replaced: devices that were told, and one that was away, go on without being asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from keepstep import keys
from keepstep.client import ProtocolError, create_user, find_server, open_device
from keepstep.client.repinning import read_announcements
from keepstep.client.store import open_store
from keepstep.memory import MemoryDatabase
from keepstep.runtime import SystemClock, SystemRandomness
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.server import RunningServer, memory_storage, running_server

if TYPE_CHECKING:
    from pathlib import Path

STREAM = "notes"


def move(path: Path, server: RunningServer) -> None:
    """The server is on other ports than before; a device's file says where it is."""
    store = open_store(path)
    with store.transaction():
        store.execute("UPDATE device SET rest_url = ?", server.rest_url)
    store.close()


async def make_home(server: RunningServer, tmp_path: Path) -> None:
    """A user with a laptop that manages and a phone; both have read everything."""
    laptop_path = tmp_path / "laptop"
    await create_user(
        await find_server(server.rest_url),
        path=laptop_path,
        name="laptop",
        recovery_path=tmp_path / "recovery",
        passphrase=PASSPHRASE,
        cost=CHEAP,
    )
    async with open_device(laptop_path) as laptop:
        await laptop.enrol(tmp_path / "phone", "phone")
        async with open_device(tmp_path / "phone") as phone:
            await phone.wait_until_ready()


async def go_on(path: Path, server: RunningServer) -> bytes:
    """Let a device connect and publish; the key that it pins then."""
    move(path, server)
    async with open_device(path, device_url=server.device_url.partition("#")[0]) as device:
        (publication,) = await device.publish_many(STREAM, [path.name.encode()])
        await publication.accepted()
        return device.identity.server_key


async def test_devices_follow_the_server_to_its_next_key(data_dir: Path, tmp_path: Path) -> None:
    """One that was told in a session passes it on in ``$devices``; the other finds it when it comes back."""
    database = MemoryDatabase()
    with trio.fail_after(60):
        async with running_server(data_dir, storage=memory_storage(database)) as server:
            await make_home(server, tmp_path)
        now_ms = SystemClock().now_ms()
        keys.announce_successor(data_dir, SystemRandomness(), from_ms=now_ms + 3_600_000, until_ms=now_ms + 7_200_000)
        async with running_server(data_dir, storage=memory_storage(database)) as server:
            old_key = server.started.server_key
            move(tmp_path / "laptop", server)
            device_url = server.device_url.partition("#")[0]
            async with open_device(tmp_path / "laptop", device_url=device_url) as laptop:
                await laptop.wait_until_ready()
                while not laptop._follower.account.announcements:
                    await laptop._source.changed().wait()
                assert laptop.identity.server_key == old_key
        keys.take_over(data_dir, now_ms=now_ms + 3_600_000)
        async with running_server(data_dir, storage=memory_storage(database)) as server:
            assert server.started.server_key != old_key
            for name in ("laptop", "phone"):
                assert await go_on(tmp_path / name, server) == server.started.server_key


async def test_a_connected_device_is_told_of_the_next_key_while_the_server_runs(data_dir: Path, tmp_path: Path) -> None:
    """Announced in the shell, as by ``keepstep keys announce``; nobody restarts or connects again."""
    with trio.fail_after(60):
        async with running_server(data_dir, storage=memory_storage(MemoryDatabase())) as server:
            await make_home(server, tmp_path)
            async with open_device(tmp_path / "phone") as phone, open_device(tmp_path / "laptop") as laptop:
                await laptop.wait_until_connected()
                await phone.wait_until_connected()
                now_ms = SystemClock().now_ms()
                keys.announce_successor(data_dir, SystemRandomness(), from_ms=now_ms, until_ms=now_ms + 7_200_000)
                while not phone._follower.account.announcements:
                    await phone._source.changed().wait()
                (announcement,) = phone._follower.account.announcements
            _, (told,) = await read_announcements(server.rest_url)
            assert told == announcement


async def test_another_server_is_not_believed(data_dir: Path, tmp_path: Path) -> None:
    """Without the pinned key's signature its key is nobody's."""
    database = MemoryDatabase()
    with trio.fail_after(60):
        async with running_server(data_dir, storage=memory_storage(database)) as server:
            await make_home(server, tmp_path)
        async with running_server(tmp_path / "impostor", storage=memory_storage(database)) as server:
            with pytest.raises(ProtocolError, match="auth_failed"):
                await go_on(tmp_path / "phone", server)
