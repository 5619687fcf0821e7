"""A server in memory in a thread of its own, for tests of programs that run Trio themselves or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import trio

from tests.support.server import running_server


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
def server_in_thread(data_dir: Path, *, database_url: str | None = None, **settings: Any) -> Iterator[ServerAddress]:
    """A server until the block ends; what it ends with is raised, also where it does not start."""
    started = threading.Event()
    addresses: list[ServerAddress] = []
    stops: list[Callable[[], None]] = []

    async def serve() -> None:
        async with running_server(data_dir, database_url=database_url, settings=settings) as server:
            ended = trio.Event()
            token = trio.lowlevel.current_trio_token()
            stops.append(lambda: token.run_sync_soon(ended.set))
            addresses.append(ServerAddress(server.device_url, server.rest_url))
            started.set()
            await ended.wait()

    def run() -> None:
        try:
            trio.run(serve)
        finally:
            started.set()

    with _quiet(), ThreadPoolExecutor(1) as threads:
        running = threads.submit(run)
        started.wait()
        try:
            if addresses:
                yield addresses[0]
        finally:
            for stop in stops:
                with suppress(trio.RunFinishedError):
                    stop()
            running.result()
