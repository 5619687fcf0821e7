"""What a restore leaves behind, as the services need it: rewinds, and the time in which devices hand in what was lost.

protocol.md section 4, "After a restore". Implementations pass one contract suite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.model import DevicePk, Position, UserPk

RECENT_MS: Final = 30 * 24 * 60 * 60 * 1000
"""A device that was seen so long before a restore, or later, is waited for."""
PROVEN: Final = 1
"""A device handed in everything that signed heads prove."""
EVERYTHING: Final = 2
"""A device handed in everything."""


@dataclass(frozen=True, slots=True)
class StreamRewind:
    """Where a stream stood right after a restore.

    Attributes:
        epoch: that began with the restore.
        at: the stream's head then.
    """

    epoch: int
    at: Position


@dataclass(frozen=True, slots=True)
class HealWindow:
    """The time in which a user's devices hand in what the latest restore lost.

    Attributes:
        epoch: that began with the restore.
        opened_at_ms: unix milliseconds, when the first device came.
        closed_at_ms: when a device that manages ended it, else ``None``.
        waiting: devices that were seen lately and have not handed in what is proven.
        unfinished: devices that were seen lately and have not handed in everything.
    """

    epoch: int
    opened_at_ms: int
    closed_at_ms: int | None
    waiting: int
    unfinished: int


class Restores(Protocol):
    """Rewinds and heal windows. All methods raise Unavailable."""

    async def rewinds(self, user_pk: UserPk, stream: str) -> Sequence[StreamRewind]:
        """The restores that set a stream back, the earliest first.

        A stream that is there now and was not right after a restore, or is not there at all, was set back to nothing:
        its rewind is named with seq 0. Restores from before the account are none of it.
        """

    async def window(self, user_pk: UserPk, *, now_ms: int) -> HealWindow | None:
        """The user's window, opened where it is not; ``None`` where no restore set the user back."""

    async def report(self, user_pk: UserPk, device_pk: DevicePk, step: int) -> None:
        """A device has handed in what is proven, or everything; never goes back to less."""

    async def close_window(self, user_pk: UserPk, *, now_ms: int) -> None:
        """End a window that is open."""
