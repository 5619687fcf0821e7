"""How many Python calls an event takes on its way through a batch: work for each event is the extension's."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import pytest

from keepstep.protocol.messages import ResultAccepted
from tests.support.corridor import Corridor
from tests.support.flying import CommittingServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from keepstep._keepstep import Submission

CALLS_OF_A_BATCH_MAX: Final = 9
"""Calls of this package's functions for a batch, whatever is in it."""


@pytest.fixture
def corridor() -> Iterator[Corridor]:
    """Everything is remembered."""
    server = CommittingServer()
    corridor = Corridor(server)
    corridor.warm()
    yield corridor
    server.close()


async def count_calls(corridor: Corridor, batch: list[Submission]) -> int:
    """How many of this package's functions are called until all of it is answered."""
    calls = 0

    def count(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_globals["__name__"].startswith("keepstep.")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        outcome = await corridor.append_known(batch)
    finally:
        sys.setprofile(before)
    assert outcome is not None
    kinds = {type(result) for results in outcome.results for result in results}
    assert kinds == {ResultAccepted}
    return calls


async def test_a_batch_takes_few_calls(corridor: Corridor) -> None:
    """Their number is held, and a submission more takes none: each would be paid thousands of times a second."""
    whole = await count_calls(corridor, corridor.batch(1))

    assert whole <= CALLS_OF_A_BATCH_MAX
    assert await count_calls(corridor, corridor.batch(1)[:1]) == whole


async def test_an_event_takes_none(corridor: Corridor) -> None:
    """Ten events of a message take as many calls as one."""
    assert await count_calls(corridor, corridor.batch(10)) == await count_calls(corridor, corridor.batch(1))
