"""How this node hears within a second of what any node committed that ends its sessions: by asking the database."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Protocol

import trio

from keepstep.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keepstep.interfaces import Clock
    from keepstep.model import DevicePk, UserPk
    from keepstep.session import Session

POLL_INTERVAL_S: Final = 0.5
"""Between two looks: half of the second in which a session ends that has to."""
LOOK_BACK_MS: Final = 60_000
"""How long before its commit a change may be dated, clocks of nodes included."""


class Sessions(Protocol):
    """The sessions of this node, as the gateway has them."""

    def session(self, user_pk: UserPk, device_pk: DevicePk) -> Session | None:
        """A device's session."""

    def sessions_of(self, user_pk: UserPk) -> Iterable[Session]:
        """All sessions of a user."""


class Poll(ABC):
    """Looks at what changed, again and again; one path for what this node committed and for what others did.

    Args:
        clock: the one that dates changes.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._news = trio.Event()

    def look_now(self) -> None:
        """Do not wait for the next look."""
        self._news.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look, until cancelled."""
        looked_at_ms = self._clock.now_ms()
        task_status.started()
        while True:
            # Clear, look, then wait: a change during the look makes another one.
            self._news = trio.Event()
            now_ms = self._clock.now_ms()
            try:
                await self._look(looked_at_ms - LOOK_BACK_MS)
            except Unavailable:
                pass  # the next look goes as far back as this one
            else:
                looked_at_ms = now_ms
            with trio.move_on_after(POLL_INTERVAL_S):
                await self._news.wait()

    @abstractmethod
    async def _look(self, since_ms: int) -> None:
        """Act on the changes since then, unix milliseconds; most are seen more than once. Raises Unavailable."""
