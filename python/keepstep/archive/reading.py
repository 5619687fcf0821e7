"""Events below a stream's tail, read out of the archive for whoever asks the log (``eventlog.log.Past``)."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import trio

from keepstep import _keepstep
from keepstep.archive.segment import expires_at_ms, unpack
from keepstep.errors import ArchiveError, ArchiveUnavailable
from keepstep.eventlog.store import ROW_BYTES_MAX
from keepstep.interfaces import Page
from keepstep.model import has_expired
from keepstep.protocol.event import decode_header

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.archive.index import ArchivedPlace, ArchivedStream, PastIndex, SegmentEntry
    from keepstep.archive.segment import Segment, SegmentRow
    from keepstep.archive.store import ArchiveStore
    from keepstep.interfaces import Threads
    from keepstep.model import UserPk
    from keepstep.telemetry import Log, Metrics

READERS: Final = 2
"""Segments that are fetched and unpacked at a time."""
DAMAGED_RETRY_MS: Final = 60_000
"""After so long a reader may ask again for what did not verify: somebody has to mend it first."""


class ArchivedPast:
    """Reads segments, and keeps the newest read ones in memory.

    Args:
        index: what the database knows of them.
        store: where they are.
        keys: the server's identity keys, of now and before.
        threads: where they are unpacked and verified.
        cache_bytes_max: memory for unpacked segments.
        metrics: counted into.
        logger: told of what does not verify.
    """

    def __init__(
        self,
        index: PastIndex,
        store: ArchiveStore,
        keys: Sequence[bytes],
        threads: Threads,
        *,
        cache_bytes_max: int,
        metrics: Metrics,
        logger: Log,
    ) -> None:
        self._index = index
        self._store = store
        self._keys = keys
        self._threads = threads
        self._cache_bytes_max = cache_bytes_max
        self._metrics = metrics
        self._logger = logger
        self._limiter = trio.CapacityLimiter(READERS)
        self._fetches = trio.CapacityLimiter(READERS)
        self._cache: OrderedDict[str, Segment] = OrderedDict()
        self._cached_bytes = 0

    @property
    def cached_bytes(self) -> int:
        """What the segments in memory take up there."""
        return self._cached_bytes

    async def page(
        self, user_pk: UserPk, stream: str, *, after: int, events_max: int, bytes_max: int, now_ms: int
    ) -> Page | None:
        """Events after a position below the tail; ``None`` where they are not in the archive. Cancel-safe.

        A page ends with its segment, and never goes beyond the tail.

        Raises:
            ArchiveUnavailable: the archive does not answer, or not with what was written there.
            Unavailable: the database is away.
        """
        place = await self._index.find(user_pk, stream, after=after)
        if place is None or place.segment.from_.seq > after or after >= place.tail_seq:
            return None
        segment = await self._segment(place)
        first = after - place.segment.from_.seq
        rows: list[SegmentRow] = []
        size_bytes = 0
        for row in segment.rows[first : min(first + events_max, place.tail_seq - place.segment.from_.seq)]:
            shown = _shown(row, place.erased, now_ms)
            size_bytes += ROW_BYTES_MAX + len(shown[3]) + len(shown[5] or b"")
            if rows and size_bytes > bytes_max:
                break
            rows.append(shown)
        last_seq = after + len(rows)
        self._metrics.archive_read_events.inc(len(rows))
        chain = segment.chains[first + len(rows) - 1]
        return Page(after, _keepstep.encode_rows(rows), len(rows), last_seq, chain, place.head_seq)

    async def chain(self, user_pk: UserPk, stream: str, seq: int) -> bytes | None:
        """The chain at a position below the tail; ``None`` where it is not in the archive. Raises as ``page``."""
        place = await self._index.find(user_pk, stream, after=seq)
        if place is None or place.segment.from_.seq > seq:
            return None
        if place.segment.from_.seq == seq:
            return place.segment.from_.chain
        segment = await self._segment(place)
        return segment.chains[seq - place.segment.from_.seq - 1]

    async def _segment(self, place: ArchivedPlace) -> Segment:
        """The segment of a place, from memory or from the store; verified before anything of it is used."""
        name = place.segment.name
        async with self._fetches:
            found = self._cache.get(name)
            if found is not None:
                self._cache.move_to_end(name)
                return found
            try:
                segment = await load(self._store, place.stream, place.segment, self._keys, self._threads, self._limiter)
            except ArchiveUnavailable:
                self._metrics.archive_failures.labels("read").inc()
                raise
            except ArchiveError as error:
                self._metrics.archive_failures.labels("read").inc()
                self._logger.error("archive_damaged", code=error.code, user_pk=int(place.stream.user_pk))
                raise ArchiveUnavailable(
                    "what is in the archive does not verify", retry_after_ms=DAMAGED_RETRY_MS
                ) from error
            self._remember(name, segment)
            return segment

    def _remember(self, name: str, segment: Segment) -> None:
        if name in self._cache:
            return  # another reader was as fast
        self._cache[name] = segment
        self._cached_bytes += segment.manifest.rows_bytes
        while self._cached_bytes > self._cache_bytes_max and self._cache:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.manifest.rows_bytes


async def load(
    store: ArchiveStore,
    stream: ArchivedStream,
    entry: SegmentEntry,
    keys: Sequence[bytes],
    threads: Threads,
    limiter: trio.CapacityLimiter,
) -> Segment:
    """The segment that the database has as ``entry``, verified.

    Raises:
        ArchiveError: it is not there, or not what was written.
        ArchiveUnavailable: the archive does not answer.
    """
    data = await _get(store, entry.name)
    segment = await threads.run(lambda: unpack(data, keys), limiter=limiter)
    manifest = segment.manifest
    written = (
        *(manifest.user_key, manifest.stream, manifest.from_seq, manifest.from_chain),
        *(manifest.to_seq, manifest.to_chain, dict(manifest.to_authors)),
    )
    expected = (
        *(stream.user_key, stream.name, entry.from_.seq, entry.from_.chain),
        *(entry.to.seq, entry.to.chain, entry.authors),
    )
    if written != expected:
        raise ArchiveError("segment_misplaced", f"the object {entry.name} is a segment of another place")
    return segment


async def _get(store: ArchiveStore, name: str) -> bytes:
    """An object, or the one in its place: a database restored from a backup does not know that it was written anew."""
    try:
        return await store.get(name)
    except ArchiveError as error:
        if error.code != "segment_missing":
            raise
        missing = error
    others = await store.written_anew(name)
    if not others:
        raise missing
    return await store.get(others[0])


def _shown(row: SegmentRow, erased: frozenset[tuple[bytes, int]], now_ms: int) -> SegmentRow:
    """A row as it may be shown: without what was erased since it was written, or has run out."""
    if row[5] is None:
        return row
    if has_expired(expires_at_ms(row), now_ms) or (erased and (row[1], decode_header(row[3]).n) in erased):
        return (*row[:5], None)
    return row
