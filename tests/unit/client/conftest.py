"""What tests of the device library share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.device_server import DeviceServer


@pytest.fixture
async def server() -> AsyncIterator[DeviceServer]:
    """A running server in memory."""
    async with DeviceServer().running() as running:
        yield running
