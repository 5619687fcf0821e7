"""Questions that many tasks ask at the same moment, and that are answered together.

A hop to a thread and a commit cost the same for one question as for dozens. Nobody waits for others to come: who finds
nobody asking asks once the tasks that run in the same pass of the scheduler have had their turn, and what comes
meanwhile goes together next. There is no task of its own: the first that waits asks for all.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Sequence

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Gathering(Generic[Question, Answer]):
    """Asks for many tasks at once.

    The questions that wait are as many as the tasks that ask, which their callers bound.

    Args:
        ask: answers questions, one answer for each and in their order. What it raises, all of them are told.
        at_once: how many times it is under way at the same time.
        together_max: questions that it gets at most.
        key: of a question; two with the same key do not go together, but in their order.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[Question]], Awaitable[Sequence[Answer]]],
        *,
        at_once: int,
        together_max: int,
        key: Callable[[Question], Hashable] = id,
    ) -> None:
        self._ask = ask
        self._at_once = at_once
        self._together_max = together_max
        self._key = key
        self._under_way = 0
        self._waiting: deque[_Place[Question, Answer]] = deque()

    async def ask(self, question: Question) -> Answer:
        """The answer to one question.

        Cancelled while it waits, it is not asked. Once it is under way, a cancellation waits for the end.
        Raises what ``ask`` raises.
        """
        place = _Place[Question, Answer](question, trio.lowlevel.current_task())
        if self._under_way < self._at_once:
            self._under_way += 1
            await trio.lowlevel.cancel_shielded_checkpoint()  # who was woken with it has asked then too
            await self._ask_for_all(place)
        else:
            self._waiting.append(place)
            await trio.lowlevel.wait_task_rescheduled(lambda _raise_cancel: self._abort(place))
            if not place.is_over:  # it was woken to ask
                await self._ask_for_all(place)
        if place.error is not None:
            raise place.error
        return place.answers[0]

    def _abort(self, place: _Place[Question, Answer]) -> trio.lowlevel.Abort:
        """Whether a task that waits may be cancelled: not once its question is asked."""
        if place not in self._waiting:
            return trio.lowlevel.Abort.FAILED
        self._waiting.remove(place)
        return trio.lowlevel.Abort.SUCCEEDED

    async def _ask_for_all(self, mine: _Place[Question, Answer]) -> None:
        """Ask what waits, the caller's question first; then the next that waits does the same."""
        places = self._take(mine)
        try:
            answers = await self._ask([each.question for each in places])
            for each, answer in zip(places, answers, strict=True):
                each.answers.append(answer)
        except Exception as error:  # everybody's
            for each in places:
                each.error = error
        except BaseException:  # the caller's cancellation, before anything was asked: the others go on without it
            self._waiting.extendleft(reversed(places[1:]))
            self._hand_over()
            raise
        for each in places[1:]:
            trio.lowlevel.reschedule(each.task)
        self._hand_over()

    def _take(self, first: _Place[Question, Answer]) -> list[_Place[Question, Answer]]:
        """What is asked together with a question, the longest waiting first."""
        taken = {self._key(first.question): first}
        later: list[_Place[Question, Answer]] = []
        while self._waiting and len(taken) < self._together_max:
            place = self._waiting.popleft()
            if taken.setdefault(self._key(place.question), place) is not place:
                later.append(place)
        self._waiting.extendleft(reversed(later))
        return list(taken.values())

    def _hand_over(self) -> None:
        """The first that waits asks next, where somebody waits."""
        if self._waiting:
            trio.lowlevel.reschedule(self._waiting.popleft().task)
        else:
            self._under_way -= 1


class _Place(Generic[Question, Answer]):
    """A task that waits. ``answers`` has its one answer, once there is one."""

    __slots__ = ("answers", "error", "question", "task")

    def __init__(self, question: Question, task: trio.lowlevel.Task) -> None:
        self.question = question
        self.task = task
        self.answers: list[Answer] = []
        self.error: Exception | None = None

    @property
    def is_over(self) -> bool:
        """Whether it was answered, in one way or another."""
        return bool(self.answers) or self.error is not None
