"""What this node may store for accounts with a quota of bytes before it asks again (docs/adr/0220).

The store counts per stream, in the compare and set that moves the head: no row is shared by all streams of an account,
so no publish waits for another stream's. A node asks for the sum once per ``GRANT_BYTES`` and account and counts its
own writes in between. What it was granted stays granted, so an account gets at most ``GRANT_BYTES``, or one transaction
where that is more, above its quota for each other node that writes for it at the same time; on one node nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Final

from keepstep.eventlog.store import KEYS_STREAM_PK

if TYPE_CHECKING:
    from keepstep._keepstep import StreamHead

GRANT_BYTES: Final = 1024 * 1024
"""What a node takes of an account's room at a time."""
FULL_PAUSE_MS: Final = 1_000
"""How long an account that was found full is not looked at again: whoever keeps trying costs no query each time."""
ACCOUNTS_MAX: Final = 100_000
"""Accounts remembered, about 150 bytes each; the one used longest ago goes first."""


@dataclass(eq=False, slots=True)
class _Grant:
    """``left`` of a quota of ``bytes_max``, bytes, below 0 where more is stored; asked for at ``asked_at_ms``.

    ``is_all``: there was no more room than that.
    """

    bytes_max: int
    left: int
    is_all: bool
    asked_at_ms: int


class ByteRooms:
    """The grants of the accounts used last. For use in any thread, of one account in one at a time."""

    def __init__(self) -> None:
        self._grants: OrderedDict[int, _Grant] = OrderedDict()
        self._generation = 0
        self._lock = Lock()

    def rooms(
        self,
        asked: Mapping[int, tuple[int, int]],
        stored_bytes: Callable[[Collection[int]], Mapping[int, int]],
        *,
        now_ms: int,
        generation: int,
    ) -> dict[int, int]:
        """What may be stored for each account, bytes.

        Args:
            asked: by user_pk: what is to be stored at most, and the quota, bytes.
            stored_bytes: asks the store; raises what it raises.
            now_ms: unix milliseconds.
            generation: of the store; what was granted in another one is void.
        """
        with self._lock:
            if generation != self._generation:
                self._grants.clear()
                self._generation = generation
            known = {user_pk: grant for user_pk in asked if (grant := self._grants.get(user_pk)) is not None}
        unknown = {
            user_pk
            for user_pk, (needed, bytes_max) in asked.items()
            if user_pk not in known or not _serves(known[user_pk], needed, bytes_max, now_ms)
        }
        if unknown:
            stored = stored_bytes(unknown)
            for user_pk in unknown:
                needed, bytes_max = asked[user_pk]
                room = bytes_max - stored.get(user_pk, 0)
                wanted = max(GRANT_BYTES, needed)
                known[user_pk] = _Grant(bytes_max, min(room, wanted), room <= wanted, now_ms)
            self._put({user_pk: known[user_pk] for user_pk in unknown})
        return {user_pk: grant.left for user_pk, grant in known.items()}

    @property
    def has_grants(self) -> bool:
        """Whether there is anything to count."""
        return bool(self._grants)

    def take(self, user_pk: int, stored: int) -> None:
        """Count what was stored, bytes; nothing for an account without a grant."""
        with self._lock:
            grant = self._grants.get(user_pk)
            if grant is not None:
                grant.left -= stored

    def take_moved(self, moved: Iterable[tuple[StreamHead, StreamHead]]) -> None:
        """Count what was stored as streams moved from (old, new) heads; ``$devices`` and ``$keys`` take up no room."""
        for old, new in moved:
            if new.stream_pk > KEYS_STREAM_PK:
                self.take(new.user_pk, new.stored_bytes - old.stored_bytes)

    def drop(self, user_pks: Iterable[int]) -> None:
        """Forget grants: what was stored on them is not known."""
        with self._lock:
            for user_pk in user_pks:
                self._grants.pop(user_pk, None)

    def _put(self, grants: Mapping[int, _Grant]) -> None:
        with self._lock:
            for user_pk, grant in grants.items():
                self._grants[user_pk] = grant
                self._grants.move_to_end(user_pk)
            while len(self._grants) > ACCOUNTS_MAX:
                self._grants.popitem(last=False)


def _serves(grant: _Grant, needed: int, bytes_max: int, now_ms: int) -> bool:
    """Whether it can be decided upon: it is of this quota, and enough, or found to be too little just now."""
    if grant.bytes_max != bytes_max:
        return False
    return grant.left >= needed or (grant.is_all and 0 <= now_ms - grant.asked_at_ms < FULL_PAUSE_MS)
