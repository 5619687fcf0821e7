"""A device is lost: revoked over real sockets, by a real server; what it may still do, and what the others see."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from keepstep.client import ClientError, Device, ProtocolError, create_user, find_server, open_device
from keepstep.client.environment import SYSTEM
from keepstep.client.keys import generate_content_key, recovery_box, wrap
from keepstep.client.notices import NoticeKind
from keepstep.client.outbox import Draft
from keepstep.client.recovering import recover
from keepstep.client.store import open_store
from keepstep.model import KEYS_STREAM, Capability, Kind
from keepstep.protocol.account_state import EndReason
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.server import RunningServer, running_server

STREAM = "notes"
MANAGES = Capability.PUBLISH | Capability.SUBSCRIBE | Capability.MANAGE


@dataclass
class Home:
    """A user with a laptop that manages and a phone."""

    server: RunningServer
    directory: Path

    @property
    def laptop_path(self) -> Path:
        """The first device's file."""
        return self.directory / "laptop.sqlite3"

    @property
    def phone_path(self) -> Path:
        """The second device's file."""
        return self.directory / "phone.sqlite3"

    @property
    def recovery_path(self) -> Path:
        """The recovery file."""
        return self.directory / "recovery.txt"


@asynccontextmanager
async def home(data_dir: Path, directory: Path, database_url: str | None = None) -> AsyncIterator[Home]:
    """A server, in memory where there is no database, and a user with one device."""
    async with running_server(data_dir, database_url=database_url) as server:
        made = Home(server, directory)
        await create_user(
            await find_server(server.rest_url),
            path=made.laptop_path,
            name="laptop",
            recovery_path=made.recovery_path,
            passphrase=PASSPHRASE,
            cost=CHEAP,
        )
        yield made


async def publish(device: Device, *texts: bytes) -> None:
    """Publish, and wait until the server has it."""
    for publication in await device.publish_many(STREAM, texts):
        await publication.accepted()


async def read(device: Device, count: int) -> list[tuple[bytes | None, str | None]]:
    """The first events: data and problem."""
    subscription = await device.subscribe(STREAM)
    events = [await anext(subscription) for _ in range(count)]
    return [(event.data, event.problem) for event in events]


async def notice(device: Device, kind: NoticeKind) -> bytes | None:
    """Wait for a notice of a kind; which device it is about."""
    async for each in device.notices():
        if each.kind is kind:
            return each.device_id
    raise AssertionError


async def until_ended(device: Device) -> None:
    """Wait for the reason why there is no further session."""
    await device.wait_until_disconnected()
    await device.wait_until_connected()


async def test_a_revoked_device_is_shut_out_and_wiped_and_the_others_go_on(
    database_url: str, data_dir: Path, tmp_path: Path
) -> None:
    """Its session ends, its file has no keys any more, what it wrote stays, and what is written later is not for it."""
    with trio.fail_after(60):
        async with home(data_dir, tmp_path, database_url) as here, open_device(here.laptop_path) as laptop:
            await laptop.enrol(here.phone_path, "phone")
            await laptop.enrol(tmp_path / "tablet.sqlite3", "tablet")
            async with open_device(here.phone_path) as phone, open_device(tmp_path / "tablet.sqlite3") as tablet:
                await phone.wait_until_ready()
                await publish(phone, b"from the phone")
                stolen = phone.identity.device_id
                await phone.wait_until_caught_up(STREAM)
                await laptop.revoke("phone")
                with pytest.raises(ProtocolError, match="revoked"):
                    await until_ended(phone)
                assert await notice(tablet, NoticeKind.REVOKED) == stolen
                assert await laptop.warnings() == []
                await tablet.wait_for_content_epoch(4)
                await publish(tablet, b"not for the phone")
                assert await read(laptop, 2) == [(b"from the phone", None), (b"not for the phone", None)]
                ended = {each.name: each.ended for each in await laptop.devices() if each.ended is not None}
                assert list(ended) == ["phone"]
            with pytest.raises(ClientError, match="phone was revoked"):
                async with open_device(here.phone_path):
                    pass
            store = open_store(here.phone_path)
            assert (store.identity.device_secret, store.content_keys()) == (bytes(32), [])
            store.close()


async def test_a_device_that_is_away_learns_of_its_end_when_it_comes_back(data_dir: Path, tmp_path: Path) -> None:
    """Its key still proves who it is: it is shown the signed revocation in place of a session, and wipes itself."""
    with trio.fail_after(60):
        async with home(data_dir, tmp_path) as here, open_device(here.laptop_path) as laptop:
            await laptop.enrol(here.phone_path, "phone")
            async with open_device(here.phone_path) as phone:
                await phone.wait_until_ready()
            await laptop.revoke("phone")
            async with open_device(here.phone_path) as phone:
                with pytest.raises(ProtocolError, match="revoked"):
                    await phone.wait_until_connected()
            with pytest.raises(ClientError, match="phone was revoked"):
                async with open_device(here.phone_path):
                    pass


async def poison(stolen: Device) -> None:
    """Hand out a content key that is to be used for ever, also to whoever recovers."""
    key = generate_content_key(SYSTEM, after=2**40)
    receivers = dict([recovery_box(stolen.identity.user_key)])
    (publication,) = await stolen._publish([Draft(KEYS_STREAM, wrap(key, receivers), kind=Kind.KEYS)])
    await publication.accepted()


async def test_recovery_locks_out_a_thief_who_acted_first(database_url: str, data_dir: Path, tmp_path: Path) -> None:
    """A stolen device that manages revokes the owner's: the recovery file ends it, and reads all there ever was."""
    new_path = tmp_path / "new.sqlite3"
    with trio.fail_after(60):
        async with home(data_dir, tmp_path, database_url) as here:
            async with open_device(here.laptop_path) as laptop:
                await laptop.enrol(here.phone_path, "phone", capabilities=MANAGES)
                await publish(laptop, b"before")
                async with open_device(here.phone_path) as stolen:
                    await stolen.wait_until_ready()
                    await stolen.revoke("laptop")
                    await stolen.wait_for_content_epoch(3)
                    await publish(stolen, b"by the thief")
                    await poison(stolen)
            async with open_device(here.phone_path) as stolen:
                await stolen.wait_until_connected()
                await recover_here(here, new_path)
                with pytest.raises(ProtocolError, match="revoked"):
                    await until_ended(stolen)
            async with open_device(new_path) as new:
                assert await read(new, 2) == [(b"before", None), (b"by the thief", None)]
                assert new._keyring.current().after == 4
                await new.enrol(tmp_path / "again.sqlite3", "again")
                await publish(new, b"after")
            with pytest.raises(ClientError, match="void"):
                await recover_here(here, tmp_path / "second.sqlite3")
            assert not (tmp_path / "second.sqlite3").exists()


async def test_after_losing_every_device_all_history_is_read(data_dir: Path, tmp_path: Path) -> None:
    """Content keys that are newer than the recovery file reach it through ``$keys``."""
    with trio.fail_after(60):
        async with home(data_dir, tmp_path) as here:
            async with open_device(here.laptop_path) as laptop:
                await publish(laptop, b"first")
                await laptop.enrol(here.phone_path, "phone")
                await laptop.revoke("phone")
                await laptop.wait_for_content_epoch(3)
                await publish(laptop, b"under a newer key")
            here.laptop_path.unlink()
            await recover_here(here, tmp_path / "new.sqlite3")
            async with open_device(tmp_path / "new.sqlite3") as new:
                assert await read(new, 2) == [(b"first", None), (b"under a newer key", None)]
                ended = [each.ended for each in await new.devices()]
                assert ended == [EndReason.REVOKED, EndReason.REVOKED, None]
            here.recovery_path.write_bytes((tmp_path / "new.txt").read_bytes())
            (tmp_path / "new.sqlite3").unlink()
            (tmp_path / "new.txt").unlink()
            await recover_here(here, tmp_path / "new.sqlite3")
            async with open_device(tmp_path / "new.sqlite3") as newest:
                assert await read(newest, 2) == [(b"first", None), (b"under a newer key", None)]


async def test_a_device_that_is_kept_stays(data_dir: Path, tmp_path: Path) -> None:
    """What the recovery names goes on as it is, also where a thief had revoked it."""
    with trio.fail_after(60):
        async with home(data_dir, tmp_path) as here:
            async with open_device(here.laptop_path) as laptop:
                await laptop.enrol(here.phone_path, "phone", capabilities=MANAGES)
                await laptop.enrol(tmp_path / "tablet.sqlite3", "tablet")
                await publish(laptop, b"before")
                kept = laptop.identity.device_id
            async with open_device(tmp_path / "tablet.sqlite3") as tablet:
                async with open_device(here.phone_path) as stolen:
                    await stolen.wait_until_ready()
                    assert await read(stolen, 1) == [(b"before", None)]
                    await stolen.revoke("laptop")
                assert await notice(tablet, NoticeKind.REVOKED) == kept
                await recover_here(here, tmp_path / "new.sqlite3", kept, tablet.identity.device_id)
                assert await notice(tablet, NoticeKind.RETURNED) == kept
                assert await notice(tablet, NoticeKind.ENDED_BY_RECOVERY) == stolen.identity.device_id
            async with open_device(here.laptop_path) as laptop, open_device(tmp_path / "new.sqlite3") as new:
                assert await notice(laptop, NoticeKind.ROTATED) == new.identity.device_id
                await laptop.wait_for_new_epoch()
                await publish(laptop, b"after")
                assert await read(new, 2) == [(b"before", None), (b"after", None)]


async def recover_here(here: Home, path: Path, *keep: bytes) -> None:
    """Use the recovery file."""
    await recover(
        here.recovery_path,
        PASSPHRASE,
        path=path,
        name=path.stem,
        new_recovery_path=path.with_suffix(".txt"),
        keep=keep,
        server=await find_server(here.server.rest_url),
        cost=CHEAP,
    )


async def test_a_recovery_that_was_interrupted_goes_on(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same call again: content keys that only the old file opens still come over."""
    new_path = tmp_path / "new.sqlite3"

    async def interrupt(_device: Device, _root_secret: bytes) -> None:
        raise ClientError("interrupted")

    with trio.fail_after(60):
        async with home(data_dir, tmp_path) as here:
            async with open_device(here.laptop_path) as laptop:
                await laptop.enrol(here.phone_path, "phone")
                await laptop.revoke("phone")
                await publish(laptop, b"under a newer key")
            with monkeypatch.context() as patched:
                patched.setattr(Device, "finish_recovery", interrupt)
                with pytest.raises(ClientError, match="interrupted"):
                    await recover_here(here, new_path)
            await recover_here(here, new_path)
            async with open_device(new_path) as new:
                assert await read(new, 1) == [(b"under a newer key", None)]


async def test_a_recovery_that_did_not_find_the_server_goes_on_elsewhere(data_dir: Path, tmp_path: Path) -> None:
    """The recovery file guesses where REST is; the same call with the right address goes on."""
    new_path = tmp_path / "new.sqlite3"
    with trio.fail_after(60):
        async with home(data_dir, tmp_path) as here:
            with pytest.raises(ClientError):
                await recover(
                    here.recovery_path,
                    PASSPHRASE,
                    path=new_path,
                    name="new",
                    new_recovery_path=tmp_path / "new.txt",
                    cost=CHEAP,
                )
            await recover_here(here, new_path)
            async with open_device(new_path) as new:
                await publish(new, b"here")


async def test_what_a_revoked_device_wrote_where_nobody_else_reads_stays(data_dir: Path, tmp_path: Path) -> None:
    """The revoking device reads such streams once, also one of which it has not read the beginning."""
    with trio.fail_after(60):
        async with home(data_dir, tmp_path) as here, open_device(here.laptop_path) as laptop:
            await laptop.enrol(here.phone_path, "phone")
            async with open_device(here.phone_path) as phone:
                await phone.wait_until_ready()
                for text in (b"1", b"2"):
                    await (await phone.publish("journal", text)).accepted()
                    await (await phone.publish(STREAM, text)).accepted()
                await laptop.subscribe(STREAM, start="end")
                await laptop.wait_until_caught_up(STREAM)
            await laptop.revoke("phone")
            assert laptop.position("journal").seq == 0
            subscription = await laptop.subscribe("journal")
            events = [await anext(subscription) for _ in range(2)]
            assert [(event.data, event.problem) for event in events] == [(b"1", None), (b"2", None)]
            await recover_here(here, tmp_path / "new.sqlite3")
            async with open_device(tmp_path / "new.sqlite3") as new:
                assert await read(new, 2) == [(b"1", None), (b"2", None)]


async def test_a_recovery_does_not_write_over_files(data_dir: Path, tmp_path: Path) -> None:
    """Neither a device nor a recovery file that are somebody's; nor does it go to another server."""
    with trio.fail_after(60):
        async with home(data_dir, tmp_path) as here:
            with pytest.raises(ClientError, match=r"laptop\.sqlite3 exists already"):
                await recover_here(here, here.laptop_path)
            (tmp_path / "laptop.txt").write_bytes(here.recovery_path.read_bytes())
            with pytest.raises(ClientError, match=r"laptop\.sqlite3 exists already"):
                await recover_here(here, here.laptop_path)
            (tmp_path / "new.txt").touch()
            with pytest.raises(ClientError, match=r"new\.txt exists already"):
                await recover_here(here, tmp_path / "new.sqlite3")
            elsewhere = replace(await find_server(here.server.rest_url), server_key=bytes(32))
            with pytest.raises(ClientError, match="another server"):
                await recover(
                    here.recovery_path,
                    PASSPHRASE,
                    path=tmp_path / "other.sqlite3",
                    name="other",
                    new_recovery_path=tmp_path / "other.txt",
                    server=elsewhere,
                )
