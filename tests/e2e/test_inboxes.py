"""Messages to one device over real sockets."""

from __future__ import annotations

from pathlib import Path

import pytest

from keepstep.client import ClientError, Device, blocking, create_user, find_server, open_device
from keepstep.memory import MemoryDatabase
from keepstep.model import Policy
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.server import memory_storage, running_server
from tests.support.server_thread import server_in_thread


async def make_user(rest_url: str, directory: Path) -> tuple[Path, Path, Path]:
    """The files of a laptop, a phone and a tablet of one user."""
    laptop, phone, tablet = (directory / f"{name}.sqlite3" for name in ("laptop", "phone", "tablet"))
    await create_user(
        await find_server(rest_url),
        path=laptop,
        name="laptop",
        recovery_path=directory / "recovery.txt",
        passphrase=PASSPHRASE,
        cost=CHEAP,
    )
    async with open_device(laptop) as device:
        await device.enrol(phone, "phone")
        await device.enrol(tablet, "tablet")
    for path in (phone, tablet):
        async with open_device(path) as device:
            await device.wait_until_ready()
            await device.wait_until_caught_up("$devices")
    return laptop, phone, tablet


async def read_inbox(device: Device, count: int) -> list[tuple[bytes | None, str | None]]:
    """What its inbox holds from the start on: data, and why there is none."""
    subscription = await device.subscribe(device.inbox_of())
    events = [await anext(subscription) for _ in range(count)]
    return [(event.data, event.problem) for event in events]


async def test_one_device_reads_what_another_wrote_for_it(data_dir: Path, tmp_path: Path) -> None:
    """What it has acknowledged is gone from the server, stays on its disk, and is no alarm where its disk is older."""
    database = MemoryDatabase()
    async with running_server(data_dir, storage=memory_storage(database)) as server:
        laptop_path, phone_path, tablet_path = await make_user(server.rest_url, tmp_path)
        older = phone_path.read_bytes()
        async with open_device(laptop_path) as laptop, open_device(phone_path) as phone:
            inbox = laptop.inbox_of("phone")
            assert inbox == phone.inbox_of()
            receipt = await (await laptop.publish(inbox, b"for the phone")).accepted()
            assert (receipt.seq, receipt.n) == (1, 1)
            assert await read_inbox(phone, 1) == [(b"for the phone", None)]
            await phone.wait_until_caught_up(inbox)  # its acknowledgement is on its way
        async with open_device(tablet_path) as tablet:
            with pytest.raises(ClientError, match="another device's inbox"):
                await tablet.subscribe(inbox)
            with pytest.raises(ClientError, match="another device's inbox"):
                await tablet.wait_until_caught_up(inbox)
            with pytest.raises(ClientError, match="no live device"):
                tablet.inbox_of("watch")
    # What was acknowledged is written down by now, and nothing of the past is in the next server's memory.
    storage = memory_storage(database)
    assert await storage.maintenance.empty_inboxes(now_ms=0, rows_max=10) == 1
    async with running_server(data_dir, storage=storage) as server:
        async with open_device(phone_path, device_url=server.device_url) as phone:
            await phone.wait_until_caught_up(inbox)
            assert await read_inbox(phone, 1) == [(b"for the phone", None)]
        phone_path.write_bytes(older)
        async with (
            open_device(phone_path, device_url=server.device_url) as phone,
            open_device(tablet_path, device_url=server.device_url) as tablet,
        ):
            await (await tablet.publish(inbox, b"from the tablet")).accepted()
            assert await read_inbox(phone, 2) == [(None, "acknowledged"), (b"from the tablet", None)]
            assert await phone.alarms() == []


async def test_a_writer_that_was_set_back_goes_on_after_itself(data_dir: Path, tmp_path: Path) -> None:
    """It cannot read the inbox, and still learns where its own numbers are."""
    async with running_server(data_dir) as server:
        laptop_path, phone_path, _ = await make_user(server.rest_url, tmp_path)
        older = laptop_path.read_bytes()
        async with open_device(laptop_path) as laptop:
            for publication in await laptop.publish_many(laptop.inbox_of("phone"), [b"one", b"two"]):
                await publication.accepted()
        laptop_path.write_bytes(older)
        async with open_device(laptop_path) as laptop:
            receipt = await (await laptop.publish(laptop.inbox_of("phone"), b"three")).accepted()
            assert (receipt.seq, receipt.n) == (3, 3)
            assert ["set back" in alarm.reason for alarm in await laptop.alarms()] == [True]
        async with open_device(phone_path) as phone:
            assert await read_inbox(phone, 3) == [(b"one", None), (b"two", None), (b"three", None)]


async def test_messages_of_a_revoked_device_are_withheld(data_dir: Path, tmp_path: Path) -> None:
    """Who revokes it cannot read the inbox, and so accepts none of them."""
    async with running_server(data_dir) as server:
        laptop_path, phone_path, tablet_path = await make_user(server.rest_url, tmp_path)
        async with open_device(tablet_path) as tablet:
            await (await tablet.publish(tablet.inbox_of("phone"), b"from the tablet")).accepted()
        async with open_device(phone_path) as phone:
            assert await read_inbox(phone, 1) == [(b"from the tablet", None)]
        async with open_device(laptop_path) as laptop:
            await laptop.revoke("tablet")
        async with open_device(phone_path) as phone:
            await phone.wait_until_caught_up("$devices")
            assert await read_inbox(phone, 1) == [(None, "after_revocation")]


async def test_inboxes_take_messages_only(data_dir: Path, tmp_path: Path) -> None:
    """No snapshots, no policy, no time to live, and no name that is no device's."""
    async with running_server(data_dir) as server:
        laptop_path, _, _ = await make_user(server.rest_url, tmp_path)
        async with open_device(laptop_path) as laptop:
            inbox = laptop.inbox_of("laptop")
            with pytest.raises(ClientError, match="no snapshots"):
                await laptop.subscribe(inbox, start="snapshot")
            with pytest.raises(ClientError, match="reserved"):
                await laptop.publish("$inbox/phone", b"for nobody")
            with pytest.raises(ClientError, match="no time to live"):
                await laptop.publish(inbox, b"for a minute", ttl_s=60)
            with pytest.raises(ClientError, match="reserved"):
                await laptop.set_policy(inbox, Policy.LATEST)


def test_a_script_writes_and_reads_too(data_dir: Path, tmp_path: Path) -> None:
    """The same calls, waiting."""
    laptop_path, phone_path = tmp_path / "laptop.sqlite3", tmp_path / "phone.sqlite3"
    with server_in_thread(data_dir) as server:
        blocking.create_user(
            blocking.find_server(server.rest_url),
            path=laptop_path,
            name="laptop",
            recovery_path=tmp_path / "recovery.txt",
            passphrase=PASSPHRASE,
            cost=CHEAP,
        )
        with blocking.open_device(laptop_path) as laptop:
            laptop.enrol(phone_path, "phone")
            laptop.publish(laptop.inbox_of("phone"), b"for the phone")
        with blocking.open_device(phone_path) as phone:
            inbox = phone.inbox_of()
            phone.wait_until_caught_up(inbox)
            assert [event.data for event in phone.events(inbox, quiet_s=0.05)] == [b"for the phone"]
