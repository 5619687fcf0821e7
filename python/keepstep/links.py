"""Mailboxes through which a new device is linked (protocol.md section 4): small, short-lived, written once.

A device with ``manage`` begins a link; from then on whoever knows its id, 16 random bytes, writes and reads. What is in
the messages is sealed between the two devices: the server learns that somebody links a device, and from where.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from keepstep._keepstep import blake3
from keepstep.errors import ProtocolError

if TYPE_CHECKING:
    from keepstep.interfaces import Clock
    from keepstep.model import UserPk

LINK_LIFETIME_MS: Final = 120_000
"""How long a link is good for: to take out a phone, read six digits, type them."""
LINKS_PER_USER_MAX: Final = 4
"""Links of one user at a time."""
LINKS_MAX: Final = 10_000
"""Links in all; above it new ones are refused for a while."""
POLL_INTERVAL_S: Final = 0.5
"""How often a reader that waits looks for what another node took."""


class Side(enum.IntEnum):
    """Who writes."""

    TRUSTED = 0
    NEW = 1


@dataclass(frozen=True, slots=True)
class LinkPlace:
    """One message's place: the BLAKE3 hash of the link's id, who writes, and the number, from 0 on."""

    link_hash: bytes
    side: Side
    number: int


@dataclass(frozen=True, slots=True)
class LinkMessage:
    """A message and the address it came from."""

    message: bytes
    address: str


class LinkStore(Protocol):
    """Where links are. All methods raise Unavailable."""

    async def begin(
        self,
        user_pk: UserPk,
        link_hash: bytes,
        *,
        now_ms: int,
        expires_at_ms: int,
        links_per_user_max: int,
        links_max: int,
    ) -> int | None:
        """Begin a link, or find the one this user began; when it ends, ``None`` where there are too many.

        Also ``None`` where the hash is another user's: 16 random bytes are nobody else's.
        """

    async def write(self, place: LinkPlace, message: LinkMessage, *, now_ms: int) -> LinkMessage | None:
        """Write to a place unless somebody has; returns what is there then, ``None`` where there is no such link."""

    async def read(self, place: LinkPlace, *, now_ms: int) -> tuple[bool, LinkMessage | None]:
        """Whether there is such a link, and what is in that place."""

    async def end(self, user_pk: UserPk, link_hash: bytes) -> None:
        """Remove a user's link and its messages, where it is there."""

    async def clean_up(self, *, now_ms: int, rows_max: int) -> int:
        """Remove links whose time is over, at most ``rows_max``; returns how many."""


class Links:
    """The links of a server.

    Args:
        store: where they are.
        clock: the one ``received_at`` follows.
    """

    def __init__(self, store: LinkStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._news = trio.Event()

    async def begin(self, user_pk: UserPk, link_id: bytes) -> int:
        """Begin a link; asked again with the same id, it is the same link.

        Returns:
            when it ends, unix milliseconds.

        Raises:
            ProtocolError: ``limit_exceeded``.
        """
        now_ms = self._clock.now_ms()
        expires_at_ms = await self._store.begin(
            user_pk,
            blake3(link_id),
            now_ms=now_ms,
            expires_at_ms=now_ms + LINK_LIFETIME_MS,
            links_per_user_max=LINKS_PER_USER_MAX,
            links_max=LINKS_MAX,
        )
        if expires_at_ms is None:
            raise ProtocolError("limit_exceeded", retry_after_ms=LINK_LIFETIME_MS)
        return expires_at_ms

    async def write(self, link_id: bytes, side: Side, number: int, message: bytes, *, address: str) -> None:
        """Write a message; writing the same again is no harm.

        Raises:
            ProtocolError: ``not_found``: there is no such link, or its time is over; ``link_taken``: another message is
                in that place.
        """
        place = LinkPlace(blake3(link_id), side, number)
        stored = await self._store.write(place, LinkMessage(message, address), now_ms=self._clock.now_ms())
        if stored is None:
            raise ProtocolError("not_found")
        if stored.message != message:
            raise ProtocolError("link_taken")
        self._news.set()
        self._news = trio.Event()

    async def read(self, link_id: bytes, side: Side, number: int, *, wait_s: float) -> LinkMessage | None:
        """A message; waits for it, ``None`` where it did not come. Cancel-safe.

        Raises:
            ProtocolError: ``not_found``: there is no such link, or its time is over.
        """
        place = LinkPlace(blake3(link_id), side, number)
        until_s = trio.current_time() + wait_s
        while True:
            news = self._news
            is_there, message = await self._store.read(place, now_ms=self._clock.now_ms())
            if not is_there:
                raise ProtocolError("not_found")
            left_s = until_s - trio.current_time()
            if message is not None or left_s <= 0:
                return message
            with trio.move_on_after(min(POLL_INTERVAL_S, left_s)):
                await news.wait()

    async def end(self, user_pk: UserPk, link_id: bytes) -> None:
        """Remove a link of that user's, whether or not it is there."""
        await self._store.end(user_pk, blake3(link_id))
        self._news.set()
        self._news = trio.Event()
