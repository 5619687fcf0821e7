"""Whose turn it is to send: one task for all sessions, instead of one that waits in each.

A session that has something to send asks for a turn; asking twice is asking once. Each pass gives all who asked one
turn, in the order in which they asked, so that nobody waits for another's backlog. What a session has to wait for (the
database, a full pipeline) runs in a task that exists only meanwhile.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TURNS_AT_ONCE: Final = 256
"""Turns until other tasks get theirs: sockets are read and commits are taken in between."""


class TakesTurns(Protocol):
    """A session, as far as turns go."""

    def turn(self) -> bool:
        """Send what there is, as much as one turn may; whether to come again at once. Neither blocks nor waits."""

    def fail(self, error: Exception) -> None:
        """A fault of ours ended its turn or its task: it ends with that."""


class Turns:
    """The sessions of one process that have something to send.

    Attributes:
        now_s: Trio time when the pass began: one look at the clock for all of its turns.
    """

    def __init__(self) -> None:
        self.now_s = -math.inf
        self._asked: dict[TakesTurns, None] = {}
        self._news = trio.Event()
        self._waits: trio.Nursery | None = None

    def ask(self, session: TakesTurns) -> None:
        """Give the session a turn in the next pass."""
        if not self._asked:
            self._news.set()
        self._asked[session] = None

    def wait_for(self, session: TakesTurns, work: Callable[[], Awaitable[None]]) -> trio.CancelScope:
        """Run what a session has to wait for in a task of its own.

        Args:
            session: fails where ``work`` raises.
            work: to be awaited once.

        Returns:
            what cancels it.
        """
        assert self._waits is not None, "turns are running"
        scope = trio.CancelScope()
        self._waits.start_soon(self._wait, session, work, scope)
        return scope

    async def _wait(self, session: TakesTurns, work: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        with scope:
            try:
                await work()
            except Exception as error:  # a fault of ours ends this session, not the server
                session.fail(error)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Give turns until cancelled; what sessions wait for is cancelled with it."""
        async with trio.open_nursery() as self._waits:
            task_status.started()
            while True:
                if not self._asked:
                    self._news = trio.Event()
                    await self._news.wait()
                asked, self._asked = self._asked, {}
                self.now_s = trio.current_time()
                for number, session in enumerate(asked, 1):
                    try:
                        if session.turn():
                            self.ask(session)
                    except Exception as error:  # a fault of ours ends this session, not the server
                        session.fail(error)
                    if number % TURNS_AT_ONCE == 0:
                        await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
