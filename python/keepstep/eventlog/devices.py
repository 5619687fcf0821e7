"""What this node remembers of accounts, for new events: live devices, and positions that ``$devices`` went through."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Final

from keepstep.hits import Hits

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from keepstep.eventlog.store import LiveDevices

AccountPosition = tuple[int, tuple[int, bytes]]
"""(user_pk, (seq, chain)) in ``$devices``."""

POSITIONS_MAX: Final = 200_000
"""Positions remembered, about 150 bytes each: each device names the newest one it has read."""
USERS_MAX: Final = 100_000
"""Users whose devices are remembered, about 200 bytes each; the one used longest ago goes first."""


class DeviceCache:
    """The live devices of the users used last. For use in any thread.

    What is remembered may be stale. It is only decided upon together with heads of the same ``auth_epoch``, which the
    store's compare and set proves: whatever ends a device, or brings one back, moves that of all the user's streams.

    Attributes:
        hits: users whose devices batches asked for.
    """

    def __init__(self) -> None:
        self._users: OrderedDict[int, LiveDevices] = OrderedDict()
        self._positions: OrderedDict[AccountPosition, None] = OrderedDict()
        self._generation = 0
        self._lock = Lock()
        self.hits = Hits()

    def get(self, user_pks: Collection[int], *, generation: int) -> dict[int, LiveDevices]:
        """The devices remembered of ``user_pks``; none from before the store's ``generation``."""
        found = {}
        with self._lock:
            self._turn(generation)
            for user_pk in user_pks:
                devices = self._users.get(user_pk)
                if devices is not None:
                    self._users.move_to_end(user_pk)
                    found[user_pk] = devices
            self.hits.found += len(found)
            self.hits.missing += len(user_pks) - len(found)
        return found

    def put(self, devices: Mapping[int, LiveDevices], *, generation: int) -> None:
        """Remember devices as the store had them; not those of a generation that is over."""
        with self._lock:
            if generation < self._generation:
                return
            self._turn(generation)
            for user_pk, each in devices.items():
                self._users[user_pk] = each
                self._users.move_to_end(user_pk)
            while len(self._users) > USERS_MAX:
                self._users.popitem(last=False)

    def unheld(self, positions: Iterable[AccountPosition], *, generation: int) -> set[AccountPosition]:
        """The positions that are not remembered as ones that there are."""
        with self._lock:
            self._turn(generation)
            return {each for each in positions if each not in self._positions}

    def hold(self, positions: Iterable[AccountPosition], *, generation: int) -> None:
        """Remember positions that the store holds: ``$devices`` only grows, so that they stay right."""
        with self._lock:
            if generation < self._generation:
                return
            self._turn(generation)
            self._positions.update(dict.fromkeys(positions))
            while len(self._positions) > POSITIONS_MAX:
                self._positions.popitem(last=False)

    def _turn(self, generation: int) -> None:
        if generation != self._generation:
            self._users.clear()
            self._positions.clear()
            self._generation = generation
