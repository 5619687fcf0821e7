"""Opens what a server needs, in order, and runs it: the only caller of ``composition``.

Starting: sockets are bound (a busy port shows before anything else happens), the database is opened and migrated, the
parts are built, housekeeping is done once, then devices and REST clients are let in. Stopping: no new connections,
devices are told when to come back, what is under way is committed and acknowledged, then everything below ends.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import trio

from keepstep import keys
from keepstep.archive.opening import open_archive
from keepstep.backup.schedule import backup_source
from keepstep.composition import Listeners, Storage, build
from keepstep.config import variable
from keepstep.edge import local_rest_url
from keepstep.errors import StartupError
from keepstep.journal import FileJournal
from keepstep.listening import bind
from keepstep.postgres.opening import opened
from keepstep.postgres.pool import ACCOUNT_CONNECTIONS
from keepstep.resources import claim_descriptors
from keepstep.runtime import SystemClock, SystemRandomness, WorkerThreads

if TYPE_CHECKING:
    from keepstep.config import Settings
    from keepstep.interfaces import Clock, Randomness, Threads
    from keepstep.reloading import ReloadRequests


@dataclass(frozen=True, slots=True)
class Started:
    """Where a running server is reached.

    Attributes:
        rest_url: without a path.
        device_url: where devices connect, with the key they pin.
        server_key: that key, 32 bytes.
        database: in words, without credentials.
    """

    rest_url: str
    device_url: str
    server_key: bytes
    database: str


def _ignore(_point: str) -> None:
    """A probe that does nothing."""


async def run(
    settings: Settings,
    *,
    stop: trio.Event | None = None,
    clock: Clock | None = None,
    randomness: Randomness | None = None,
    threads: Threads | None = None,
    storage: Storage | None = None,
    listeners: Listeners | None = None,
    probe: Callable[[str], None] | None = None,
    reload_requests: ReloadRequests | None = None,
    task_status: trio.TaskStatus[Started] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until ``stop``, then drain. Cancelling stops at once, without draining; commits under way are waited for.

    What is not given is real: this machine's clocks, randomness and threads, the database and the ports of the
    settings. A simulation gives its own.

    Args:
        settings: checked.
        stop: set to go down gracefully; ``None``: never.
        clock: this machine's clocks.
        randomness: cryptographic.
        threads: the hop to worker threads.
        storage: where things are kept.
        listeners: bound sockets, not listening yet; closed at the end.
        probe: called at ``before_commit``, ``after_commit`` and ``after_ack``.
        reload_requests: that the configuration should be read again; ``None``: never.
        task_status: started once devices and REST clients are let in.

    Raises:
        StartupError: it cannot start; the message says what to do. Perhaps in an exception group.
    """
    clock = clock or SystemClock()
    randomness = randomness or SystemRandomness()
    threads = threads or WorkerThreads()
    async with AsyncExitStack() as stack:
        if listeners is None:
            claim_descriptors(_descriptors(settings), structlog.get_logger())
            listeners = bind_listeners(settings)
        stack.callback(listeners.close)
        if storage is None:
            database = await stack.enter_async_context(opened(settings, clock=clock, threads=threads, probe=probe))
            journal = FileJournal(settings.data_dir, threads)
            stack.callback(journal.close)
            storage = Storage(
                database.log,
                database.accounts,
                database.maintenance,
                database.retention,
                database.tokens,
                database.administration,
                database.links,
                database.housekeeping,
                database.restores,
                place=database.place,
                unsafe=bool(database.durability.unsafe_settings),
                is_away=database.is_away,
                tail_bytes=database.tail_bytes,
                cache_hits=database.cache_hits,
                journal=journal,
                backup_source=await backup_source(settings, threads),
                archive=open_archive(settings, database.database, database.log, threads=threads, clock=clock),
            )
        keys.take_over(settings.data_dir, now_ms=clock.now_ms())
        key = keys.load_or_create(settings.data_dir, randomness)
        server = await build(settings, key, storage, listeners, clock, randomness, threads, probe or _ignore)
        started = Started(
            rest_url=local_rest_url(settings, listeners.rest),
            device_url=server.info.pinned_url,
            server_key=key.public,
            database=storage.place,
        )
        await server.serve(
            settings,
            listeners,
            trio.Event() if stop is None else stop,
            lambda: task_status.started(started),
            reload_requests,
        )


def _descriptors(settings: Settings) -> int:
    """How many connections the settings allow at the same time, all kinds of them."""
    database = settings.pipelines + 1 + settings.read_connections + ACCOUNT_CONNECTIONS
    return settings.connections_max + settings.rest_connections_max + database


def bind_listeners(settings: Settings) -> Listeners:
    """The sockets of the settings. Raises StartupError."""
    device = bind(settings.device_host, settings.device_port, setting=variable("device_port"))
    try:
        rest = bind(settings.rest_host, settings.rest_port, setting=variable("rest_port"))
    except StartupError:
        for sock in device:
            sock.close()
        raise
    return Listeners(device=device, rest=rest)
