"""Row locks of the tables in memory."""

from __future__ import annotations

import pytest

from keepstep.eventlog.store import Contended, Lookup
from keepstep.memory import MemoryDatabase
from keepstep.memory.store import LOCK_WAITS_MAX, MemoryStore


def test_a_lock_that_stays_taken_is_given_up() -> None:
    """As with PostgreSQL's lock_timeout; what the transaction had locked is free again."""
    database = MemoryDatabase()
    database.locks["row"] = "somebody else"
    points: list[str] = []
    store = MemoryStore(database, points.append)

    def take_both() -> None:
        with store.begin() as transaction:
            transaction._take("other row")
            transaction._take("row")

    with pytest.raises(Contended):
        take_both()

    assert points.count("wait") == LOCK_WAITS_MAX
    assert database.locks == {"row": "somebody else"}


def test_a_path_that_leads_nowhere_finds_nothing() -> None:
    """Rows that are not there end a walk."""
    store = MemoryStore(MemoryDatabase(), lambda _: None)

    assert store.find([Lookup(1, 3, 1, from_seq=9, n=1)]) == {}
