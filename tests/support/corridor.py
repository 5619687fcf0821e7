"""Devices whose batches a node decides upon what it remembers, and a store that takes everything."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from keepstep._keepstep import StreamHead
from keepstep.eventlog.append import STREAM_AHEAD_MS_MAX, Appending
from keepstep.eventlog.devices import DeviceCache
from keepstep.eventlog.heads import HeadCache
from keepstep.eventlog.known import append_known
from keepstep.eventlog.rooms import ByteRooms
from keepstep.eventlog.store import LiveDevices
from keepstep.model import UserPk
from tests.support.events import NOW_MS, DeviceFixture, UserFixture, submission
from tests.support.flying import CommittingServer, Flying
from tests.support.ingesting import principal

if TYPE_CHECKING:
    from keepstep._keepstep import Ingested, Submission
    from keepstep.eventlog.answers import Outcome

USERS: Final = 40


class ShortWay:
    """A store that takes everything by its shorter way, and has every position that is asked for.

    Attributes:
        chains: the positions of ``$devices``.
    """

    def __init__(self) -> None:
        self.chains: dict[tuple[int, int], bytes] = {}

    def generation(self) -> int:
        """Always the same."""
        return 0

    def append(self, ingested: Ingested) -> bool:
        """All of it."""
        del ingested
        return True

    def device_chains(self, places: set[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        """Those that the events name."""
        return {place: self.chains[place] for place in places if place in self.chains}


class Corridor:
    """Devices of as many users, with one stream each, all of them remembered.

    Args:
        server: commits the batches of what is remembered.
    """

    def __init__(self, server: CommittingServer) -> None:
        self.store = ShortWay()
        self.backend = Flying(server)
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

    async def append_known(self, batch: list[Submission], *, generation: int = 0) -> Outcome | None:
        """The batch, where all that deciding it takes is remembered."""
        return await append_known(
            cast("Any", self.backend),
            batch,
            heads=self.heads,
            devices=self.devices,
            rooms=self.rooms,
            now_ms=NOW_MS,
            received_at_ms_max=NOW_MS + STREAM_AHEAD_MS_MAX,
            generation=generation,
        )

    def warm(self) -> None:
        """The first batch looks up the positions that the others remember."""
        Appending(
            store=cast("Any", self.store),
            generation=0,
            heads=self.heads,
            devices=self.devices,
            rooms=self.rooms,
            streams_per_user_max=100,
            bytes_per_user_max=None,
            batch=self.batch(1),
            now_ms=NOW_MS,
            change=None,
            is_short=True,
        ).run()
