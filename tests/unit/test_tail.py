"""The in-memory tail: one contiguous run per stream, bounded, never beyond what it knows."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from keepstep._keepstep import StreamHead, ingest
from keepstep.model import DevicePk, Principal, RetentionClass, UserPk
from keepstep.tail import Tail
from tests.support.events import NOW_MS, DeviceFixture, UserFixture, submission
from tests.support.logs import decode_rows

if TYPE_CHECKING:
    from keepstep._keepstep import Run
    from keepstep.interfaces import Page

ADA = UserFixture("ada")
PHONE = DeviceFixture(ADA, "phone")
ON_PHONE = Principal(UserPk(1), ADA.user_key, DevicePk(1), PHONE.device_id, PHONE.device_key, PHONE.capabilities, None)
NOTES = (1, "notes")
PAGE_BYTES = 1 << 20


def runs(*counts: int, stream: str = "notes", size: int = 100, ttl_s: int | None = None) -> list[Run]:
    """What commits of so many events each add to a stream."""
    device = DeviceFixture(ADA, "phone")
    head = StreamHead.create(
        user_pk=1,
        user_key=ADA.user_key,
        stream_pk=3,
        name=stream,
        retention_class=RetentionClass.STANDARD,
        auth_epoch=0,
    )
    added = []
    for count in counts:
        events = [device.event(stream, bytes(size), ttl_s=ttl_s) for _ in range(count)]
        ingested = ingest([submission(ON_PHONE, *events)], {(1, stream): head}, now_ms=NOW_MS)
        ((_, head),) = ingested.moved
        added += ingested.runs
    return added


def filled(*added: Run, bytes_max: int = 1 << 20, stream_bytes_max: int = 1 << 20) -> Tail:
    """A tail that took in runs of "notes"."""
    tail = Tail(bytes_max=bytes_max, stream_bytes_max=stream_bytes_max)
    for run in added:
        tail.append(NOTES, run)
    return tail


def page(
    tail: Tail, after: int, *, events_max: int = 1000, bytes_max: int = PAGE_BYTES, now_ms: int = NOW_MS
) -> Page | None:
    """A page of "notes"."""
    return tail.page(NOTES, after, events_max=events_max, bytes_max=bytes_max, now_ms=now_ms)


def seqs(found: Page | None) -> list[int]:
    """Seqs of the rows of a page."""
    assert found is not None
    return [row[0] for row in decode_rows(found.rows, found.count)]


def test_a_page_spans_what_several_commits_added() -> None:
    """From any position that the tail holds the next row of, up to its end."""
    added = runs(3, 1, 4)
    tail = filled(*added)

    for after in range(8):
        found = page(tail, after)
        assert found is not None
        assert seqs(found) == list(range(after + 1, 9))
        assert (found.after, found.last_seq, found.head_seq, found.chain) == (after, 8, 8, added[-1].chain)


def test_outside_its_run_the_tail_has_no_answer() -> None:
    """At its end another node may have written more, before its beginning the database knows, beyond it nobody asks."""
    tail = filled(*runs(2, 2, 2)[1:])

    assert page(tail, 1) is None
    assert seqs(page(tail, 2)) == [3, 4, 5, 6]
    assert page(tail, 6) is None
    assert page(tail, 7) is None
    assert tail.page((1, "other"), 0, events_max=1, bytes_max=1, now_ms=NOW_MS) is None


def test_pages_are_bounded_in_events_and_bytes() -> None:
    """At least one row; no row beyond either bound otherwise."""
    added = runs(2, 2, 2)
    tail = filled(*added)
    whole = page(tail, 0)
    assert whole is not None
    row_bytes = len(whole.rows) // 6

    assert seqs(page(tail, 0, events_max=3)) == [1, 2, 3]
    assert seqs(page(tail, 1, events_max=1)) == [2]
    assert seqs(page(tail, 0, events_max=2)) == [1, 2]
    assert seqs(page(tail, 0, bytes_max=1)) == [1]
    assert seqs(page(tail, 0, bytes_max=2 * row_bytes)) == [1, 2]
    assert seqs(page(tail, 0, bytes_max=3 * row_bytes - 1)) == [1, 2]
    assert seqs(page(tail, 0, bytes_max=3 * row_bytes)) == [1, 2, 3]
    found = page(tail, 0, bytes_max=3 * row_bytes)
    assert found is not None
    assert found.head_seq == 6


def test_what_does_not_join_on_empties_the_tail_first() -> None:
    """After a hole, or on another chain, nothing before it is served any more."""
    first, second, third = runs(2, 2, 2)
    (other,) = runs(2, size=101)

    tail = filled(first, third)
    assert page(tail, 0) is None
    assert seqs(page(tail, 4)) == [5, 6]
    tail = filled(other, second)
    assert page(tail, 0) is None
    assert seqs(page(tail, 2)) == [3, 4]
    assert tail.size_bytes == second.size_bytes


def test_an_expired_payload_is_not_served() -> None:
    """A page ends before the run that holds one; from there on the database answers."""
    tail = filled(*runs(1, 2, 1, ttl_s=60))

    assert seqs(page(tail, 0, now_ms=NOW_MS + 59_999)) == [1, 2, 3, 4]
    assert page(tail, 0, now_ms=NOW_MS + 60_000) is None
    mixed = filled(*mixed_runs())
    assert seqs(page(mixed, 0, now_ms=NOW_MS + 60_000)) == [1]
    assert page(mixed, 1, now_ms=NOW_MS + 60_000) is None
    assert seqs(page(mixed, 2, now_ms=NOW_MS + 60_000)) == [3]


def mixed_runs() -> list[Run]:
    """Three commits of one event, the second of which lives for a minute."""
    device = DeviceFixture(ADA, "phone")
    head = StreamHead.create(
        user_pk=1, user_key=ADA.user_key, stream_pk=3, name="notes", retention_class=1, auth_epoch=0
    )
    added = []
    for ttl_s in (None, 60, None):
        event = device.event("notes", b"x", ttl_s=ttl_s)
        ingested = ingest([submission(ON_PHONE, event)], {NOTES: head}, now_ms=NOW_MS)
        ((_, head),) = ingested.moved
        added += ingested.runs
    return added


def test_a_stream_keeps_its_newest_events() -> None:
    """Above its bound it gives up the oldest, well below it, so that not every commit trims."""
    added = runs(*[1] * 40, size=200)
    share = 20 * added[0].size_bytes
    tail = filled(*added, stream_bytes_max=share)

    assert 0 < tail.size_bytes <= share
    assert page(tail, 0) is None
    assert seqs(page(tail, 39)) == [40]
    assert seqs(page(tail, 30)) == list(range(31, 41))
    sizes = []
    trimmed = filled(stream_bytes_max=share)
    for run in added:
        trimmed.append(NOTES, run)
        sizes.append(trimmed.size_bytes)
    assert sum(after < before for before, after in pairwise(sizes)) < 5


def test_a_commit_larger_than_its_share_is_not_kept() -> None:
    """The tail is empty then rather than above its bound, and goes on with what follows."""
    small, large, next_one = runs(1, 50, 1)
    tail = filled(small, large, stream_bytes_max=large.size_bytes - 1)

    assert (tail.size_bytes, tail.stream_count) == (0, 0)
    tail.append(NOTES, next_one)
    assert seqs(page(tail, 51)) == [52]


def test_the_stream_used_longest_ago_goes_first() -> None:
    """Reading counts as use; the memory for all streams together is never exceeded."""
    (run,) = runs(1)
    bound = 3 * run.size_bytes
    tail = Tail(bytes_max=bound, stream_bytes_max=bound)
    for name in ("a", "b", "c"):
        tail.append((1, name), run)
    assert tail.page((1, "a"), 0, events_max=1, bytes_max=1, now_ms=NOW_MS) is not None

    tail.append((1, "d"), run)

    assert tail.size_bytes == bound
    assert [tail.last_seq((1, name)) for name in "abcd"] == [1, 0, 1, 1]


def test_without_memory_nothing_is_kept() -> None:
    """A bound of 0 turns the tail off."""
    tail = filled(*runs(1), bytes_max=0)

    assert (page(tail, 0), tail.size_bytes, tail.last_seq(NOTES)) == (None, 0, 0)


def test_streams_are_forgotten_one_by_one_or_all() -> None:
    """Forgetting what is not there is no error."""
    (run,) = runs(1)
    tail = filled(run)
    tail.append((1, "other"), run)

    tail.drop(NOTES)
    tail.drop(NOTES)
    assert (tail.last_seq(NOTES), tail.last_seq((1, "other")), tail.size_bytes) == (0, 1, run.size_bytes)
    tail.clear()
    assert (tail.stream_count, tail.size_bytes) == (0, 0)


def test_what_is_gone_from_its_stream_is_forgotten() -> None:
    """Run by run: what holds an event of the beginning goes as a whole, and what comes after it stays."""
    first, second, third = runs(2, 2, 2)
    tail = filled(first, second, third)
    tail.drop_before(NOTES, 3)
    assert page(tail, 2) is None
    assert seqs(page(tail, 4)) == [5, 6]
    tail.drop_before(NOTES, 6)
    assert (tail.stream_count, tail.size_bytes) == (0, 0)
    tail.drop_before(NOTES, 6)


def test_a_tail_ends_with_what_was_added_last() -> None:
    """Until it is gone from memory; nothing of another stream's."""
    first, second = runs(2, 1)
    tail = filled(first, second)
    assert [tail.ends_with(NOTES, each) for each in (first, second)] == [False, True]
    assert not tail.ends_with((1, "other"), second)
    tail.drop(NOTES)
    assert not tail.ends_with(NOTES, second)
