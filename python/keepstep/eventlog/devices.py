"""What this node remembers of accounts, for new events: live devices, and positions that ``$devices`` went through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keepstep._keepstep import RememberedAccounts
from keepstep.eventlog.store import LiveDevices
from keepstep.hits import Hits

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

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
        memory: the devices and positions, as the extension decides upon them.
    """

    def __init__(self) -> None:
        self.memory = RememberedAccounts(users_max=USERS_MAX, positions_max=POSITIONS_MAX)

    @property
    def hits(self) -> Hits:
        """Users whose devices batches asked for."""
        return Hits(*self.memory.hits)

    def get(self, user_pks: Collection[int], *, generation: int) -> dict[int, LiveDevices]:
        """The devices remembered of ``user_pks``; none from before the store's ``generation``."""
        found = self.memory.get(list(user_pks), generation=generation)
        return {user_pk: LiveDevices(*each) for user_pk, each in found.items()}

    def put(self, devices: Mapping[int, LiveDevices], *, generation: int) -> None:
        """Remember devices as the store had them; not those of a generation that is over."""
        accounts = [
            (user_pk, (each.auth_epoch, dict(each.expires_at_ms), each.bytes_max)) for user_pk, each in devices.items()
        ]
        self.memory.put(accounts, generation=generation)

    def unheld(self, positions: Iterable[AccountPosition], *, generation: int) -> set[AccountPosition]:
        """The positions that are not remembered as ones that there are."""
        asked = list(positions)
        held = self.memory.holds(asked, generation=generation)
        return {each for each, is_held in zip(asked, held, strict=True) if not is_held}

    def hold(self, positions: Iterable[AccountPosition], *, generation: int) -> None:
        """Remember positions that the store holds: ``$devices`` only grows, so that they stay right."""
        self.memory.hold(list(positions), generation=generation)
