"""An account goes to another server with a key of its own, and its devices follow where their user sends them."""

from __future__ import annotations

from contextlib import asynccontextmanager, closing
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
import trio

from keepstep.account_file import CONTENT_TYPE
from keepstep.client import (
    ClientError,
    Server,
    VerificationError,
    create_user,
    find_server,
    open_device,
    recover,
)
from keepstep.client.http import raise_for_problem, request
from keepstep.client.moving import move_device
from keepstep.client.restdevice import open_rest_device
from keepstep.client.store import open_store
from keepstep.eventlog.retention import DAY_MS, RetentionRules
from keepstep.memory import MemoryDatabase
from keepstep.memory.restores import begin_epoch
from keepstep.memory.retention import MemoryRetention
from keepstep.runtime import SystemClock
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.server import memory_storage, running_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from keepstep.client import Device
    from tests.support.server import RunningServer

KEY: Final = "correct-horse-battery-staple-0123456789"
STREAM: Final = "notes"
DEVICES: Final = ("laptop", "phone")


@asynccontextmanager
async def two_servers(tmp_path: Path) -> AsyncIterator[tuple[RunningServer, RunningServer]]:
    """Each with a key of its own."""
    with trio.fail_after(60):
        async with (
            running_server(tmp_path / "here") as here,
            running_server(tmp_path / "there", settings={"admin_api_key": KEY}) as there,
        ):
            assert here.started.server_key != there.started.server_key
            yield here, there


async def write(device: Device, *texts: bytes) -> None:
    """Publish, and wait until the server has it."""
    for publication in await device.publish_many(STREAM, texts):
        await publication.accepted()


async def read(device: Device) -> list[bytes | None]:
    """All of the stream."""
    await device.wait_until_caught_up(STREAM)
    count = device.position(STREAM).seq
    return [(await anext(events)).data for events in [await device.subscribe(STREAM)] for _ in range(count)]


async def make_home(here: RunningServer, tmp_path: Path) -> None:
    """A user with two devices, of which each has written and read."""
    await create_user(
        await find_server(here.rest_url),
        path=tmp_path / "laptop",
        name="laptop",
        recovery_path=tmp_path / "recovery",
        passphrase=PASSPHRASE,
        cost=CHEAP,
    )
    async with open_device(tmp_path / "laptop") as laptop:
        await laptop.enrol(tmp_path / "phone", "phone")
        await write(laptop, b"from the laptop")
        async with open_device(tmp_path / "phone") as phone:
            await phone.wait_until_ready()
            await write(phone, b"from the phone")
            await read(phone)
        await read(laptop)


async def carry(tmp_path: Path, there: RunningServer) -> int:
    """Export the account with the laptop, import it at the other server; how many events were new there."""
    async with open_rest_device(tmp_path / "laptop") as laptop:
        response = await laptop.client.request("GET", "/api/v1/account/export")
    answer = await request(
        "POST",
        f"{there.rest_url}/admin/accounts/import",
        body=response.body,
        content_type=CONTENT_TYPE,
        headers={"Authorization": f"Bearer {KEY}"},
    )
    raise_for_problem(answer)
    return int(answer.body.partition(b'"stored":')[2].strip(b"}"))


async def named(server: RunningServer) -> Server:
    """As its operator names it to its users."""
    return await find_server(f"{server.rest_url}#{server.started.server_key.hex()}")


async def test_devices_go_on_at_another_server_without_loss(tmp_path: Path) -> None:
    """Everything is there, verified under the other key; what waited in an outbox goes there."""
    async with two_servers(tmp_path) as (here, there):
        await make_home(here, tmp_path)
        assert await carry(tmp_path, there) > 0
        async with open_device(tmp_path / "phone", device_url="ws://127.0.0.1:1/v1/connect") as phone:
            await phone.publish(STREAM, b"written on the way")
        for name in DEVICES:
            await move_device(tmp_path / name, await named(there))
        async with open_device(tmp_path / "phone") as phone, open_device(tmp_path / "laptop") as laptop:
            events = await laptop.subscribe(STREAM, after=2)
            assert (await anext(events)).data == b"written on the way"
            assert phone.identity.server_key == laptop.identity.server_key == there.started.server_key


async def test_moved_devices_hear_of_each_other(tmp_path: Path) -> None:
    """At the other server, live, from the first event on; the first one is not there any more."""
    async with two_servers(tmp_path) as (here, there):
        await make_home(here, tmp_path)
        await carry(tmp_path, there)
        for name in DEVICES:
            await move_device(tmp_path / name, await named(there))
        here.stop.set()
        async with open_device(tmp_path / "laptop") as laptop, open_device(tmp_path / "phone") as phone:
            await write(phone, b"there")
            await write(laptop, b"too")
            texts = [b"from the laptop", b"from the phone", b"there", b"too"]
            assert await read(laptop) == await read(phone) == texts
            assert await laptop.alarms() == await phone.alarms() == []
            await laptop.enrol(tmp_path / "tablet", "tablet")
            async with open_device(tmp_path / "tablet") as tablet:
                assert await read(tablet) == texts


async def test_a_device_stays_where_more_is_known(tmp_path: Path) -> None:
    """An account file that is older than the device loses what came after it; a newer one brings it."""
    async with two_servers(tmp_path) as (here, there):
        await make_home(here, tmp_path)
        await carry(tmp_path, there)
        async with open_device(tmp_path / "phone") as phone:
            await write(phone, b"after the file")
        for _ in range(2):
            with pytest.raises(ClientError, match="notes up to #2, and this device knows of #3: export the account"):
                await move_device(tmp_path / "phone", await named(there))
        store = open_store(tmp_path / "phone")
        assert store.identity.server_key == here.started.server_key
        store.close()
        assert await carry(tmp_path, there) == 1
        await move_device(tmp_path / "phone", await named(there))
        async with open_device(tmp_path / "phone") as phone:
            assert (await read(phone))[2:] == [b"after the file"]


async def test_a_device_does_not_follow_another_history(tmp_path: Path) -> None:
    """What the other server has from another device is not what this one saw."""
    async with two_servers(tmp_path) as (here, there):
        await make_home(here, tmp_path)
        await carry(tmp_path, there)
        await move_device(tmp_path / "laptop", await named(there))
        async with open_device(tmp_path / "laptop") as laptop, open_device(tmp_path / "phone") as phone:
            await write(laptop, b"there", b"and there")
            await write(phone, b"here")
        with pytest.raises(VerificationError, match="another history"):
            await move_device(tmp_path / "phone", await named(there))


async def test_a_device_that_has_not_handed_in_what_a_restore_took_is_told_to(tmp_path: Path) -> None:
    """The other server lacks it too, and a newer file alone would not bring it."""
    async with two_servers(tmp_path) as (here, there):
        await make_home(here, tmp_path)
        await carry(tmp_path, there)
        async with open_device(tmp_path / "phone") as phone:
            await write(phone, b"lost by a restore")
        with closing(open_store(tmp_path / "phone")) as store, store.transaction():
            store.raise_epoch(1)
        with pytest.raises(ClientError, match="connect the device where it was until it has handed in what a restore"):
            await move_device(tmp_path / "phone", await named(there))


async def test_a_server_that_was_restored_once_is_as_good(tmp_path: Path) -> None:
    """Its restore took nothing of the account, which came later: devices go on, and nothing may go back."""
    database = MemoryDatabase()
    begin_epoch(database, at_least=SystemClock().now_ms())
    with trio.fail_after(60):
        async with (
            running_server(tmp_path / "here") as here,
            running_server(
                tmp_path / "there", storage=memory_storage(database), settings={"admin_api_key": KEY}
            ) as there,
        ):
            await make_home(here, tmp_path)
            await carry(tmp_path, there)
            for name in DEVICES:
                await move_device(tmp_path / name, await named(there))
            async with open_device(tmp_path / "laptop") as laptop, open_device(tmp_path / "phone") as phone:
                await write(phone, b"there")
                events = await laptop.subscribe(STREAM, after=2)
                assert (await anext(events)).data == b"there"
                assert await laptop.alarms() == await phone.alarms() == []
                assert await laptop.restorations() == []


async def test_a_device_that_read_less_than_is_left_is_told_to_read_on(tmp_path: Path) -> None:
    """What joins its events to those that are left is gone on the other server."""
    database = MemoryDatabase()
    with trio.fail_after(60):
        async with (
            running_server(tmp_path / "here") as here,
            running_server(
                tmp_path / "there", storage=memory_storage(database), settings={"admin_api_key": KEY}
            ) as there,
        ):
            await make_home(here, tmp_path)
            async with open_device(tmp_path / "laptop") as laptop:
                await write(laptop, b"3", b"4")
            await carry(tmp_path, there)
            retention = MemoryRetention(database)
            rules, now_ms = RetentionRules(1), SystemClock().now_ms() + 9 * DAY_MS
            while await retention.advance_tail(now_ms=now_ms, rules=rules, events_max=9) is not None:
                pass
            with pytest.raises(ClientError, match="only later events of notes left, and this device has read up to #2"):
                await move_device(tmp_path / "phone", await named(there))
            async with open_device(tmp_path / "phone") as phone:
                await read(phone)
            await move_device(tmp_path / "phone", await named(there))
            async with open_device(tmp_path / "phone") as phone:
                await write(phone, b"5")


async def test_a_server_that_does_not_have_the_account_is_not_gone_to(tmp_path: Path) -> None:
    """Nor one with another key than the one that was named."""
    async with two_servers(tmp_path) as (here, there):
        await make_home(here, tmp_path)
        with pytest.raises(ClientError, match="does not know"):
            await move_device(tmp_path / "phone", await named(there))
        wrong = Server(there.device_url.partition("#")[0], there.rest_url, here.started.server_key)
        with pytest.raises(ClientError, match="another server than the one"):
            await move_device(tmp_path / "phone", wrong)


async def test_the_recovery_file_follows_too(tmp_path: Path) -> None:
    """Where every device is lost after the move; its user names the key."""
    async with two_servers(tmp_path) as (here, there):
        await make_home(here, tmp_path)
        await carry(tmp_path, there)
        recover_there = partial(
            recover,
            tmp_path / "recovery",
            PASSPHRASE,
            path=tmp_path / "new",
            name="new",
            new_recovery_path=tmp_path / "recovery-new",
            server=await named(there),
            cost=CHEAP,
        )
        with pytest.raises(ClientError, match="another server than the one"):
            await recover_there()
        await recover_there(moved=True)
        async with open_device(tmp_path / "new") as new:
            assert new.identity.server_key == there.started.server_key
            assert await read(new) == [b"from the laptop", b"from the phone"]
