"""Room on the disks: publishing stops before the database has none left (docs/how-to/limit-what-is-stored.md).

What fills a disk is new events. Below the threshold they are answered ``unavailable``, to be sent again later, and so
are accounts that begin here, by registration or from a file, while everything that reads, acknowledges, revokes or
deletes goes on with the room that is left. Above the threshold and a quarter of it again publishing goes on by itself;
the gap keeps it from going to and fro.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

import trio

from keepstep.errors import Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from keepstep.interfaces import Threads
    from keepstep.telemetry import Log, Metrics

LOOK_INTERVAL_S: Final = 1.0
"""Between two looks: a disk that takes 100 MB/s loses a fifth of the default threshold meanwhile."""
RESUME_SHARE: Final = 4
"""Publishing goes on with this part of the threshold more free than it takes to stop."""
RETRY_AFTER_MS: Final = 10_000
"""When a device tries again."""
STOPPING_PLACE: Final = "data"
"""The place whose lack of room stops publishing; of others it is only told."""
_STOPS: Final = "new events and accounts are refused until a quarter more than that is free"
_SETTING: Final = "KEEPSTEP_DISK_FREE_BYTES_MIN"


class Room(Protocol):
    """Says whether there is room for new events (``DiskSpace``)."""

    @property
    def is_low(self) -> bool:
        """Whether publishing stops."""


class EnoughRoom:
    """A disk that never fills up."""

    is_low: bool = False


def require_room(room: Room) -> None:
    """Let pass what may as well come later. Raises Unavailable where there is no room."""
    if room.is_low:
        raise Unavailable("the server's disk is nearly full", retry_after_ms=RETRY_AFTER_MS)


def free_bytes(path: Path) -> int:
    """What an ordinary process may still write there, bytes. Blocks. Raises OSError."""
    measured = os.statvfs(path)
    return measured.f_bavail * measured.f_frsize


class DiskSpace:
    """Looks at the disks again and again.

    Args:
        places: directories by the name they have in metrics; ``STOPPING_PLACE`` is the one with database and journal.
        free_bytes_min: below so many bytes there publishing stops; 0: never.
        threads: measuring a disk of the network may block.
        metrics: told of what is free.
        logger: told when publishing stops and goes on.
        measure: free bytes of a directory; raises OSError.
    """

    def __init__(
        self,
        places: Mapping[str, Path],
        *,
        free_bytes_min: int,
        threads: Threads,
        metrics: Metrics,
        logger: Log,
        measure: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._places = places
        self._free_bytes_min = free_bytes_min
        self._threads = threads
        self._limiter = trio.CapacityLimiter(1)
        self._metrics = metrics
        self._logger = logger
        self._measure = measure
        self._low: set[str] = set()

    @property
    def is_low(self) -> bool:
        """Whether publishing stops."""
        return STOPPING_PLACE in self._low

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look, until cancelled; started once it has looked for the first time."""
        await self.look()
        task_status.started()
        while True:
            await trio.sleep(LOOK_INTERVAL_S)
            await self.look()

    async def look(self) -> None:
        """Measure every place once. A cancellation waits for the end of a measurement."""
        for name, path in self._places.items():
            try:
                free = await self._threads.run(lambda path=path: self._measure(path), limiter=self._limiter)  # type: ignore[misc]
            except OSError:
                continue  # what was known stays: a directory that is not there yet holds nothing
            self._metrics.disk_free_bytes.labels(name).set(free)
            self._weigh(name, free)
        self._metrics.publishing_stopped.set(int(self.is_low))

    def _weigh(self, name: str, free: int) -> None:
        enough = self._free_bytes_min + (self._free_bytes_min // RESUME_SHARE if name in self._low else 0)
        if free < enough and name not in self._low:
            self._low.add(name)
            stops = {"setting": _SETTING, "detail": _STOPS} if name == STOPPING_PLACE else {}
            self._logger.error("disk_low", place=name, free_bytes=free, needed=self._free_bytes_min, **stops)
        elif free >= enough and name in self._low:
            self._low.remove(name)
            self._logger.info("disk_has_room", place=name, free_bytes=free)
