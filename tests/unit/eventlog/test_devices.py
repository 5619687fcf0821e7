"""What a node remembers of accounts: live devices and positions of ``$devices``, bounded, of one database."""

from __future__ import annotations

import pytest

from keepstep.eventlog.devices import DeviceCache
from keepstep.eventlog.store import LiveDevices

LIVE = LiveDevices(0, {1: None})


def known(cache: DeviceCache, *user_pks: int, generation: int = 0) -> set[int]:
    """Which of the users it remembers."""
    return set(cache.get(user_pks, generation=generation))


def held(cache: DeviceCache, *seqs: int, generation: int = 0) -> set[int]:
    """Which of a user's positions it remembers."""
    unheld = cache.unheld([(1, (seq, bytes(32))) for seq in seqs], generation=generation)
    return set(seqs) - {seq for _, (seq, _) in unheld}


def test_a_device_writes_while_it_is_live_and_not_expired() -> None:
    """One that is not listed has ended, or never was."""
    devices = LiveDevices(0, {1: None, 2: 1_000})
    assert [devices.lets_write(device_pk, 999) for device_pk in (1, 2, 3)] == [True, True, False]
    assert not devices.lets_write(2, 1_000)


def test_what_was_asked_for_is_counted() -> None:
    """Found or missing, user by user."""
    cache = DeviceCache()
    cache.put({1: LIVE}, generation=0)

    known(cache, 1, 2)
    known(cache, 1)

    assert (cache.hits.found, cache.hits.missing) == (2, 1)


def test_what_was_used_longest_ago_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users by their last use, positions by age."""
    monkeypatch.setattr("keepstep.eventlog.devices.USERS_MAX", 2)
    monkeypatch.setattr("keepstep.eventlog.devices.POSITIONS_MAX", 2)
    cache = DeviceCache()
    cache.put({1: LIVE, 2: LIVE}, generation=0)
    assert known(cache, 1) == {1}
    cache.put({3: LIVE}, generation=0)
    cache.hold([(1, (seq, bytes(32))) for seq in (1, 2, 3)], generation=0)
    assert known(cache, 1, 2, 3) == {1, 3}
    assert held(cache, 1, 2, 3) == {2, 3}


def test_another_generation_voids_everything() -> None:
    """What a database said that was set back is not offered, and what comes late of it is not taken."""
    cache = DeviceCache()
    cache.put({1: LIVE}, generation=0)
    cache.hold([(1, (1, bytes(32)))], generation=0)
    assert known(cache, 1, generation=1) == set()
    assert held(cache, 1, generation=1) == set()
    cache.put({1: LIVE}, generation=0)
    cache.hold([(1, (1, bytes(32)))], generation=0)
    assert known(cache, 1, generation=1) == set()
    assert held(cache, 1, generation=1) == set()
