"""What a running server tells of its next identity key, as its file changes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import structlog
import trio
import trio.testing

from keepstep import keys
from keepstep.announcements import LOOK_INTERVAL_S, Announcements
from keepstep.protocol.succession import encode_announcement
from tests.support.events import NOW_MS
from tests.support.parts import CountedRandomness, TestClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


HOUR_MS: Final = 3_600_000

T = TypeVar("T")


class AtOnce:
    """``interfaces.Threads`` without threads, for which a clock that jumps would not wait."""

    async def run(self, function: Callable[[], T], *, limiter: trio.CapacityLimiter) -> T:
        """See ``interfaces.Threads``."""
        async with limiter:
            return function()


def make(data_dir: Path, clock: TestClock) -> Announcements:
    """Of a server with a key."""
    keys.load_or_create(data_dir, CountedRandomness("first"))
    return Announcements(data_dir, clock, AtOnce(), structlog.get_logger())


def announce(data_dir: Path) -> bytes:
    """A successor from now on, encoded."""
    announced = keys.announce_successor(
        data_dir, CountedRandomness("second"), from_ms=NOW_MS, until_ms=NOW_MS + HOUR_MS
    )
    return encode_announcement(announced)


async def test_a_key_that_another_process_announces_is_told_soon(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Once, to everybody who is connected; whoever comes later is told too."""
    announcements = make(tmp_path, TestClock())
    told: list[bytes] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(announcements.run, told.append))
        await trio.sleep(LOOK_INTERVAL_S * 1.5)
        assert (told, announcements.all(), announcements.current()) == ([], [], None)
        announced = announce(tmp_path)
        await trio.sleep(LOOK_INTERVAL_S * 3)
        assert (told, announcements.all(), announcements.current()) == ([announced], [announced], announced)
        nursery.cancel_scope.cancel()


async def test_a_key_that_this_process_announces_is_told_at_once(tmp_path: Path) -> None:
    """Without waiting for the next look."""
    clock = TestClock()
    announcements = make(tmp_path, clock)
    server_keys = keys.ServerKeys(tmp_path, CountedRandomness(), AtOnce(), announcements.look_now)
    told = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(announcements.run, lambda _: told.set()))
        await server_keys.announce(from_ms=NOW_MS, until_ms=NOW_MS + HOUR_MS)
        await told.wait()
        nursery.cancel_scope.cancel()


async def test_after_the_overlap_nobody_is_told(tmp_path: Path) -> None:
    """Devices that were away ask for what was announced."""
    clock = TestClock()
    keys.load_or_create(tmp_path, CountedRandomness("first"))
    announced = announce(tmp_path)
    announcements = make(tmp_path, clock)
    clock.at_ms += HOUR_MS - 1
    assert announcements.current() == announced
    clock.at_ms += 1
    assert announcements.current() is None
    assert announcements.all() == [announced]


async def test_a_file_that_cannot_be_read_takes_nothing_back(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """The operator finds a line; devices may rely on what was announced."""
    keys.load_or_create(tmp_path, CountedRandomness("first"))
    announced = announce(tmp_path)
    announcements = make(tmp_path, TestClock())
    (tmp_path / keys.ANNOUNCEMENTS_FILE_NAME).write_bytes(b"damaged")
    told: list[bytes] = []
    with structlog.testing.capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(announcements.run, told.append))
            await trio.sleep(LOOK_INTERVAL_S * 1.5)
            nursery.cancel_scope.cancel()
    assert [line["event"] for line in lines] == ["announcements_unreadable"]
    assert (told, announcements.all()) == ([], [announced])
