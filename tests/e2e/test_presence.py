"""Presence and signals between devices over real sockets."""

from __future__ import annotations

from pathlib import Path

from keepstep.client import blocking, create_user, find_server, open_device
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.server import running_server
from tests.support.server_thread import server_in_thread


async def test_devices_see_each_other_and_talk(data_dir: Path, tmp_path: Path) -> None:
    """A state that one tells, a signal that the other sends, and that it has gone."""
    async with running_server(data_dir) as server:
        laptop_path, phone_path = tmp_path / "laptop.sqlite3", tmp_path / "phone.sqlite3"
        await create_user(
            await find_server(server.rest_url),
            path=laptop_path,
            name="laptop",
            recovery_path=tmp_path / "recovery.txt",
            passphrase=PASSPHRASE,
            cost=CHEAP,
        )
        async with open_device(laptop_path) as laptop:
            await laptop.enrol(phone_path, "phone")
            presences, signals = laptop.presences(), laptop.signals()
            async with open_device(phone_path) as phone:
                await phone.set_presence(b"reading")
                shown = await anext(presences)
                while shown.state != b"reading":
                    shown = await anext(presences)
                assert shown.device_id == phone.identity.device_id
                await anext(phone.presences())
                await phone.signal(laptop.identity.device_id, b"ring")
                assert (await anext(signals)).data == b"ring"
            assert not (await anext(presences)).connected


def test_a_script_sees_and_talks_too(data_dir: Path, tmp_path: Path) -> None:
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
            with blocking.open_device(phone_path) as phone:
                signals = phone.signals()
                laptop.set_presence(b"here")
                seen = next(laptop.presences())
                laptop.signal(seen.device_id, b"ring")
                assert next(signals).data == b"ring"
                assert list(phone.signals(quiet_s=0.05)) == []
