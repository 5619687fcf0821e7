"""A server restored from an old backup, over real sockets and a real database: what each device sees."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
import pytest
import trio

from keepstep.client import EventsRewound, ProtocolError, SessionNeeded, VerificationError, find_server, open_device
from keepstep.client.notices import NoticeKind
from keepstep.client.restdevice import open_rest_device
from keepstep.errors import StartupError
from keepstep.postgres import restores
from keepstep.restoring import begin_epoch
from keepstep.runtime import SystemClock
from tests.e2e.test_devices import STREAM, new_user, publish, read
from tests.support.server import running_server

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from keepstep.client import Device
    from tests.support.database import DatabaseServer

PATIENCE_S = 60.0
"""So that a device that never heals fails the test."""
FAST = {"head_interval_s": 1}


class Backup:
    """A copy of a database, which takes its place again."""

    def __init__(self, url: str, server: DatabaseServer) -> None:
        self._url = url
        self._admin_url = server.admin_url
        self._name = urlsplit(url).path.removeprefix("/")

    def take(self) -> None:
        """Copy the database as it is; connections are cut."""
        self._administer(
            f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{self._name}'",  # noqa: S608
            f"CREATE DATABASE {self._name}_copy TEMPLATE {self._name}",
            f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS true",
        )

    def put_back(self) -> None:
        """Set the database back to the copy."""
        self._administer(
            f"DROP DATABASE {self._name} WITH (FORCE)",
            f"CREATE DATABASE {self._name} TEMPLATE {self._name}_copy OWNER {urlsplit(self._url).username}",
            f"DROP DATABASE {self._name}_copy",
        )

    def _administer(self, *statements: str) -> None:
        with psycopg.connect(self._admin_url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)


@pytest.fixture
def backup(database_url: str, database_server: DatabaseServer) -> Backup:
    """Of the test's database."""
    return Backup(database_url, database_server)


async def until_healed(device: Device) -> None:
    """Wait until a device tells that it has dealt with what a restore took."""
    async for notice in device.notices():
        if notice.kind is NoticeKind.RESTORED:
            return


async def show(drill: str, **devices: Device) -> None:
    """Print what each device saw of a drill, as docs/how-to/after-a-restore.md shows it."""
    for name, device in devices.items():
        saw = [
            f"{each.stream} set back: {each.handed_in} handed in, {each.anew} anew, {each.lost} lost; as it was up to "
            f"{each.common_seq} of {each.held_seq}"
            for each in await device.restorations()
        ]
        saw += [f"alarm: {alarm.reason}" for alarm in await device.alarms()]
        print(f"{drill}: {name} saw {'; '.join(saw) or 'nothing but its events'}")


async def numbers(device: Device, count: int) -> Sequence[int]:
    """Everything in the stream, in order."""
    with trio.fail_after(PATIENCE_S):
        return await read(device, count)


async def test_what_devices_hold_comes_back_to_its_place(
    database_url: str, data_dir: Path, tmp_path: Path, backup: Backup
) -> None:
    """Same seqs, same chain; nothing is lost, nobody alarms, and each device says what came of it."""
    phone_path = tmp_path / "phone.sqlite3"
    async with running_server(data_dir, database_url=database_url, settings=FAST) as server:
        path = await new_user(await find_server(server.rest_url), tmp_path)
        async with open_device(path) as laptop:
            await laptop.enrol(phone_path, "phone")
            await publish(laptop, 1, 10)
            await trio.to_thread.run_sync(backup.take)
            await publish(laptop, 11, 20)
            await laptop.wait_until_caught_up(STREAM)
            before = laptop.position(STREAM)
            async with open_device(phone_path) as phone:
                assert await read(phone, 20) == list(range(1, 21))
                await phone.wait_until_caught_up(STREAM)
    await trio.to_thread.run_sync(backup.put_back)
    begun = await begin_epoch(database_url, data_dir, now_ms=SystemClock().now_ms())
    assert begun.unplaced == ()

    async with (
        running_server(data_dir, database_url=database_url, settings=FAST) as server,
        open_device(path, device_url=server.device_url) as laptop,
        open_device(phone_path, device_url=server.device_url) as phone,
    ):
        with trio.fail_after(PATIENCE_S):
            await publish(laptop, 21, 21)
        assert await numbers(phone, 21) == list(range(1, 22))
        assert await numbers(laptop, 21) == list(range(1, 22))
        assert laptop.position(STREAM).seq == before.seq + 1
        assert await laptop.alarms() == await phone.alarms() == []
        await show("old backup of the server", laptop=laptop, phone=phone)
        found = {each.stream: each for device in (laptop, phone) for each in await device.restorations()}
        assert (found[STREAM].held_seq, found[STREAM].anew, found[STREAM].lost) == (20, 0, 0)
        told = [*await laptop.warnings(), *await phone.warnings()]
        assert NoticeKind.RESTORED in {notice.kind for notice in told}


async def test_without_a_signed_rewind_every_device_calls_it_out(
    database_url: str, data_dir: Path, tmp_path: Path, backup: Backup
) -> None:
    """A server that goes back and does not say so is a lying one."""
    async with running_server(data_dir, database_url=database_url) as server:
        path = await new_user(await find_server(server.rest_url), tmp_path)
        async with open_device(path) as laptop:
            await publish(laptop, 1, 10)
            await trio.to_thread.run_sync(backup.take)
            await publish(laptop, 11, 20)
            assert await read(laptop, 20) == list(range(1, 21))
    await trio.to_thread.run_sync(backup.put_back)

    async with (
        running_server(data_dir, database_url=database_url) as server,
        open_device(path, device_url=server.device_url) as laptop,
    ):
        with trio.fail_after(PATIENCE_S), pytest.raises(VerificationError):
            async for _ in await laptop.subscribe(STREAM, after=20):
                pass
        assert [alarm.stream for alarm in await laptop.alarms()] == [STREAM]


async def test_a_restore_is_not_declared_beside_a_running_server(
    database_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would go on in the old epoch; nothing is changed. Once it is stopped, it works."""
    monkeypatch.setattr(restores, "SERVER_GONE_S", 0.0)
    async with running_server(data_dir, database_url=database_url):
        with pytest.raises(StartupError, match="stop it first"):
            await begin_epoch(database_url, data_dir, now_ms=SystemClock().now_ms())
    monkeypatch.undo()
    begun = await begin_epoch(database_url, data_dir, now_ms=SystemClock().now_ms())
    assert begun.epoch > 0


async def test_a_restore_does_not_make_a_stolen_device_live_again(
    database_url: str, data_dir: Path, tmp_path: Path, backup: Backup
) -> None:
    """The journal, which is outside the database, puts its revocation back."""
    phone_path = tmp_path / "phone.sqlite3"
    async with running_server(data_dir, database_url=database_url) as server:
        path = await new_user(await find_server(server.rest_url), tmp_path)
        async with open_device(path) as laptop:
            await laptop.enrol(phone_path, "phone")
            await trio.to_thread.run_sync(backup.take)
            await laptop.revoke("phone")
    await trio.to_thread.run_sync(backup.put_back)
    begun = await begin_epoch(database_url, data_dir, now_ms=SystemClock().now_ms())
    assert begun.replayed >= 1
    again = await begin_epoch(database_url, data_dir, now_ms=SystemClock().now_ms())
    assert again.epoch > begun.epoch
    assert again.replayed == 0

    async with (
        running_server(data_dir, database_url=database_url) as server,
        open_device(phone_path, device_url=server.device_url) as phone,
    ):
        with trio.fail_after(PATIENCE_S), pytest.raises(ProtocolError, match="revoked"):
            await phone.wait_until_caught_up(STREAM)


async def test_a_device_is_restored_from_an_old_copy(database_url: str, data_dir: Path, tmp_path: Path) -> None:
    """It goes on after what it had written, and alarms its user; the other device sees events in order, no fault."""
    phone_path, old_path = tmp_path / "phone.sqlite3", tmp_path / "old.sqlite3"
    async with running_server(data_dir, database_url=database_url) as server:
        path = await new_user(await find_server(server.rest_url), tmp_path)
        async with open_device(path) as laptop:
            await laptop.enrol(phone_path, "phone")
            await publish(laptop, 1, 10)
        shutil.copy(path, old_path)
        async with open_device(path) as laptop:
            await publish(laptop, 11, 15)
        shutil.copy(old_path, path)
        async with open_device(phone_path) as phone, open_device(path) as laptop:
            with trio.fail_after(PATIENCE_S):
                await publish(laptop, 16, 16)
            assert await numbers(phone, 16) == list(range(1, 17))
            assert await numbers(laptop, 16) == list(range(1, 17))
            await show("old copy of a device", laptop=laptop, phone=phone)
            assert ["set back" in alarm.reason for alarm in await laptop.alarms()] == [True]
            assert await phone.alarms() == []


async def test_a_device_and_its_server_are_both_restored(
    database_url: str, data_dir: Path, tmp_path: Path, backup: Backup
) -> None:
    """The device's old file knows less than the other device, which brings back everything."""
    phone_path, old_path = tmp_path / "phone.sqlite3", tmp_path / "old.sqlite3"
    async with running_server(data_dir, database_url=database_url, settings=FAST) as server:
        path = await new_user(await find_server(server.rest_url), tmp_path)
        async with open_device(path) as laptop:
            await laptop.enrol(phone_path, "phone")
            await publish(laptop, 1, 10)
            await laptop.wait_until_caught_up(STREAM)
        shutil.copy(path, old_path)
        async with open_device(path) as laptop, open_device(phone_path) as phone:
            await publish(laptop, 11, 15)
            await trio.to_thread.run_sync(backup.take)
            await laptop.wait_until_connected()
            await publish(laptop, 16, 20)
            assert await read(phone, 20) == list(range(1, 21))
            await phone.wait_until_caught_up(STREAM)
    await trio.to_thread.run_sync(backup.put_back)
    await begin_epoch(database_url, data_dir, now_ms=SystemClock().now_ms())
    shutil.copy(old_path, path)

    async with (
        running_server(data_dir, database_url=database_url, settings=FAST) as server,
        open_device(phone_path, device_url=server.device_url) as phone,
        open_device(path, device_url=server.device_url) as laptop,
    ):
        with trio.fail_after(PATIENCE_S):
            await until_healed(phone)
            await publish(laptop, 21, 21)
        assert await numbers(phone, 21) == list(range(1, 22))
        assert await numbers(laptop, 21) == list(range(1, 22))
        await show("both at once", laptop=laptop, phone=phone)
        assert await phone.alarms() == []
        (told,) = [each for each in await phone.restorations() if each.stream == STREAM]
        assert (told.common_seq, told.held_seq, told.handed_in, told.anew, told.lost) == (20, 20, 5, 0, 0)


async def test_a_device_over_rest_says_what_to_do_after_a_restore(
    database_url: str, data_dir: Path, tmp_path: Path, backup: Backup
) -> None:
    """Others are where its events were: it stops and says so; opened with a session once, it goes on."""
    phone_path, old_path = tmp_path / "phone.sqlite3", tmp_path / "old.sqlite3"
    async with running_server(data_dir, database_url=database_url) as server:
        path = await new_user(await find_server(server.rest_url), tmp_path)
        async with open_device(path) as laptop:
            await laptop.enrol(phone_path, "phone")
            await publish(laptop, 1, 10)
        await trio.to_thread.run_sync(backup.take)
        shutil.copy(path, old_path)
        async with open_device(path) as laptop:
            await publish(laptop, 11, 15)
        async with open_rest_device(phone_path, rest_url=server.rest_url) as phone:
            assert len(await phone.read(STREAM)) == 15
    await trio.to_thread.run_sync(backup.put_back)
    await begin_epoch(database_url, data_dir, now_ms=SystemClock().now_ms())

    async with running_server(data_dir, database_url=database_url) as server:
        async with open_device(old_path, device_url=server.device_url) as laptop:
            await laptop.wait_until_connected()
            with trio.fail_after(PATIENCE_S):
                await laptop.end_healing()
                await publish(laptop, 100, 106)
        async with open_rest_device(phone_path, rest_url=server.rest_url) as phone:
            with pytest.raises(SessionNeeded, match="open_device") as caught:
                await phone.read(STREAM)
            assert (caught.value.stream, caught.value.reason) == (STREAM, "restored")
            print(f"a device over REST: phone saw {caught.value}")
        async with open_device(phone_path, device_url=server.device_url) as again:
            with trio.fail_after(PATIENCE_S):
                await until_healed(again)
            assert await again.alarms() == []
        async with open_rest_device(phone_path, rest_url=server.rest_url) as phone:
            read_again = [int(event.data or b"-1") for event in await phone.read(STREAM)]
            assert read_again[:17] == [*range(1, 11), *range(100, 107)]


async def test_what_has_lost_its_place_is_published_again(
    database_url: str, data_dir: Path, tmp_path: Path, backup: Backup
) -> None:
    """A device that comes when the time is over finds other events there: it goes back, tells so, and says it anew."""
    phone_path = tmp_path / "phone.sqlite3"
    async with running_server(data_dir, database_url=database_url) as server:
        path = await new_user(await find_server(server.rest_url), tmp_path)
        async with open_device(path) as laptop:
            await laptop.enrol(phone_path, "phone")
            await publish(laptop, 1, 10)
        await trio.to_thread.run_sync(backup.take)
        async with open_device(phone_path) as phone:
            await phone.wait_until_ready()
            await publish(phone, 11, 15)
            subscription = await phone.subscribe(STREAM, cursor="app")
            given = [await anext(subscription) for _ in range(15)]
            await subscription.commit(given[-1].seq, state=b"fifteen")
    await trio.to_thread.run_sync(backup.put_back)
    await begin_epoch(database_url, data_dir, now_ms=SystemClock().now_ms())

    async with (
        running_server(data_dir, database_url=database_url) as server,
        open_device(path, device_url=server.device_url) as laptop,
    ):
        await laptop.wait_until_connected()
        with trio.fail_after(PATIENCE_S):
            await laptop.end_healing()
            await publish(laptop, 100, 101)
            async with open_device(phone_path, device_url=server.device_url) as phone:
                await until_healed(phone)
                await publish(phone, 16, 16)
                expected = [*range(1, 11), 100, 101, *range(11, 17)]
                assert await read(laptop, 18) == expected
                assert await read(phone, 18) == expected
                (restoration,) = [each for each in await phone.restorations() if each.stream == STREAM]
                assert (restoration.common_seq, restoration.held_seq) == (10, 15)
                assert (restoration.handed_in, restoration.anew, restoration.lost) == (0, 5, 0)
                subscription = await phone.subscribe(STREAM, cursor="app")
                assert subscription.state == b"fifteen"
                with pytest.raises(EventsRewound) as caught:
                    await anext(subscription)
                assert (caught.value.seq, caught.value.last_seq) == (10, 15)
                assert (await anext(subscription)).data == b"100"
                assert await phone.alarms() == await laptop.alarms() == []


async def test_a_device_that_only_writes_goes_on_after_a_restore(
    database_url: str, data_dir: Path, tmp_path: Path, backup: Backup
) -> None:
    """It kept what it wrote, for no backup had it: that comes back as it was signed, and its user is told of it."""
    async with running_server(data_dir, database_url=database_url) as server:
        path = await new_user(await find_server(server.rest_url), tmp_path)
        async with open_device(path) as laptop:
            await publish(laptop, 1, 10)
        await trio.to_thread.run_sync(backup.take)
        async with open_device(path) as laptop:
            await publish(laptop, 11, 15)
    await trio.to_thread.run_sync(backup.put_back)
    await begin_epoch(database_url, data_dir, now_ms=SystemClock().now_ms())

    async with (
        running_server(data_dir, database_url=database_url) as server,
        open_device(path, device_url=server.device_url) as laptop,
    ):
        with trio.fail_after(PATIENCE_S):
            await until_healed(laptop)
            await publish(laptop, 16, 17)
            (told,) = await laptop.restorations()
            assert (told.common_seq, told.held_seq, told.handed_in, told.anew, told.lost) == (10, 15, 0, 5, 0)
            assert await read(laptop, 17) == list(range(1, 18))
        assert await laptop.alarms() == []
