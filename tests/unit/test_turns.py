"""Who sends when: one task for all sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from keepstep.turns import TURNS_AT_ONCE, Turns


class Session:
    """One that asks for turns."""

    def __init__(self, turns: Turns, order: list[str], name: str, *, again: int = 0) -> None:
        self.turns = turns
        self.order = order
        self.name = name
        self.again = again
        self.faults: list[Exception] = []
        self.error: Exception | None = None

    def turn(self) -> bool:
        """As ``TakesTurns.turn``."""
        self.order.append(self.name)
        if self.error is not None:
            raise self.error
        self.again -= 1
        return self.again >= 0

    def fail(self, error: Exception) -> None:
        """As ``TakesTurns.fail``."""
        self.faults.append(error)


@asynccontextmanager
async def running(turns: Turns) -> AsyncIterator[trio.Nursery]:
    """Turns are given until the block ends."""
    async with trio.open_nursery() as nursery:
        await nursery.start(turns.run)
        yield nursery
        nursery.cancel_scope.cancel()


async def test_asking_twice_is_one_turn() -> None:
    """In the order in which they asked."""
    turns, order = Turns(), list[str]()
    first, second = Session(turns, order, "first"), Session(turns, order, "second")
    async with running(turns):
        for session in (first, second, first, first):
            turns.ask(session)
        await trio.testing.wait_all_tasks_blocked()
    assert order == ["first", "second"]


async def test_nobody_waits_for_anothers_backlog() -> None:
    """Whoever has more to send comes again after the others."""
    turns, order = Turns(), list[str]()
    async with running(turns):
        for session in (Session(turns, order, "long", again=2), Session(turns, order, "short")):
            turns.ask(session)
        await trio.testing.wait_all_tasks_blocked()
    assert order == ["long", "short", "long", "long"]


async def test_other_tasks_run_between_many_turns() -> None:
    """Sockets are read and commits are taken while very many sessions send."""
    turns, order = Turns(), list[str]()
    async with running(turns):
        for number in range(8 * TURNS_AT_ONCE):
            turns.ask(Session(turns, order, str(number)))
        seen: list[int] = []
        while len(order) < 8 * TURNS_AT_ONCE:
            await trio.lowlevel.checkpoint()
            seen.append(len(order))
    # Trio draws the order of the tasks that are due, so it may be one block of turns more or less at a look.
    assert len(set(seen)) > 4


async def test_a_fault_ends_one_session() -> None:
    """The others get their turns."""
    turns, order = Turns(), list[str]()
    broken, whole = Session(turns, order, "broken"), Session(turns, order, "whole")
    broken.error = ValueError("a fault")
    async with running(turns):
        for session in (broken, whole):
            turns.ask(session)
        await trio.testing.wait_all_tasks_blocked()
    assert order == ["broken", "whole"]
    assert broken.faults == [broken.error]
    assert whole.faults == []


async def test_waiting_has_a_task_of_its_own_that_can_be_cancelled() -> None:
    """Turns go on meanwhile, and a fault in it ends that session."""
    turns, order = Turns(), list[str]()
    session = Session(turns, order, "session")
    ended: list[str] = []

    async def wait() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("cancelled")

    async def fault() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("a fault")

    async with running(turns):
        scope = turns.wait_for(session, wait)
        turns.wait_for(session, fault)
        turns.ask(session)
        await trio.testing.wait_all_tasks_blocked()
        assert (order, ended) == (["session"], [])
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert ended == ["cancelled"]
    assert [str(error) for error in session.faults] == ["a fault"]


async def test_waiting_takes_turns_that_run() -> None:
    """A session cannot begin to wait before the server has started."""
    turns = Turns()
    with pytest.raises(AssertionError):
        turns.wait_for(Session(turns, [], "early"), trio.sleep_forever)
