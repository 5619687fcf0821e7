"""Requests that wait for events: woken by commits of their own user, bounded in number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from keepstep.errors import ProtocolError
from keepstep.model import UserPk

if TYPE_CHECKING:
    from keepstep._keepstep import Run
    from keepstep.eventlog.store import StreamKey
    from keepstep.interfaces import EventLog

WATCHES_MAX: Final = 512
"""Requests that wait at the same time."""
WATCHES_PER_USER_MAX: Final = 16
"""Those of one user."""


class Watch:
    """A request's wake-up: clear, read, then wait, so that no commit is missed in between."""

    def __init__(self) -> None:
        self._news = trio.Event()

    def clear(self) -> None:
        """Forget what was told so far; what comes from now on wakes."""
        self._news = trio.Event()

    def wake(self) -> None:
        """Something was committed."""
        self._news.set()

    async def wait(self) -> None:
        """Until something is committed after ``clear``. Cancel-safe."""
        await self._news.wait()


class Watches:
    """Every request of this process that waits, by user.

    Args:
        log: its commits wake.
        watches_max: at the same time.
        per_user_max: of one user.
    """

    def __init__(
        self, log: EventLog, *, watches_max: int = WATCHES_MAX, per_user_max: int = WATCHES_PER_USER_MAX
    ) -> None:
        self._by_user: dict[UserPk, set[Watch]] = {}
        self._watches_max = watches_max
        self._per_user_max = per_user_max
        self._count = 0
        log.subscribe_commits(self._committed)

    @contextmanager
    def watch(self, user_pk: UserPk) -> Iterator[Watch]:
        """A watch on a user's commits until the block ends.

        Raises:
            ProtocolError: ``limit_exceeded``: too many wait.
        """
        watch = self.add(user_pk)
        try:
            yield watch
        finally:
            self.remove(user_pk, watch)

    def add(self, user_pk: UserPk) -> Watch:
        """A watch on a user's commits, to be taken out with ``remove``. Raises as ``watch``."""
        mine = self._by_user.get(user_pk, set())
        if self._count >= self._watches_max or len(mine) >= self._per_user_max:
            raise ProtocolError("limit_exceeded", "too many requests wait", retry_after_ms=1_000)
        watch = Watch()
        self._by_user.setdefault(user_pk, mine).add(watch)
        self._count += 1
        return watch

    def remove(self, user_pk: UserPk, watch: Watch) -> None:
        """Wake it no more."""
        watches = self._by_user[user_pk]
        watches.remove(watch)
        self._count -= 1
        if not watches:
            del self._by_user[user_pk]

    def _committed(self, runs: Sequence[tuple[StreamKey, Run]]) -> None:
        for (user_pk, _), _run in runs if self._by_user else ():
            # protocol.md section 0.7: only this user's requests can ever hear of it
            for watch in self._by_user.get(UserPk(user_pk), ()):
                watch.wake()
