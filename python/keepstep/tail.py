"""The newest events of each stream in memory, from which live sessions are served without the database.

Per stream it is one contiguous run: what does not join on to it empties it first, so a reader never gets past a gap.
It is bounded in bytes, per stream and in all; the streams used longest ago go first (docs/explanation/log.md).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from keepstep.interfaces import Page
from keepstep.model import has_expired

if TYPE_CHECKING:
    from keepstep._keepstep import Run

TRIM_SHARE: Final = 4
"""A stream above its bound gives up this share of it at once (one fourth), so that trimming is rare and not per run."""


@dataclass(eq=False, slots=True)
class _StreamTail:
    """Runs of one stream, each joining on to the one before."""

    runs: list[Run] = field(default_factory=list)
    size_bytes: int = 0


class Tail:
    """The in-memory tails of all streams of one node. Belongs to the Trio thread.

    Args:
        bytes_max: memory for all streams together, bytes; 0 keeps nothing.
        stream_bytes_max: the share of one stream, bytes.
    """

    def __init__(self, *, bytes_max: int, stream_bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._stream_bytes_max = min(stream_bytes_max, bytes_max)
        self._streams: OrderedDict[tuple[int, str], _StreamTail] = OrderedDict()
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """Bytes the runs hold."""
        return self._size_bytes

    @property
    def stream_count(self) -> int:
        """Streams that have a tail."""
        return len(self._streams)

    def append(self, key: tuple[int, str], run: Run) -> None:
        """Take in what a commit added to the stream ``key`` = (user_pk, name)."""
        tail = self._streams.get(key)
        if tail is None:
            tail = self._streams[key] = _StreamTail()
        else:
            if not run.continues(tail.runs[-1]):
                # Another node wrote in between, or an outcome was learned late: a hole is never bridged.
                self._trim(tail, len(tail.runs))
            self._streams.move_to_end(key)
        tail.runs.append(run)
        size_bytes = run.size_bytes
        tail.size_bytes += size_bytes
        self._size_bytes += size_bytes
        if tail.size_bytes > self._stream_bytes_max:
            self._shorten(tail)
        while self._size_bytes > self._bytes_max:
            self.drop(next(iter(self._streams)))
        if not tail.runs:
            self._streams.pop(key, None)

    def page(self, key: tuple[int, str], after: int, *, events_max: int, bytes_max: int, now_ms: int) -> Page | None:
        """Rows with seq above ``after``: at least one, even if it alone is above ``bytes_max``.

        ``head_seq`` of the page is the tail's own last seq.

        ``None`` where the tail does not hold row ``after + 1``, or holds it in a run of which a payload has expired:
        then the database answers. A tail that ends at ``after`` says nothing, for another node may have written more.
        """
        tail = self._streams.get(key)
        if tail is None or not tail.runs[0].first_seq <= after + 1 <= tail.runs[-1].last_seq:
            return None
        self._streams.move_to_end(key)
        parts: list[bytes] = []
        count, size_bytes, last_seq, chain = 0, 0, after, b""
        first = bisect_left(tail.runs, after + 1, key=attrgetter("last_seq"))
        for run in islice(tail.runs, first, None):
            expired = has_expired(run.expires_at_ms, now_ms)
            if expired or count >= events_max or (parts and size_bytes >= bytes_max):
                break
            rows, run_count, run_last, run_chain = run.page(
                last_seq, events_max=events_max - count, bytes_max=bytes_max - size_bytes
            )
            if parts and size_bytes + len(rows) > bytes_max:
                break
            parts.append(rows)
            count, size_bytes, last_seq, chain = count + run_count, size_bytes + len(rows), run_last, run_chain
            if run_last < run.last_seq:
                break
        if not parts:
            return None
        return Page(after, b"".join(parts), count, last_seq, chain, tail.runs[-1].last_seq)

    def ends_with(self, key: tuple[int, str], run: Run) -> bool:
        """Whether ``run`` is the newest of a stream's tail: its payloads are served from memory."""
        tail = self._streams.get(key)
        return tail is not None and tail.runs[-1] is run

    def last_seq(self, key: tuple[int, str]) -> int:
        """Seq up to which this node knows the stream to be committed, 0 where it has no tail."""
        tail = self._streams.get(key)
        return tail.runs[-1].last_seq if tail is not None else 0

    def drop_before(self, key: tuple[int, str], seq: int) -> None:
        """Forget the runs of a stream that hold events up to ``seq``: they are gone with its beginning."""
        tail = self._streams.get(key)
        if tail is None:
            return
        self._trim(tail, sum(run.first_seq <= seq for run in tail.runs))
        if not tail.runs:
            del self._streams[key]

    def drop(self, key: tuple[int, str]) -> None:
        """Forget one stream."""
        tail = self._streams.pop(key, None)
        if tail is not None:
            self._trim(tail, len(tail.runs))

    def clear(self) -> None:
        """Forget everything: the log is not the one it was."""
        self._streams.clear()
        self._size_bytes = 0

    def _grow(self, tail: _StreamTail, size_bytes: int) -> None:
        tail.size_bytes += size_bytes
        self._size_bytes += size_bytes

    def _trim(self, tail: _StreamTail, count: int) -> None:
        """Drop a stream's oldest ``count`` runs."""
        self._grow(tail, -sum(run.size_bytes for run in tail.runs[:count]))
        del tail.runs[:count]

    def _shorten(self, tail: _StreamTail) -> None:
        """Drop a stream's oldest runs until it is well below its bound; all where the newest alone is above it."""
        target = self._stream_bytes_max - self._stream_bytes_max // TRIM_SHARE
        count, size_bytes = 0, tail.size_bytes
        while size_bytes > target and count < len(tail.runs) - 1:
            size_bytes -= tail.runs[count].size_bytes
            count += 1
        if size_bytes > self._stream_bytes_max:
            count = len(tail.runs)
        self._trim(tail, count)
