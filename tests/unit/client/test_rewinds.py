"""A device goes back only where the server signed that a restore made it, and once for each restore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keepstep.client import VerificationError, crypto, open_device
from keepstep.client.rewinds import Restoration, Rewinds
from keepstep.client.store import open_store
from keepstep.protocol.messages import (
    ChainAt,
    ChainAtResult,
    Error,
    Heal,
    HealResult,
    Resumed,
    Rewound,
)
from keepstep.protocol.rewind import Rewind, explains, sign_rewind
from tests.unit.client.test_lies import STREAM, everything, publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from trio.testing import MockClock

    from keepstep.client.store import Store
    from keepstep.protocol.messages import SignedRewind
    from tests.support.device_server import DeviceServer

EPOCH = 7


def signed(server: DeviceServer, **changes: Any) -> SignedRewind:
    """The server's word that the stream went back to its second event."""
    fields: dict[str, Any] = {"user_key": server.user_key, "stream": STREAM, "epoch": EPOCH, "seq": 2}
    fields |= {"secret": server.server_secret} | changes
    secret = fields.pop("secret")
    if "chain" not in fields:
        fields["chain"] = server.stream(STREAM).chains[2]
    return sign_rewind(crypto, secret, Rewind(**fields))


async def loses(server: DeviceServer, path: Path, kept: int = 2) -> None:
    """A device that has read five events, of which the server has only the first ones any more."""
    async with open_device(path, environment=server.environment) as laptop:
        await publish(laptop, *(f"text {number}".encode() for number in range(1, 6)))
        await laptop.wait_until_caught_up(STREAM)
    server.stream(STREAM).truncate(kept)
    server.epoch = EPOCH


def explaining(rewinds: Sequence[SignedRewind]) -> Callable[[Any], list[Any]]:
    """Where an honest server would not know a position, it says with these why."""

    def rewrite(message: Any) -> list[Any]:
        if isinstance(message, Resumed) and message.answer == "unknown_position":
            return [Rewound(message.stream, list(rewinds), message.head, message.author)]
        return [message]

    return rewrite


LIES: dict[str, Callable[[DeviceServer], list[SignedRewind]]] = {
    "none": lambda _server: [],
    "of another key": lambda server: [signed(server, secret=bytes(range(1, 33)))],
    "of another stream": lambda server: [signed(server, stream="other")],
    "of another user": lambda server: [signed(server, user_key=bytes(range(32)))],
    "of an epoch that never was": lambda server: [signed(server, epoch=EPOCH + 1)],
    "of an epoch that the device was in already": lambda server: [signed(server, epoch=0)],
    "two of one restore": lambda server: [signed(server), signed(server, seq=1)],
    "to another history": lambda server: [signed(server)],
    "no rewind at all": lambda _server: [(b"rewind", bytes(64))],
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_rewind_that_explains_nothing_is_a_lie(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, lie: str
) -> None:
    """The stream stops, and its user is told."""
    path = server.new_user(tmp_path)
    await loses(server, path)
    server.rewrite = explaining(LIES[lie](server))

    def answer(_end: Any, message: Any) -> list[Any] | None:
        if isinstance(message, ChainAt):
            return [ChainAtResult(message.rid, message.stream, [bytes(32)] * len(message.seqs), 2)]
        return None

    server.answer = answer
    async with open_device(path, environment=server.environment) as laptop:
        with pytest.raises(VerificationError):
            await everything(await laptop.subscribe(STREAM, after=5))
        assert [alarm.stream for alarm in await laptop.alarms()] == [STREAM]


@pytest.fixture
def store(server: DeviceServer, tmp_path: Path) -> Iterator[Store]:
    """A device's file, in the epoch of a restore."""
    opened = open_store(server.new_user(tmp_path))
    with opened.transaction():
        opened.raise_epoch(EPOCH)
    yield opened
    opened.close()


async def test_rewinds_and_what_came_of_them_are_kept(server: DeviceServer, store: Store) -> None:
    """For ever, each once; a position above one may be of a dead branch."""
    chain = bytes(32)
    kept = Rewinds(store)
    with store.transaction():
        kept.take(STREAM, [signed(server, chain=chain)])
        kept.take(STREAM, [signed(server, chain=chain), signed(server, epoch=3, seq=4, chain=chain)])
        kept.add(Restoration(STREAM, 1, 2, 5, 1, 1, 1))
    again = Rewinds(store)
    for rewinds in (kept, again):
        assert [rewinds.floor(STREAM, since=since) for since in (0, 3, 6, 7)] == [2, 2, 2, None]
        assert rewinds.floor("other", since=0) is None
        assert [explains(rewinds.of(STREAM), seq, knew_ms=0) for seq in (1, 2, 3)] == [False, False, True]
        assert rewinds.restorations() == [Restoration(STREAM, 1, 2, 5, 1, 1, 1)]


async def test_a_refused_healing_goes_back_and_publishes_again(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """Of a server that takes nothing exactly, and makes the device wait first, everything comes back anew."""
    path = server.new_user(tmp_path)
    await loses(server, path)
    asked: list[Any] = []
    server.rewrite = explaining([signed(server)])

    def answer(_end: Any, message: Any) -> list[Any] | None:
        stream = server.stream(STREAM)
        if isinstance(message, ChainAt):
            chains = [stream.chains[seq] if seq <= 2 else None for seq in message.seqs]
            return [ChainAtResult(message.rid, message.stream, chains, 2)]
        if isinstance(message, Heal):
            asked.append(message)
            if len(asked) == 1:
                return [Error(message.rid, "unavailable", 10)]
            answers: Any = {0: "refused", 1: "closed", 2: "open" if len(asked) < 8 else "closed", 3: "closed"}
            if message.proof is None and message.report == 0 and len(asked) < 5:
                return [HealResult(message.rid, message.stream, "later", 2, [], 10)]
            return [HealResult(message.rid, message.stream, answers[message.report], 2, [], None)]
        return None

    server.answer = answer
    async with open_device(path, environment=server.environment) as laptop:
        await server.until(lambda: len(server.stream(STREAM).rows) == 5)
        await laptop.wait_until_caught_up(STREAM)
        (restoration,) = await laptop.restorations()
        assert (restoration.common_seq, restoration.held_seq, restoration.handed_in) == (2, 5, 0)
        assert (restoration.anew, restoration.lost) == (3, 0)
        assert await laptop.alarms() == []
        await laptop.end_healing()
