"""The server under test as a process of its own, on one data directory and two ports that it keeps."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
import trio

from bench.machine import free_ports

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator

START_TIMEOUT_S: Final = 120
"""From the process to its listening, with PostgreSQL's recovery, on a busy machine."""
END_TIMEOUT_S: Final = 120
"""From a signal, or a failpoint that devices are bound to reach, to the end of the process."""
VERIFY_TIMEOUT_S: Final = 120
"""With PostgreSQL's start and recovery."""
POLL_S: Final = 0.02
"""How often the process table is looked at while something is waited for."""
SCRIPT: Final = Path(__file__).with_name("killing_server.py")
REPOSITORY: Final = Path(__file__).parents[2]
TRACE: Final = REPOSITORY / "tests" / "data" / "editing-traces" / "friendsforever.json.gz"
"""What devices have to say."""
_LINE_BYTES_MAX: Final = 1024


class ServerProcess:
    """A running server.

    Attributes:
        rest_url: where accounts are made.
        device_url: where devices connect, with the server's key.
    """

    def __init__(self, process: trio.Process, rest_url: str, device_url: str) -> None:
        self.rest_url = rest_url
        self.device_url = device_url
        self._process = process

    @property
    def running(self) -> bool:
        """The process has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL to the server alone."""
        self._process.kill()

    def terminate(self) -> None:
        """SIGTERM: drain."""
        self._process.terminate()

    async def ended(self) -> int:
        """Wait for the process; returns its status, -9 for a SIGKILL.

        Raises:
            trio.TooSlowError: it does not end.
        """
        with trio.fail_after(END_TIMEOUT_S):
            return await self._process.wait()

    async def postmaster(self) -> psutil.Process:
        """The PostgreSQL process that all others are children of, as soon as there is one.

        Raises:
            trio.TooSlowError: PostgreSQL does not start again.
        """
        with trio.fail_after(START_TIMEOUT_S):
            while True:
                for process in self._database_processes():
                    if not _is_postgres(process.parent()):
                        return process
                await trio.sleep(POLL_S)

    async def database_process(self, seeded: random.Random) -> psutil.Process:
        """Any other PostgreSQL process. Raises as ``postmaster``."""
        with trio.fail_after(START_TIMEOUT_S):
            while True:
                if found := [each for each in self._database_processes() if _is_postgres(each.parent())]:
                    return seeded.choice(found)
                await trio.sleep(POLL_S)

    def _database_processes(self) -> list[psutil.Process]:
        found = psutil.Process(self._process.pid).children(recursive=True)
        return sorted((process for process in found if _is_postgres(process)), key=lambda process: process.pid)


def _is_postgres(process: psutil.Process | None) -> bool:
    """It is one, and lives."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process is not None and process.name() == "postgres" and process.status() != psutil.STATUS_ZOMBIE
    return False


class ServerHome:
    """What all servers of one run share: data directory, ports, log."""

    def __init__(self, directory: Path) -> None:
        """Choose two free ports; data and log go below ``directory``, which exists."""
        self._log = directory / "server.log"
        ports = free_ports(2)
        self._environment = os.environ | {
            "KEEPSTEP_DATA_DIR": str(directory / "data"),
            "KEEPSTEP_REST_PORT": str(ports[0]),
            "KEEPSTEP_DEVICE_PORT": str(ports[1]),
            "KEEPSTEP_LOG_FORMAT": "json",
            "PYTHONPATH": str(REPOSITORY),
        }

    @property
    def log(self) -> str:
        """Everything the servers wrote."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    async def verify(self) -> str:
        """Have ``keepstep verify`` check all that is stored, while no server runs; what it says of faults."""
        command = [sys.executable, "-m", "keepstep", "verify", "--quiet"]
        with trio.fail_after(VERIFY_TIMEOUT_S):
            done = await trio.run_process(
                command, env=self._environment, capture_stdout=True, capture_stderr=True, check=False
            )
        return "" if done.returncode == 0 else (done.stdout + done.stderr).decode(errors="replace")

    @contextlib.asynccontextmanager
    async def server(self, point: str = "never", count: int = 0) -> AsyncIterator[ServerProcess]:
        """A started server that kills itself when ``point`` is reached for the ``count``-th time; killed at the end.

        Raises:
            AssertionError: it ends before it listens.
            trio.TooSlowError: it does not listen in time.
        """
        command = [sys.executable, str(SCRIPT), point, str(count)]
        with self._log.open("ab") as log:
            process = await trio.lowlevel.open_process(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=self._environment
            )
        try:
            with trio.fail_after(START_TIMEOUT_S):
                line = await _first_line(process)
            assert line, f"the server ended with {await process.wait()}: {self.log[-2_000:]}"
            yield ServerProcess(process, *json.loads(line))
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            with trio.move_on_after(END_TIMEOUT_S, shield=True):
                await process.wait()


async def _first_line(process: trio.Process) -> bytes:
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        data = await process.stdout.receive_some(_LINE_BYTES_MAX)
        if not data:
            return b""
        line += data
    return line
