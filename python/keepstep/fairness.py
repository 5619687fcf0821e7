"""Places that users take in turns: one of each goes before a second one of any (ADR 0396)."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable


class FairLimiter:
    """Lets so many in at a time, and of those who wait one of each user before a second one of any. Live.

    Those who wait are as many as the tasks that come, which their callers bound.

    Args:
        places: how many at a time.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: OrderedDict[Hashable, dict[trio.lowlevel.Task, None]] = OrderedDict()

    @asynccontextmanager
    async def place(self, user: Hashable) -> AsyncIterator[None]:
        """A place for one of the user's, until it leaves. Cancelled while it waits, it had none."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._free:
            self._free -= 1
        else:
            await self._wait(user)
        try:
            yield
        finally:
            self._leave()

    async def _wait(self, user: Hashable) -> None:
        task = trio.lowlevel.current_task()
        self._waiting.setdefault(user, {})[task] = None

        def abort(_raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            tasks = self._waiting[user]
            del tasks[task]
            if not tasks:
                del self._waiting[user]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _leave(self) -> None:
        """Hand the place on; it is free where nobody waits, so that nobody waits where one is free."""
        if not self._waiting:
            self._free += 1
            return
        user, tasks = self._waiting.popitem(last=False)
        task = next(iter(tasks))
        del tasks[task]
        if tasks:
            self._waiting[user] = tasks
        trio.lowlevel.reschedule(task)
