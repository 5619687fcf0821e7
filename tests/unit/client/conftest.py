"""What tests of the device library share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from keepstep.client import open_device
from tests.support.device_server import DeviceServer


@pytest.fixture
async def server() -> AsyncIterator[DeviceServer]:
    """A running server in memory."""
    async with DeviceServer().running() as running:
        yield running


@pytest.fixture
async def laptop(server: DeviceServer, tmp_path: Path) -> Path:
    """The file of a first device that has enrolled a second one, ``phone.sqlite3`` beside it."""
    path = server.new_user(tmp_path)
    async with open_device(path, environment=server.environment) as device:
        await device.enrol(tmp_path / "phone.sqlite3", "phone")
    return path


@pytest.fixture
def phone(laptop: Path) -> Path:
    """The file of the second device."""
    return laptop.with_name("phone.sqlite3")
