"""A server in memory in a thread of its own, for tests of programs that run Trio themselves or not at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from tests.support.server import running_server

START_TIMEOUT_S = 30


@dataclass(frozen=True)
class ServerAddress:
    """Where the server is reached: with the key for devices, without a path for REST."""

    device_url: str
    rest_url: str


def _drop(_logger: object, _method: str, _event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    raise structlog.DropEvent


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is logged: the terminal is the commands' that are tested."""
    before = structlog.get_config()
    structlog.configure(processors=[_drop])
    try:
        yield
    finally:
        structlog.configure(**before)


@contextmanager
def server_in_thread(data_dir: Path) -> Iterator[ServerAddress]:
    """A server until the block ends."""
    started = threading.Event()
    stop: list[tuple[trio.lowlevel.TrioToken, trio.Event]] = []
    addresses: list[ServerAddress] = []

    async def serve() -> None:
        async with running_server(data_dir) as server:
            addresses.append(ServerAddress(server.device_url, server.rest_url))
            ended = trio.Event()
            stop.append((trio.lowlevel.current_trio_token(), ended))
            started.set()
            await ended.wait()

    with _quiet():
        thread = threading.Thread(target=trio.run, args=(serve,))
        thread.start()
        started.wait(START_TIMEOUT_S)
        try:
            yield addresses[0]
        finally:
            token, ended = stop[0]
            token.run_sync_soon(ended.set)
            thread.join()
