"""What a device keeps until it is in a verified backup of the server, and what it has to let go before that."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from click.testing import CliRunner

from keepstep.client import Fallen, account_cli, cli, crypto, locallog, open_device, safekeeping
from keepstep.client.healing import _entry
from keepstep.model import KEYS_STREAM
from keepstep.protocol.chain import event_hash
from keepstep.protocol.messages import CaughtUp, Head, Heal, HealResult, Resumed, Subscribe
from tests.unit.client.test_lies import STREAM, publish
from tests.unit.client.test_rewinds import EPOCH, signed

if TYPE_CHECKING:
    from trio.testing import MockClock

    from keepstep.client import Device
    from tests.support.device_server import DeviceServer


def rows(device: Device) -> list[tuple[str, int]]:
    """Stream and author number of what is kept apart."""
    return [tuple(row) for row in device._store.rows("SELECT stream, n FROM kept ORDER BY stream, n")]


def counted(device: Device) -> int:
    """The bytes that are counted for it, which are those that it has."""
    found = device._store.row(f"SELECT coalesce(sum({safekeeping._SIZE}), 0) FROM kept")[0]  # noqa: S608 - of this file
    assert device._store.row("SELECT kept_bytes FROM device")[0] == found
    return int(found)


async def settled(device: Device) -> list[tuple[str, int]]:
    """What is kept apart, once what was acknowledged is written down."""
    await device._worker.run(device._outbox.settle)
    return rows(device)


async def told(server: DeviceServer, device: Device, safe_at_ms: int | None) -> None:
    """The server tells up to when everything is safe, with the next head of a stream that the device reads."""
    server.safe_at_ms = safe_at_ms
    await server.sessions[0].send(Head(KEYS_STREAM, server.head(KEYS_STREAM), safe_at_ms))
    await device._until(lambda: device._store.safe_at_ms() == safe_at_ms)


async def test_what_a_device_only_writes_is_kept_until_it_is_safe(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """By the time at which the server received it; without a word of a backup, all of it."""
    async with open_device(server.new_user(tmp_path), environment=server.environment) as laptop:
        await publish(laptop, b"1", b"2")
        middle_ms = server.now_ms
        server.now_ms += 1
        await publish(laptop, b"3")
        assert await settled(laptop) == [(STREAM, 1), (STREAM, 2), (STREAM, 3)]
        assert counted(laptop) > 0
        safety = await laptop.safety()
        assert (safety.safe_at_ms, safety.unsafe[STREAM], safety.fallen) == (None, 3, [])
        await told(server, laptop, middle_ms)
        assert rows(laptop) == [(STREAM, 3)]
        safety = await laptop.safety()
        assert (safety.safe_at_ms, safety.unsafe[STREAM], safety.fallen) == (middle_ms, 1, [])
        await told(server, laptop, middle_ms + 1)
        assert rows(laptop) == []
        assert counted(laptop) == 0
        assert STREAM not in (await laptop.safety()).unsafe
        await told(server, laptop, None)
        assert (await laptop.safety()).safe_at_ms is None


async def test_the_last_word_on_what_is_safe_counts(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """Streams are verified in another order than they came in, and some wait for others."""
    async with open_device(server.new_user(tmp_path), environment=server.environment) as laptop:
        await publish(laptop, b"1")
        await laptop.wait_until_caught_up(STREAM)
        await told(server, laptop, 1)
        head = server.head(STREAM)
        # $keys is verified first; its word was the last nevertheless.
        arrived: list[CaughtUp | Head] = [CaughtUp(STREAM, head, 2), Head(KEYS_STREAM, server.head(KEYS_STREAM), 3)]
        await laptop._worker.run(lambda: laptop._follower.apply(arrived))
        assert laptop._store.safe_at_ms() == 3
        await laptop._worker.run(lambda: laptop._follower.apply(arrived[:1], again=1))
        assert laptop._store.safe_at_ms() == 3, "what had to wait has had its say before"


async def test_what_a_device_reads_is_kept_once(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """In its log, and not apart from it any more once it has read what it wrote before."""
    async with open_device(server.new_user(tmp_path), environment=server.environment) as laptop:
        await publish(laptop, b"1")
        assert await settled(laptop) == [(STREAM, 1)]
        await laptop.wait_until_caught_up(STREAM)
        await publish(laptop, b"2")
        assert await settled(laptop) == []
        assert counted(laptop) == 0


@pytest.mark.parametrize("bound", ["days", "bytes"])
async def test_what_falls_out_before_it_is_safe_is_counted(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    """The oldest goes first; what is in a backup is not counted."""
    monkeypatch.setattr(safekeeping, "PRUNE_EVENTS", 1)
    async with open_device(server.new_user(tmp_path), environment=server.environment) as laptop:
        await publish(laptop, b"1")
        await settled(laptop)
        safe_ms = server.now_ms
        for _ in range(3):
            server.now_ms += 1
            await publish(laptop, b"x")
            await settled(laptop)
        if bound == "days":
            server.now_ms += locallog.DAY_MS * (locallog.KEPT_DAYS + 1)
        else:
            monkeypatch.setattr(safekeeping, "KEPT_BYTES_MAX", counted(laptop) // 2)
        await told(server, laptop, safe_ms)
        for _ in range(3):
            await publish(laptop, b"y")
            await settled(laptop)
        (fallen,) = (await laptop.safety()).fallen
        assert (fallen.stream, fallen.events > 0, fallen.last_at_ms) == (STREAM, True, server.now_ms)
        left = rows(laptop)
        assert left == [(STREAM, n) for n in range(left[0][1], 8)]
        assert fallen.events == left[0][1] - 2, "all that went, but the first"


async def test_the_log_counts_what_falls_out_of_it(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """After thirty days without a verified backup; with one, nothing."""
    path = server.new_user(tmp_path)
    async with open_device(path, environment=server.environment) as laptop:
        subscription = await laptop.subscribe(STREAM, cursor="app")
        await publish(laptop, b"x", b"x")
        safe_ms = server.now_ms
        server.now_ms += 1
        await publish(laptop, b"x", b"x")
        for _ in range(4):
            await anext(subscription)
        await told(server, laptop, safe_ms)
        server.now_ms += locallog.DAY_MS * (locallog.KEPT_DAYS + 1)
        await subscription.commit(4)
        assert (await laptop.safety()).fallen == [Fallen(STREAM, 2, server.now_ms)]


def closed(_end: Any, message: Any) -> list[Any] | None:
    """To a report: no other device is waited for."""
    if isinstance(message, Heal):
        return [HealResult(message.rid, message.stream, "closed", 0, [], None)]
    return None


def loses(server: DeviceServer, stream: str, kept: int) -> Any:
    """A restore of the server; what it says of it where it is asked."""
    rewind = signed(server, stream=stream, seq=kept, chain=server.stream(stream).chains[kept])
    server.stream(stream).truncate(kept)
    server.epoch = EPOCH
    server.answer = closed

    def rewrite(message: Any) -> list[Any]:
        if isinstance(message, Resumed) and message.stream == stream:
            return [Resumed(stream, message.answer, message.head, message.author, [rewind])]
        return [message]

    server.rewrite = rewrite


async def test_a_device_that_only_writes_brings_back_what_was_lost(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """Without being asked, as it was signed, and before what it writes meanwhile; then it tells its user."""
    path = server.new_user(tmp_path)
    async with open_device(path, environment=server.environment) as laptop:
        await publish(laptop, *(b"%d" % number for number in range(5)))
    before = [row[3] for row in server.stream(STREAM).rows]
    loses(server, STREAM, 2)
    async with open_device(path, environment=server.environment) as laptop:
        with trio.fail_after(60):
            await server.until(lambda: len(server.stream(STREAM).rows) == 5)
        await publish(laptop, b"5")
        (restoration,) = await laptop.restorations()
        assert (restoration.common_seq, restoration.anew, restoration.lost) == (2, 3, 0)
        assert await settled(laptop) == [(STREAM, n) for n in range(1, 7)]
        assert await laptop.alarms() == []
    assert [row[3] for row in server.stream(STREAM).rows][:5] == before


async def test_what_was_let_go_is_lost_and_what_follows_is_signed_anew(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """A gap in what it kept: the rest does not join on as it was signed."""
    path = server.new_user(tmp_path)
    async with open_device(path, environment=server.environment) as laptop:
        await publish(laptop, *(b"%d" % number for number in range(5)))
        await settled(laptop)
        with laptop._store.transaction():
            laptop._store.execute("DELETE FROM kept WHERE n = 3")
    loses(server, STREAM, 2)
    async with open_device(path, environment=server.environment) as laptop:
        with trio.fail_after(60):
            await server.until(lambda: len(server.stream(STREAM).rows) == 4)
        (restoration,) = await laptop.restorations()
        assert (restoration.anew, restoration.lost) == (2, 1)
        subscription = await laptop.subscribe(STREAM)
        assert [(await anext(subscription)).data for _ in range(4)] == [b"0", b"1", b"3", b"4"]


async def test_a_restore_that_lost_nothing_of_it_is_asked_about_once(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """The next session in the same epoch does not ask again."""
    path = server.new_user(tmp_path)
    async with open_device(path, environment=server.environment) as laptop:
        await publish(laptop, b"1")
    loses(server, STREAM, 1)
    for asked in (True, False):
        async with open_device(path, environment=server.environment) as laptop:
            await publish(laptop, b"x")
            assert (STREAM in await laptop._worker.run(laptop._follower.kept.unasked)) is False
        names = [
            name for each in server.received if isinstance(each, Subscribe) and each.streams != "all"
            for name in each.streams
        ]  # fmt: skip
        server.received.clear()
        assert (STREAM in names) is asked


async def test_a_server_that_takes_no_more_subscriptions_says_nothing_of_what_it_has(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """Publishing goes on, and finds out what is there when the server answers otherwise than with a place."""
    path = server.new_user(tmp_path)
    async with open_device(path, environment=server.environment) as laptop:
        await publish(laptop, b"1", b"2")
    server.epoch = EPOCH
    server.answer = closed

    def rewrite(message: Any) -> list[Any]:
        if isinstance(message, Resumed) and message.stream == STREAM:
            return [Resumed(STREAM, "limit_exceeded", None, (0, bytes(32)))]
        return [message]

    server.rewrite = rewrite
    async with open_device(path, environment=server.environment) as laptop:
        await publish(laptop, b"3")
        assert not await laptop.restorations()
        assert not await laptop.alarms()


async def test_a_device_that_read_and_then_wrote_publishes_both_again(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """What its log has of its own, and what it wrote later without reading, in order."""
    path = server.new_user(tmp_path)
    async with open_device(path, environment=server.environment) as laptop:
        await publish(laptop, b"0", b"1", b"2")
        await laptop.wait_until_caught_up(STREAM)
    async with open_device(path, environment=server.environment) as laptop:
        await publish(laptop, b"3", b"4")
        assert await settled(laptop) == [(STREAM, 4), (STREAM, 5)]
        entries = [(row[0], row[3]) for row in server.stream(STREAM).rows]
        last = laptop._log.last_of(STREAM, laptop.identity.device_id, up_to=2)
        assert last is not None
        with laptop._store.transaction():
            laptop._store.execute("DELETE FROM outbox")
        lost = [_entry(STREAM, row) for row in laptop._log.exact_rows(STREAM, after=2, events_max=9)]
        count = await laptop._worker.run(
            lambda: laptop._outbox.publish_again(STREAM, (2, event_hash(crypto, *last)), lost)
        )
        assert count == 3
        waiting = laptop._outbox._waiting(STREAM)
        assert [each.header for each in waiting] == [header for seq, header in entries if seq > 2]


async def test_the_command_shows_what_a_restore_could_cost(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the device knew it last; what it had to let go also in the list of devices."""
    monkeypatch.setenv("KEEPSTEP_HOME", str(tmp_path))
    path = cli.device_path("laptop")
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(server.new_user(tmp_path), path)

    def said(*arguments: str) -> str:
        result = CliRunner().invoke(account_cli.commands, ["device", *arguments])
        assert result.exit_code == 0, result
        return result.output

    assert "the server has told of no verified backup" in said("safety")
    async with open_device(path, environment=server.environment) as laptop:
        await publish(laptop, b"1")
        await settled(laptop)
        await told(server, laptop, server.now_ms - 1)
        with laptop._store.transaction():
            laptop._store.count_fallen(STREAM, 0, now_ms=server.now_ms)
            laptop._store.count_fallen(STREAM, 2, now_ms=server.now_ms)
    shown = said("safety")
    assert "in a verified backup: what the server received until 20" in shown
    assert f"{STREAM}: held here and in none 1\n" in shown
    assert f"{STREAM}: let go before they were in one 2, last 20" in shown
    assert "2 let go before a backup had them" in said("list")
