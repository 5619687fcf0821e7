"""What a device hands in after a restore, and what it does where the server does not take it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from keepstep.client import ClientError, healing, open_device
from keepstep.protocol.messages import ChainAt, ChainAtResult, Error, Heal, HealResult
from tests.unit.client.test_lies import STREAM, phone, publish
from tests.unit.client.test_rewinds import EPOCH, explaining, loses, signed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trio.testing import MockClock

    from keepstep.client import Device
    from keepstep.client.rewinds import Restoration
    from tests.support.device_server import DeviceServer

__all__ = ["phone"]


class Healer:
    """The server's part: it has the first two events, and answers what is handed in as a test says.

    Attributes:
        heals: what was handed in or reported, in order.
        answers: given the how manieth of these it is and it, says what to answer; ``None``: done, placed, closed.
    """

    def __init__(self, server: DeviceServer, answers: Callable[[int, Heal], Any] = lambda _index, _heal: None) -> None:
        self.server = server
        self.heals: list[Heal] = []
        self.answers = answers
        self.chains: Callable[[ChainAt], Any] = self._chains
        server.rewrite = explaining([signed(server)])
        server.answer = self._answer

    def _chains(self, message: ChainAt) -> Any:
        chains = [self.server.stream(STREAM).chains[seq] if seq <= 2 else None for seq in message.seqs]
        return ChainAtResult(message.rid, message.stream, chains, 2)

    def _answer(self, _end: Any, message: Any) -> list[Any] | None:
        if isinstance(message, ChainAt):
            return [self.chains(message)]
        if not isinstance(message, Heal):
            return None
        self.heals.append(message)
        answer = self.answers(len(self.heals), message)
        if answer is None:
            answer = "closed" if message.report else "placed"
        if isinstance(answer, str):
            answer = HealResult(message.rid, message.stream, answer, 2, [], 10)  # type: ignore[arg-type]
        return [answer]

    @property
    def handed_in(self) -> list[tuple[int | None, list[int]]]:
        """What was handed in: after which seq (``None``: anew), which seqs."""
        return [(each.after and each.after[0], [row[0] for row in each.rows]) for each in self.heals if not each.report]


async def healed(server: DeviceServer, path: Path) -> Restoration:
    """Open a device until it has dealt with the restore; what came of it."""
    async with open_device(path, environment=server.environment) as device:
        await device.subscribe(STREAM)
        while True:
            found: list[Restoration] = await device.restorations()
            if found:
                return found[-1]
            await trio.sleep(1)


async def has_read(server: DeviceServer, path: Path) -> None:
    """The phone reads what the laptop wrote, then the server loses the last three events of it."""
    async with open_device(path, environment=server.environment) as device:
        await device.subscribe(STREAM)
        await device.wait_until_caught_up(STREAM)
    server.stream(STREAM).truncate(2)
    server.epoch = EPOCH


async def test_another_s_events_wait_for_the_others_turn(
    autojump_clock: MockClock, server: DeviceServer, phone: Path
) -> None:
    """A device that came back with the account log may prove them; until it had its turn nothing is called lost."""
    await has_read(server, phone)

    def answers(index: int, heal: Heal) -> Any:
        if heal.report or heal.after is None:
            return None if index > 6 or heal.report else "later"
        return "refused"

    healer = Healer(server, answers)
    restoration = await healed(server, phone)
    assert (restoration.anew, restoration.lost) == (3, 0)
    assert [rows for after, rows in healer.handed_in if after is None] == [[3, 4, 5]] * (len(healer.handed_in) - 2)


async def test_what_the_server_takes_comes_back_in_pages(
    autojump_clock: MockClock, server: DeviceServer, phone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First up to the signed head, each page proven by what links it to that; nothing is given up."""
    monkeypatch.setattr(healing, "PAGE_BYTES_MAX", 1)
    await has_read(server, phone)
    healer = Healer(server)
    restoration = await healed(server, phone)
    assert healer.handed_in == [(2, [3]), (3, [4]), (4, [5])]
    links = [len(each.proof[0]) // 40 for each in healer.heals if each.proof is not None]
    assert links == [2, 1, 0]
    assert (restoration.common_seq, restoration.handed_in, restoration.anew, restoration.lost) == (5, 3, 0, 0)


async def test_what_is_lost_is_counted(
    autojump_clock: MockClock, server: DeviceServer, phone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that join on nowhere, and whole pages that are refused."""
    monkeypatch.setattr(healing, "PAGE_BYTES_MAX", 1)
    await has_read(server, phone)

    def answers(_index: int, heal: Heal) -> Any:
        if heal.after is None and not heal.report:
            if heal.rows[0][0] == 5:
                return Error(heal.rid, "forbidden", None)
            return HealResult(heal.rid, heal.stream, "placed", 2, [3] if heal.rows[0][0] == 3 else [], None)
        return None if heal.report else "refused"

    Healer(server, answers)
    restoration = await healed(server, phone)
    assert (restoration.common_seq, restoration.anew, restoration.lost) == (2, 1, 2)


async def test_another_history_on_the_way_is_looked_at_once_more(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """What the server then has in common is where it goes back to; what it wrote itself is published again."""
    path = server.new_user(tmp_path)
    await loses(server, path)
    asked: list[ChainAt] = []
    healer = Healer(server, lambda _index, heal: None if heal.report else "diverged")
    chains = healer.chains

    def answer(message: ChainAt) -> Any:
        asked.append(message)
        return chains(message)

    healer.chains = answer
    restoration = await healed(server, path)
    assert (restoration.common_seq, restoration.anew, restoration.lost) == (2, 3, 0)
    assert len(asked) > 1


@pytest.mark.parametrize("refusal", ["forbidden", None])
async def test_chains_that_are_not_told_leave_the_floor(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, refusal: str | None
) -> None:
    """Refused, or gone with the beginning: it goes on from where the restore stood."""
    path = server.new_user(tmp_path)
    await loses(server, path)
    healer = Healer(server, lambda _index, heal: None if heal.report else "refused")

    def answer(message: ChainAt) -> Any:
        if refusal is not None:
            return Error(message.rid, refusal, None)
        return ChainAtResult(message.rid, message.stream, [None] * len(message.seqs), 2)

    healer.chains = answer
    assert (await healed(server, path)).common_seq == 2


async def ends(device: Device, words: str) -> None:
    """The device cannot end the time for handing in."""
    with pytest.raises(ClientError, match=words):
        await device.end_healing()


async def test_who_ends_the_time_for_handing_in(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """Not one without a connection, not one that does not manage; where the connection ends meanwhile it says so."""
    path = server.new_user(tmp_path)
    said: list[str] = []

    def answer(_end: Any, message: Any) -> list[Any] | None:
        if not isinstance(message, Heal):
            return None
        said.append("asked")
        return [Error(message.rid, "forbidden", None)] if len(said) == 1 else []

    server.answer = answer
    async with open_device(path, environment=server.environment) as laptop:
        await publish(laptop, b"text")
        await ends(laptop, "does not manage")
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ends, laptop, "connection ended")
                await server.until(lambda: len(said) == 2)
                server.unreachable = True
                server.close_all(1001)
        await ends(laptop, "no connection")


async def test_a_server_that_asks_for_slower_healing_is_obeyed(
    autojump_clock: MockClock, server: DeviceServer, phone: Path
) -> None:
    """What it did not look at is handed in again after the time it named, reports too; nothing is given up."""
    await has_read(server, phone)
    healer = Healer(server, lambda index, heal: Error(heal.rid, "rate_limited", 32) if index % 2 else None)
    restoration = await healed(server, phone)
    assert (restoration.handed_in, restoration.anew, restoration.lost) == (3, 0, 0)
    assert [rows for _, rows in healer.handed_in] == [[3, 4, 5]] * len(healer.handed_in)
    assert len(healer.heals) % 2 == 0
