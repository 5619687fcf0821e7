"""A user's first device, through the client library, at a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keepstep.client import Device, create_user, find_server
from tests.support.device_server import CHEAP, PASSPHRASE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.server import RunningServer

STREAM: Final = "notes"


async def make_user(server: RunningServer, directory: Path) -> Path:
    """A user with one device, the laptop."""
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


async def write(device: Device, *texts: bytes) -> None:
    """Publish, and wait until the server has it."""
    for publication in await device.publish_many(STREAM, texts):
        await publication.accepted()
