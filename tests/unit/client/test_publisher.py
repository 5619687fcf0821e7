"""From the outbox to the server: batches, the window, every answer, and what survives what."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from keepstep.client import ClientError, Device, ProtocolError, Publication, VerificationError, crypto, open_device
from keepstep.client import outbox as outboxes
from keepstep.client import publisher as publishers
from keepstep.client.store import open_store
from keepstep.protocol.chain import event_hash
from keepstep.protocol.event import decode_header
from keepstep.protocol.messages import (
    INTEGER_MAX,
    Accepted,
    Draining,
    Error,
    Publish,
    ResultAccepted,
    ResultDuplicate,
    ResultError,
    Resumed,
    Subscribe,
)
from tests.support.device_server import DeviceServer, ServerEnd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from msgspec import Struct

    from keepstep.protocol.messages import Result

STREAM = "notes"


@pytest.fixture
async def path(server: DeviceServer, tmp_path: Path) -> Path:
    """The file of a device that has published its first content key."""
    file = server.new_user(tmp_path)
    async with open_device(file, environment=server.environment) as device:
        await until_sent(device)
    return file


async def until_sent(device: Device) -> None:
    """Wait until the outbox is empty."""
    while device.waiting:
        await trio.testing.wait_all_tasks_blocked(0.01)


def texts(server: DeviceServer, stream: str = STREAM) -> list[int]:
    """The author numbers in the log."""
    return [decode_header(row[3]).n for row in server.stream(stream).rows]


def events_in(message: Publish) -> list[Any]:
    """``[header, sig, payload, trace]`` of each event."""
    decoded: list[Any] = msgspec.msgpack.decode(message.events)
    return decoded


def of_stream(message: object) -> bool:
    """Whether a message publishes into the tests' stream."""
    return isinstance(message, Publish) and decode_header(events_in(message)[0][0]).stream == STREAM


def once(answer: Callable[[ServerEnd, Publish], list[Struct]]) -> Callable[[ServerEnd, Any], list[Struct] | None]:
    """Answer the first publish into the tests' stream like that, then be honest."""
    done: list[Publish] = []

    def answer_first(end: ServerEnd, message: Any) -> list[Struct] | None:
        if done or not of_stream(message):
            return None
        done.append(message)
        return answer(end, message)

    return answer_first


def always(answer: Callable[[Publish], Struct]) -> Callable[[ServerEnd, Any], list[Struct] | None]:
    """Answer every publish into the tests' stream like that."""
    return lambda _end, message: [answer(message)] if of_stream(message) else None


async def accepted(publications: Sequence[Publication]) -> list[tuple[int, int | None]]:
    """(n, seq) of the receipts."""
    return [(receipt.n, receipt.seq) for receipt in [await each.accepted() for each in publications]]


async def test_a_large_outbox_goes_out_in_bounded_publishes_within_the_window(
    autojump_clock: MockClock, server: DeviceServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No publish has more events than the server takes, and no more are on their way than it allows."""
    server.limits = {"publish_events": 10, "inflight_publishes": 2}
    monkeypatch.setattr(publishers, "QUEUE_EVENTS_MAX", 16)
    async with open_device(path, environment=server.environment) as device:
        publications = await device.publish_many(STREAM, [b"%d" % number for number in range(95)])
        assert (await accepted(publications))[-1] == (95, 95)
        assert device.waiting == 0
    sizes = [len(events_in(message)) for message in server.messages(Publish) if of_stream(message)]
    assert sum(sizes) == 95
    assert max(sizes) == 10
    assert texts(server) == list(range(1, 96))


async def test_a_publish_is_bounded_in_bytes(autojump_clock: MockClock, server: DeviceServer, path: Path) -> None:
    """Large events share no publish that would be too large."""
    server.limits = {"publish_bytes": 100_000}
    async with open_device(path, environment=server.environment) as device:
        data = [server.environment.random_bytes(40_000) for _ in range(5)]
        await accepted(await device.publish_many(STREAM, data))
    assert [len(events_in(message)) for message in server.messages(Publish) if of_stream(message)] == [2, 2, 1]


async def test_what_is_published_without_a_connection_goes_out_with_the_next(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """The outbox is durable: a later process sends what an earlier one kept, in order."""
    server.unreachable = True
    async with open_device(path, environment=server.environment) as device:
        publications = await device.publish_many(STREAM, [b"1", b"2"])
        assert device.waiting == 2
        assert publications[0].receipt is None
    with pytest.raises(ClientError, match="closed"):
        await publications[0].accepted()
    server.unreachable = False
    async with open_device(path, environment=server.environment) as device:
        third = await device.publish(STREAM, b"3")
        assert (await third.accepted()).n == 3
        assert third.receipt is not None
    assert texts(server) == [1, 2, 3]


async def test_an_unanswered_publish_is_sent_again_and_is_no_second_event(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """The server stored it and the connection broke before the answer: the resend is answered as the duplicate."""

    def store_and_break(end: ServerEnd, message: Publish) -> list[Struct]:
        server.publish(end.device_id, events_in(message))
        end.transport.close(None)
        return []

    server.answer = once(store_and_break)
    async with open_device(path, environment=server.environment) as device:
        publications = await device.publish_many(STREAM, [b"1", b"2"])
        assert await accepted(publications) == [(1, 1), (2, 2)]
    assert texts(server) == [1, 2]


def snapshot(path: Path) -> Callable[[], None]:
    """What a crash at this moment would leave of a device's file; the result puts it back."""
    log = path.with_name(path.name + "-wal")
    contents = [(file, file.read_bytes()) for file in (path, log) if file.exists()]

    def restore() -> None:
        for file, content in contents:
            file.write_bytes(content)

    return restore


async def test_a_crash_after_sending_sends_again(autojump_clock: MockClock, server: DeviceServer, path: Path) -> None:
    """The process dies before the answer: the next one sends the same bytes, and there is one event."""
    crash: list[Callable[[], None]] = []

    def die(_end: ServerEnd, message: Any) -> None:
        if of_stream(message):
            crash.append(snapshot(path))

    server.answer = die
    async with open_device(path, environment=server.environment) as device:
        await accepted([await device.publish(STREAM, b"1")])
    crash[0]()
    async with open_device(path, environment=server.environment) as device:
        assert device.waiting == 1
        await until_sent(device)
    assert texts(server) == [1]
    assert len({events_in(message)[0][0] for message in server.messages(Publish) if of_stream(message)}) == 1


async def test_an_event_refused_for_good_leaves_no_hole(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """A refused event consumes no number: what follows is signed anew, and its author is told."""

    def refuse_the_second(end: ServerEnd, message: Publish) -> list[Struct]:
        first, _, *rest = events_in(message)
        results = server.publish(end.device_id, [first])
        last_n, last_hash = server.stream(STREAM).authors[end.device_id]
        return [
            Accepted(
                message.rid,
                [
                    *results,
                    ResultError("forbidden", []),
                    *(ResultError("out_of_order", [last_n, last_hash]) for _ in rest),
                ],
            )
        ]

    server.answer = once(refuse_the_second)
    async with open_device(path, environment=server.environment) as device:
        first, second, third, fourth = await device.publish_many(STREAM, [b"1", b"2", b"3", b"4"])
        with pytest.raises(ProtocolError) as caught:
            await second.accepted()
        assert caught.value.code == "forbidden"
        assert await accepted([first, third, fourth]) == [(1, 1), (2, 2), (3, 3)]
        subscription = await device.subscribe(STREAM)
        assert [(await anext(subscription)).data for _ in range(3)] == [b"1", b"3", b"4"]
        assert device.waiting == 0


async def test_a_refused_event_that_arrives_after_all_is_no_clones(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """Its number is taken by its old signing: what follows goes on after it, and nothing is lost or alarming."""
    sent: list[list[Any]] = []

    def answer(end: ServerEnd, message: Any) -> list[Struct] | None:
        if not of_stream(message):
            return None
        sent.append(events_in(message))
        if len(sent) == 1:
            refused = ResultError("unprocessable", [])
            return [Accepted(message.rid, [refused, ResultError("out_of_order", [0, bytes(32)])])]
        if len(sent) == 2:
            # What was sent first arrives only now, and nobody refuses it any more.
            server.publish(end.device_id, sent[0][:1])
        return None

    server.answer = answer
    async with open_device(path, environment=server.environment) as device:
        first, second = await device.publish_many(STREAM, [b"1", b"2"])
        with pytest.raises(ProtocolError, match="unprocessable"):
            await first.accepted()
        assert await accepted([second]) == [(2, 2)]
        subscription = await device.subscribe(STREAM)
        assert [(await anext(subscription)).data for _ in range(2)] == [b"1", b"2"]
        assert await device.alarms() == []


async def test_an_older_signing_of_a_waiting_event_counts_as_accepted(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """A refusal that did not hold, and the old signing of what followed it: both are stored as first signed."""
    sent: list[list[Any]] = []

    def answer(end: ServerEnd, message: Any) -> list[Struct] | None:
        if not of_stream(message):
            return None
        sent.append(events_in(message))
        if len(sent) == 1:
            first = server.publish(end.device_id, sent[0][:1])
            behind = ResultError("out_of_order", list(server.stream(STREAM).authors[end.device_id]))
            return [Accepted(message.rid, [*first, ResultError("unprocessable", []), behind])]
        if len(sent) == 2:
            server.publish(end.device_id, sent[0][1:])
            return [
                Accepted(message.rid, [ResultError("out_of_order", list(server.stream(STREAM).authors[end.device_id]))])
            ]
        return None

    server.answer = answer
    async with open_device(path, environment=server.environment) as device:
        first, second, third = await device.publish_many(STREAM, [b"1", b"2", b"3"])
        with pytest.raises(ProtocolError, match="unprocessable"):
            await second.accepted()
        assert [(await each.accepted()).stream for each in (first, third)] == [STREAM, STREAM]
        assert (await (await device.publish(STREAM, b"4")).accepted()).n == 4
        assert await device.alarms() == []
        subscription = await device.subscribe(STREAM)
        assert [(await anext(subscription)).data for _ in range(4)] == [b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("named", [[700], [None], []])
async def test_a_busy_server_is_asked_again_later(
    autojump_clock: MockClock, server: DeviceServer, path: Path, named: list[int | None]
) -> None:
    """An answer that says later leaves the event as signed; it goes out after the time that was named."""
    server.answer = once(lambda _end, message: [Accepted(message.rid, [ResultError("unavailable", list(named))])])
    async with open_device(path, environment=server.environment) as device:
        await device.wait_until_connected()
        began_s = trio.current_time()
        publication = await device.publish(STREAM, b"1")
        assert ((await publication.accepted()).seq, device.postponed) == (1, "the server cannot do this right now")
        assert trio.current_time() - began_s == pytest.approx(1.7 if named == [700] else 1.0)
    signings = {events_in(message)[0][0] for message in server.messages(Publish) if of_stream(message)}
    assert len(signings) == 1


async def test_a_whole_publish_may_be_asked_for_later(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """An error for a publish as a whole holds all of its streams back for the time it names."""
    server.answer = once(lambda _end, message: [Error(message.rid, "rate_limited", 3000)])
    async with open_device(path, environment=server.environment) as device:
        publications = await device.publish_many(STREAM, [b"1", b"2"])
        assert await accepted(publications) == [(1, 1), (2, 2)]


async def test_a_whole_publish_refused_for_good_stops_the_device(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """No single event is the reason, so none is thrown away: the connection ends, the outbox stays."""
    server.answer = always(lambda message: Error(message.rid, "unsupported", None))
    async with open_device(path, environment=server.environment) as device:
        publication = await device.publish(STREAM, b"1")
        with pytest.raises(ProtocolError, match="unsupported"):
            await publication.accepted()
        with pytest.raises(ProtocolError, match="unsupported"):
            await device.publish(STREAM, b"2")
    async with open_device(path, environment=server.environment) as device:
        assert device.waiting == 1


async def test_a_gap_is_filled_by_sending_again(autojump_clock: MockClock, server: DeviceServer, path: Path) -> None:
    """The server misses an earlier event: it is sent again from there, as signed."""
    server.answer = once(lambda _end, message: [Accepted(message.rid, [ResultError("out_of_order", [0, bytes(32)])])])
    async with open_device(path, environment=server.environment) as device:
        assert (await (await device.publish(STREAM, b"1")).accepted()).seq == 1


async def test_a_server_that_never_takes_what_it_asks_for_is_left(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """Asking for the same event again and again is no answer; the session ends, and another is tried."""
    server.answer = always(lambda message: Accepted(message.rid, [ResultError("out_of_order", [0, bytes(32)])]))
    async with open_device(path, environment=server.environment) as device:
        await device.publish(STREAM, b"1")
        assert "asks for" in await device.wait_for_problem("")


async def test_acknowledged_events_that_are_gone_stop_the_device(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """The server says that it has less of this device than it has acknowledged."""
    async with open_device(path, environment=server.environment) as device:
        await accepted(await device.publish_many(STREAM, [b"1", b"2"]))
        server.stream(STREAM).truncate(1)
        publication = await device.publish(STREAM, b"3")
        with pytest.raises(VerificationError, match="acknowledged") as caught:
            await publication.accepted()
        assert caught.value.stream == STREAM
        assert [alarm.stream for alarm in await device.alarms()] == [STREAM]


async def copy_set_back(server: DeviceServer, path: Path) -> None:
    """Two events are published and the device's file is put back to what it was before."""
    before = path.read_bytes()
    async with open_device(path, environment=server.environment) as device:
        await accepted(await device.publish_many(STREAM, [b"1", b"2"]))
    path.write_bytes(before)


@pytest.mark.parametrize("reads", [False, True])
async def test_a_store_that_was_set_back_goes_on_after_itself_and_says_so(
    autojump_clock: MockClock, server: DeviceServer, path: Path, reads: bool
) -> None:
    """What waits is signed anew after the server's last event of this device; nothing is lost, and the user is told."""
    await copy_set_back(server, path)
    async with open_device(path, environment=server.environment) as device:
        if reads:
            await device.subscribe(STREAM)
        publication = await device.publish(STREAM, b"3")
        assert (await publication.accepted()).n == 3
        assert ["set back" in alarm.reason for alarm in await device.alarms()] == [True]
        if not reads:
            assert STREAM in server.messages(Subscribe)[-1].streams
    assert texts(server) == [1, 2, 3]


async def test_an_unchecked_duplicate_of_what_was_never_sent_means_set_back(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """The server cannot compare any more, but this event was never sent: its number belongs to another one."""
    await copy_set_back(server, path)
    server.answer = once(lambda _end, message: [Accepted(message.rid, [ResultDuplicate(None, None, None)])])
    async with open_device(path, environment=server.environment) as device:
        assert (await (await device.publish(STREAM, b"3")).accepted()).n == 3
        assert len(await device.alarms()) == 1


async def test_an_unchecked_duplicate_of_what_was_sent_is_accepted(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """It was sent before: the server has it and no longer says where."""

    def store_and_break(end: ServerEnd, message: Publish) -> list[Struct]:
        server.publish(end.device_id, events_in(message))
        server.answer = always(lambda again: Accepted(again.rid, [ResultDuplicate(None, None, None)]))
        end.transport.close(None)
        return []

    server.answer = once(store_and_break)
    async with open_device(path, environment=server.environment) as device:
        receipt = await (await device.publish(STREAM, b"1")).accepted()
    assert (receipt.n, receipt.seq, receipt.received_at_ms) == (1, None, None)


async def test_somebody_else_writing_with_this_key_stops_the_device(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """A second time in one session its numbers are taken: that is no old state, that is a copy at work."""
    await copy_set_back(server, path)
    clone: list[bytes] = []

    def answer(end: ServerEnd, message: Any) -> list[Struct] | None:
        if of_stream(message) and decode_header(events_in(message)[0][0]).n == 3:
            clone.append(end.device_id)
            hash_ = crypto.blake3(b"another event")
            return [Accepted(message.rid, [ResultError("id_reused", [3, hash_])])]
        return None

    server.answer = answer
    async with open_device(path, environment=server.environment) as device:
        publication = await device.publish(STREAM, b"3")
        with pytest.raises(ProtocolError) as caught:
            await publication.accepted()
    assert caught.value.code == "cloned"
    assert clone == [device.identity.device_id]


MALFORMED_ANSWERS: dict[str, Callable[[Publish], Struct]] = {
    "too few": lambda message: Accepted(message.rid, []),
    "too many": lambda message: Accepted(
        message.rid, [ResultDuplicate(1, bytes(32), 1), ResultDuplicate(1, bytes(32), 1)]
    ),
    "to nothing": lambda message: Accepted(message.rid + 100, []),
    "without what is stored": lambda message: Accepted(message.rid, [ResultError("id_reused", [])]),
    "without a hash": lambda message: Accepted(message.rid, [ResultError("out_of_order", [0, b"short"])]),
    "with the last number there is": lambda message: Accepted(
        message.rid, [ResultError("out_of_order", [INTEGER_MAX, bytes(32)])]
    ),
}


@pytest.mark.parametrize("answer", MALFORMED_ANSWERS)
async def test_an_answer_that_fits_nothing_ends_the_session(
    autojump_clock: MockClock, server: DeviceServer, path: Path, answer: str
) -> None:
    """A server that answers what was not asked is not believed; another session is tried."""
    server.answer = once(lambda _end, message: [MALFORMED_ANSWERS[answer](message)])
    async with open_device(path, environment=server.environment) as device:
        assert (await (await device.publish(STREAM, b"1")).accepted()).seq == 1
    assert texts(server) == [1]


async def test_a_place_beyond_the_last_one_there_is_ends_the_session(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """It could not even be kept."""
    results: list[Result] = [ResultAccepted(2, INTEGER_MAX, server.now_ms, bytes(32))]
    server.answer = once(lambda _end, message: [Accepted(message.rid, results)])
    async with open_device(path, environment=server.environment) as device:
        assert await accepted(await device.publish_many(STREAM, [b"1", b"2"])) == [(1, 1), (2, 2)]


async def test_a_resumption_with_the_last_number_there_is_ends_the_session(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """No further event could be numbered after it."""
    lies: list[Resumed] = []

    def rewrite(message: Struct) -> list[Struct]:
        if isinstance(message, Resumed) and message.stream == STREAM and not lies:
            lies.append(msgspec.structs.replace(message, author=(INTEGER_MAX, bytes(32))))
            return [lies[0]]
        return [message]

    server.rewrite = rewrite
    async with open_device(path, environment=server.environment) as device:
        await device.subscribe(STREAM)
        assert (await (await device.publish(STREAM, b"1")).accepted()).seq == 1
        assert await device.alarms() == []
    assert lies


async def test_nothing_new_is_sent_to_a_server_that_drains(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """Until the next session; which comes after the time the server names."""
    server.answer = once(
        lambda end, message: [
            Accepted(message.rid, server.publish(end.device_id, events_in(message))),
            Draining(5000),
        ]
    )
    async with open_device(path, environment=server.environment) as device:
        await accepted([await device.publish(STREAM, b"1")])
        await trio.testing.wait_all_tasks_blocked()
        second = await device.publish(STREAM, b"2")
        await trio.testing.wait_all_tasks_blocked()
        assert second.receipt is None
        began_s = trio.current_time()
        server.close_all(1001)
        await second.accepted()
        assert trio.current_time() - began_s >= 5


async def test_publishers_at_the_same_moment_share_a_transaction(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """Whoever publishes while another one writes waits for the next transaction, with everybody else."""
    async with open_device(path, environment=server.environment) as device:
        publications: list[Publication] = []

        async def publish(number: int) -> None:
            publications.append(await device.publish(STREAM, b"%d" % number))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(publish, number)
        await accepted(publications)
    assert texts(server) == list(range(1, 21))
    assert len([message for message in server.messages(Publish) if of_stream(message)]) <= 3


async def test_one_bad_event_among_many_publishers_fails_alone(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """The others that shared its transaction get theirs."""
    async with open_device(path, environment=server.environment) as device:
        failed: list[str] = []

        async def publish(data: bytes) -> None:
            try:
                await device.publish(STREAM, data)
            except ClientError as error:
                failed.append(str(error))

        async with trio.open_nursery() as nursery:
            for data in (b"first", b"1", server.environment.random_bytes(300_000), b"2"):
                nursery.start_soon(publish, data)
        await until_sent(device)
    assert len(failed) == 1
    assert "at most" in failed[0]
    assert texts(server) == [1, 2, 3]


async def test_a_cancelled_publish_that_was_not_begun_keeps_nothing(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """A publisher that gives up while another one writes leaves nothing behind."""
    server.unreachable = True
    async with open_device(path, environment=server.environment) as device:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.publish, STREAM, b"1")
            # Ticks to start, to take the way in, and to begin writing.
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            with trio.CancelScope() as scope:
                scope.cancel()
                await device.publish(STREAM, b"2")
        assert device.waiting == 1


async def test_a_full_outbox_says_so(
    autojump_clock: MockClock, server: DeviceServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be kept is refused, not dropped later."""
    monkeypatch.setattr(publishers, "OUTBOX_EVENTS_MAX", 2)
    server.unreachable = True
    async with open_device(path, environment=server.environment) as device:
        await device.publish_many(STREAM, [b"1", b"2"])
        with pytest.raises(ClientError, match="outbox is full"):
            await device.publish(STREAM, b"3")


async def test_acknowledgements_are_written_down_when_it_is_quiet(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """A second after the last one, without anything else to write."""
    async with open_device(path, environment=server.environment) as device:
        await accepted([await device.publish(STREAM, b"1")])
        await trio.sleep(publishers.SETTLE_S + 0.1)
        crash = snapshot(path)
    crash()
    store = open_store(path)
    assert store.rows("SELECT n FROM outbox") == []
    store.close()


async def test_a_later_signing_refers_to_what_is_stored(
    autojump_clock: MockClock, server: DeviceServer, path: Path
) -> None:
    """``prev`` of each event is the hash of the one before it, also over a refused one."""
    async with open_device(path, environment=server.environment) as device:
        await accepted(await device.publish_many(STREAM, [b"1", b"2", b"3"]))
    rows = server.stream(STREAM).rows
    for before, after in pairwise(rows):
        assert decode_header(after[3]).prev == event_hash(crypto, before[3], before[4])[: outboxes.PREV_BYTES]
