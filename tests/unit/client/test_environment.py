"""The machine's own clock and randomness, and ids made of them."""

from __future__ import annotations

import dataclasses
import time
import uuid

from keepstep.client.environment import SYSTEM, uuid4, uuid7


def test_the_systems_clock_counts_milliseconds() -> None:
    """Unix milliseconds, as everything on the wire."""
    assert abs(SYSTEM.now_ms() - time.time() * 1000) < 60_000


def test_the_systems_jitter_stays_within_its_limit() -> None:
    """Spread from nothing to the limit."""
    values = [SYSTEM.jitter(2.0) for _ in range(200)]
    assert min(values) >= 0
    assert max(values) <= 2
    assert max(values) - min(values) > 0.5


def test_ids_are_uuids_of_their_version() -> None:
    """Version 4 is random, version 7 begins with the time."""
    fixed = dataclasses.replace(SYSTEM, now_ms=lambda: 0x0123456789AB, random_bytes=lambda count: b"\xff" * count)
    assert uuid.UUID(bytes=uuid4(fixed)).version == 4
    seven = uuid.UUID(bytes=uuid7(fixed))
    assert (seven.version, seven.variant) == (7, uuid.RFC_4122)
    assert seven.bytes[:6] == bytes.fromhex("0123456789ab")
    assert uuid4(SYSTEM) != uuid4(SYSTEM)
