"""The next page of a followed stream, from memory or from the log (protocol.md section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keepstep.errors import Unavailable
from keepstep.interfaces import Page

if TYPE_CHECKING:
    from keepstep.interfaces import Clock, EventLog
    from keepstep.model import Position, UserPk
    from keepstep.subscription import SubscriberLimits, Subscription

REREADS_MAX: Final = 3
"""How often a page that does not continue its position is read anew before the log counts as unavailable."""


def nothing_after(at: Position) -> Page:
    """The page of a session that has everything."""
    return Page(at.seq, b"", 0, at.seq, at.chain, at.seq)


class PageReader:
    """Reads the log for one session.

    Args:
        log: the log.
        clock: the one ``received_at`` follows: payloads expire by it.
        user_pk: whose streams.
        limits: of a page.
    """

    __slots__ = ("_clock", "_limits", "_log", "_user_pk")

    def __init__(self, log: EventLog, clock: Clock, user_pk: UserPk, limits: SubscriberLimits) -> None:
        self._log = log
        self._clock = clock
        self._user_pk = user_pk
        self._limits = limits

    def in_memory(self, subscription: Subscription) -> Page | None:
        """The page after a stream's position, ``None`` where memory does not have it."""
        page = self._log.read_in_memory(
            self._user_pk,
            subscription.name,
            after=subscription.at.seq,
            events_max=self._limits.page_events_max,
            bytes_max=self._limits.page_bytes_max,
            now_ms=self._clock.now_ms(),
        )
        return page if page is not None and subscription.continues(page) else None

    async def read(self, subscription: Subscription) -> Page:
        """A page that continues the position, from whichever source answers. Cancel-safe; raises as ``EventLog.read``.

        Raises:
            Unavailable: also where the log does not continue the position.
        """
        for _ in range(REREADS_MAX):
            page = await self._log.read(
                self._user_pk,
                subscription.name,
                after=subscription.at.seq,
                events_max=self._limits.page_events_max,
                bytes_max=self._limits.page_bytes_max,
                now_ms=self._clock.now_ms(),
            )
            if subscription.continues(page):
                return page
        raise Unavailable("the log does not continue a position")
