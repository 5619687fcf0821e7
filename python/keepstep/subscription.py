"""One followed stream of a session, and what a commit added to it for all who follow it there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from keepstep.model import Position, StreamPk
from keepstep.pages import encode_events

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepstep._keepstep import Run
    from keepstep.interfaces import Page

Start = Position | int | Literal["start", "end"]
"""Where a device wants to go on from; an ``int`` is a position whose chain the device is trusted not to know."""

UNACKED_PAGES_MAX: Final = 256
"""Boundaries of unacknowledged pages remembered per stream; beyond it the newest ones are joined."""
PAGE_AHEAD_BYTES_MAX: Final = 32 * 1024
"""Largest page that is handed to followers as it is committed."""


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
        stream_pk: ``None`` while the stream does not exist.
        owes_caught_up: the session was behind, and is told when it is not.
        moved: events were sent since the last signed head.
        head_due: a signed head is to be sent once the position is the head.
        unacked: (seq, chain, bytes) of each page that is not acknowledged.
    """

    name: str
    start: Start | None
    at: Position = field(default_factory=lambda: Position(0, b""))
    stream_pk: StreamPk | None = None
    owes_caught_up: bool = True
    moved: bool = False
    head_due: bool = False
    acked_seq: int = 0
    unacked: list[tuple[int, bytes, int]] = field(default_factory=list)  # a tenth of an empty deque

    def sent(self, at: Position, size: int) -> int:
        """Move the position over a page of so many bytes; how many more of them are not acknowledged."""
        self.at = at
        self.moved = True
        joined = size
        if len(self.unacked) >= UNACKED_PAGES_MAX:
            joined += self.unacked.pop()[2]
        self.unacked.append((at.seq, at.chain, joined))
        return size

    def continues(self, page: Page) -> bool:
        """protocol.md section 4: "The first seq of a page must be position + 1, from any source; else reread."."""
        return page.after == self.at.seq and page.last_seq == page.after + page.count


class CommittedPage:
    """A page that ends at its stream's head, as every follower is sent it.

    Attributes:
        message: ``messages.Events``, encoded.
        at: the position behind it.
        count: events in it.
        size: their bytes.
    """

    __slots__ = ("at", "count", "message", "size")

    def __init__(self, stream: str, page: Page) -> None:
        self.message = encode_events(stream, page)
        self.at = Position(page.last_seq, page.chain)
        self.count = page.count
        self.size = len(page.rows)


class Addition:
    """What one commit added to one stream: read and encoded once, by the first follower that is exactly before it.

    Attributes:
        stream_pk: the stream's row number.
        after: the seq before its first event.
        last_seq: of its last event.
        prev_chain: the chain at ``after``.
    """

    __slots__ = ("_is_read", "_page", "after", "last_seq", "prev_chain", "stream_pk")

    def __init__(self, run: Run) -> None:
        self.stream_pk = StreamPk(run.stream_pk)
        self.after = run.first_seq - 1
        self.last_seq = run.last_seq
        self.prev_chain = run.prev_chain
        self._is_read = False
        self._page: CommittedPage | None = None

    def page(self, subscription: Subscription, read: Callable[[Subscription], Page | None]) -> CommittedPage | None:
        """The page behind ``after``; ``None`` where memory does not have it up to the head, or it is a large one.

        Args:
            subscription: of a follower that is at ``after``.
            read: gives the page from memory, as far as it has it.
        """
        if not self._is_read:
            self._is_read = True
            page = read(subscription)
            if page is not None and page.last_seq == page.head_seq and len(page.rows) <= PAGE_AHEAD_BYTES_MAX:
                self._page = CommittedPage(subscription.name, page)
        return self._page
