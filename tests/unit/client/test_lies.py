"""Each way in which a server can lie about a stream is found, and the error names the stream and the place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from trio.testing import MockClock

from keepstep.client import Device, ProtocolError, Subscription, VerificationError, crypto, open_device
from keepstep.model import DEVICES_STREAM
from keepstep.protocol.chain import chain_next, event_hash
from keepstep.protocol.messages import Accepted, CaughtUp, Events, Head, ResultAccepted, Resumed
from tests.support.device_server import DeviceServer

if TYPE_CHECKING:
    from msgspec import Struct

Rewrite = Callable[[Any], Sequence["Struct"]]
STREAM = "notes"


async def publish(device: Device, *texts: bytes) -> None:
    """Publish, and wait until the server has all of it."""
    for publication in await device.publish_many(STREAM, texts):
        await publication.accepted()


async def everything(subscription: Subscription) -> None:
    """Read until there is an error."""
    async for event in subscription:
        assert event.stream == subscription.stream


async def found_by_reader(server: DeviceServer, path: Path) -> VerificationError:
    """What a device finds that reads the stream."""
    async with open_device(path, environment=server.environment) as phone:
        with pytest.raises(VerificationError) as caught:
            await everything(await phone.subscribe(STREAM))
        assert [(alarm.stream, alarm.seq) for alarm in await phone.alarms()] == [
            (caught.value.stream, caught.value.seq)
        ]
    return caught.value


@pytest.fixture
async def phone(server: DeviceServer, tmp_path: Path) -> Path:
    """The file of a second device, which has not read the five events that the first one published."""
    async with open_device(server.new_user(tmp_path), environment=server.environment) as laptop:
        await laptop.enrol(tmp_path / "phone.sqlite3", "phone")
        await publish(laptop, *(f"text {number}".encode() for number in range(1, 6)))
    return tmp_path / "phone.sqlite3"


def pages_of(stream: str, change: Callable[[Events], Sequence[Struct]]) -> Rewrite:
    """Change pages of one stream, and leave everything else as it is."""

    def rewrite(message: Any) -> Sequence[Struct]:
        return change(message) if isinstance(message, Events) and message.stream == stream else [message]

    return rewrite


def with_rows(page: Events, rows: list[Any]) -> list[Struct]:
    """The page with other rows."""
    return [msgspec.structs.replace(page, rows=rows)]


def renumbered(rows: Sequence[Any]) -> list[Any]:
    """Rows with consecutive numbers again, as a server would that hides something."""
    return [(seq, *row[1:]) for seq, row in enumerate(rows, 1)]


def flipped(data: bytes | None) -> bytes:
    """The bytes with one bit changed."""
    assert data
    return bytes([data[0] ^ 1]) + data[1:]


PAGE_LIES: dict[str, tuple[Callable[[Events], Sequence[Struct]], int]] = {
    "reorders": (lambda page: with_rows(page, [page.rows[1], page.rows[0], *page.rows[2:]]), 2),
    "reorders and renumbers": (
        lambda page: with_rows(page, renumbered([page.rows[1], page.rows[0], *page.rows[2:]])),
        1,
    ),
    "drops": (lambda page: with_rows(page, [*page.rows[:2], *page.rows[3:]]), 4),
    "drops and renumbers": (lambda page: with_rows(page, renumbered([*page.rows[:2], *page.rows[3:]])), 3),
    "repeats": (lambda page: with_rows(page, renumbered([*page.rows[:2], page.rows[1], *page.rows[2:]])), 3),
    "sends a page twice": (lambda page: [page, page], 1),
    "alters a payload": (
        lambda page: with_rows(page, [*page.rows[:3], (*page.rows[3][:5], flipped(page.rows[3][5]), None)]), 4,
    ),
    "alters a header": (
        lambda page: with_rows(
            page, [*page.rows[:3], (*page.rows[3][:3], page.rows[3][3][:-1] + b"!", *page.rows[3][4:])]
        ),
        4,
    ),
    "alters a time": (
        lambda page: with_rows(page, [(1, page.rows[0][1], page.rows[0][2] + 1, *page.rows[0][3:]), *page.rows[1:]]),
        2,
    ),
    "states another chain": (lambda page: [msgspec.structs.replace(page, chain=flipped(page.chain))], 5),
}  # fmt: skip


@pytest.mark.parametrize("lie", PAGE_LIES)
async def test_a_lie_in_a_page_is_found(autojump_clock: MockClock, server: DeviceServer, phone: Path, lie: str) -> None:
    """Events that were reordered, dropped, repeated or altered stop the stream in their place."""
    change, seq = PAGE_LIES[lie]
    server.rewrite = pages_of(STREAM, change)
    error = await found_by_reader(server, phone)
    assert (error.stream, error.seq) == (STREAM, seq)


async def test_an_event_of_another_stream_is_found(
    autojump_clock: MockClock, server: DeviceServer, phone: Path
) -> None:
    """A server cannot show an event in a stream that its author did not write it into."""
    server.streams["other"] = server.streams[STREAM]
    async with open_device(phone, environment=server.environment) as device:
        with pytest.raises(VerificationError, match="another stream"):
            await anext(await device.subscribe("other"))


async def test_what_came_before_the_lie_stays_readable(
    autojump_clock: MockClock, server: DeviceServer, phone: Path
) -> None:
    """Pages that verified are given out before the error is."""
    server.page_events = 2
    server.rewrite = pages_of(STREAM, lambda page: [page] if page.rows[0][0] == 1 else with_rows(page, page.rows[1:]))
    async with open_device(phone, environment=server.environment) as device:
        subscription = await device.subscribe(STREAM)
        assert [(await anext(subscription)).data for _ in range(2)] == [b"text 1", b"text 2"]
        with pytest.raises(VerificationError) as caught:
            await anext(subscription)
    assert caught.value.seq == 4


async def test_other_streams_go_on_after_a_lie(autojump_clock: MockClock, server: DeviceServer, phone: Path) -> None:
    """A stream that stopped takes no other with it."""
    server.rewrite = pages_of(STREAM, lambda page: with_rows(page, page.rows[1:]))
    async with open_device(phone, environment=server.environment) as device:
        with pytest.raises(VerificationError):
            await anext(await device.subscribe(STREAM))
        await (await device.publish("other", b"still here")).accepted()
        assert (await anext(await device.subscribe("other"))).data == b"still here"


async def test_a_head_by_another_key_is_found(autojump_clock: MockClock, server: DeviceServer, phone: Path) -> None:
    """Heads count with the pinned server's signature only."""

    def rewrite(message: Any) -> Sequence[Struct]:
        if isinstance(message, CaughtUp) and message.stream == STREAM:
            return [CaughtUp(STREAM, (message.head[0], flipped(message.head[1])))]
        return [message]

    server.rewrite = rewrite
    error = await found_by_reader(server, phone)
    assert (error.stream, error.reason) == (STREAM, "a head does not verify")


async def test_a_fork_is_found_by_its_signed_head(autojump_clock: MockClock, server: DeviceServer, phone: Path) -> None:
    """A head of another history than the one shown is proof."""

    def rewrite(message: Any) -> Sequence[Struct]:
        if isinstance(message, CaughtUp) and message.stream == STREAM:
            return [Head(STREAM, server.head(STREAM, 3, chain=bytes(32)))]
        return [message]

    server.rewrite = rewrite
    error = await found_by_reader(server, phone)
    assert (error.stream, error.seq) == (STREAM, 3)
    assert error.evidence


async def test_a_fork_is_found_by_what_another_device_saw(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, phone: Path
) -> None:
    """A history that differs from the one an event's author had seen stops the stream at that event."""
    # The laptop has read all five events; its sixth says so. The phone is shown a fifth that came a second later.
    async with open_device(tmp_path / "laptop.sqlite3", environment=server.environment) as laptop:
        await laptop.wait_until_caught_up(STREAM)
        await publish(laptop, b"text 6")
    stream = server.stream(STREAM)
    rows, chains = list(stream.rows), list(stream.chains)
    rows[4] = (5, rows[4][1], rows[4][2] + 1000, *rows[4][3:])
    rows[5] = (6, rows[5][1], rows[5][2] + 1000, *rows[5][3:])
    for seq in (5, 6):
        row = rows[seq - 1]
        chains[seq] = chain_next(crypto, chains[seq - 1], seq, row[2], event_hash(crypto, row[3], row[4]))
    stream.rows, stream.chains = rows, chains
    error = await found_by_reader(server, phone)
    assert (error.stream, error.seq) == (STREAM, 6)


async def test_a_rewind_is_found_at_the_next_connection(
    autojump_clock: MockClock, server: DeviceServer, phone: Path
) -> None:
    """A log that is shorter than what this device has read is a lie, not an answer."""
    async with open_device(phone, environment=server.environment) as device:
        await device.wait_until_caught_up(STREAM)
    server.stream(STREAM).truncate(3)
    async with open_device(phone, environment=server.environment) as device:
        subscription = await device.subscribe(STREAM, after=5)
        with pytest.raises(VerificationError) as caught:
            await anext(subscription)
    assert caught.value.stream == STREAM


async def test_a_rewind_of_what_was_acknowledged_is_found_by_its_author(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, phone: Path
) -> None:
    """An author finds its acknowledged events gone although it never read them back."""
    server.stream(STREAM).truncate(3)
    async with open_device(tmp_path / "laptop.sqlite3", environment=server.environment) as laptop:
        with pytest.raises(VerificationError, match="acknowledged") as caught:
            await anext(await laptop.subscribe(STREAM, after=5))
    assert caught.value.stream == STREAM


async def test_an_acknowledgement_of_another_history_is_found(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, phone: Path
) -> None:
    """What the server acknowledges and what it shows are one history."""

    def rewrite(message: Any) -> Sequence[Struct]:
        if isinstance(message, Accepted) and isinstance(message.results[0], ResultAccepted):
            return [Accepted(message.rid, [msgspec.structs.replace(message.results[0], chain=bytes(32))])]
        return [message]

    server.rewrite = rewrite
    async with open_device(tmp_path / "laptop.sqlite3", environment=server.environment) as laptop:
        await publish(laptop, b"text 6")
        subscription = await laptop.subscribe(STREAM, after=5)
        with pytest.raises(VerificationError) as caught:
            await anext(subscription)
    assert (caught.value.stream, caught.value.seq) == (STREAM, 6)


async def test_a_server_that_went_back_in_its_epochs_is_found(
    autojump_clock: MockClock, server: DeviceServer, phone: Path
) -> None:
    """The epoch only rises."""
    server.epoch = 5
    async with open_device(phone, environment=server.environment) as device:
        await device.wait_until_caught_up(DEVICES_STREAM)
    server.epoch = 4
    async with open_device(phone, environment=server.environment) as device:
        with pytest.raises(VerificationError, match="epoch"):
            await device.wait_until_caught_up(DEVICES_STREAM)
        assert [alarm.reason for alarm in await device.alarms()] == ["the server's epoch went back"]


async def test_a_hidden_account_event_is_found(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, phone: Path
) -> None:
    """An author that knows more of $devices than the server shows proves that something is hidden."""
    async with open_device(tmp_path / "laptop.sqlite3", environment=server.environment) as laptop:
        await laptop.enrol(tmp_path / "tablet.sqlite3", "tablet")
        await laptop.wait_until_caught_up(DEVICES_STREAM)
        await publish(laptop, b"text 6")
    server.stream(DEVICES_STREAM).truncate(2)
    error = await found_by_reader(server, phone)
    assert (error.stream, error.seq) == (STREAM, 6)
    assert "$devices" in error.reason


async def test_a_device_that_was_not_enrolled_is_not_believed(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, phone: Path
) -> None:
    """An account log other than the one the enrolling device had known stops the new device altogether."""
    server.stream(DEVICES_STREAM).truncate(1)
    async with open_device(phone, environment=server.environment) as device:
        with pytest.raises(VerificationError) as caught:
            await device.wait_until_caught_up(DEVICES_STREAM)
    assert caught.value.stream == DEVICES_STREAM


async def test_events_before_the_answer_to_the_subscription_are_refused(
    autojump_clock: MockClock, server: DeviceServer, phone: Path
) -> None:
    """A server that begins a stream at its end without saying where that is, is not believed."""

    def rewrite(message: Any) -> Sequence[Struct]:
        if isinstance(message, Resumed) and message.stream == STREAM:
            return [message, msgspec.structs.replace(message, answer="unknown_position")]
        return [message]

    server.rewrite = rewrite
    error = await found_by_reader(server, phone)
    assert (error.stream, error.seq) == (STREAM, None)


async def test_another_server_is_not_talked_to(autojump_clock: MockClock, server: DeviceServer, phone: Path) -> None:
    """A device talks to the server whose key it pinned, to no other one."""
    server.server_secret, _ = crypto.ed25519_generate(bytes(31) + b"x")
    async with open_device(phone, environment=server.environment) as device:
        with pytest.raises(ProtocolError) as caught:
            await device.wait_until_connected()
    assert caught.value.code == "auth_failed"
