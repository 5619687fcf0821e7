"""A server whose disk fills up under load: devices are told, and with room again everything goes on by itself."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Final

import pytest
import trio

from bench.checker import check_observations
from bench.observations import ObservationWriter
from tests.chaos.process import ServerHome
from tests.chaos.writers import Writers
from tests.ops.machine import fill

SEED: Final = 1
ROOM_BYTES: Final = 4 << 20
THRESHOLD_BYTES: Final = 32 << 20
"""Below so much room publishing stops, where the disk is not to get full."""
DEADLINE_S: Final = 120
"""For each step, on a busy machine."""


@pytest.mark.parametrize(
    ("free_bytes_min", "leaving"), [(0, ROOM_BYTES), (THRESHOLD_BYTES, THRESHOLD_BYTES - ROOM_BYTES)]
)
async def test_a_full_disk_is_answered_unavailable_and_loses_nothing(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes_min: int, leaving: int
) -> None:
    """No acknowledgement while there is no room; afterwards the same server takes everything, once and in order.

    With a threshold the disk never gets full: the database does not notice.
    """
    monkeypatch.setenv("KEEPSTEP_DISK_FREE_BYTES_MIN", str(free_bytes_min))
    (disk / "data").mkdir(mode=0o700)
    (tmp_path / "data").symlink_to(disk / "data")
    home = ServerHome(tmp_path)
    observations = tmp_path / "observations.jsonl"
    with ObservationWriter(observations, "full disk") as observed:
        writers = Writers(random.Random(SEED), observed)
        async with home.server() as server:
            await writers.prepare(server)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writers.run)
                with trio.fail_after(DEADLINE_S):
                    await writers.progress(100)
                filler = fill(disk, leaving=leaving)
                with trio.fail_after(DEADLINE_S):
                    await writers.refused("unavailable")
                assert server.running
                assert (shutil.disk_usage(disk).free > ROOM_BYTES) == bool(free_bytes_min)
                filler.unlink()
                with trio.fail_after(DEADLINE_S):
                    await writers.progress(100)
                await writers.finish()
                nursery.cancel_scope.cancel()
            server.terminate()
            assert await server.ended() == 0
    verdict = check_observations([observations])
    assert verdict.clean, verdict
    assert verdict.readers == 8
    assert ("disk_low" in home.log, "disk_has_room" in home.log) == (bool(free_bytes_min),) * 2
    assert "Traceback" not in home.log
