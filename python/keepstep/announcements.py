"""What a running server tells of its next identity key: as the announcement file says now (protocol.md section 1).

The file is written by this server, for an administrator, or by ``keepstep keys announce`` in another process; so it is
looked at again and again.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from keepstep import _keepstep, keys
from keepstep.errors import StartupError
from keepstep.protocol.succession import encode_announcement, verify_announcement
from keepstep.telemetry import BoundedLines

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from keepstep.interfaces import Clock, Threads
    from keepstep.protocol.succession import Announcement
    from keepstep.telemetry import Log

LOOK_INTERVAL_S: Final = 5.0
"""Between two looks at the file: a person who announces a key waits for it, and a look costs a few file operations."""


class Announcements:
    """The announcements of successors of a server's identity key.

    Args:
        data_dir: where the file is.
        clock: the one ``received_at`` follows.
        threads: where the file is read.
        logger: told of a file that cannot be read.

    Raises:
        StartupError: the file is damaged or cannot be read.
    """

    def __init__(self, data_dir: Path, clock: Clock, threads: Threads, logger: Log) -> None:
        self._data_dir = data_dir
        self._clock = clock
        self._threads = threads
        self._limiter = trio.CapacityLimiter(1)
        self._faults = BoundedLines(logger)
        self._news = trio.Event()
        self._known: Sequence[Announcement] = keys.load_announcements(data_dir)

    def all(self) -> list[bytes]:
        """Every announcement that is kept, encoded, the oldest first: for devices that were away."""
        return [encode_announcement(each) for each in self._known]

    def current(self) -> bytes | None:
        """What connected devices are told, encoded: the newest one, as long as both keys may be met."""
        if not self._known or self._clock.now_ms() >= verify_announcement(_keepstep, self._known[-1]).until_ms:
            return None
        return encode_announcement(self._known[-1])

    def look_now(self) -> None:
        """Do not wait for the next look: the file was written."""
        self._news.set()

    async def run(
        self, tell: Callable[[bytes], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Look, until cancelled, and tell what is new.

        Args:
            tell: tells every connected device an encoded announcement.
            task_status: told when it has begun.
        """
        task_status.started()
        while True:
            with trio.move_on_after(LOOK_INTERVAL_S):
                await self._news.wait()
            self._news = trio.Event()  # before the look: what is written during it makes another one
            await self._look(tell)

    async def _look(self, tell: Callable[[bytes], None]) -> None:
        try:
            found = await self._threads.run(partial(keys.load_announcements, self._data_dir), limiter=self._limiter)
        except StartupError:
            # What was announced stays announced: devices may rely on it already.
            self._faults.write(
                "announcements_unreadable",
                now_s=self._clock.monotonic_s(),
                detail="the file of announced server keys cannot be read; what it said before counts",
            )
            return
        if found == self._known:
            return
        self._known = found
        current = self.current()
        if current is not None:
            tell(current)
