"""Writes segments before events are pruned, and takes out of the archive what was erased or deleted.

One node at a time does. An object is stored and read back before the database says that it is there, and only what it
says so of may be pruned. Names follow from contents: what a crash left in between is written over, or is of no use to
anybody and goes with its account.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Final

import trio

from keepstep import _keepstep
from keepstep._keepstep import DeviceKey
from keepstep.archive.index import NewSegment, SegmentEntry
from keepstep.archive.reading import load
from keepstep.archive.segment import Edge, edges, expires_at_ms, pack, unpack, user_folder, without
from keepstep.errors import ArchiveError, ProtocolError, Unavailable
from keepstep.eventlog.retention import DAY_MS, advanced_authors
from keepstep.model import Position, has_expired
from keepstep.protocol.chain import chain_0
from keepstep.protocol.event import decode_header
from keepstep.verification import Faults, RowWalk, SignedRow, Start

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from keepstep.archive.index import ArchivedStream, ArchiveIndex, Due, UnarchivedEvent
    from keepstep.archive.segment import SegmentRow
    from keepstep.archive.store import ArchiveStore
    from keepstep.eventlog.store import StreamPlace
    from keepstep.interfaces import Clock, Threads
    from keepstep.telemetry import Log, Metrics

STEPS_MAX: Final = 200
"""Segments written in one run, and as many of each kind of removal; what is left waits for the next."""
TURN: Final = "archive"
"""The lease of the node that archives."""
TURN_MS: Final = 10 * 60 * 1000
"""How long a node that says nothing keeps the others waiting: longer than any one step takes."""


@dataclass(frozen=True, slots=True)
class SegmentLimits:
    """How large a segment gets.

    Attributes:
        events_max: events.
        bytes_max: of them before they are compressed; one event above it still goes.
    """

    events_max: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class ArchiveRules:
    """When events are archived.

    Attributes:
        days: after so many they go from the database; ``None``: where no user's own rule says so, never by age.
    """

    days: int | None


@dataclass(frozen=True, slots=True)
class Archived:
    """What one run did.

    Attributes:
        segments: written.
        rewritten: streams whose segments were written anew without what was erased.
        removed_users: deleted users of whom nothing is left.
        is_done: nothing was left to do.
    """

    segments: int
    rewritten: int
    removed_users: int
    is_done: bool


class ArchiveRun:
    """Runs of the archive.

    Args:
        index: what is due, and where what was done is kept.
        store: where objects go.
        secret: the seed of the server's identity key.
        keys: the server's identity keys, of now and before.
        clock: the one ``received_at`` follows.
        threads: where segments are made.
        rules: when events are archived, as it is set now.
        limits: of a segment.
        take_turn: takes or keeps the lease of the node that archives; whether it is ours.
        metrics: counted into.
        logger: told of runs that did something, and of what cannot be archived.
    """

    def __init__(
        self,
        index: ArchiveIndex,
        store: ArchiveStore,
        secret: bytes,
        keys: Sequence[bytes],
        clock: Clock,
        threads: Threads,
        rules: Callable[[], ArchiveRules],
        limits: SegmentLimits,
        *,
        take_turn: Callable[[], Awaitable[bool]],
        metrics: Metrics,
        logger: Log,
    ) -> None:
        self._index = index
        self._store = store
        self._secret = secret
        self._keys = keys
        self._clock = clock
        self._threads = threads
        self._rules = rules
        self._limits = limits
        self._take_turn = take_turn
        self._metrics = metrics
        self._logger = logger
        self._limiter = trio.CapacityLimiter(1)
        self._refused: set[StreamPlace] = set()
        self._unerasable: set[StreamPlace] = set()
        self._written = self._rewritten = 0

    async def run(self) -> Archived:
        """As much as one run may. Cancel-safe between steps: what was done stays done.

        Raises:
            Unavailable: the database or the archive does not answer.
        """
        self._refused.clear()
        self._unerasable.clear()
        self._written = self._rewritten = removed = 0
        is_done = False
        try:
            removed, _ = await self._repeat(self._remove_user)
            await self._repeat(self._remove_old_object)
            await self._repeat(self._erase)
            await self._repeat(self._expire)
            await self._repeat(self._remove_old_object)
            _, is_done = await self._repeat(self._archive)
        except Unavailable:
            self._metrics.archive_failures.labels("write").inc()
            raise
        finally:
            if self._written:
                self._logger.info("archived", count=self._written)
        await self.measure()
        return Archived(self._written, self._rewritten, removed, is_done)

    async def job(self) -> None:
        """``run``, as one of the server's jobs. Raises Unavailable."""
        await self.run()

    async def measure(self) -> None:
        """Tell the metrics how much there is. Raises Unavailable."""
        state = await self._index.state(now_ms=self._clock.now_ms(), days=self._rules().days)
        self._metrics.archive_segments.set(state.segments)
        self._metrics.archive_bytes.set(state.size_bytes)
        self._metrics.archive_overdue_seconds.set(state.overdue_ms / 1000)

    async def _repeat(self, step: Callable[[], Awaitable[bool]]) -> tuple[int, bool]:
        """Step by step while the turn is ours; how many did something, and whether nothing was left."""
        for count in range(STEPS_MAX):
            if not await self._take_turn():
                return count, False
            if not await step():
                return count, True
        return STEPS_MAX, False

    # -- what leaves --------------------------------------------------------------------------------------------

    async def _remove_user(self) -> bool:
        """Everything of one deleted user."""
        found = await self._index.deleted_user()
        if found is None:
            return False
        user_pk, user_key = found
        await self._store.delete_below(user_folder(user_key))
        await self._index.forget_user(user_pk)
        return True

    async def _remove_old_object(self) -> bool:
        """One object in whose place there is another."""
        found = await self._index.old_object()
        if found is None:
            return False
        place, to_seq, name = found
        await self._store.delete(name)
        await self._index.end_old_object(place, to_seq, name)
        return True

    async def _erase(self) -> bool:
        """What was erased of one stream, out of all its segments."""
        found = await self._index.erasures(skip=self._unerasable)
        if found is None:
            return False
        stream, erased = found
        entries: list[SegmentEntry] = []
        while page := await self._index.segments(stream, after=entries[-1].to.seq if entries else 0):
            entries += page
        before: Mapping[bytes, tuple[int, bytes]] = {}
        for entry in entries:
            here = {
                (device_id, n)
                for device_id, n in erased
                if before.get(device_id, (0, b""))[0] < n <= entry.authors.get(device_id, (0, b""))[0]
            }
            before = entry.authors
            if here and not await self._rewrite(stream, entry, frozenset(here)):
                self._unerasable.add(stream.place)  # it waits for the next run; other streams do not
                return True
        await self._index.end_erasures(stream, erased)
        self._rewritten += 1
        return True

    async def _expire(self) -> bool:
        """Payloads whose time is over, out of one segment."""
        found = await self._index.expired(now_ms=self._clock.now_ms(), skip=self._unerasable)
        if found is None:
            return False
        stream, entry = found
        if not await self._rewrite(stream, entry, frozenset()):
            self._unerasable.add(stream.place)
        return True

    async def _rewrite(self, stream: ArchivedStream, entry: SegmentEntry, erased: frozenset[tuple[bytes, int]]) -> bool:
        """A segment without what is erased or over in the place of the one that has it; whether that is done."""
        try:
            segment = await load(self._store, stream, entry, self._keys, self._threads, self._limiter)
        except ArchiveError as error:
            self._metrics.archive_failures.labels("erase").inc()
            self._logger.error("archive_damaged", code=error.code, user_pk=int(stream.user_pk))
            return False
        rows = _living(without(segment, erased), self._clock.now_ms())
        start, end = edges(segment.manifest)
        name, data = await self._threads.run(
            lambda: pack(self._secret, stream.user_key, stream.name, start=start, end=end, rows=rows),
            limiter=self._limiter,
        )
        if name != entry.name:
            await self._put(name, data)
        new = replace(entry, name=name, size_bytes=len(data), expires_at_ms=_next_expiry(rows))
        return await self._index.replace(stream, entry, new)

    # -- what comes ---------------------------------------------------------------------------------------------

    async def _archive(self) -> bool:
        """One segment, or the note that a stream needs none now; False where nothing is due."""
        now_ms = self._clock.now_ms()
        due = await self._index.find_due(now_ms=now_ms, days=self._rules().days, skip=self._refused)
        if due is None:
            return False
        events = await self._index.events(due, events_max=self._limits.events_max + 1, bytes_max=self._limits.bytes_max)
        chosen = _chosen(due, events, now_ms)[: self._limits.events_max]
        if not chosen:
            self._refused.add(due.stream.place)
            await self._index.note_unarchived(due, events[0].received_at_ms if events else due.head_at_ms)
            return True
        following = events[len(chosen)] if len(chosen) < len(events) else None
        start = await self._index.start(due) or Edge(
            Position(0, chain_0(_keepstep, due.stream.user_key, due.stream.name)), {}, 0
        )
        keys = await self._index.device_keys(due.stream.user_pk)
        rows = _living(
            [(each.seq, each.device_id, each.received_at_ms, each.header, each.sig, each.payload) for each in chosen],
            now_ms,
        )
        end = Edge(Position(chosen[-1].seq, chosen[-1].chain), _authors(start, chosen), chosen[-1].received_at_ms)
        faults = await self._threads.run(lambda: verify_rows(due.stream, start, end, rows, keys), limiter=self._limiter)
        if faults.found.count:
            self._refused.add(due.stream.place)
            self._metrics.archive_failures.labels("verify").inc()
            first = faults.found.faults[0]
            self._logger.error("archive_refused", code=first.code, user_pk=int(due.stream.user_pk))
            return True
        name, data = await self._threads.run(
            lambda: pack(self._secret, due.stream.user_key, due.stream.name, start=start, end=end, rows=rows),
            limiter=self._limiter,
        )
        entry = SegmentEntry(
            *(start.position, end.position, end.authors, end.received_at_ms, len(data), name),
            expires_at_ms=_next_expiry(rows),
        )
        await self._index.begin_user(due.stream.user_pk)
        await self._put(name, data)
        payloads = sum(each.payload is not None for each in chosen)
        unarchived_at_ms = following.received_at_ms if following is not None else end.received_at_ms
        if not await self._index.add(NewSegment(due, entry, payloads, unarchived_at_ms)):
            await self._store.delete(name)  # the stream changed: the next step, or the next run, looks anew
            self._refused.add(due.stream.place)
            return True
        self._written += 1
        self._metrics.archived_events.inc(len(rows))
        return True

    async def _put(self, name: str, data: bytes) -> None:
        """Store an object, and read it back: what goes from the database on the strength of it has to be there."""
        await self._store.put(name, data)
        try:
            stored = await self._store.get(name)
            await self._threads.run(lambda: unpack(stored, self._keys), limiter=self._limiter)
        except ArchiveError as error:
            raise Unavailable("the archive does not give back what was stored in it") from error


def verify_rows(
    stream: ArchivedStream, start: Edge, end: Edge, rows: Sequence[SegmentRow], keys: Mapping[bytes, bytes]
) -> Faults:
    """What is wrong with events on their way into the archive, or out of it. Blocks.

    Args:
        stream: whose.
        start: where they begin.
        end: where they should lead.
        rows: the events.
        keys: public keys of the user's devices.
    """
    faults = Faults(stream.user_key, stream.name)
    known = device_keys(keys)
    walk = RowWalk(
        user_key=stream.user_key,
        stream=stream.name,
        start=Start(start.position, start.received_at_ms, start.authors),
        key_of=known.get,
        faults=faults,
    )
    walk.feed([SignedRow(row[0], row[2], row[1], *row[3:]) for row in rows])
    if not faults.found.count and walk.position != end.position:
        faults.add("chain_differs", end.position.seq, "its chain does not follow from the row before and this one")
    authors = {device_id: (author.n, author.hash) for device_id, author in walk.authors.items()}
    if not faults.found.count and authors != end.authors:
        faults.add("authors_differ", end.position.seq, "what is kept of the authors there is not what the events say")
    return faults


def device_keys(keys: Mapping[bytes, bytes]) -> dict[bytes, DeviceKey]:
    """Keys as signatures are verified with; one that is none is left out: its events are of an unknown author."""
    known: dict[bytes, DeviceKey] = {}
    for device_id, public in keys.items():
        try:
            known[device_id] = DeviceKey(public)
        except ProtocolError:
            continue
    return known


def _chosen(due: Due, events: Sequence[UnarchivedEvent], now_ms: int) -> list[UnarchivedEvent]:
    """The events for the next segment.

    By age: none before the first has to go, and then all that are half as old as that, so that a stream that is written
    all the time makes a few large segments and not many small ones.
    """
    covered_seq = due.covered_seq
    if covered_seq is not None:
        return list(takewhile(lambda event: event.seq <= covered_seq, events))
    assert due.days is not None
    if not events or events[0].received_at_ms >= now_ms - due.days * DAY_MS:
        return []
    settled_ms = now_ms - due.days * DAY_MS // 2
    return list(takewhile(lambda event: event.received_at_ms < settled_ms, events))


def _living(rows: Sequence[SegmentRow], now_ms: int) -> list[SegmentRow]:
    """Rows without the payloads whose time is over."""
    return [(*row[:5], None) if has_expired(expires_at_ms(row), now_ms) else row for row in rows]


def _next_expiry(rows: Sequence[SegmentRow]) -> int | None:
    """When something of a segment has to go next: at the end of a day, for all of that day."""
    expiries = [at_ms for at_ms in map(expires_at_ms, rows) if at_ms is not None]
    return None if not expiries else -(-min(expiries) // DAY_MS) * DAY_MS


def _authors(start: Edge, events: Sequence[UnarchivedEvent]) -> dict[bytes, tuple[int, bytes]]:
    last = {event.device_id: event for event in events}
    return advanced_authors(
        start.authors,
        [(device_id, decode_header(event.header).n, event.header, event.sig) for device_id, event in last.items()],
    )
