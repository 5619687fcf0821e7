"""Reading where a log is damaged, or moves meanwhile; appending where something keeps standing in the way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import pytest

from keepstep.errors import ProtocolError, Unavailable
from keepstep.eventlog.log import StoredLog
from keepstep.eventlog.part import ATTEMPTS_MAX
from keepstep.eventlog.store import Contended, OutcomeUnknown, TryAgain
from keepstep.memory.log import MemoryBackend
from keepstep.protocol.messages import ResultAccepted, ResultError
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import PAGE_BYTES_MAX, MemoryPlace, append, create_account

if TYPE_CHECKING:
    from keepstep.eventlog.store import Reader
    from keepstep.interfaces import Page
    from keepstep.model import UserPk

ADA = UserFixture("ada")


T = TypeVar("T")


class Interrupted(MemoryBackend):
    """A store between the answer and the arrival of which something happens."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def read(self, user_pk: UserPk, work: Callable[[Reader], T]) -> T:
        """As ``Backend.read``."""
        answer = await super().read(user_pk, work)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return answer


async def test_a_snapshot_older_than_our_own_commit_is_not_caught_up() -> None:
    """What this node committed while the page was on its way is still to come."""
    place = MemoryPlace()
    backend = Interrupted(place.database, lambda _: None)
    log = StoredLog(backend)
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, device.event("notes"))
    backend.meanwhile = lambda: append(log, principal, device.event("notes"))

    page = await log.read(principal.user_pk, "notes", after=1, events_max=9, bytes_max=PAGE_BYTES_MAX, now_ms=NOW_MS)

    assert (page.last_seq, page.head_seq) == (1, 2)


async def test_a_commit_in_the_log_that_was_is_not_served_from_the_one_that_is() -> None:
    """The database was restored while the commit's answer was on its way."""
    place = MemoryPlace()
    restoring = False

    def restore(point: str) -> None:
        if point == "after_commit" and restoring:
            place.restore()

    log = place.node(probe=restore)
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, device.event("notes"))
    place.back_up()
    restoring = True
    await append(log, principal, device.event("notes"))

    page = await log.read(principal.user_pk, "notes", after=0, events_max=9, bytes_max=PAGE_BYTES_MAX, now_ms=NOW_MS)

    assert (page.last_seq, page.head_seq) == (1, 1)
    with pytest.raises(ProtocolError, match="unknown_position"):
        await log.read(principal.user_pk, "notes", after=2, events_max=9, bytes_max=PAGE_BYTES_MAX, now_ms=NOW_MS)


@pytest.mark.parametrize("missing", [0, 1, 2])
async def test_a_hole_in_the_log_is_never_stepped_over(missing: int) -> None:
    """A row that the database lost ends the reading with an error of the server's own."""
    place = MemoryPlace()
    log = place.node(tail_bytes_max=0)
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, *device.events("notes", 3))
    del place.database.events[principal.user_pk, 3][missing]

    async def read(after: int) -> Page:
        return await log.read(
            principal.user_pk, "notes", after=after, events_max=9, bytes_max=PAGE_BYTES_MAX, now_ms=NOW_MS
        )

    with pytest.raises(ProtocolError, match="the log has a hole"):
        await read((await read(0)).last_seq)
    place.database.events[principal.user_pk, 3].clear()
    with pytest.raises(ProtocolError, match="the log has a hole"):
        await log.chain_at(principal.user_pk, "notes", 2)


@pytest.mark.parametrize("obstacle", [Contended, TryAgain])
async def test_what_keeps_standing_in_the_way_ends_the_attempt(obstacle: type[Exception]) -> None:
    """After so many times the device is told to try later, and nothing was stored."""
    place = MemoryPlace()
    begun: list[str] = []
    standing = False

    def stand_in_the_way(point: str) -> None:
        if point == "begin" and standing:
            begun.append(point)
            raise obstacle

    log = place.node(probe=stand_in_the_way)
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    standing = True
    with pytest.raises(Unavailable, match="in the way"):
        await append(log, principal, device.event("notes"))

    assert len(begun) == ATTEMPTS_MAX
    assert place.database.events[principal.user_pk, 3] == []


async def test_a_lookup_that_meets_another_database_is_not_answered() -> None:
    """What was stored before stays acknowledged; alone, the lookup is unavailable."""
    place = MemoryPlace()
    changing = False

    def change(point: str) -> None:
        if point == "find" and changing:
            raise TryAgain

    log = place.node(probe=change)
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    old = device.events("notes", 3)
    await append(log, principal, *old)
    changing = True

    with pytest.raises(Unavailable, match="not the one"):
        await append(log, principal, old[0])
    results = await append(log, principal, old[0], device.event("notes"))

    assert [type(result) for result in results] == [ResultError, ResultAccepted]
    assert results[0] == ResultError("unavailable", [1_000])


async def test_a_head_in_doubt_is_forgotten() -> None:
    """After an outcome that nobody knows the next batch reads the head before it decides."""
    place = MemoryPlace()
    points: list[str] = []
    losing = False

    def lose(point: str) -> None:
        points.append(point)
        if point == "after_commit" and losing:
            raise OutcomeUnknown

    log = place.node(probe=lose)
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, device.event("notes"))
    points.clear()
    await append(log, principal, device.event("notes"))
    assert points == ["begin", "write", "before_commit", "after_commit"]

    losing = True
    with pytest.raises(OutcomeUnknown):
        await append(log, principal, device.event("notes"))
    losing = False
    points.clear()
    await append(log, principal, device.event("notes"))

    assert points == ["load", "begin", "write", "before_commit", "after_commit"]
