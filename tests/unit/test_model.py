"""The words every part shares."""

from __future__ import annotations

import pytest

from keepstep.model import Capability, DevicePk, Principal, UserPk, has_expired


@pytest.mark.parametrize(
    ("expires_at_ms", "now_ms", "expired"),
    [(None, 2**53, False), (1_000, 999, False), (1_000, 1_000, True), (1_000, 1_001, True), (0, 0, True)],
)
def test_something_is_over_from_the_moment_it_names(expires_at_ms: int | None, now_ms: int, expired: bool) -> None:
    """The same for devices, tokens and events; what names none never is."""
    principal = Principal(UserPk(1), bytes(32), DevicePk(1), bytes(16), bytes(32), Capability.PUBLISH, expires_at_ms)

    assert has_expired(expires_at_ms, now_ms) is expired
    assert principal.is_expired(now_ms) is expired


def test_a_cool_down_holds_manage_back() -> None:
    """Until its end, and nothing else."""
    every = Capability.PUBLISH | Capability.SUBSCRIBE | Capability.MANAGE
    principal = Principal(UserPk(1), bytes(32), DevicePk(1), bytes(16), bytes(32), every, None, manage_from_ms=10)

    assert principal.capabilities_at(9) == Capability.PUBLISH | Capability.SUBSCRIBE
    assert principal.capabilities_at(10) == every
