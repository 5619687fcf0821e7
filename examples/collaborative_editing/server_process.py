"""A server of its own for one session: ``keepstep serve`` on an empty data directory and free ports, like anybody's."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import trio

from keepstep.client import ClientError, find_server
from keepstep.config import Settings
from keepstep.postgres import embedded
from keepstep.postgres.installation import find_account, find_installation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from keepstep.client import Server

START_TIMEOUT_S: Final = 120
"""Making a database and starting, on a busy machine."""
STOP_TIMEOUT_S: Final = 60
POLL_S: Final = 0.05
LOG_TAIL_BYTES: Final = 2000


class ServerError(Exception):
    """The server does not start; the message holds the end of its log."""


class ServerProcess:
    """The server's process and what it leaves behind.

    Attributes:
        data_dir: its database, WAL and key.
        log: everything it wrote to its terminal.
    """

    def __init__(self, directory: Path) -> None:
        self.data_dir = directory / "data"
        self.log = directory / "server.log"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        """Run it; it is asked to stop, and has stopped, when the block ends.

        Raises:
            ServerError: it does not start.
        """
        rest_port, device_port = _free_ports()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("KEEPSTEP_", "DATABASE_URL"))},
            "KEEPSTEP_DATA_DIR": str(self.data_dir),
            "KEEPSTEP_REST_PORT": str(rest_port),
            "KEEPSTEP_DEVICE_PORT": str(device_port),
        }
        with self.log.open("wb") as log:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "keepstep", "serve"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            )  # fmt: skip
        try:
            yield await self._wait_until_listening(process, f"http://127.0.0.1:{rest_port}")
        finally:
            with trio.move_on_after(STOP_TIMEOUT_S, shield=True):
                process.terminate()
                await process.wait()
            process.kill()

    async def _wait_until_listening(self, process: trio.Process, rest_url: str) -> Server:
        with trio.move_on_after(START_TIMEOUT_S):
            while process.poll() is None:
                try:
                    return await find_server(rest_url)
                except ClientError:
                    await trio.sleep(POLL_S)
        raise ServerError(f"the server does not start:\n{self.log.read_text(errors='replace')[-LOG_TAIL_BYTES:]}")

    async def dump(self, path: Path) -> None:
        """Write all that the database holds, as SQL; the server must have stopped.

        Raises:
            ServerError: the database does not answer.
        """
        settings = Settings(data_dir=self.data_dir)
        program = find_installation(find_account(settings.embedded_user)).programs / "pg_dump"
        async with embedded.running(settings) as url:
            with path.open("wb") as file:
                done = await trio.run_process(
                    [str(program), "--dbname", url], stdout=file, capture_stderr=True, check=False
                )
        if done.returncode != 0:
            raise ServerError(f"the database cannot be dumped: {done.stderr.decode(errors='replace')}")


def _free_ports() -> tuple[int, int]:
    """Two ports that nobody listens on, a moment ago."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
