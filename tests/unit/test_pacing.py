"""How fast work goes that can wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
import trio

from keepstep.errors import Unavailable
from keepstep.pacing import AT_ONCE, GENTLE, REST_S_MAX, STEP_S, AdaptedSteps, Pace

if TYPE_CHECKING:
    from trio.testing import MockClock

ROWS_MAX: Final = 1_000


@pytest.mark.parametrize(
    ("pace", "step_s", "rest_s"),
    [
        (Pace(4), 0.5, 2.0),
        (Pace(4), 60, REST_S_MAX),
        (Pace(4, rest_s_min=0.01), 0.001, 0.01),
        (GENTLE, 0.02, 0.18),
        (AT_ONCE, 0.5, 0),
    ],
)
async def test_a_rest_follows_from_its_step(
    autojump_clock: MockClock, pace: Pace, step_s: float, rest_s: float
) -> None:
    """In proportion, within bounds; what the step gave is given on."""
    del autojump_clock
    began_s = trio.current_time()

    async def work() -> str:
        await trio.sleep(step_s)
        return "done"

    assert await pace.step(work) == "done"
    assert trio.current_time() - began_s == pytest.approx(step_s + rest_s)


async def test_what_fails_is_passed_on_at_once(autojump_clock: MockClock) -> None:
    """Whoever calls decides what comes next."""
    del autojump_clock

    async def work() -> None:
        await trio.sleep(1)
        raise Unavailable

    began_s = trio.current_time()
    with pytest.raises(Unavailable):
        await GENTLE.step(work)
    assert trio.current_time() - began_s == pytest.approx(1)


async def sizes(steps: AdaptedSteps, row_s: float, count: int, *, there: int = ROWS_MAX) -> list[int]:
    """Of so many steps that take so long for each row that is there."""
    asked: list[int] = []

    async def work(rows: int) -> int:
        asked.append(rows)
        await trio.sleep(min(rows, there) * row_s)
        return min(rows, there)

    for _ in range(count):
        await steps.step(work)
    return asked


async def test_steps_grow_and_shrink_to_the_time_they_are_to_take(autojump_clock: MockClock) -> None:
    """From the smallest on, by a factor of two at most; a machine that is busy has them smaller."""
    del autojump_clock
    steps = AdaptedSteps(GENTLE, rows_min=50, rows_max=ROWS_MAX)
    assert await sizes(steps, STEP_S / 300, 5) == [50, 100, 200, 300, 300]
    assert await sizes(steps, STEP_S / 10, 4) == [300, 150, 75, 50]
    assert await sizes(steps, 0, 7) == [50, 100, 200, 400, 800, ROWS_MAX, ROWS_MAX]


async def test_a_step_that_finds_little_is_no_reason_for_larger_ones(autojump_clock: MockClock) -> None:
    """The next stream may have more, each event on a page of its own; what takes too long shrinks all the same."""
    del autojump_clock
    steps = AdaptedSteps(GENTLE, rows_min=50, rows_max=ROWS_MAX)
    assert await sizes(steps, STEP_S / 300, 3, there=60) == [50, 100, 100]
    assert await sizes(steps, STEP_S / 30, 3, there=60) == [100, 50, 50]


async def test_without_rests_steps_are_as_large_as_may_be(autojump_clock: MockClock) -> None:
    """Nobody else is there who would wait."""
    del autojump_clock
    assert await sizes(AdaptedSteps(AT_ONCE, rows_min=50, rows_max=ROWS_MAX), 1, 2) == [ROWS_MAX, ROWS_MAX]
