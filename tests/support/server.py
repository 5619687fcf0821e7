"""A whole server in the test's own process, on free ports of 127.0.0.1."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from keepstep import server
from keepstep.composition import Listeners, Storage
from keepstep.config import Settings
from keepstep.listening import bind
from keepstep.memory import (
    MemoryAccounts,
    MemoryAdministration,
    MemoryDatabase,
    MemoryHousekeeping,
    MemoryLinks,
    MemoryLog,
    MemoryMaintenance,
    MemoryRestores,
    MemoryRetention,
    MemoryTokens,
)
from keepstep.runtime import SystemClock
from keepstep.server import Started

DRAIN_TIMEOUT_S = 2.0


@dataclass
class RunningServer:
    """A server that runs.

    Attributes:
        started: where it is reached.
        stop: set to make it drain.
        stopped: set when it has.
    """

    started: Started
    stop: trio.Event
    stopped: trio.Event

    @property
    def device_url(self) -> str:
        """Where devices connect, with the key."""
        return self.started.device_url

    @property
    def rest_url(self) -> str:
        """Where REST is, without a path."""
        return self.started.rest_url


def free_listeners() -> Listeners:
    """Sockets bound to free ports."""
    return Listeners(device=bind("127.0.0.1", 0, setting="device_port"), rest=bind("127.0.0.1", 0, setting="rest_port"))


def memory_storage(database: MemoryDatabase | None = None) -> Storage:
    """A storage in memory, with the real clock."""
    database = database or MemoryDatabase()
    return Storage(
        MemoryLog(database),
        MemoryAccounts(database),
        MemoryMaintenance(database, clock=SystemClock()),
        MemoryRetention(database),
        MemoryTokens(database),
        MemoryAdministration(database),
        MemoryLinks(database),
        MemoryHousekeeping(database),
        MemoryRestores(database),
    )


@asynccontextmanager
async def running_server(
    data_dir: Path,
    *,
    database_url: str | None = None,
    storage: Storage | None = None,
    settings: dict[str, Any] | None = None,
    **arguments: Any,
) -> AsyncIterator[RunningServer]:
    """A server until the block ends; then it drains.

    Args:
        data_dir: where its key is.
        database_url: a migrated or empty PostgreSQL; ``None`` takes ``storage``, or memory where that is ``None``.
        storage: what to keep things in.
        settings: values of settings.
        arguments: of ``server.run``.
    """
    if database_url is None and storage is None:
        storage = memory_storage()
    values = {"drain_timeout_s": DRAIN_TIMEOUT_S, "database_url": database_url} | (settings or {})
    stop, stopped = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        run = partial(
            server.run,
            Settings(data_dir=data_dir, **values),
            stop=stop,
            storage=storage,
            listeners=free_listeners(),
            **arguments,
        )

        async def serve(task_status: trio.TaskStatus[Started]) -> None:
            await run(task_status=task_status)
            stopped.set()

        yield RunningServer(await nursery.start(serve), stop, stopped)
        stop.set()
