"""Devices whose batches a node decides upon what it remembers, and a store that takes everything."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from keepstep._keepstep import StreamHead
from keepstep.eventlog.append import Appending
from keepstep.eventlog.devices import DeviceCache
from keepstep.eventlog.heads import HeadCache
from keepstep.eventlog.rooms import ByteRooms
from keepstep.eventlog.store import LiveDevices
from keepstep.model import UserPk
from tests.support.events import NOW_MS, DeviceFixture, UserFixture, submission
from tests.support.ingesting import principal

if TYPE_CHECKING:
    from keepstep._keepstep import Ingested, Submission

USERS: Final = 40


class ShortWay:
    """A store that takes everything by its shorter way, and has every position that is asked for.

    Attributes:
        chains: the positions of ``$devices``.
        taken: what it took.
        fault: raised instead of taking something, where there is one.
    """

    def __init__(self) -> None:
        self.chains: dict[tuple[int, int], bytes] = {}
        self.taken: list[Ingested] = []
        self.fault: Exception | None = None

    def generation(self) -> int:
        """Always the same."""
        return 0

    def has_short_way(self) -> bool:
        """Always."""
        return True

    def append(self, ingested: Ingested) -> bool:
        """All of it."""
        if self.fault is not None:
            raise self.fault
        self.taken.append(ingested)
        return True

    def device_chains(self, places: set[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        """Those that the events name."""
        return {place: self.chains[place] for place in places if place in self.chains}


class Corridor:
    """Devices of as many users, with one stream each, all of them remembered."""

    def __init__(self) -> None:
        self.store = ShortWay()
        self.heads = HeadCache(streams_max=USERS)
        self.devices = DeviceCache()
        self.rooms = ByteRooms()
        self.senders = []
        for number in range(1, USERS + 1):
            user = UserFixture(f"user {number}")
            device = DeviceFixture(user, "phone")
            self.senders.append((replace(principal(device), user_pk=UserPk(number)), device))
            head = StreamHead.create(
                user_pk=number, user_key=user.user_key, stream_pk=3, name="notes", retention_class=1, auth_epoch=0
            )
            self.heads.put([head], generation=0)
            self.devices.put({number: LiveDevices(0, {1: None})}, generation=0)

    def batch(self, events: int) -> list[Submission]:
        """One submission of each device."""
        batch = [submission(sender, *device.events("notes", events)) for sender, device in self.senders]
        self.store.chains |= {(each.user_pk, seq): chain for each in batch for seq, chain in each.events.devices_seen}
        return batch

    def appending(self, batch: list[Submission], *, now_ms: int = NOW_MS) -> Appending:
        """The batch on its way."""
        return Appending(
            store=cast("Any", self.store),
            generation=0,
            heads=self.heads,
            devices=self.devices,
            rooms=self.rooms,
            streams_per_user_max=100,
            bytes_per_user_max=None,
            batch=batch,
            now_ms=now_ms,
            change=None,
        )

    def warm(self) -> None:
        """The first batch looks up the positions that the others remember."""
        self.appending(self.batch(1)).run()
