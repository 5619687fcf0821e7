"""One round trip for everybody who asks at the same time."""

from __future__ import annotations

import trio
import trio.testing

from keepstep.errors import Unavailable
from keepstep.memory import MemoryDatabase, MemoryMaintenance
from keepstep.rest.readiness import READY_TIMEOUT_S, Readiness
from tests.support.parts import TestClock


class Slow(MemoryMaintenance):
    """A database that answers when it is told to."""

    def __init__(self) -> None:
        super().__init__(MemoryDatabase(), clock=TestClock())
        self.asked = 0
        self.is_away = False
        self.may_answer = trio.Event()

    async def ping(self) -> None:
        """One round trip."""
        self.asked += 1
        await self.may_answer.wait()
        if self.is_away:
            raise Unavailable


async def test_who_asks_at_the_same_time_shares_one_round_trip() -> None:
    """Strangers who ask all the time hold one connection; who asks later asks anew."""
    slow = Slow()
    readiness = Readiness(slow)
    answers: list[bool] = []

    async def ask() -> None:
        answers.append(await readiness.is_database_there())

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert slow.asked == 1
        slow.may_answer.set()
    assert answers == [True] * 50

    slow.is_away = True
    assert not await readiness.is_database_there()
    assert slow.asked == 2


async def test_who_waited_for_somebody_that_left_asks_itself() -> None:
    """A client that disconnects takes nobody's answer with it."""
    slow = Slow()
    readiness = Readiness(slow)
    answers: list[bool] = []

    async def ask() -> None:
        answers.append(await readiness.is_database_there())

    async with trio.open_nursery() as nursery:
        leaves = trio.CancelScope()
        with leaves:
            nursery.start_soon(ask)
            async with trio.open_nursery() as first:
                first.start_soon(readiness.is_database_there)
                await trio.testing.wait_all_tasks_blocked()
                leaves.cancel()
        await trio.testing.wait_all_tasks_blocked()
        slow.may_answer.set()
    assert answers == [True]


async def test_a_database_that_hangs_is_away(autojump_clock: trio.testing.MockClock) -> None:
    """After a while, for everybody who waited."""
    readiness = Readiness(Slow())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.is_database_there)
        assert not await readiness.is_database_there()
    assert trio.current_time() == READY_TIMEOUT_S
