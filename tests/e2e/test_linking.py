"""Linking over real sockets and a real database, each side at another node of the server."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from keepstep.client import accept_link, create_user, find_server, offer_link, open_device
from keepstep.protocol.linking import parse_invitation
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.server import RunningServer, running_server


async def new_user(server: RunningServer, directory: Path) -> Path:
    """The file of a user's first device."""
    path = directory / "laptop.sqlite3"
    await create_user(
        await find_server(server.rest_url),
        path=path,
        name="laptop",
        recovery_path=directory / "recovery.txt",
        passphrase=PASSPHRASE,
        cost=CHEAP,
    )
    return path


@pytest.mark.slow
async def test_both_sides_may_be_at_different_nodes(database_url: str, data_dir: Path, tmp_path: Path) -> None:
    """The mailbox is in the database; what is handed over is true at every node."""
    codes: list[str] = []
    shown = trio.Event()

    def show(code: str) -> None:
        codes.append(code)
        shown.set()

    async with (
        running_server(data_dir, database_url=database_url) as one,
        running_server(data_dir, database_url=database_url) as other,
        open_device(await new_user(one, tmp_path)) as laptop,
    ):
        await (await laptop.publish("notes", b"before")).accepted()
        async with offer_link(laptop) as offer, trio.open_nursery() as nursery:
            at = await find_server(other.rest_url)
            assert at.rest_url != parse_invitation(offer.invitation).rest_url
            path = tmp_path / "phone.sqlite3"
            nursery.start_soon(partial(accept_link, offer.invitation, path=path, name="phone", show_code=show, at=at))
            await offer.wait_for_device()
            await shown.wait()
            offer.check_code(codes[0])
            await offer.enrol()
        async with open_device(tmp_path / "phone.sqlite3") as phone:
            assert (await anext(await phone.subscribe("notes"))).data == b"before"
            assert await phone.alarms() == []
