"""How many Python calls an event takes on its way through a batch: work for each event is the extension's."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from keepstep._keepstep import StreamHead
from keepstep.eventlog.append import Appending
from keepstep.eventlog.devices import DeviceCache
from keepstep.eventlog.heads import HeadCache
from keepstep.eventlog.rooms import ByteRooms
from keepstep.eventlog.store import LiveDevices
from keepstep.model import UserPk
from keepstep.protocol.messages import ResultAccepted
from tests.support.events import NOW_MS, DeviceFixture, UserFixture, submission
from tests.support.ingesting import principal

if TYPE_CHECKING:
    from types import FrameType

    from keepstep._keepstep import Ingested, Submission

USERS: Final = 40
CALLS_OF_A_BATCH_MAX: Final = 60
"""Calls of Python functions for a batch, whatever is in it."""
CALLS_OF_A_SUBMISSION_MAX: Final = 5
"""And for each submission in it, of however many events."""


class ShortWay:
    """A store that takes everything by its shorter way, and has every position that is asked for."""

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

    def calls(self, batch: list[Submission]) -> int:
        """How many Python functions are called until all of it is answered."""
        appending = Appending(
            store=cast("Any", self.store),
            generation=0,
            heads=self.heads,
            devices=self.devices,
            rooms=self.rooms,
            streams_per_user_max=100,
            bytes_per_user_max=None,
            batch=batch,
            now_ms=NOW_MS,
            change=None,
        )
        calls = 0

        def count(_frame: FrameType, event: str, _argument: object) -> None:
            nonlocal calls
            calls += event == "call"

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            outcome = appending.run()
        finally:
            sys.setprofile(before)
        kinds = {type(result) for results in outcome.results for result in results}
        assert kinds == {ResultAccepted}
        return calls


def test_a_submission_takes_few_calls() -> None:
    """Their number is held: each one more is paid thousands of times a second."""
    corridor = Corridor()
    corridor.calls(corridor.batch(1))  # the first one looks up what the others remember

    assert corridor.calls(corridor.batch(1)) <= CALLS_OF_A_BATCH_MAX + CALLS_OF_A_SUBMISSION_MAX * USERS


def test_an_event_takes_none() -> None:
    """Ten events of a message take as many calls as one."""
    corridor = Corridor()
    corridor.calls(corridor.batch(1))

    assert corridor.calls(corridor.batch(10)) == corridor.calls(corridor.batch(1))
