"""What a sender of bad signatures is charged, and who is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing

from keepstep.errors import ProtocolError
from keepstep.model import DevicePk, Principal, UserPk
from keepstep.suspects import (
    DEVICE_BURST,
    DEVICE_PER_S,
    REMEMBERED_S,
    USER_BURST,
    USER_PER_S,
    WAIT_MAX_S,
    Suspects,
)
from keepstep.telemetry import Metrics
from tests.support.parts import Parts, TestClock


async def some_principal() -> Principal:
    """A device's."""
    parts = Parts()
    (phone,) = await parts.register("alice")
    return await parts.principal(phone)


def of_user(principal: Principal, device: int) -> Principal:
    """Another device of its user."""
    return replace(principal, device_pk=DevicePk(1_000 + device))


def suspects(**arguments: int) -> Suspects:
    """On Trio's time."""
    return Suspects(TestClock(), Metrics(), **arguments)


def held_back(metrics: Metrics) -> float | None:
    """How often it was."""
    return metrics.registry.get_sample_value("keepstep_suspects_held_back_total")


async def test_who_sent_no_bad_signature_never_waits(autojump_clock: trio.testing.MockClock) -> None:
    """Whatever other devices of the same user and other users do."""
    phone = await some_principal()
    known = suspects()
    known.blame(of_user(phone, 1), 1_000_000)
    known.blame(replace(of_user(phone, 2), user_pk=UserPk(77)), 1_000_000)
    assert not known.knows(phone)
    assert known.wait_ms(phone) == 0
    known.require(phone)


async def test_a_burst_is_free_and_then_each_waits_for_the_next(autojump_clock: trio.testing.MockClock) -> None:
    """At the device's rate."""
    phone = await some_principal()
    known = suspects()
    known.blame(phone, int(DEVICE_BURST) - 1)
    assert (known.knows(phone), known.wait_ms(phone)) == (True, 0)
    for _ in range(5):
        known.blame(phone, 1)
        assert known.wait_ms(phone) == 1_000 / DEVICE_PER_S
        await known.wait(phone)
        assert known.wait_ms(phone) == 0
    assert trio.current_time() == pytest.approx(5 / DEVICE_PER_S, abs=0.01)


async def test_a_device_that_never_stops_has_one_message_a_second_looked_at(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each by itself costs a wake-up, a batch and a question to the database, whatever its verification costs."""
    phone = await some_principal()
    known, looked_at = suspects(), 0
    while trio.current_time() < 60:
        known.blame(phone, 1)
        looked_at += 1
        await known.wait(phone)
    assert looked_at == DEVICE_BURST - 1 + 60


async def test_a_wait_has_an_end(autojump_clock: trio.testing.MockClock) -> None:
    """However many bad signatures came at once."""
    phone = await some_principal()
    known = suspects()
    known.blame(phone, 1_000_000)
    assert known.wait_ms(phone) == WAIT_MAX_S * 1_000
    await known.wait(phone)
    assert trio.current_time() == pytest.approx(WAIT_MAX_S, abs=0.01)


async def test_the_devices_of_a_user_share_a_bound(autojump_clock: trio.testing.MockClock) -> None:
    """Those of them that sent a bad signature: many devices are not many times the attack."""
    phone = await some_principal()
    known = suspects()
    share = int(DEVICE_BURST) // 2
    devices = [of_user(phone, number) for number in range(int(USER_BURST) // share)]
    for device in devices:
        assert known.wait_ms(device) == 0
        known.blame(device, share)
    assert [known.wait_ms(device) for device in devices] == [pytest.approx(1_000 / USER_PER_S, abs=1)] * len(devices)


async def test_a_bucket_holds_no_more_than_its_burst(autojump_clock: trio.testing.MockClock) -> None:
    """However long nothing was taken, as long as it is remembered at all."""
    phone = await some_principal()
    known = suspects()
    known.blame(phone, 1)
    await trio.sleep(REMEMBERED_S / 2)
    known.blame(phone, int(DEVICE_BURST))
    assert known.wait_ms(phone) == 1_000 / DEVICE_PER_S


async def test_what_a_device_did_is_forgotten_in_the_end(autojump_clock: trio.testing.MockClock) -> None:
    """Counted from its last bad signature."""
    phone = await some_principal()
    known = suspects()
    known.blame(phone, 1)
    await trio.sleep(REMEMBERED_S / 2)
    known.blame(phone, 1)
    await trio.sleep(REMEMBERED_S - 1)
    assert known.knows(phone)
    await trio.sleep(1)
    assert not known.knows(phone)


async def test_so_many_devices_are_remembered(autojump_clock: trio.testing.MockClock) -> None:
    """The one that sent a bad signature longest ago is forgotten for the next."""
    phone = await some_principal()
    known = suspects(remembered_max=2)
    for device in (1, 2, 1, 3):
        known.blame(of_user(phone, device), 1)
    assert [known.knows(of_user(phone, device)) for device in (1, 2, 3)] == [True, False, True]


async def test_who_cannot_be_held_is_refused_with_a_time(autojump_clock: trio.testing.MockClock) -> None:
    """After which it is let through."""
    phone = await some_principal()
    metrics = Metrics()
    known = Suspects(TestClock(), metrics)
    known.require(phone)
    known.blame(phone, int(DEVICE_BURST) + 7)
    with pytest.raises(ProtocolError, match="limit_exceeded") as refused:
        known.require(phone)
    assert (refused.value.retry_after_ms, held_back(metrics)) == (8_000 / DEVICE_PER_S, 1)
    await trio.sleep(8 / DEVICE_PER_S)
    known.require(phone)
    assert held_back(metrics) == 1


async def test_a_wait_that_is_cancelled_has_taken_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """The next one ends when the first would have."""
    phone = await some_principal()
    known = suspects()
    known.blame(phone, int(DEVICE_BURST) + 7)
    with trio.move_on_after(0.25):
        await known.wait(phone)
    assert known.wait_ms(phone) == 8_000 / DEVICE_PER_S - 250
