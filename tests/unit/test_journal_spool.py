"""A journal is put in order on the disk."""

from __future__ import annotations

import pytest

from keepstep import journal_spool
from keepstep.errors import StartupError
from keepstep.journal import AccountRecord, EpochRecord
from keepstep.journal_spool import FIRST, JournalSpool


def record(user: bytes, seq: int, payload: bytes = b"payload") -> AccountRecord:
    """An event of a user's account log."""
    return AccountRecord(user * 32, seq, 1, b"d" * 16, b"header", b"s" * 64, payload)


def everything(spool: JournalSpool) -> list[AccountRecord]:
    """All pages."""
    found, at = list[AccountRecord](), FIRST
    while page := spool.page(at):
        found += page
        at = page[-1].user_key, page[-1].seq
    return found


@pytest.mark.parametrize("page_records", [1, 2, 100])
def test_events_come_by_account_and_number(monkeypatch: pytest.MonkeyPatch, page_records: int) -> None:
    """Whatever their order was, page by page; numbers sort as numbers, up to the largest."""
    monkeypatch.setattr(journal_spool, "PAGE_RECORDS_MAX", page_records)
    records = [record(user, seq) for user in (b"a", b"b") for seq in (1, 2, 255, 256, 2**63 - 1)]
    with JournalSpool() as spool:
        assert spool.fill(reversed(records)) == 0
        assert everything(spool) == records


def test_of_two_records_of_one_place_the_later_one_counts() -> None:
    """An earlier epoch may have had another event there."""
    with JournalSpool() as spool:
        spool.fill([record(b"a", 1, b"before"), record(b"a", 1, b"after")])
        assert everything(spool) == [record(b"a", 1, b"after")]


def test_the_highest_epoch_is_told() -> None:
    """The next one is above it, whatever the order of the files."""
    with JournalSpool() as spool:
        assert spool.fill([EpochRecord(5), EpochRecord(9), record(b"a", 1), EpochRecord(7)]) == 9


def test_nothing_is_left_of_it() -> None:
    """It ends with the block."""
    with JournalSpool() as spool:
        spool.fill([record(b"a", 1)])
    with pytest.raises(StartupError, match="directory of temporary files: Cannot operate on a closed database"):
        spool.page(FIRST)
    with pytest.raises(StartupError, match="directory of temporary files"):
        spool.fill([])
