"""Pipelines: batches, order, answers, and what account and key events need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
import pytest
import structlog
import trio
import trio.testing

from keepstep._keepstep import Submission
from keepstep.errors import Unavailable
from keepstep.interfaces import Appended
from keepstep.model import AccountChange, Capability, Kind, Principal
from keepstep.protocol.account_payloads import encode_enrol
from keepstep.protocol.messages import ResultAccepted, ResultDuplicate, ResultError
from keepstep.protocol.results import decode_results
from keepstep.publish import TOLD_EVERY_S, Publisher
from tests.support.events import NOW_MS, DeviceFixture, SignedEvent, submission
from tests.support.parts import PUBLISH_LIMITS, Parts


class GatedLog:
    """A log whose appends wait until a test lets them through, or fail as it says."""

    def __init__(self, parts: Parts) -> None:
        self._append = parts.log.append
        self.batches: list[list[int]] = []
        self.open = trio.Event()
        self.error: Exception | None = None
        parts.log.append = self.append  # type: ignore[method-assign]

    async def append(
        self, batch: Sequence[Submission], *, now_ms: int, account_change: AccountChange | None = None
    ) -> Appended:
        """Waits, then appends; remembers how many events each submission has."""
        self.batches.append([len(one.events) for one in batch])
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return await self._append(batch, now_ms=now_ms, account_change=account_change)


class Answered(NamedTuple):
    """One answer: what became of the events, and whether it held a bad signature."""

    results: list[Any]
    suspect: bool


class Author:
    """A device that hands submissions to the publisher and collects the answers in the order they come."""

    def __init__(self, parts: Parts, device: DeviceFixture, principal: Principal) -> None:
        self.parts = parts
        self.device = device
        self.principal = principal
        self.answers: list[Answered] = []

    async def submit(self, *events: SignedEvent, suspect: bool = False) -> None:
        """Hand in one submission."""
        handed_in = submission(self.principal, *events, suspect=suspect)
        await self.parts.publisher.submit(self.principal, handed_in, self)

    def answered(self, rid: int, results: bytes, *, suspect: bool) -> None:
        """As ``Submitter.answered``."""
        del rid
        self.answers.append(Answered(decode_results(results), suspect))

    async def publish(self, *events: SignedEvent) -> list[Any]:
        """Hand in one submission and wait for its answer."""
        count = len(self.answers)
        await self.submit(*events)
        await trio.testing.wait_all_tasks_blocked()
        assert len(self.answers) == count + 1
        return self.answers[-1].results


async def author(parts: Parts, name: str = "alice") -> Author:
    """A user's only device, which knows the head of ``$devices``."""
    (device,) = await parts.register(name)
    principal = await parts.principal(device)
    head = (await parts.log.stream(principal.user_pk, "$devices")).head
    device.seen["$devices"] = head.seq, head.chain
    return Author(parts, device, principal)


def codes(results: Sequence[Any]) -> list[str]:
    """What became of each: accepted, duplicate or an error code."""
    words: dict[Any, str] = {ResultAccepted: "accepted", ResultDuplicate: "duplicate"}
    return [words.get(type(one)) or one.code for one in results]


async def test_events_are_answered_with_their_places() -> None:
    """As one run."""
    parts = Parts()
    alice = await author(parts)
    async with parts.running():
        (result,) = await alice.publish(*alice.device.events("notes", 3))
    assert (result.count, result.first_seq, result.received_at_ms) == (3, 1, NOW_MS)


@pytest.mark.parametrize("kind", [Kind.APPLICATION, Kind.ACCOUNT])
async def test_what_was_handed_in_for_a_log_that_was_is_not_stored_in_another(kind: Kind) -> None:
    """Its row numbers may be somebody else's there; who hands in anew is looked up anew."""
    parts = Parts()
    gate = GatedLog(parts)
    gate.open.set()
    alice = await author(parts)
    event = alice.device.event("notes") if kind == Kind.APPLICATION else alice.device.enrol(watch_of(alice))[0]
    await alice.submit(event)
    parts.database.generation += 1
    await parts.log.streams(alice.principal.user_pk)  # asked once, the log knows that it is another one
    async with parts.running():
        await trio.testing.wait_all_tasks_blocked()
        assert [codes(each.results) for each in alice.answers] == [["unavailable"]]
        assert gate.batches == []
        assert codes(await alice.publish(event)) == ["accepted"]


async def test_what_waits_is_appended_in_one_transaction() -> None:
    """While the first batch is being committed; answers come in the order of submission."""
    parts = Parts()
    gate = GatedLog(parts)
    alice = await author(parts)
    async with parts.running():
        await alice.submit(alice.device.event("notes"))
        await trio.testing.wait_all_tasks_blocked()
        for count in (1, 2, 3):
            await alice.submit(*alice.device.events("notes", count))
        gate.open.set()
        await trio.testing.wait_all_tasks_blocked()
    assert gate.batches == [[1], [1, 2, 3]]
    assert [answered.results[0].first_seq for answered in alice.answers] == [1, 2, 3, 5]


async def test_a_batch_holds_so_many_events() -> None:
    """What does not fit begins the next one; nothing is split or left behind."""
    parts = Parts()
    gate = GatedLog(parts)
    alice = await author(parts)
    async with parts.running():
        await alice.submit(alice.device.event("notes"))
        await trio.testing.wait_all_tasks_blocked()
        for count in (5, 3, 1):
            await alice.submit(*alice.device.events("notes", count))
        gate.open.set()
        await trio.testing.wait_all_tasks_blocked()
    assert gate.batches == [[1], [5, 3], [1]]
    assert len(alice.answers) == 4


async def test_a_batch_holds_so_many_bytes() -> None:
    """Of all that was sent; one larger submission still goes alone."""
    parts = Parts(publish_limits=replace(PUBLISH_LIMITS, batch_bytes_max=2_700))
    gate = GatedLog(parts)
    alice = await author(parts)
    async with parts.running():
        await alice.submit(alice.device.event("notes"))
        await trio.testing.wait_all_tasks_blocked()
        for size in (400, 400, 900, 3_000):
            await alice.submit(alice.device.event("notes", bytes(size)))
        gate.open.set()
        await trio.testing.wait_all_tasks_blocked()
    assert gate.batches == [[1], [1, 1], [1], [1]]
    assert [codes(answered.results) for answered in alice.answers] == [["accepted"]] * 5


async def test_users_share_pipelines_and_keep_their_own_order() -> None:
    """One user's wait does not hold up a user of the other pipeline."""
    parts = Parts()
    alice, bob = await author(parts, "alice"), await author(parts, "bob")
    assert alice.principal.user_pk % 2 != bob.principal.user_pk % 2
    gate = GatedLog(parts)
    async with parts.running():
        await alice.submit(alice.device.event("notes"))
        await bob.submit(bob.device.event("notes"))
        await trio.testing.wait_all_tasks_blocked()
        assert gate.batches == [[1], [1]]
        gate.open.set()


async def test_a_full_queue_makes_submitters_wait() -> None:
    """Backpressure: nobody is refused, and a submitter that is cancelled has handed in nothing."""
    parts = Parts()
    gate = GatedLog(parts)
    alice = await author(parts)
    async with parts.running():
        await alice.submit(alice.device.event("notes"))
        await trio.testing.wait_all_tasks_blocked()
        for event in alice.device.events("notes", PUBLISH_LIMITS.queue_max):
            await alice.submit(event)
        assert parts.publisher.waiting == PUBLISH_LIMITS.queue_max
        late = alice.device.event("notes")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(alice.submit, late)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        gate.open.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(alice.answers) == 1 + PUBLISH_LIMITS.queue_max
        assert codes(await alice.publish(late)) == ["accepted"]


async def test_every_event_is_answered_while_the_database_is_away() -> None:
    """Unavailable, with the time to wait; published again when it is back, the same bytes are accepted."""
    parts = Parts()
    alice = await author(parts)
    events = alice.device.events("notes", 3)
    async with parts.running():
        parts.database.away = True
        results = await alice.publish(*events)
        assert codes(results) == ["unavailable"] * 3
        assert all(isinstance(one.detail[0], int) for one in results)
        parts.database.away = False
        assert [one.count for one in await alice.publish(*events)] == [3]


async def test_why_nothing_can_be_stored_is_logged_once_a_minute(autojump_clock: trio.testing.MockClock) -> None:
    """Devices are answered ``unavailable`` and come again and again; the reason is for whoever runs the server."""
    parts = Parts()
    parts.publisher = Publisher(
        parts.log,
        parts.identity,
        parts.clock,
        limits=parts.publish_limits,
        metrics=parts.metrics,
        logger=structlog.get_logger(),
    )
    alice = await author(parts)
    parts.database.away = True
    with structlog.testing.capture_logs() as lines:
        async with parts.running():
            for _ in range(3):
                assert codes(await alice.publish(alice.device.event("notes"))) == ["unavailable"]
            await trio.sleep(TOLD_EVERY_S)
            assert codes(await alice.publish(alice.device.event("notes"))) == ["unavailable"]
    told = [line for line in lines if line["event"] == "publishing_refused"]
    assert [(line["log_level"], line["code"]) for line in told] == [("warning", "unavailable")] * 2


async def test_a_bad_signature_is_refused_and_makes_its_sender_suspect() -> None:
    """The other submissions of the batch are accepted, and their senders are not suspect."""
    parts = Parts()
    gate = GatedLog(parts)
    alice, bob = await author(parts, "alice"), await author(parts, "carol")
    forged = replace(alice.device.event("notes"), sig=bytes(64))
    gate.open.set()
    async with parts.running():
        await alice.submit(forged)
        await bob.submit(bob.device.event("notes"))
        await trio.testing.wait_all_tasks_blocked()
    assert (codes(alice.answers[0].results), alice.answers[0].suspect) == (["bad_signature"], True)
    assert (codes(bob.answers[0].results), bob.answers[0].suspect) == (["accepted"], False)


async def test_a_fault_in_the_log_ends_the_pipelines() -> None:
    """What is neither an answer nor Unavailable is a fault of ours: the server must not go on guessing."""
    parts = Parts()
    gate = GatedLog(parts)
    gate.error = AssertionError("a bug")
    alice = await author(parts)
    gate.open.set()
    with pytest.RaisesGroup(pytest.RaisesExc(AssertionError, match="a bug"), flatten_subgroups=True):
        async with parts.running():
            await alice.submit(alice.device.event("notes"))
            await trio.sleep_forever()
    assert not alice.answers


async def test_closing_answers_what_waits_and_ends() -> None:
    """Draining: the queue is emptied first."""
    parts = Parts()
    alice = await author(parts)
    async with trio.open_nursery() as nursery:
        await nursery.start(parts.publisher.run)
        for event in alice.device.events("notes", 3):
            await alice.submit(event)
        parts.publisher.close()
    assert [codes(answered.results) for answered in alice.answers] == [["accepted"]] * 3


async def test_answers_and_batches_are_measured() -> None:
    """Batch sizes, seconds, and what became of the events."""
    parts = Parts()
    alice = await author(parts)
    async with parts.running():
        await alice.publish(*alice.device.events("notes", 3))
    value = parts.metrics.registry.get_sample_value
    assert value("keepstep_batch_events_sum") == 3
    assert value("keepstep_append_seconds_count") == 1
    assert value("keepstep_ack_seconds_count") == 1
    assert value("keepstep_events_total", {"result": "accepted"}) == 3


# -- account and key events -----------------------------------------------------------------------------------------


def watch_of(alice: Author) -> DeviceFixture:
    """A device that is not enrolled yet and may not manage."""
    return DeviceFixture(alice.device.user, "watch", capabilities=Capability.PUBLISH | Capability.SUBSCRIBE)


def keys_payload(devices: int = 1) -> bytes:
    """The payload of a ``$keys`` event."""
    wraps = {bytes([number]) * 16: bytes(112) for number in range(devices)}
    return msgspec.msgpack.encode([bytes(16), 1, wraps])


async def test_an_enrolment_makes_the_device_live() -> None:
    """In the transaction of its event: afterwards it can be authenticated."""
    parts = Parts()
    alice = await author(parts)
    watch = watch_of(alice)
    async with parts.running():
        assert codes(await alice.publish(alice.device.enrol(watch)[0])) == ["accepted"]
        assert (await parts.principal(watch)).device_key == watch.device_key


async def test_an_enrolment_published_again_is_a_duplicate() -> None:
    """Also after others."""
    parts = Parts()
    alice = await author(parts)
    event, _ = alice.device.enrol(watch_of(alice))
    async with parts.running():
        (first,) = await alice.publish(event)
        (again,) = await alice.publish(event)
    assert (again.seq, again.chain) == (first.first_seq, first.chain)


async def test_account_events_of_one_submission_are_decided_one_after_the_other() -> None:
    """The second enrolment reuses the first one's id: it is refused on account of it."""
    parts = Parts()
    alice = await author(parts)
    first, _ = alice.device.enrol(watch_of(alice))
    second, _ = alice.device.enrol(watch_of(alice))
    async with parts.running():
        assert codes(await alice.publish(first, second)) == ["accepted", "unprocessable"]


async def test_account_events_among_others_keep_the_order() -> None:
    """Plain events before and after them are appended as they come, in as few transactions as possible."""
    parts = Parts()
    gate = GatedLog(parts)
    gate.open.set()
    alice = await author(parts)
    before = alice.device.events("notes", 2)
    enrolment, _ = alice.device.enrol(watch_of(alice))
    keys = alice.device.event("$keys", keys_payload(), kind=Kind.KEYS)
    after = alice.device.events("notes", 2)
    async with parts.running():
        results = await alice.publish(*before, enrolment, keys, *after)
    assert codes(results) == ["accepted"] * 6
    assert gate.batches == [[1, 1], [1], [1], [1, 1]]
    assert [one.first_seq for one in results] == [1, 2, 2, 1, 3, 4]


async def test_account_events_wait_for_what_was_submitted_before() -> None:
    """They are never taken into the batch of others."""
    parts = Parts()
    gate = GatedLog(parts)
    alice = await author(parts)
    async with parts.running():
        await alice.submit(alice.device.event("notes"))
        await trio.testing.wait_all_tasks_blocked()
        await alice.submit(alice.device.event("notes"))
        await alice.submit(alice.device.enrol(watch_of(alice))[0])
        await alice.submit(alice.device.event("notes"))
        gate.open.set()
        await trio.testing.wait_all_tasks_blocked()
    assert gate.batches == [[1], [1], [1], [1]]
    assert [codes(answered.results) for answered in alice.answers] == [["accepted"]] * 4


async def test_an_account_event_out_of_order_says_where_the_author_stands() -> None:
    """As for every event."""
    parts = Parts()
    alice = await author(parts)
    last_n, last_hash = alice.device.authored["$devices"]
    payload = encode_enrol(watch_of(alice).entry)
    event = alice.device.sign("$devices", payload, n=last_n + 2, prev=last_hash[:16], kind=Kind.ACCOUNT)
    async with parts.running():
        assert await alice.publish(event) == [ResultError("out_of_order", [last_n, last_hash])]


async def test_a_forged_account_event_makes_its_sender_suspect() -> None:
    """Whoever finds the bad signature."""
    parts = Parts()
    alice = await author(parts)
    forged = replace(alice.device.enrol(watch_of(alice))[0], sig=bytes(64))
    async with parts.running():
        assert codes(await alice.publish(forged)) == ["bad_signature"]
    assert alice.answers[0].suspect


@pytest.mark.parametrize("payload", [b"", b"\xc0", keys_payload(0), keys_payload()[:-1]])
async def test_a_key_event_of_another_form_is_malformed(payload: bytes) -> None:
    """The server cannot read what it wraps, but it checks the shape."""
    parts = Parts()
    alice = await author(parts)
    async with parts.running():
        assert codes(await alice.publish(alice.device.event("$keys", payload, kind=Kind.KEYS))) == ["malformed"]


async def test_the_account_log_is_read_anew_after_a_refusal() -> None:
    """Another node may have moved it, which a refusal can be a sign of."""
    parts = Parts()
    alice = await author(parts)
    watch = watch_of(alice)
    event, _ = alice.device.enrol(watch)
    other_node = Parts(database=parts.database)
    async with parts.running():
        assert codes(await alice.publish(alice.device.event("notes"))) == ["accepted"]
        handed_in = submission(alice.principal, event)
        change = await parts.identity.check_account_event(alice.principal, handed_in.events.event(0), now_ms=NOW_MS)
        await other_node.log.append([handed_in], now_ms=NOW_MS, account_change=change)
        later, _ = alice.device.enrol(DeviceFixture(alice.device.user, "lamp", capabilities=Capability.PUBLISH))
        first, *_ = codes(await alice.publish(later))
        assert first == "unavailable"
        assert codes(await alice.publish(later)) == ["accepted"]


async def test_an_account_event_waits_for_the_database() -> None:
    """Unavailable, as any other."""
    parts = Parts()
    alice = await author(parts)
    event, _ = alice.device.enrol(watch_of(alice))
    async with parts.running():
        parts.database.away = True
        (result,) = await alice.publish(event)
        assert isinstance(result, ResultError)
        assert result == ResultError("unavailable", [Unavailable().retry_after_ms])
        parts.database.away = False
        assert codes(await alice.publish(event)) == ["accepted"]
