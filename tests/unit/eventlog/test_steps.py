"""How many Python calls an event takes on its way through a batch: work for each event is the extension's."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from keepstep.protocol.messages import ResultAccepted
from tests.support.corridor import Corridor

if TYPE_CHECKING:
    from types import FrameType

    from keepstep._keepstep import Submission

CALLS_OF_A_BATCH_MAX: Final = 12
"""Calls of Python functions for a batch, whatever is in it."""


def count_calls(corridor: Corridor, batch: list[Submission]) -> int:
    """How many Python functions are called until all of it is answered."""
    appending = corridor.appending(batch)
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        outcome = appending.run()
    finally:
        sys.setprofile(before)
    kinds = {type(result) for results in outcome.results for result in results}
    assert kinds == {ResultAccepted}
    return calls


def test_a_batch_takes_few_calls() -> None:
    """Their number is held, and a submission more takes none: each would be paid thousands of times a second."""
    corridor = Corridor()
    corridor.warm()

    whole = count_calls(corridor, corridor.batch(1))

    assert whole <= CALLS_OF_A_BATCH_MAX
    assert count_calls(corridor, corridor.batch(1)[:1]) == whole


def test_an_event_takes_none() -> None:
    """Ten events of a message take as many calls as one."""
    corridor = Corridor()
    corridor.warm()

    assert count_calls(corridor, corridor.batch(10)) == count_calls(corridor, corridor.batch(1))
