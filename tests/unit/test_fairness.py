"""Places that users take in turns."""

from __future__ import annotations

import trio
import trio.testing

from keepstep.fairness import FairLimiter


class Visits:
    """Who has been in a place of a limiter, in order; each stays until it is told to go."""

    def __init__(self, places: int) -> None:
        self.limiter = FairLimiter(places)
        self.been: list[str] = []
        self._stays: list[trio.Event] = []

    async def visit(self, user: int, name: str) -> None:
        """Take a place and stay."""
        async with self.limiter.place(user):
            self.been.append(name)
            stays = trio.Event()
            self._stays.append(stays)
            await stays.wait()

    async def start(self, nursery: trio.Nursery, *names: str) -> None:
        """Have them come in this order; a name is a user's digit and what of it."""
        for name in names:
            nursery.start_soon(self.visit, int(name[0]), name)
            await trio.testing.wait_all_tasks_blocked()

    async def go(self, count: int = 1) -> None:
        """Those that came in first leave."""
        for _ in range(count):
            self._stays.pop(0).set()
            await trio.testing.wait_all_tasks_blocked()


async def test_one_of_each_user_goes_before_a_second_one_of_any() -> None:
    """However many of one wait, and in whatever order they came."""
    visits = Visits(1)
    async with trio.open_nursery() as nursery:
        await visits.start(nursery, "1a", "1b", "1c", "2a", "3a", "2b")
        await visits.go(6)
    assert visits.been == ["1a", "1b", "2a", "3a", "1c", "2b"]


async def test_one_user_has_all_places_where_nobody_else_wants_one() -> None:
    """And gives each of them up to who comes."""
    visits = Visits(2)
    async with trio.open_nursery() as nursery:
        await visits.start(nursery, "1a", "1b", "1c", "1d")
        assert visits.been == ["1a", "1b"]
        await visits.start(nursery, "2a")
        await visits.go(2)
        assert visits.been == ["1a", "1b", "1c", "2a"]
        await visits.go(3)
        await visits.start(nursery, "2b", "1e")  # both places are free again
        await visits.go(2)
    assert visits.been == ["1a", "1b", "1c", "2a", "1d", "2b", "1e"]


async def test_who_is_cancelled_while_it_waits_takes_no_place() -> None:
    """The next one does, of whichever user."""
    visits = Visits(1)
    async with trio.open_nursery() as nursery:
        await visits.start(nursery, "1a")
        async with trio.open_nursery() as cancelled:
            await visits.start(cancelled, "2a", "1b")
            await visits.start(nursery, "2b")
            cancelled.cancel_scope.cancel()
        await visits.go(2)
    assert visits.been == ["1a", "2b"]


async def test_who_is_cancelled_or_fails_inside_leaves_its_place() -> None:
    """To the one that waits."""
    visits = Visits(1)
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as cancelled:
            await visits.start(cancelled, "1a")
            await visits.start(nursery, "2a")
            cancelled.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert visits.been == ["1a", "2a"]
        nursery.cancel_scope.cancel()
    with trio.CancelScope() as scope:
        scope.cancel()
        await visits.visit(3, "3a")
    assert visits.been == ["1a", "2a"]
