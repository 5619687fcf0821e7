"""Creating accounts while others do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from keepstep.errors import Unavailable
from keepstep.eventlog.genesis import create_account
from keepstep.eventlog.part import ATTEMPTS_MAX
from keepstep.eventlog.store import Contended, TryAgain
from keepstep.memory import MemoryDatabase
from keepstep.memory.store import MemoryStore
from keepstep.protocol.messages import Result, ResultAccepted, ResultDuplicate
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.interleaving import Actor, Gate, explore

GENESIS = DeviceFixture(UserFixture("ada"), "phone").genesis()


def test_two_nodes_create_one_account() -> None:
    """In every order of their steps one of them creates it, and the other one finds it."""

    def scenario(run: Callable[[Sequence[Actor]], None]) -> None:
        database = MemoryDatabase()
        results: list[Result] = []

        def create(gate: Gate) -> None:
            gate("look")
            store = MemoryStore(database, lambda point: None if point == "after_commit" else gate(point))
            results.append(create_account(store, GENESIS, now_ms=NOW_MS)[0])

        run([create, create])
        assert {type(result) for result in results} == {ResultAccepted, ResultDuplicate}
        assert len(database.users) == 1

    assert explore(scenario) > 10


@pytest.mark.parametrize("obstacle", [Contended, TryAgain])
def test_what_keeps_standing_in_the_way_ends_the_attempt(obstacle: type[Exception]) -> None:
    """After so many times the device is told to try later."""
    attempts: list[str] = []

    def stand_in_the_way(point: str) -> None:
        attempts.append(point)
        raise obstacle

    with pytest.raises(Unavailable):
        create_account(MemoryStore(MemoryDatabase(), stand_in_the_way), GENESIS, now_ms=NOW_MS)

    assert attempts == ["begin"] * ATTEMPTS_MAX
