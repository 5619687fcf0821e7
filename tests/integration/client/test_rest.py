"""A device over REST alone, against a whole server over real sockets."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from keepstep.client import ClientError, blocking, open_device
from keepstep.client.restdevice import open_rest_device
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.server_thread import ServerAddress


@pytest.fixture
def laptop(address: ServerAddress, tmp_path: Path) -> Path:
    """The file of a new user's first device."""
    path = tmp_path / "laptop.sqlite3"
    blocking.create_user(
        blocking.find_server(address.rest_url),
        path=path,
        name="laptop",
        recovery_path=tmp_path / "recovery.txt",
        passphrase=PASSPHRASE,
        cost=CHEAP,
    )
    return path


def test_a_script_publishes_and_reads_over_rest(laptop: Path) -> None:
    """Without a WebSocket ever: receipts, order, content, and only what is new the next time."""
    with blocking.open_rest_device(laptop) as device:
        assert device.read("notes") == []
        assert device.publish("notes", b"1").seq == 1
        assert [receipt.seq for receipt in device.publish_many("notes", [b"2", b"3"])] == [2, 3]
        assert [(event.seq, event.data) for event in device.read("notes")] == [(1, b"1"), (2, b"2"), (3, b"3")]
        assert [event.data for event in device.read("notes", after=2)] == [b"3"]
        assert device.access_token() == device.access_token()
    with blocking.open_rest_device(laptop) as device:
        device.publish("notes", b"4")
        assert [event.data for event in device.read("notes", after=3)] == [b"4"]


async def test_a_device_goes_on_over_either_transport(laptop: Path, tmp_path: Path) -> None:
    """One outbox, one log: what was published over REST is there over WebSocket, and the other way round."""
    phone = tmp_path / "phone.sqlite3"
    async with open_rest_device(laptop) as device:
        await device.publish("notes", b"over REST")
    async with open_device(laptop) as device_online:
        await device_online.enrol(phone, "phone")
        await (await device_online.publish("notes", b"over WebSocket")).accepted()
    async with open_rest_device(phone) as device:
        assert [event.data for event in await device.read("notes")] == [b"over REST", b"over WebSocket"]
        await device.publish("notes", b"from the phone")
    async with open_rest_device(laptop) as device:
        assert [event.data for event in await device.read("notes", after=2)] == [b"from the phone"]


async def test_reading_waits_for_what_comes(laptop: Path, tmp_path: Path) -> None:
    """Up to the time that was asked for."""
    phone = tmp_path / "phone.sqlite3"
    async with open_device(laptop) as device:
        await device.enrol(phone, "phone")
        await (await device.publish("notes", b"first")).accepted()
    read: list[bytes | None] = []
    async with open_rest_device(laptop) as writer, open_rest_device(phone) as reader, trio.open_nursery() as nursery:

        async def wait() -> None:
            read.extend(event.data for event in await reader.read("notes", after=1, wait_s=20))

        await reader.read("notes")
        nursery.start_soon(wait)
        await writer.publish("notes", b"second")
    assert read == [b"second"]


async def test_signing_out_ends_the_tokens(laptop: Path) -> None:
    """The device signs in again with its key when it is used again."""
    async with open_rest_device(laptop) as device:
        await device.client.sign_out()
        token = await device.client.access_token()
        await device.client.sign_out()
        assert await device.client.access_token() != token
        assert (await device.client.request("GET", "/api/v1/account")).status == 200


async def test_another_address_than_the_servers_own_is_refused(laptop: Path, address: ServerAddress) -> None:
    """What a device signs names the address, and the message says what to do."""
    other = address.rest_url.replace("127.0.0.1", "localhost")
    async with open_rest_device(laptop, rest_url=other) as device:
        with pytest.raises(ClientError, match="KEEPSTEP_PUBLIC_REST_URL"):
            await device.read("notes")
    with pytest.raises(ClientError, match="not the address"):
        async with open_rest_device(laptop, rest_url="ftp://somewhere"):
            pass


async def test_a_name_that_is_none_is_refused(laptop: Path) -> None:
    """Before anything is asked."""
    async with open_rest_device(laptop) as device:
        with pytest.raises(ClientError, match="reserved"):
            await device.read("$devices")
        with pytest.raises(ClientError, match="reserved"):
            await device.publish("$keys", b"")
