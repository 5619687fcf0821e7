"""One followed stream of a session, and what a commit added to it for all who follow it there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from keepstep.model import Position, has_expired

if TYPE_CHECKING:
    from keepstep._keepstep import Run
    from keepstep.interfaces import Clock, EventLog, Page
    from keepstep.model import StreamPk

Start = Position | int | Literal["start", "end"]
"""Where a device wants to go on from; an ``int`` is a position whose chain the device is trusted not to know."""

PAGE_AHEAD_BYTES_MAX: Final = 32 * 1024
"""Largest page that is handed to followers as it is committed."""
AHEAD_BYTES_MAX: Final = 256 * 1024
"""Bytes of such pages that wait for a session's turn; what is committed beyond them is read when its turn comes."""

_NOWHERE: Final = Position(0, b"")


@dataclass(frozen=True, slots=True)
class SubscriberLimits:
    """What a session may hold.

    Attributes:
        subscriptions_max: streams followed at a time; twice as many are followed, or left while following ``all``.
        page_events_max: events in a page.
        page_bytes_max: bytes in a page; one event above it still goes.
        unacked_bytes_max: bytes of events sent and not acknowledged; nothing more is sent above it.
    """

    subscriptions_max: int
    page_events_max: int
    page_bytes_max: int
    unacked_bytes_max: int


@dataclass(slots=True, eq=False)
class Subscription:
    """A followed stream.

    Attributes:
        name: the stream.
        start: what the device named, until the resume is answered.
        at: everything up to here was sent.
        heard_seq: the highest seq it was told of while it could not be given the page; the database may have answered
            with that one already.
        stream_pk: ``None`` while the stream does not exist.
        owes_caught_up: the session was behind, and is told when it is not.
        moved: events were sent since the last signed head.
        head_due: a signed head is to be sent once the position is the head.
        unacked: (seq, chain, bytes) of each page that is not acknowledged.
    """

    name: str
    start: Start | None
    at: Position = _NOWHERE
    heard_seq: int = 0
    stream_pk: StreamPk | None = None
    owes_caught_up: bool = True
    moved: bool = False
    head_due: bool = False
    acked_seq: int = 0
    unacked: list[tuple[int, bytes, int]] = field(default_factory=list)  # a tenth of an empty deque

    def continues(self, page: Page) -> bool:
        """protocol.md section 4: "The first seq of a page must be position + 1, from any source; else reread."."""
        return page.after == self.at.seq and page.last_seq == page.after + page.count


class Addition:
    """What one commit added to one stream: encoded once, for the first follower that is exactly before it.

    Attributes:
        name: the stream's.
        run: it.
        stream_pk: the stream's row number.
        after: the seq before its first event.
        last_seq: of its last event.
        prev_chain: the chain at ``after``.
        message: ``messages.Events`` of all of it, encoded, once it was asked for and may go; else ``None``.
        at: the position behind it, where there is a message.
        count: events in it.
        size: their bytes.
    """

    __slots__ = (
        "_is_asked",
        "after",
        "at",
        "count",
        "last_seq",
        "message",
        "name",
        "prev_chain",
        "run",
        "size",
        "stream_pk",
    )

    def __init__(self, name: str, run: Run) -> None:
        self.name = name
        self.run = run
        self.stream_pk: StreamPk = run.stream_pk  # type: ignore[assignment]  # a call for each commit otherwise
        self.after = run.first_seq - 1
        self.last_seq = run.last_seq
        self.prev_chain = run.prev_chain
        self.count = run.count
        self.size = run.rows_bytes
        self.at = _NOWHERE
        self.message: bytes | None = None
        self._is_asked = False

    def encode(self, log: EventLog, clock: Clock, limits: SubscriberLimits) -> bytes | None:
        """``message``; ``None`` where it is a large page, or the log's memory does not serve it as it was stored.

        What is served is the log's to say: payloads are erased by the very batch, or expire. It is asked once.

        Args:
            log: which committed it.
            clock: the one payloads expire by.
            limits: of a page; the same for all followers.
        """
        if not self._is_asked:
            self._is_asked = True
            run = self.run
            if (
                self.count <= limits.page_events_max
                and self.size <= PAGE_AHEAD_BYTES_MAX
                and (run.expires_at_ms is None or not has_expired(run.expires_at_ms, clock.now_ms()))
                and log.ends_with(self.name, run)
            ):
                self.message = run.message(self.name)
                self.at = Position(self.last_seq, run.chain)
        return self.message
