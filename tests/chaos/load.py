"""What devices do while things are killed: the form of a load, and how its progress is waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from tests.chaos.process import ServerProcess


class Load(Protocol):
    """Devices at work, which survive everything that happens to the server."""

    @property
    def in_flight(self) -> int:
        """How many events may be acknowledged by answers that are on their way, about."""

    async def prepare(self, server: ServerProcess) -> None:
        """Make users and devices; after it nobody is connected."""

    async def run(self) -> None:
        """Work until cancelled, whether there is a server or not."""

    async def progress(self, events: int) -> None:
        """Wait until that many more events are acknowledged. Cancel-safe."""

    async def finish(self) -> None:
        """Have everything acknowledged and delivered, also to a device that was not there before.

        Also returns when a deadline is over; the observations then show what is missing.
        """

    def observe(self) -> None:
        """Write down what has not been yet; the devices have ended."""

    def problems(self) -> list[str]:
        """What was not as it must be and the observations do not show, once finished."""

    def summary(self) -> str:
        """What the devices went through, in a few words."""


class Progress:
    """Counts, and wakes who waits for a count."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = trio.Event()

    def add(self, count: int) -> None:
        """So many more."""
        self.count += count
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, count: int) -> None:
        """Wait for a count. Cancel-safe."""
        while self.count < count:
            await self._changed.wait()
