"""Storing a rotation: what another transaction in its way makes of it."""

from __future__ import annotations

import pytest

from keepstep.errors import Unavailable
from keepstep.eventlog.part import ATTEMPTS_MAX
from keepstep.eventlog.rotation import append_rotation
from keepstep.eventlog.store import Contended, TryAgain
from keepstep.memory import MemoryDatabase, MemoryLog
from keepstep.memory.store import MemoryStore
from keepstep.model import AccountChange, Rotation, UserPk
from keepstep.protocol.messages import ResultAccepted, ResultError
from tests.support.events import NOW_MS, DeviceFixture, UserFixture

ADA = UserFixture("ada")


async def theft() -> tuple[MemoryDatabase, Rotation, AccountChange]:
    """A user's database, and a rotation upon it."""
    database = MemoryDatabase()
    log = MemoryLog(database)
    phone, rescue = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "rescue")
    await log.create_account(phone.genesis(), now_ms=NOW_MS)
    head = (await log.stream(UserPk(1), "$devices")).head
    rescue.seen["$devices"] = head.seq, head.chain
    event = rescue.rotate()
    assert event.payload is not None
    rotation = Rotation(UserPk(1), ADA.user_key, rescue.entry, event.header, event.sig, event.payload)
    return database, rotation, AccountChange(rescue.entry, head.seq, head.chain, revoked=(phone.device_id,))


@pytest.mark.parametrize("failure", [Contended, TryAgain])
@pytest.mark.parametrize("failures", [ATTEMPTS_MAX - 1, ATTEMPTS_MAX])
async def test_what_is_in_the_way_is_waited_for_a_few_times(failure: type[Exception], failures: int) -> None:
    """Then the caller is told to come back; nothing is stored twice."""
    database, rotation, change = await theft()
    left = [failure()] * failures

    def probe(point: str) -> None:
        if point == "before_commit" and left:
            raise left.pop()

    store = MemoryStore(database, probe)
    if failures == ATTEMPTS_MAX:
        with pytest.raises(Unavailable):
            append_rotation(store, rotation, change, now_ms=NOW_MS)
    else:
        result, runs = append_rotation(store, rotation, change, now_ms=NOW_MS)
        assert isinstance(result, ResultAccepted)
        assert [run.last_seq for _, run in runs] == [2]
    assert len(database.events[1, 1]) == (1 if failures == ATTEMPTS_MAX else 2)


async def test_another_log_at_the_same_seq_is_not_the_one_that_was_checked() -> None:
    """After a restore the row number may be another user's."""
    database, rotation, change = await theft()
    other = AccountChange(change.enrolled, change.checked_seq, bytes(32))
    with pytest.raises(Unavailable):
        append_rotation(MemoryStore(database, lambda _: None), rotation, other, now_ms=NOW_MS)


async def test_a_rotation_that_ingest_refuses_is_not_stored() -> None:
    """One from the future, for instance."""
    database, rotation, change = await theft()
    answer, runs = append_rotation(MemoryStore(database, lambda _: None), rotation, change, now_ms=1)
    assert answer == ResultError("unprocessable", [])
    assert (runs, len(database.events[1, 1])) == ([], 1)
