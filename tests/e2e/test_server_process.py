"""``keepstep serve`` as a process: what it prints, how it stops, what it says when it cannot start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from bench.machine import free_ports

READY = "Ctrl-C stops the server."
TIMEOUT_S = 60


class ServerProcess:
    """A running ``keepstep serve``."""

    def __init__(self, process: trio.Process, ports: tuple[int, int]) -> None:
        self.process = process
        self.rest_port, self.device_port = ports
        self.out = b""

    async def ready(self) -> str:
        """Wait for the last line it prints at its start; all of them."""
        assert self.process.stdout is not None
        while READY.encode() not in self.out:
            chunk = await self.process.stdout.receive_some()
            assert chunk, self.out.decode()
            self.out += chunk
        return self.out.decode()

    async def stop(self, *signals: signal.Signals) -> tuple[int, str]:
        """Send signals; exit code and standard error."""
        for one in signals:
            self.process.send_signal(one)
        assert self.process.stderr is not None
        err = b"".join([chunk async for chunk in self.process.stderr])
        return await self.process.wait(), err.decode()


@asynccontextmanager
async def serve(
    data_dir: Path,
    database_url: str,
    *options: str,
    ports: tuple[int, int] | None = None,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[ServerProcess]:
    """Start it on free ports; kill it in the end if it is still there."""
    rest_port, device_port = ports or free_ports(2)
    variables = {name: value for name, value in os.environ.items() if not name.startswith("KEEPSTEP_")} | {
        "DATABASE_URL": database_url,
        "KEEPSTEP_DATA_DIR": str(data_dir),
        "KEEPSTEP_REST_PORT": str(rest_port),
        "KEEPSTEP_DEVICE_PORT": str(device_port),
        "KEEPSTEP_LOG_FORMAT": "json",
        **(environment or {}),
    }
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "keepstep", "serve", *options],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        with trio.fail_after(TIMEOUT_S):
            yield ServerProcess(process, (rest_port, device_port))
    finally:
        if process.returncode is None:
            process.kill()
        with trio.move_on_after(TIMEOUT_S, shield=True):
            await process.wait()
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                await stream.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("one", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_what_to_do_next_and_stops_on_a_signal(
    data_dir: Path, database_url: str, one: signal.Signals
) -> None:
    """Addresses, data, database without password, commands to copy; then exit code 0 and a last line in the log."""
    async with serve(data_dir, database_url) as server:
        printed = await server.ready()
        key = (data_dir / "server.key").read_text()
        assert f"ws://127.0.0.1:{server.device_port}/v1/connect#" in printed
        assert f"device new laptop --server http://127.0.0.1:{server.rest_port}\n" in printed
        assert str(data_dir) in printed
        assert "PostgreSQL" in printed
        assert printed.rstrip().endswith(READY)
        async with httpx.AsyncClient(timeout=60) as http:
            assert (await http.get(f"http://127.0.0.1:{server.rest_port}/health/ready")).status_code == 200
        code, err = await server.stop(one)
        assert code == 0
        assert '"event": "server_stopped"' in err.splitlines()[-1]
        assert key.split()[0] not in printed + err
        assert "Traceback" not in err


@pytest.mark.slow
async def test_a_second_signal_stops_without_draining(data_dir: Path, database_url: str) -> None:
    """A device that does not go away is not waited for."""
    async with serve(data_dir, database_url) as server:
        await server.ready()
        async with await trio.open_tcp_stream("127.0.0.1", server.device_port):
            code, err = await server.stop(signal.SIGINT, signal.SIGINT)
        assert code == 0
        assert "Traceback" not in err


@pytest.mark.slow
async def test_a_busy_port_is_said_in_plain_words(data_dir: Path, database_url: str) -> None:
    """The setting, and who has it."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen(1)
        port = busy.getsockname()[1]
        async with serve(data_dir, database_url, ports=(free_ports(1)[0], port)) as server:
            code, err = await server.stop()
    assert code == 1
    assert err.startswith(f"keepstep: port {port} is in use by ")
    assert f"(process {os.getpid()})" in err
    assert "KEEPSTEP_DEVICE_PORT" in err


@pytest.mark.slow
async def test_a_key_that_others_can_read_stops_the_start(data_dir: Path, database_url: str) -> None:
    """Nothing is served with it."""
    path = data_dir / "server.key"
    path.write_text("00" * 32 + "\n")
    path.chmod(0o644)
    async with serve(data_dir, database_url) as server:
        code, err = await server.stop()
    assert code == 1
    assert "can be read by other users" in err
    assert "Traceback" not in err
