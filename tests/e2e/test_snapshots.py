"""Snapshots over real sockets, by a real server: one device writes one, another confirms it, a third starts from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from keepstep.client import ProtocolError, open_device
from tests.support.laptop import STREAM, make_user, write
from tests.support.server import running_server

EVENTS = 50


async def test_a_new_device_starts_from_a_snapshot(data_dir: Path, tmp_path: Path, database_url: str) -> None:
    """It gets the state first, and receives only what follows."""
    async with (
        running_server(data_dir, database_url=database_url) as server,
        open_device(await make_user(server, tmp_path)) as laptop,
    ):
        await laptop.wait_until_ready()
        await laptop.enrol(tmp_path / "phone.sqlite3", "phone")
        await laptop.enrol(tmp_path / "watch.sqlite3", "watch")
        await write(laptop, *(b"%d" % number for number in range(EVENTS)))
        await laptop.wait_until_caught_up(STREAM)
        written = await (await laptop.snapshot(STREAM, b"fifty")).accepted()
        async with open_device(tmp_path / "phone.sqlite3") as phone:
            await phone.wait_until_ready()
            await phone.wait_until_caught_up(STREAM)
            (found,) = await phone.snapshots(STREAM)
            assert (found.seq, found.state, found.covers.seq) == (written.seq, b"fifty", EVENTS)
            assert (found.authors, found.confirmed_by) == ({laptop.identity.device_id: EVENTS}, None)
            await (await phone.confirm(STREAM, found.seq)).accepted()
        await write(laptop, b"after")
        async with open_device(tmp_path / "watch.sqlite3") as watch:
            subscription = await watch.subscribe(STREAM, start="snapshot")
            assert subscription.snapshot is not None
            assert (subscription.snapshot.state, subscription.snapshot.confirmed_by) == (
                b"fifty",
                phone.identity.device_id,
            )
            event = await anext(subscription)
            assert (event.seq, event.data) == (EVENTS + 3, b"after")
            assert watch._log.first(STREAM).seq == EVENTS + 1
        async with open_device(tmp_path / "watch.sqlite3") as watch:
            again = await watch.subscribe(STREAM, start="snapshot")
            assert again.snapshot == subscription.snapshot
            assert (await anext(again)).data == b"after"


async def test_nobody_confirms_himself_where_there_is_another(
    data_dir: Path, tmp_path: Path, database_url: str
) -> None:
    """The only device of a user may; with two, the server refuses."""
    async with (
        running_server(data_dir, database_url=database_url) as server,
        open_device(await make_user(server, tmp_path)) as laptop,
    ):
        await laptop.wait_until_ready()
        await write(laptop, b"1")
        await laptop.wait_until_caught_up(STREAM)
        first = await (await laptop.snapshot(STREAM, b"one")).accepted()
        await laptop._until(lambda: laptop.position(STREAM).seq == first.seq)
        await (await laptop.confirm(STREAM, first.seq or 0)).accepted()
        await laptop._until(lambda: laptop.position(STREAM).seq == 3)
        assert [each.confirmed_by for each in await laptop.snapshots(STREAM)] == [laptop.identity.device_id]
        await laptop.enrol(tmp_path / "phone.sqlite3", "phone")
        second = await (await laptop.snapshot(STREAM, b"two")).accepted()
        await laptop._until(lambda: laptop.position(STREAM).seq == second.seq)
        with pytest.raises(ProtocolError, match="forbidden"):
            await (await laptop.confirm(STREAM, second.seq or 0)).accepted()
