"""Room on the disks, with an injected measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
import structlog
import trio
import trio.testing

from keepstep.diskspace import LOOK_INTERVAL_S, RETRY_AFTER_MS, STOPPING_PLACE, DiskSpace, EnoughRoom, free_bytes
from keepstep.errors import Unavailable
from keepstep.identity import Identity, Registrations
from keepstep.model import Kind
from keepstep.protocol.messages import ResultAccepted, ResultError
from keepstep.protocol.snapshot import encode_erase
from keepstep.telemetry import Metrics
from tests.support.events import DeviceFixture, SignedEvent, UserFixture
from tests.support.parts import Parts
from tests.unit.test_identity import body_of
from tests.unit.test_publish import Author, author, codes

T = TypeVar("T")

DATA, BACKUPS = Path("data"), Path("backups")
NO_ROOM = ResultError("unavailable", [RETRY_AFTER_MS])


class Here:
    """Runs what is meant for a worker thread in this one: the clock that jumps does not wait for threads."""

    async def run(self, function: Callable[[], T], *, limiter: trio.CapacityLimiter) -> T:
        """As ``Threads.run``."""
        async with limiter:
            return function()


@dataclass
class Disks:
    """Disks that have as much room as a test says; ``None``: one that cannot be measured."""

    free: dict[Path, int | None] = field(default_factory=lambda: {DATA: 1_000, BACKUPS: 1_000})
    metrics: Metrics = field(default_factory=Metrics)

    def measure(self, path: Path) -> int:
        """What a test says."""
        free = self.free[path]
        if free is None:
            raise FileNotFoundError
        return free

    def space(self, free_bytes_min: int = 400) -> DiskSpace:
        """What watches them."""
        return DiskSpace(
            {STOPPING_PLACE: DATA, "backups": BACKUPS},
            free_bytes_min=free_bytes_min,
            threads=Here(),
            metrics=self.metrics,
            logger=structlog.get_logger(),
            measure=self.measure,
        )


async def test_publishing_stops_below_the_threshold_and_goes_on_a_quarter_above_it() -> None:
    """A disk that hovers around the threshold does not make it go to and fro."""
    disks = Disks()
    space = disks.space()
    seen = []
    for free in (400, 399, 401, 499, 500, 400, 399):
        disks.free[DATA] = free
        await space.look()
        seen.append(space.is_low)
        assert f'keepstep_disk_free_bytes{{place="data"}} {free}.0' in disks.metrics.exposition().decode()
        assert f"keepstep_publishing_stopped {int(space.is_low)}.0" in disks.metrics.exposition().decode()
    assert seen == [False, True, True, True, False, False, True]


async def test_a_full_disk_of_backups_is_told_and_stops_nothing() -> None:
    """Backups fail then; events are safe where the database is."""
    disks = Disks()
    disks.free[BACKUPS] = 1
    space = disks.space()
    with structlog.testing.capture_logs() as lines:
        await space.look()
        await space.look()
        disks.free[BACKUPS] = 1_000
        await space.look()
    assert not space.is_low
    assert [(line["event"], line["place"]) for line in lines] == [("disk_low", "backups"), ("disk_has_room", "backups")]


async def test_whoever_runs_the_server_is_told_what_stops_and_which_setting_says_when() -> None:
    """The first thing that a newcomer on a small disk meets; devices are told only to come again."""
    disks = Disks()
    disks.free[DATA] = 1
    with structlog.testing.capture_logs() as lines:
        await disks.space().look()
    (line,) = lines
    assert line["setting"] == "KEEPSTEP_DISK_FREE_BYTES_MIN"
    assert "new events and accounts are refused" in line["detail"]


async def test_a_threshold_of_0_never_stops() -> None:
    """Whoever watches their disks otherwise."""
    disks = Disks()
    disks.free[DATA] = 0
    space = disks.space(free_bytes_min=0)
    await space.look()
    assert not space.is_low


async def test_a_place_that_cannot_be_measured_stays_as_it_was() -> None:
    """A directory that is not there yet; a disk that is away for a moment."""
    disks = Disks()
    space = disks.space()
    for free, low in ((None, False), (1, True), (None, True), (1_000, False)):
        disks.free[DATA] = free
        await space.look()
        assert space.is_low is low


async def test_it_looks_again_and_again(autojump_clock: trio.testing.MockClock) -> None:
    """Started once it has looked for the first time, so that nothing is let in before."""
    disks = Disks()
    disks.free[DATA] = 1
    space = disks.space()
    async with trio.open_nursery() as nursery:
        await nursery.start(space.run)
        looks = [space.is_low]
        disks.free[DATA] = 1_000
        await trio.sleep(LOOK_INTERVAL_S * 1.5)
        looks.append(space.is_low)
        nursery.cancel_scope.cancel()
    assert looks == [True, False]


def test_a_real_directory_is_measured(tmp_path: Path) -> None:
    """What ``df`` shows as available."""
    assert free_bytes(tmp_path) > 0


def without_room(parts: Parts) -> None:
    """From here on the disk is nearly full."""
    room = EnoughRoom()
    room.is_low = True
    parts.publisher._room = room


def erasure(device: DeviceFixture) -> SignedEvent:
    """The device's next event of ``notes``: the first one loses its payload."""
    return device.event("notes", encode_erase({device.device_id: [1]}), kind=Kind.ERASE)


async def test_without_room_new_events_are_to_be_sent_again() -> None:
    """In the order in which they came, those of others too; with room again they are stored."""
    parts = Parts()
    alice = await author(parts)
    events = alice.device.events("notes", 2)
    async with parts.running():
        without_room(parts)
        assert parts.publisher.waits_for_room
        await alice.submit(*events)
        await alice.submit(*events)
        await trio.testing.wait_all_tasks_blocked()
        assert [answer.results for answer in alice.answers] == [[NO_ROOM, NO_ROOM]] * 2
        parts.publisher._room = EnoughRoom()
        assert codes(await alice.publish(*events)) == ["accepted"]


async def test_without_room_devices_are_revoked_and_events_erased() -> None:
    """Of a submission that has both, the new events wait and what revokes does not."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    alice = Author(parts, phone, await parts.principal(phone))
    async with parts.running():
        assert codes(await alice.publish(phone.event("notes"))) == ["accepted"]
        without_room(parts)
        assert codes(await alice.publish(erasure(phone))) == ["accepted"]
        revocation, _ = phone.revoke(laptop)
        results = await alice.publish(phone.event("notes"), revocation)
    assert results[0] == NO_ROOM
    assert isinstance(results[1], ResultAccepted)


async def test_without_room_nobody_registers() -> None:
    """It is to be tried again; nothing is counted against whoever tried."""
    parts = Parts()
    room = EnoughRoom()
    gate = Registrations("open", per_address_hour=1, per_hour=1, clock=parts.clock)
    identity = Identity(parts.log, parts.accounts, gate, parts.clock, devices_per_user_max=4, room=room)
    body = body_of(DeviceFixture(UserFixture("alice"), "phone").genesis())
    room.is_low = True
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            await identity.register(body, address="192.0.2.1")
        assert caught.value.retry_after_ms == RETRY_AFTER_MS
    room.is_low = False
    assert (await identity.register(body, address="192.0.2.1")).is_new
