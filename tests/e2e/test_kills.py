"""Whatever is killed under load, nothing acknowledged is lost, duplicated or reordered (`make chaos`: more)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.chaos.scenario import Kill, LoadKind, run_scenario

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_acknowledged_is_lost_duplicated_or_reordered_by_kills(seed: int, data_dir: Path) -> None:
    """Server, database, each failpoint and a drain, in another order for each seed; a late device reads it all."""
    kills = random.Random(seed).sample(list(Kill), k=len(Kill))
    outcome = await run_scenario(kills, seed, data_dir, load=LoadKind.WRITERS)
    assert outcome.clean, f"{outcome}\n{outcome.verdict}\n{outcome.problems}"
    assert outcome.verdict.readers == 8
