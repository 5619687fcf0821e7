"""What the database knows of the archive: what is due, which segments there are, what has to leave them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from keepstep.archive.segment import Edge
    from keepstep.eventlog.retention import TailAuthors
    from keepstep.eventlog.store import StreamPlace
    from keepstep.model import Position, StreamPk, UserPk

SEGMENTS_PAGE: Final = 1_000
"""Segments and streams that are listed at a time."""


@dataclass(frozen=True, slots=True)
class ArchivedStream:
    """A stream that has, or is to have, something in the archive."""

    user_pk: UserPk
    user_key: bytes
    stream_pk: StreamPk
    name: str

    @property
    def place(self) -> StreamPlace:
        """As statements name it."""
        return int(self.user_pk), int(self.stream_pk)


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """A segment as the database knows it.

    Attributes:
        from_: where it begins: the event before its first one.
        to: its last event.
        authors: each author's last number and the hash of that event at ``to``.
        to_at_ms: ``received_at`` of its last event.
        size_bytes: of the object.
        name: of the object.
        old_name: of the object that held it before something was taken out, while that is still there.
        expires_at_ms: when payloads of it have to go, because their time is over by then; ``None``: none has.
    """

    from_: Position
    to: Position
    authors: TailAuthors
    to_at_ms: int
    size_bytes: int
    name: str
    old_name: str | None = None
    expires_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Due:
    """A stream whose oldest events that are not in the archive should be there soon.

    Attributes:
        stream: which.
        archived_seq: up to where it was archived, 0 for not yet.
        from_seq: where the next segment begins: there, or at the tail where that is further on.
        head_at_ms: ``received_at`` of the stream's last event.
        days: after so many its events go; ``None`` where ``covered_seq`` says why.
        covered_seq: up to here they go because a snapshot covers them.
    """

    stream: ArchivedStream
    archived_seq: int
    from_seq: int
    head_at_ms: int
    days: int | None
    covered_seq: int | None


@dataclass(frozen=True, slots=True)
class UnarchivedEvent:
    """An event to be archived; ``chain`` is the one after it."""

    seq: int
    device_id: bytes
    received_at_ms: int
    header: bytes
    sig: bytes
    payload: bytes | None
    chain: bytes


@dataclass(frozen=True, slots=True)
class NewSegment:
    """A segment whose object is in the store, and what it was made of.

    Attributes:
        due: what it was made for.
        entry: the segment.
        payloads: how many of its events had a payload in the database when they were read.
        unarchived_at_ms: ``received_at`` of the event after it, or earlier.
    """

    due: Due
    entry: SegmentEntry
    payloads: int
    unarchived_at_ms: int


@dataclass(frozen=True, slots=True)
class ArchivedPlace:
    """Where the events after a position below a tail are.

    Attributes:
        stream: whose.
        head_seq: the stream's last event.
        tail_seq: what is in the database begins after it.
        segment: the first that reaches beyond the position.
        erased: events without their payloads, by (device_id, author number).
    """

    stream: ArchivedStream
    head_seq: int
    tail_seq: int
    segment: SegmentEntry
    erased: frozenset[tuple[bytes, int]]


@dataclass(frozen=True, slots=True)
class ArchiveTail:
    """A stream with segments, as it is verified.

    Attributes:
        stream: which.
        tail: where its events in the database begin; ``None`` where it has all of them.
        tail_authors: each author's last number and the hash of that event there.
        archived_seq: where its last segment ends.
    """

    stream: ArchivedStream
    tail: Position | None
    tail_authors: TailAuthors
    archived_seq: int


@dataclass(frozen=True, slots=True)
class ArchiveState:
    """How much there is, and how far behind it is.

    Attributes:
        segments: of all users.
        size_bytes: of their objects.
        overdue_ms: for how long the oldest event that should be archived is overdue; 0 where none is.
    """

    segments: int
    size_bytes: int
    overdue_ms: int


class ArchiveIndex(Protocol):
    """What writing and verifying need. All methods raise Unavailable; a cancellation waits for the end."""

    async def find_due(self, *, now_ms: int, days: int | None, skip: Collection[StreamPlace]) -> Due | None:
        """A stream with events older than ``days``, or than its user's own rule, or covered by a snapshot."""

    async def start(self, due: Due) -> Edge | None:
        """Where the next segment begins; ``None`` for the stream's beginning."""

    async def events(self, due: Due, *, events_max: int, bytes_max: int) -> list[UnarchivedEvent]:
        """The next events, at least one if there is any."""

    async def device_keys(self, user_pk: UserPk) -> dict[bytes, bytes]:
        """The public keys of a user's devices, ended ones too, by device id."""

    async def note_unarchived(self, due: Due, at_ms: int) -> None:
        """The first event that is not archived was received then, or later."""

    async def begin_user(self, user_pk: UserPk) -> None:
        """Before the first object of a user: from now on the user is not removed before its objects are."""

    async def add(self, segment: NewSegment) -> bool:
        """Keep a segment whose object is in the store; False where the stream has changed since its events were read.

        Then nothing was kept, and the object is of no use.
        """

    async def erasures(
        self, *, skip: Collection[StreamPlace]
    ) -> tuple[ArchivedStream, frozenset[tuple[bytes, int]]] | None:
        """A stream with events to be erased from its segments, by (device_id, author number); ``None``: none."""

    async def segments(self, stream: ArchivedStream, *, after: int) -> list[SegmentEntry]:
        """Segments that reach beyond ``after``, ascending, at most ``SEGMENTS_PAGE``."""

    async def expired(
        self, *, now_ms: int, skip: Collection[StreamPlace]
    ) -> tuple[ArchivedStream, SegmentEntry] | None:
        """A segment with payloads whose time is over; ``None``: there is none."""

    async def replace(self, stream: ArchivedStream, entry: SegmentEntry, new: SegmentEntry) -> bool:
        """Another object holds the segment now; whether it was as ``entry`` says, with no old object left."""

    async def end_erasures(self, stream: ArchivedStream, erased: Collection[tuple[bytes, int]]) -> None:
        """They are in no segment any more."""

    async def old_object(self) -> tuple[StreamPlace, int, str] | None:
        """A stream, a segment's end and the name of an object that has to go; ``None``: there is none."""

    async def end_old_object(self, place: StreamPlace, to_seq: int, name: str) -> None:
        """It is gone."""

    async def deleted_user(self) -> tuple[UserPk, bytes] | None:
        """A deleted user who may have objects in the store, with the user id; ``None``: there is none."""

    async def forget_user(self, user_pk: UserPk) -> None:
        """Nothing of a user is in the store any more."""

    async def streams(self, *, after: StreamPlace, user_key: bytes | None) -> Sequence[ArchiveTail]:
        """Streams with segments, of all users or one, ascending, at most ``SEGMENTS_PAGE``."""

    async def state(self, *, now_ms: int, days: int | None) -> ArchiveState:
        """How much there is."""


class PastIndex(Protocol):
    """What reading needs."""

    async def find(self, user_pk: UserPk, stream: str, *, after: int) -> ArchivedPlace | None:
        """Where the events after a position are; ``None`` where no segment reaches beyond it. Raises Unavailable."""
