"""``links.LinkStore`` in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from keepstep.links import LinkMessage, LinkPlace
    from keepstep.memory.database import MemoryDatabase
    from keepstep.model import UserPk


@dataclass(eq=False, slots=True)
class _Link:
    """A link; ``messages`` by side and number."""

    user_pk: int
    expires_at_ms: int
    messages: dict[tuple[int, int], LinkMessage] = field(default_factory=dict)


class MemoryLinks:
    """Links in memory. All methods are cancel-safe.

    Args:
        database: says whether it is there.
    """

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database
        self._links: dict[bytes, _Link] = {}

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
        """As ``LinkStore.begin``."""
        await self._arrive()
        known = self._links.get(link_hash)
        if known is None:
            mine = sum(link.user_pk == user_pk and link.expires_at_ms > now_ms for link in self._links.values())
            if mine >= links_per_user_max or len(self._links) >= links_max:
                return None
            known = self._links[link_hash] = _Link(user_pk, expires_at_ms)
        return known.expires_at_ms if known.user_pk == user_pk and known.expires_at_ms > now_ms else None

    async def write(self, place: LinkPlace, message: LinkMessage, *, now_ms: int) -> LinkMessage | None:
        """As ``LinkStore.write``."""
        await self._arrive()
        link = self._link(place, now_ms)
        return None if link is None else link.messages.setdefault((place.side, place.number), message)

    async def read(self, place: LinkPlace, *, now_ms: int) -> tuple[bool, LinkMessage | None]:
        """As ``LinkStore.read``."""
        await self._arrive()
        link = self._link(place, now_ms)
        return link is not None, None if link is None else link.messages.get((place.side, place.number))

    async def end(self, user_pk: UserPk, link_hash: bytes) -> None:
        """As ``LinkStore.end``."""
        await self._arrive()
        if link_hash in self._links and self._links[link_hash].user_pk == user_pk:
            del self._links[link_hash]

    async def clean_up(self, *, now_ms: int, rows_max: int) -> int:
        """As ``LinkStore.clean_up``."""
        await self._arrive()
        over = [link_hash for link_hash, link in self._links.items() if link.expires_at_ms <= now_ms][:rows_max]
        for link_hash in over:
            del self._links[link_hash]
        return len(over)

    def _link(self, place: LinkPlace, now_ms: int) -> _Link | None:
        link = self._links.get(place.link_hash)
        return None if link is None or link.expires_at_ms <= now_ms else link

    async def _arrive(self) -> None:
        await trio.lowlevel.checkpoint()
        self._database.check_here()
