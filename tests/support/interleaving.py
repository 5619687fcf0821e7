"""Every order in which concurrent actors can take their steps, one run each.

An actor is a function that is given a gate and calls it before each step that others can notice. Exactly one actor
runs at a time, from one gate to the next, so a schedule is a list of choices and replays exactly. ``explore`` walks
the tree of all choices depth first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Semaphore, Thread
from typing import Final

import outcome

Gate = Callable[[str], None]
Actor = Callable[[Gate], None]

WAIT: Final = "wait"
"""The gate of an actor that cannot go on before another one has."""


class _Runner:
    """One actor in a thread of its own, running only while it is stepped."""

    def __init__(self, actor: Actor) -> None:
        self._go = Semaphore(0)
        self._stopped = Semaphore(0)
        self._actor = actor
        self._thread = Thread(target=self._run, daemon=True)
        self.finished = False
        self.waits = False
        self.outcome: outcome.Maybe[None] | None = None
        self._thread.start()

    def step(self) -> None:
        """Let it run to its next gate, or to its end."""
        self.waits = False
        self._go.release()
        self._stopped.acquire()
        if self.finished:
            self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        self.outcome = outcome.capture(self._actor, self._gate)
        self.finished = True
        self._stopped.release()

    def _gate(self, point: str) -> None:
        self.waits = point == WAIT
        self._stopped.release()
        self._go.acquire()


def run_schedule(actors: Sequence[Actor], choices: Sequence[int]) -> list[int]:
    """Run actors by ``choices``, then always the first that can; returns how many could be chosen at each step.

    Who waits looks again after every step of another, and goes on as soon as it can: what it does then is its own
    alone, so when it does it makes no difference to the others.

    Raises:
        AssertionError: all that are left wait for each other.
        BaseException: whatever an actor raised.
    """
    runners = [_Runner(actor) for actor in actors]
    widths: list[int] = []
    while left := [runner for runner in runners if not runner.finished]:
        ready = [runner for runner in left if not runner.waits]
        assert ready, "a deadlock"
        step = len(widths)
        widths.append(len(ready))
        ready[choices[step] if step < len(choices) else 0].step()
        while any(_looks_again(runner) for runner in left if runner.waits):
            pass  # one that goes on may let another one go on
    for runner in runners:
        assert runner.outcome is not None
        runner.outcome.unwrap()
    return widths


def _looks_again(runner: _Runner) -> bool:
    """Step one that waits; returns whether it goes on."""
    runner.step()
    return not runner.waits


def explore(run: Callable[[Callable[[Sequence[Actor]], None]], None]) -> int:
    """Run a scenario in every interleaving; returns how many there are.

    ``run`` sets the scenario up, hands its actors to the function it is given, and asserts what must hold then.
    """
    choices: list[int] = []
    widths: list[int] = []
    runs = 0

    def schedule(actors: Sequence[Actor]) -> None:
        widths[:] = run_schedule(actors, choices)

    while True:
        try:
            run(schedule)
        except BaseException as failure:
            failure.add_note(f"schedule: {choices}")
            raise
        runs += 1
        choices += [0] * (len(widths) - len(choices))
        while choices and choices[-1] + 1 >= widths[len(choices) - 1]:
            choices.pop()
        if not choices:
            return runs
        choices[-1] += 1
