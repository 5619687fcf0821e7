"""``restores.Restores`` in memory, and the beginning of an epoch in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from keepstep import _keepstep
from keepstep.model import Position, has_expired
from keepstep.protocol.chain import chain_0
from keepstep.restores import EVERYTHING, PROVEN, RECENT_MS, HealWindow, StreamRewind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from keepstep.memory.database import DeviceRow, MemoryDatabase, UserRow
    from keepstep.model import DevicePk, UserPk


@dataclass(eq=False, slots=True)
class Window:
    """A heal window; ``reports`` maps a device_pk to the step it has done."""

    epoch: int
    opened_at_ms: int
    closed_at_ms: int | None
    reports: dict[int, int]


def begin_epoch(database: MemoryDatabase, *, at_least: int) -> tuple[int, int]:
    """As ``postgres.restores.begin_epoch``; challenges and links are not of this database and go by themselves."""
    database.epoch = max(database.epoch + 1, at_least)
    count = 0
    for user_pk, user in database.users.items():
        rewinds = {head.name: Position(head.seq, head.chain) for head in user.heads.values()}
        database.rewinds.setdefault(user_pk, {})[database.epoch] = rewinds
        count += len(rewinds)
        for device in user.devices.values():
            device.token_families.clear()
    database.invites = {code: invite for code, invite in database.invites.items() if invite.used is not None}
    return database.epoch, count


class MemoryRestores:
    """Rewinds and heal windows in memory. All methods are cancel-safe.

    Args:
        database: where they are.
    """

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def rewinds(self, user_pk: UserPk, stream: str) -> Sequence[StreamRewind]:
        """As ``Restores.rewinds``."""
        await self._arrive()
        user = self._database.users.get(user_pk)
        if user is None:
            return []
        nothing = Position(0, chain_0(_keepstep, user.user_key, stream))
        epochs = self._database.rewinds.get(user_pk, {})
        return [StreamRewind(epoch, heads.get(stream, nothing)) for epoch, heads in sorted(epochs.items())]

    async def window(self, user_pk: UserPk, *, now_ms: int) -> HealWindow | None:
        """As ``Restores.window``."""
        await self._arrive()
        database, epoch = self._database, self._database.epoch
        if epoch not in database.rewinds.get(user_pk, {}):
            return None
        window = database.heal_windows.get(user_pk)
        if window is None or window.epoch < epoch:
            window = database.heal_windows[user_pk] = Window(epoch, now_ms, None, {})
        user = database.users[user_pk]
        steps = [window.reports.get(device_pk, 0) for device_pk in self._recent(user, window)]
        return HealWindow(
            epoch,
            window.opened_at_ms,
            window.closed_at_ms,
            sum(step < PROVEN for step in steps),
            sum(step < EVERYTHING for step in steps),
        )

    def _recent(self, user: UserRow, window: Window) -> Iterable[int]:
        """The live devices that were seen lately."""

        def seen_ms(device_pk: int, device: DeviceRow) -> int:
            opened = [
                each.opened_at_ms
                for each in self._database.sessions.values()
                if (self._database.users.get(each.user_pk), each.device_pk) == (user, device_pk)
            ]
            return max([device.entry.issued_at_ms, *opened])

        return [
            device_pk
            for device_pk, device in user.devices.items()
            if device.revoked is None
            and not has_expired(device.entry.expires_at_ms, window.opened_at_ms)
            and seen_ms(device_pk, device) >= min(window.epoch, window.opened_at_ms) - RECENT_MS
        ]

    async def report(self, user_pk: UserPk, device_pk: DevicePk, step: int) -> None:
        """As ``Restores.report``."""
        await self._arrive()
        window = self._database.heal_windows.get(user_pk)
        if window is not None and window.epoch == self._database.epoch:
            window.reports[device_pk] = max(step, window.reports.get(device_pk, 0))

    async def close_window(self, user_pk: UserPk, *, now_ms: int) -> None:
        """As ``Restores.close_window``."""
        await self._arrive()
        window = self._database.heal_windows.get(user_pk)
        if window is not None and window.closed_at_ms is None:
            window.closed_at_ms = now_ms

    async def _arrive(self) -> None:
        await trio.lowlevel.checkpoint()
        self._database.check_here()
