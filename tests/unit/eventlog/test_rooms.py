"""What a node may store for accounts with a quota of bytes before it asks again."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from keepstep.eventlog.rooms import FULL_PAUSE_MS, GRANT_BYTES, ByteRooms
from tests.support.events import NOW_MS

ADA, BEN = 1, 2
LARGE = 10 * GRANT_BYTES


class Stored:
    """What accounts store, and how often somebody asked."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}
        self.asked: list[set[int]] = []

    def __call__(self, user_pks: Collection[int]) -> Mapping[int, int]:
        """As ``Store.stored_bytes``."""
        self.asked.append(set(user_pks))
        return {user_pk: self.bytes[user_pk] for user_pk in user_pks if user_pk in self.bytes}


def ask(
    rooms: ByteRooms, stored: Stored, needed: int, bytes_max: int = LARGE, *, now_ms: int = NOW_MS, generation: int = 0
) -> int:
    """Ada's room."""
    return rooms.rooms({ADA: (needed, bytes_max)}, stored, now_ms=now_ms, generation=generation)[ADA]


def test_a_grant_is_asked_for_once_and_used_up() -> None:
    """In between nothing is asked; one transaction that needs more gets more."""
    rooms, stored = ByteRooms(), Stored()
    assert ask(rooms, stored, 10) == GRANT_BYTES
    rooms.take(ADA, GRANT_BYTES - 10)
    assert ask(rooms, stored, 10) == 10
    assert len(stored.asked) == 1
    stored.bytes[ADA] = GRANT_BYTES
    assert ask(rooms, stored, 11) == GRANT_BYTES
    assert ask(rooms, stored, 2 * GRANT_BYTES) == 2 * GRANT_BYTES
    assert len(stored.asked) == 3


def test_no_more_is_granted_than_there_is_room() -> None:
    """Below nothing where a quota was lowered."""
    rooms, stored = ByteRooms(), Stored()
    stored.bytes[ADA] = 900
    assert ask(rooms, stored, 10, 1_000) == 100
    assert ask(rooms, stored, 10, 500) == -400


def test_an_account_that_is_full_is_asked_about_once_a_second() -> None:
    """Whatever it tries meanwhile; a clock that was set back does not prolong it."""
    rooms, stored = ByteRooms(), Stored()
    stored.bytes[ADA] = 1_000
    for now_ms in (NOW_MS, NOW_MS + FULL_PAUSE_MS - 1):
        assert ask(rooms, stored, 10, 1_000, now_ms=now_ms) == 0
    assert len(stored.asked) == 1
    ask(rooms, stored, 10, 1_000, now_ms=NOW_MS + FULL_PAUSE_MS)
    ask(rooms, stored, 10, 1_000, now_ms=NOW_MS - 1)
    assert len(stored.asked) == 3


def test_what_is_not_known_is_asked_again() -> None:
    """After a write whose outcome is not known, and in another database; of one account only."""
    rooms, stored = ByteRooms(), Stored()
    asked = {ADA: (1, LARGE), BEN: (1, LARGE)}
    rooms.rooms(asked, stored, now_ms=NOW_MS, generation=0)
    rooms.drop([ADA, 99])
    rooms.rooms(asked, stored, now_ms=NOW_MS, generation=0)
    rooms.rooms(asked, stored, now_ms=NOW_MS, generation=1)
    assert stored.asked == [{ADA, BEN}, {ADA}, {ADA, BEN}]


def test_accounts_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one used longest ago goes first; what is stored of an account that is not remembered is not counted."""
    rooms, stored = ByteRooms(), Stored()
    monkeypatch.setattr("keepstep.eventlog.rooms.ACCOUNTS_MAX", 1)
    ask(rooms, stored, 1)
    rooms.rooms({BEN: (1, LARGE)}, stored, now_ms=NOW_MS, generation=0)
    rooms.take(ADA, 5)
    assert ask(rooms, stored, 1) == GRANT_BYTES
