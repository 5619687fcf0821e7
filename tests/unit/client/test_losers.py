"""Which payloads may be gone because their event lost its key to one that a device never had."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import msgspec
import pytest

from keepstep.client.locallog import LocalLog
from keepstep.client.losers import HLC_AHEAD_MS_MAX, excused
from keepstep.client.store import create_store
from keepstep.model import Kind, Policy, Position, RetentionClass
from keepstep.protocol.event import Header
from keepstep.protocol.missing import Rules
from keepstep.protocol.policy import PolicyPayload
from keepstep.protocol.streamstate import state_at
from keepstep.protocol.verified import Problem, VerifiedEvent
from tests.unit.client.test_store import IDENTITY, KEY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STREAM: Final = "notes"
FIRST_MS: Final = 1_000_000_000
"""When the first event that was read was received, at seq 5."""
LATE_MS: Final = FIRST_MS + 10 * HLC_AHEAD_MS_MAX
ADD: Final = "INSERT INTO events VALUES (?, ?, ?, ?, x'', x'', NULL, NULL, ?, NULL)"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LocalLog]:
    """Of a device that has read the events 5 and 7, and none before; the 6 it has not kept."""
    file = tmp_path / "laptop.sqlite3"
    with contextlib.closing(create_store(file, IDENTITY, genesis=None, content_keys=[KEY])) as store:
        for seq, at_ms in ((5, FIRST_MS), (7, LATE_MS)):
            store.execute(ADD, STREAM, seq, bytes(16), at_ms, bytes(32))
        yield LocalLog(store)


def event(
    problem: Problem | None = Problem.WITHHELD,
    *,
    kind: Kind = Kind.APPLICATION,
    key: bytes | None = bytes(16),
    hlc: int = FIRST_MS << 16,
) -> VerifiedEvent:
    """The event 7, which says of itself that it was written when the first was received."""
    header = Header(
        kind=kind,
        key=key,
        hlc=hlc,
        id=bytes(16),
        stream=STREAM,
        n=1,
        prev=bytes(16),
        base=None,
        seen=(0, bytes(32)),
        devices_seen=(1, bytes(32)),
        ttl_s=None,
        payload_len=0,
        payload_hash=bytes(32),
    )
    return VerifiedEvent(7, bytes(32), bytes(16), LATE_MS, header, b"", b"", bytes(32), None, problem)


def judged(
    log: LocalLog, judged_event: VerifiedEvent, *, policy: Policy | None = Policy.LATEST, whole: bool = True
) -> Problem | None:
    """What is said of it in the end."""
    payload = None if policy is None else PolicyPayload(policy, RetentionClass.STANDARD, None, None)
    state = msgspec.structs.replace(state_at(Position(7, bytes(32))), rules=Rules(payload, {}), whole=whole)
    (after,) = excused(log, STREAM, state, [judged_event])
    return after.problem


@pytest.mark.parametrize("is_gap", [True, False])
def test_what_may_have_lost_to_what_was_never_read_is_superseded(log: LocalLog, is_gap: bool) -> None:
    """Whether its beginning is gone or this device began later."""
    if is_gap:
        log.add_gap(STREAM, 0, Position(4, bytes(32)))
    assert judged(log, event(), whole=is_gap) is Problem.SUPERSEDED
    latest_ms = FIRST_MS + HLC_AHEAD_MS_MAX
    assert judged(log, event(hlc=latest_ms << 16), whole=is_gap) is Problem.SUPERSEDED
    assert judged(log, event(hlc=(latest_ms + 1) << 16), whole=is_gap) is Problem.WITHHELD


def test_without_anything_unread_before_it_is_withheld(log: LocalLog) -> None:
    """Nor does a gap behind it count."""
    assert judged(log, event()) is Problem.WITHHELD
    log.add_gap(STREAM, 7, Position(9, bytes(32)))
    assert judged(log, event()) is Problem.WITHHELD


def test_what_has_no_key_cannot_lose_it(log: LocalLog) -> None:
    """It is withheld."""
    log.add_gap(STREAM, 0, Position(4, bytes(32)))
    assert judged(log, event(key=None)) is Problem.WITHHELD
    assert judged(log, event(kind=Kind.SNAPSHOT)) is Problem.WITHHELD


@pytest.mark.parametrize("policy", [Policy.APPEND, None])
def test_other_policies_lose_nothing(log: LocalLog, policy: Policy | None) -> None:
    """As well as one that is not known."""
    log.add_gap(STREAM, 0, Position(4, bytes(32)))
    assert judged(log, event(), policy=policy) is Problem.WITHHELD


def test_what_came_in_the_end_has_no_problem(log: LocalLog) -> None:
    """Nor has it where nothing of the stream is kept, of which it is the first."""
    log.add_gap(STREAM, 0, Position(4, bytes(32)))
    assert judged(log, event(None)) is None
    assert log.unread_to("other", before=7, whole=False) is None
    log.add_gap("other", 0, Position(4, bytes(32)))
    assert log.unread_to("other", before=7, whole=True) == 4
