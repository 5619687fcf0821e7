"""Which partition holds which time."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepstep.model import RetentionClass
from keepstep.postgres.partitions import partitions_of

YEAR_9000_MS = 221_845_392_000_000


def ms(*moment: int) -> int:
    """A moment in UTC as unix milliseconds."""
    return int(datetime(*moment, tzinfo=UTC).timestamp() * 1000)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("retention_class", "at", "name", "start", "end"),
    [
        (RetentionClass.KEEP, (2025, 11, 22, 13), "events_keep_20251101", (2025, 11, 1), (2025, 12, 1)),
        (RetentionClass.KEEP, (2025, 12, 31, 23), "events_keep_20251201", (2025, 12, 1), (2026, 1, 1)),
        (RetentionClass.STANDARD, (2025, 11, 22), "events_standard_20251117", (2025, 11, 17), (2025, 11, 24)),
        (RetentionClass.STANDARD, (2025, 11, 24), "events_standard_20251124", (2025, 11, 24), (2025, 12, 1)),
        (RetentionClass.STANDARD, (2026, 1, 1), "events_standard_20251229", (2025, 12, 29), (2026, 1, 5)),
    ],
)
def test_a_month_or_a_week(
    retention_class: int, at: tuple[int, ...], name: str, start: tuple[int, ...], end: tuple[int, ...]
) -> None:
    """Months for what is kept, weeks from Monday for the rest."""
    (partition,) = partitions_of(retention_class, ms(*at))

    assert (partition.name, partition.from_ms, partition.to_ms) == (name, ms(*start), ms(*end))


@given(st.sampled_from(RetentionClass), st.integers(0, YEAR_9000_MS), st.integers(0, 60))
def test_partitions_follow_each_other_without_a_gap(retention_class: RetentionClass, at_ms: int, ahead: int) -> None:
    """The first holds the moment, each next one begins where the one before ends, and names are unique."""
    partitions = list(partitions_of(retention_class, at_ms, ahead=ahead))

    assert partitions[0].from_ms <= at_ms < partitions[0].to_ms
    assert all(before.to_ms == after.from_ms for before, after in pairwise(partitions))
    assert len({partition.name for partition in partitions}) == 1 + ahead
