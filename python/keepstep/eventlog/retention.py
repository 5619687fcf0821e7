"""What becomes of the oldest events: rules, and the steps in which a stream's beginning goes (protocol.md section 3).

First a stream's tail advances and is committed: what was there is said by the chain, each author's last event and the
events that stay in force. Only then rows go, in small transactions of their own or with a whole partition. So a crash
at any point leaves a log that verifies, and the next step goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from keepstep import _keepstep
from keepstep.protocol.chain import event_hash
from keepstep.protocol.messages import U64, Bytes16, Bytes32

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from keepstep.model import UserPk

DAY_MS: Final = 24 * 60 * 60 * 1000
SNAPSHOT_DELAY_MS: Final = 7 * DAY_MS
"""How long after its confirmation a snapshot stands for what it covers (protocol.md section 3, Snapshots)."""
EVENTS_PER_STEP_MIN: Final = 50
EVENTS_PER_STEP_MAX: Final = 1_000
"""Events by which a tail advances in one transaction, which holds the stream's lock: some milliseconds."""
ROWS_PER_STEP_MIN: Final = 20
ROWS_PER_STEP_MAX: Final = 250
"""Rows removed in one transaction; it locks no stream, but each is on a page of its own that goes into the WAL whole,
and whoever commits next waits until that is on the disk."""
PARTITIONS_PER_RUN_MAX: Final = 1_000
"""Partitions dropped in one run."""
PARTITION_MARGIN_MS: Final = DAY_MS
"""How long after its end a partition is left alone: whatever was being stored in it is committed."""

TailAuthors = dict[bytes, tuple[int, bytes]]
"""Each author's last number and the hash of that event (32 bytes) at a position, by device id."""

_AUTHORS: Final = msgspec.msgpack.Decoder(dict[Bytes16, tuple[U64, Bytes32]])


def encode_authors(authors: TailAuthors) -> bytes:
    """As the log keeps them: MessagePack ``{device_id: [n, hash]}``."""
    return msgspec.msgpack.encode(dict(sorted(authors.items())))


def decode_authors(data: bytes | None) -> TailAuthors:
    """What ``encode_authors`` gave; nobody for ``None``."""
    return {} if data is None else _AUTHORS.decode(data)


def advanced_authors(
    before: Mapping[bytes, tuple[int, bytes]], last_events: Iterable[tuple[bytes, int, bytes, bytes]]
) -> TailAuthors:
    """Who wrote what last at a later position.

    Args:
        before: at the earlier one.
        last_events: (device_id, n, header, sig) of each author's last event in between.
    """
    return {
        **before,
        **{device_id: (n, event_hash(_keepstep, header, sig)) for device_id, n, header, sig in last_events},
    }


@dataclass(frozen=True, slots=True)
class RetentionRules:
    """How long events stay.

    Attributes:
        days: on this server; ``None`` for ever, but where a user's own number says otherwise.
        only_archived: what is not in the archive stays.
    """

    days: int | None
    only_archived: bool = False

    def cutoff_ms(self, now_ms: int, user_days: int | None = None) -> int | None:
        """What was received before goes: the shortest that is set counts. ``None``: nothing goes by its age."""
        days = [each for each in (self.days, user_days) if each is not None]
        return None if not days else now_ms - min(days) * DAY_MS


@dataclass(frozen=True, slots=True)
class Advanced:
    """One step of a tail: events after ``from_seq`` up to ``to_seq`` are no part of the stream any more.

    ``from_seq == to_seq``: nothing of it was old enough after all, and it was noted when it will be.
    """

    user_pk: UserPk
    stream_pk: int
    from_seq: int
    to_seq: int


@dataclass(frozen=True, slots=True)
class RetentionState:
    """How far the clean-up is.

    Attributes:
        oldest_at_ms: when the oldest event that may be pruned was received, or earlier; ``None`` where there is none.
        overdue_ms: for how long the oldest one that should be gone is overdue; 0 where nothing is.
        waiting_rows: rows below the tails of their streams that wait to be removed.
        waiting_partitions: partitions that wait to be dropped.
    """

    oldest_at_ms: int | None
    overdue_ms: int
    waiting_rows: int
    waiting_partitions: int


class Retention(Protocol):
    """Takes away the oldest events, step by step; one node does at a time. All methods raise Unavailable.

    A step that another node is in the middle of answers as if there were nothing to do.
    """

    async def advance_tail(self, *, now_ms: int, rules: RetentionRules, events_max: int) -> Advanced | None:
        """Advance the tail of one stream by at most ``events_max`` events; ``None`` where there is nothing to do.

        By age, whole partitions at a time where the server's own rule says so; up to what a snapshot covers that was
        confirmed ``SNAPSHOT_DELAY_MS`` ago; in an inbox up to what its device has acknowledged.
        """

    async def drop_partitions(self, *, now_ms: int, partitions_max: int = PARTITIONS_PER_RUN_MAX) -> list[str]:
        """Drop the oldest partitions beyond which every tail is; returns their names. Disk comes back at once."""

    async def remove_rows(self, *, rows_max: int) -> int:
        """Remove about ``rows_max`` rows at most below the tail of one stream; returns how many (0: done)."""

    async def state(self, *, now_ms: int, rules: RetentionRules) -> RetentionState:
        """How far it is."""
