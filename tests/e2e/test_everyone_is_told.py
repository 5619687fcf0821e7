"""Every device of a user is told of a new device and of a recovery, over real sockets, whether it was there or not."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import trio

from keepstep.client import Device, accept_link, find_server, offer_link, open_device
from keepstep.client.notices import NoticeKind
from keepstep.client.recovering import recover
from tests.e2e.test_lost_device import home, notice
from tests.support.device_server import CHEAP, PASSPHRASE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.test_lost_device import Home

HERE = ("laptop", "tablet")
"""Connected while it happens; the phone is away."""
ENDED = (NoticeKind.ENDED_BY_RECOVERY, NoticeKind.REVOKED)
"""A recovery ends devices, then revokes them one by one; who reads both at once is told of the second."""


async def link(laptop: Device, path: Path, name: str) -> None:
    """Make a device by linking, its code compared."""
    codes: list[str] = []
    shown = trio.Event()

    def show(code: str) -> None:
        codes.append(code)
        shown.set()

    async with offer_link(laptop) as offer, trio.open_nursery() as nursery:
        nursery.start_soon(partial(accept_link, offer.invitation, path=path, name=name, show_code=show))
        await offer.wait_for_device()
        await shown.wait()
        offer.check_code(codes[0])
        await offer.enrol()


async def three_devices(here: Home) -> None:
    """Beside the laptop a tablet and a phone, each of which has been connected."""
    async with open_device(here.laptop_path) as laptop:
        for name in ("tablet", "phone"):
            path = here.directory / f"{name}.sqlite3"
            await laptop.enrol(path, name)
            async with open_device(path) as device:
                await device.wait_until_ready()


async def about(device: Device, device_id: bytes, *kinds: NoticeKind) -> None:
    """Wait for a notice of these kinds about that device."""
    async for each in device.notices():
        if each.kind in kinds and each.device_id == device_id:
            return


async def test_every_device_is_told_of_a_linked_one(data_dir: Path, tmp_path: Path) -> None:
    """One that is connected, and one that comes later; the user of the one that linked it did so there."""
    with trio.fail_after(60):
        async with home(data_dir, tmp_path) as here:
            await three_devices(here)
            path = tmp_path / "watch.sqlite3"
            async with AsyncExitStack() as stack:
                laptop, tablet = [
                    await stack.enter_async_context(open_device(tmp_path / f"{name}.sqlite3")) for name in HERE
                ]
                await tablet.wait_until_ready()
                await link(laptop, path, "watch")
                async with open_device(path) as watch:
                    linked = watch.identity.device_id
                await about(tablet, linked, NoticeKind.ENROLLED)
                assert "watch" in {each.name for each in await laptop.devices()}
                assert await laptop.alarms() == await tablet.alarms() == []
            async with open_device(tmp_path / "phone.sqlite3") as phone:
                await about(phone, linked, NoticeKind.ENROLLED)
                assert await phone.alarms() == []


async def test_every_device_that_stays_is_told_of_a_recovery(data_dir: Path, tmp_path: Path) -> None:
    """Of the new device, and of the one that ended; also the one that comes later."""
    with trio.fail_after(60):
        async with home(data_dir, tmp_path) as here:
            await three_devices(here)
            ids = {}
            for name in (*HERE, "phone"):
                async with open_device(tmp_path / f"{name}.sqlite3") as device:
                    ids[name] = device.identity.device_id
            async with open_device(tmp_path / "tablet.sqlite3") as tablet:
                await tablet.wait_until_ready()
                await recover(
                    here.recovery_path,
                    PASSPHRASE,
                    path=tmp_path / "new.sqlite3",
                    name="new",
                    new_recovery_path=tmp_path / "recovery-new.txt",
                    keep=[ids["tablet"], ids["phone"]],
                    server=await find_server(here.server.rest_url),
                    cost=CHEAP,
                )
                async with open_device(tmp_path / "new.sqlite3") as new:
                    recovered = new.identity.device_id
                assert await notice(tablet, NoticeKind.ROTATED) == recovered
                await about(tablet, ids["laptop"], *ENDED)
            async with open_device(tmp_path / "phone.sqlite3") as phone:
                assert await notice(phone, NoticeKind.ROTATED) == recovered
                await about(phone, ids["laptop"], *ENDED)
                assert await phone.alarms() == []
