"""Whether the archive is what was written there: every segment, from each stream's first to its tail."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from keepstep.archive.reading import load
from keepstep.archive.segment import edges
from keepstep.archive.writing import verify_rows
from keepstep.errors import ArchiveError
from keepstep.verification import Fault, Faults, Found

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from keepstep.archive.index import ArchivedStream, ArchiveIndex, ArchiveTail, SegmentEntry
    from keepstep.archive.segment import Segment
    from keepstep.archive.store import ArchiveStore
    from keepstep.interfaces import Threads
    from keepstep.model import Position


@dataclass(slots=True)
class ArchiveReport:
    """What was verified and what was found.

    Attributes:
        streams: that have segments.
        segments: of them.
        events: in those that could be read.
        found: the faults.
        notes: what is no fault and yet worth knowing: events that were pruned before there was an archive.
    """

    streams: int = 0
    segments: int = 0
    events: int = 0
    found: Found = field(default_factory=Found)
    notes: list[str] = field(default_factory=list)

    @property
    def faults(self) -> Sequence[Fault]:
        """The first of them."""
        return self.found.faults

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found."""
        return self.found.count == 0


async def visit_streams(
    index: ArchiveIndex, user_key: bytes | None, visit: Callable[[ArchiveTail], Awaitable[None]]
) -> None:
    """Call ``visit`` with every stream that has segments, of all users or one. Raises Unavailable, and as ``visit``."""
    after = (0, 0)
    while page := await index.streams(after=after, user_key=user_key):
        for each in page:
            await visit(each)
        after = page[-1].stream.place


async def visit_segments(
    index: ArchiveIndex, stream: ArchivedStream, visit: Callable[[SegmentEntry], Awaitable[None]]
) -> None:
    """Call ``visit`` with every segment of a stream, ascending. Raises Unavailable, and as ``visit``."""
    after = 0
    while page := await index.segments(stream, after=after):
        for each in page:
            await visit(each)
        after = page[-1].to.seq


async def verify_archive(
    index: ArchiveIndex,
    store: ArchiveStore,
    keys: Sequence[bytes],
    threads: Threads,
    *,
    user_key: bytes | None = None,
) -> ArchiveReport:
    """Verify every segment, of all users or one; one is in memory at a time. Changes nothing. Cancel-safe.

    Args:
        index: what the database knows of them.
        store: where they are.
        keys: the server's identity keys, of now and before.
        threads: where they are verified.
        user_key: only this user.

    Raises:
        Unavailable: the database or the archive does not answer.
    """
    report = ArchiveReport()

    async def check(tail: ArchiveTail) -> None:
        report.streams += 1
        await _StreamCheck(index, store, keys, threads, tail, report).run()

    await visit_streams(index, user_key, check)
    return report


class _StreamCheck:
    """One stream."""

    def __init__(
        self,
        index: ArchiveIndex,
        store: ArchiveStore,
        keys: Sequence[bytes],
        threads: Threads,
        tail: ArchiveTail,
        report: ArchiveReport,
    ) -> None:
        self._index = index
        self._store = store
        self._keys = keys
        self._threads = threads
        self._tail = tail
        self._report = report
        self._stream = tail.stream
        self._faults = Faults(tail.stream.user_key, tail.stream.name, report.found)
        self._limiter = trio.CapacityLimiter(1)
        self._end: SegmentEntry | None = None

    async def run(self) -> None:
        """All its segments, and that they reach as far as they should."""
        device_keys = await self._index.device_keys(self._stream.user_pk)

        async def check(entry: SegmentEntry) -> None:
            self._report.segments += 1
            self._check_joint(entry)
            self._end = entry
            try:
                segment = await load(self._store, self._stream, entry, self._keys, self._threads, self._limiter)
            except ArchiveError as error:
                self._faults.add(error.code, entry.from_.seq + 1, f"{error} (events up to {entry.to.seq})")
                return
            self._report.events += len(segment.rows)
            await self._check_events(segment, device_keys)
            self._check_tail(segment)

        await visit_segments(self._index, self._stream, check)
        end_seq = 0 if self._end is None else self._end.to.seq
        if end_seq < self._tail.archived_seq:
            self._missing(end_seq, self._tail.archived_seq)
        elif self._tail.tail is not None and end_seq < self._tail.tail.seq:
            self._note(end_seq, self._tail.tail)

    def _check_joint(self, entry: SegmentEntry) -> None:
        """A segment begins where the one before ended, or where the stream began when it was made."""
        before = self._end
        if before is None:
            if entry.from_.seq:
                self._note(0, entry.from_)
        elif before.to.seq < entry.from_.seq:
            self._note(before.to.seq, entry.from_)
        elif before.to != entry.from_:
            self._faults.add("segment_gap", entry.from_.seq + 1, "the segment does not begin where the last one ended")

    async def _check_events(self, segment: Segment, device_keys: Mapping[bytes, bytes]) -> None:
        start, end = edges(segment.manifest)
        faults = await self._threads.run(
            lambda: verify_rows(self._stream, start, end, segment.rows, device_keys), limiter=self._limiter
        )
        for fault in faults.found.faults:
            self._report.found.add(fault)

    def _check_tail(self, segment: Segment) -> None:
        """The database goes on from where the archive leads to."""
        tail, from_seq = self._tail.tail, segment.manifest.from_seq
        if tail is None or not from_seq < tail.seq <= segment.manifest.to_seq:
            return
        if segment.chains[tail.seq - from_seq - 1] != tail.chain:
            self._faults.add(
                "tail_differs", tail.seq, "the archive leads to another chain than the database begins with"
            )

    def _missing(self, after: int, up_to: int) -> None:
        self._faults.add("segment_missing", after + 1, f"no segment is known for the events up to {up_to}")

    def _note(self, after: int, to: Position) -> None:
        whose = f"user {self._stream.user_key.hex()} stream {self._stream.name}"
        self._report.notes.append(
            f"{whose}: the events {after + 1} to {to.seq} were pruned before there was an archive"
        )
