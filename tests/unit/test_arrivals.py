"""Who a device is that has proved a key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from keepstep.arrivals import open_session
from keepstep.errors import ProtocolError, Unavailable
from keepstep.model import Capability
from keepstep.protocol.messages import ClientAuthCore
from tests.support.events import NOW_MS, DeviceFixture, seed
from tests.support.parts import Parts


def core_of(device: DeviceFixture, **changes: bytes) -> ClientAuthCore:
    """What a device says of itself in the handshake."""
    fields = {
        "user_key": device.user.user_key,
        "device_id": device.device_id,
        "device_key": device.device_key,
    }
    return ClientAuthCore(**(fields | changes), resume="none", options={})


async def test_an_enrolled_device_is_who_it_says() -> None:
    """The principal is what everything is decided by afterwards."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    opened, session_no = await open_session(parts.accounts, core_of(phone), bytes(16), now_ms=NOW_MS)
    principal = opened.known.principal
    assert session_no == 1
    assert (principal.user_key, principal.device_id) == (phone.user.user_key, phone.device_id)
    assert principal.capabilities == Capability(7)


async def test_whoever_cannot_be_authenticated_learns_nothing() -> None:
    """Unknown user, unknown device, another key, another user's device, expired: the same answer, word for word."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    (tablet,) = await parts.register("bob", "tablet")
    await parts.enrol(phone, expiring := DeviceFixture(phone.user, "watch", expires_at_ms=NOW_MS + 1))
    parts.clock.at_ms += 1
    refused = [
        core_of(phone, user_key=seed("nobody")),
        core_of(phone, device_id=bytes(16)),
        core_of(phone, device_key=tablet.device_key),
        core_of(phone, device_id=tablet.device_id, device_key=tablet.device_key),
        core_of(expiring),
    ]
    answers = set()
    for core in refused:
        with pytest.raises(ProtocolError) as caught:
            await open_session(parts.accounts, core, bytes(16), now_ms=parts.clock.at_ms)
        answers.add((caught.value.row, caught.value.retry_after_ms))
    assert {(row.code, row.close_code) for row, _ in answers} == {("auth_failed", 4503)}
    assert len(answers) == 1


async def test_a_device_that_ends_while_it_is_looked_up_comes_again() -> None:
    """It was live in the snapshot and is not under the lock: the next answer says why."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    ask = parts.accounts.open_session

    async def overtaken(*arguments: Any, **options: Any) -> Any:
        opened = await ask(*arguments, **options)
        assert opened is not None
        return replace(opened, session_no=None)

    parts.accounts.open_session = overtaken  # type: ignore[method-assign]
    with pytest.raises(Unavailable) as caught:
        await open_session(parts.accounts, core_of(phone), bytes(16), now_ms=NOW_MS)
    assert caught.value.retry_after_ms == 0
