"""When the user's other devices were connected, asked of a real server and shown to the user."""

from __future__ import annotations

import time
from pathlib import Path

from click.testing import CliRunner

from keepstep.client import find_server, open_device
from keepstep.client.cli import device_group
from keepstep.client.store import open_store
from tests.e2e.test_devices import new_user
from tests.support.server import running_server


async def test_a_device_learns_when_the_others_were_connected(
    database_url: str, data_dir: Path, tmp_path: Path
) -> None:
    """Its own user's, and nobody else's; ``device list`` shows what it learned."""
    async with running_server(data_dir, database_url=database_url) as server:
        found = await find_server(server.rest_url)
        (tmp_path / "other").mkdir()
        stranger = await new_user(found, tmp_path / "other")
        devices = tmp_path / "devices"
        devices.mkdir()
        path = await new_user(found, devices)
        async with open_device(stranger) as another, open_device(path) as laptop:
            await another.wait_until_ready()
            await laptop.enrol(tmp_path / "phone.sqlite3", "phone")
            first = await laptop.last_seen()
            assert list(first) == [laptop.identity.device_id]
            async with open_device(tmp_path / "phone.sqlite3") as phone:
                await phone.wait_until_ready()
                seen = await laptop.last_seen()
                assert set(seen) == {laptop.identity.device_id, phone.identity.device_id}
                assert abs(seen[phone.identity.device_id] - time.time_ns() // 1_000_000) < 3_600_000
    store = open_store(path)
    assert store.seen() == seen
    store.close()
    shown = CliRunner(env={"KEEPSTEP_HOME": str(tmp_path)}).invoke(device_group, ["list"])
    assert "elsewhere: phone (the server saw it last 20" in shown.output
