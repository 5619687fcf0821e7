"""Questions that are answered together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from keepstep.gathering import Gathering


class Oracle:
    """Answers when it is told to, and remembers what it was asked together."""

    def __init__(self, *, at_once: int = 1, together_max: int = 3) -> None:
        self.asked: list[list[str]] = []
        self.let = trio.Semaphore(0)
        self.error: Exception | None = None
        self.answers: dict[str, str] = {}
        self.gathering = Gathering(self.ask, at_once=at_once, together_max=together_max, key=lambda each: each[0])

    async def ask(self, questions: Sequence[str]) -> list[str]:
        """Each in capitals; like a worker thread it is cancelled before it begins, or not at all."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self.asked.append(list(questions))
        with trio.CancelScope(shield=True):
            await self.let.acquire()
        if self.error is not None:
            raise self.error
        return [question.upper() for question in questions]

    async def wonder(self, question: str, scope: trio.CancelScope | None = None) -> None:
        """Ask one."""
        with scope or trio.CancelScope():
            try:
                self.answers[question] = await self.gathering.ask(question)
            except ValueError:
                self.answers[question] = "failed"

    async def begin(self, nursery: trio.Nursery, *questions: str) -> list[trio.CancelScope]:
        """Ask these in that order; their scopes."""
        scopes = [trio.CancelScope() for _ in questions]
        for question, scope in zip(questions, scopes, strict=True):
            nursery.start_soon(self.wonder, question, scope)
            await trio.testing.wait_all_tasks_blocked()
        return scopes


async def test_what_comes_while_one_is_under_way_goes_together() -> None:
    """The first goes at once and alone; the others in their order, as many as may go together."""
    oracle = Oracle()
    async with trio.open_nursery() as nursery:
        await oracle.begin(nursery, "a", "b", "c", "d", "e")
        for _ in range(3):
            oracle.let.release()
    assert oracle.asked == [["a"], ["b", "c", "d"], ["e"]]
    assert oracle.answers == {each: each.upper() for each in "abcde"}


async def test_who_is_woken_together_asks_together() -> None:
    """Nothing is under way: the first gives the others of its pass their turn, and asks for them too."""
    oracle = Oracle()
    async with trio.open_nursery() as nursery:
        for question in "abcd":
            nursery.start_soon(oracle.wonder, question)
        await trio.testing.wait_all_tasks_blocked()
        (together, *rest) = oracle.asked
        assert not rest
        assert len(together) == 3
        oracle.let.release()
        oracle.let.release()
    assert [len(each) for each in oracle.asked] == [3, 1]
    assert oracle.answers == {each: each.upper() for each in "abcd"}


async def test_who_is_cancelled_while_it_gives_others_their_turn_asks_nothing() -> None:
    """The others go on without it."""
    oracle = Oracle()
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(oracle.wonder, "a", scope)
        nursery.start_soon(oracle.wonder, "b")
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert oracle.asked == [["b"]]
        oracle.let.release()
    assert oracle.answers == {"b": "B"}


async def test_several_are_under_way_at_the_same_time() -> None:
    """As many as are allowed."""
    oracle = Oracle(at_once=2)
    async with trio.open_nursery() as nursery:
        await oracle.begin(nursery, "a", "b", "c", "d")
        assert oracle.asked == [["a"], ["b"]]
        for _ in range(3):
            oracle.let.release()
            await trio.testing.wait_all_tasks_blocked()
    assert oracle.asked == [["a"], ["b"], ["c", "d"]]
    assert oracle.answers == {each: each.upper() for each in "abcd"}


async def test_two_of_the_same_key_follow_each_other() -> None:
    """In their order, and others overtake the second."""
    oracle = Oracle()
    async with trio.open_nursery() as nursery:
        await oracle.begin(nursery, "x", "a1", "a2", "b")
        for _ in range(3):
            oracle.let.release()
    assert oracle.asked == [["x"], ["a1", "b"], ["a2"]]


async def test_an_error_is_everybodys() -> None:
    """Of those who asked together; what comes after is asked anew."""
    oracle = Oracle()
    async with trio.open_nursery() as nursery:
        await oracle.begin(nursery, "a", "b", "c")
        oracle.let.release()
        await trio.testing.wait_all_tasks_blocked()
        oracle.error = ValueError()
        oracle.let.release()
        await trio.testing.wait_all_tasks_blocked()
        assert oracle.answers == {"a": "A", "b": "failed", "c": "failed"}
        oracle.error = None
        oracle.let.release()
        await oracle.wonder("d")
    assert oracle.answers["d"] == "D"


async def test_who_waits_can_leave() -> None:
    """Its question is not asked; who is under way is answered first."""
    oracle = Oracle()
    async with trio.open_nursery() as nursery:
        first, second, _ = await oracle.begin(nursery, "a", "b", "c")
        first.cancel()
        second.cancel()
        await trio.testing.wait_all_tasks_blocked()
        oracle.let.release()
        oracle.let.release()
    assert oracle.asked == [["a"], ["c"]]
    assert oracle.answers == {"a": "A", "c": "C"}


async def test_those_who_are_asked_for_wait_for_the_end() -> None:
    """Cancelled meanwhile, they have their answer."""
    oracle = Oracle()
    async with trio.open_nursery() as nursery:
        scopes = await oracle.begin(nursery, "a", "b", "c")
        oracle.let.release()
        await trio.testing.wait_all_tasks_blocked()
        for scope in scopes:
            scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        oracle.let.release()
    assert oracle.answers == {"a": "A", "b": "B", "c": "C"}


async def test_who_is_cancelled_when_it_is_to_ask_holds_nobody_up() -> None:
    """The next one asks in its place, for the same others."""
    oracle = Oracle()
    async with trio.open_nursery() as nursery:
        _, second, *_ = await oracle.begin(nursery, "a", "b", "c", "d")
        oracle.let.release()
        while not oracle.answers:
            await trio.lowlevel.checkpoint()
        second.cancel()
        oracle.let.release()
        oracle.let.release()
    assert {each: each.upper() for each in "acd"}.items() <= oracle.answers.items()


@pytest.mark.parametrize("count", [1, 7])
async def test_nothing_is_left_under_way(count: int) -> None:
    """After any number of questions the next one goes at once."""
    oracle = Oracle()
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(oracle.wonder, f"{number}")
        for _ in range(count):
            oracle.let.release()
    oracle.let = trio.Semaphore(1)
    await oracle.wonder("last")
    assert oracle.asked[-1] == ["last"]
