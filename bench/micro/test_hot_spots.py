"""What Python does with every message, chunk or batch; what Rust does inside is in ``rust/core/benches``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
import trio

from keepstep.protocol.messages import CaughtUp, Publish, decode_from_device, encode
from keepstep.publish import AwaitedAnswer
from tests.support.events import NOW_MS, DeviceFixture, SignedEvent, UserFixture, parse, submission, wire_events
from tests.support.logs import PAGE_BYTES_MAX, MemoryPlace, append, create_account
from tests.support.parts import Parts

if TYPE_CHECKING:
    from keepstep._keepstep import Submission
    from keepstep.eventlog.log import StoredLog
    from keepstep.model import Principal
    from keepstep.protocol.messages import Result

ADA: Final = UserFixture("ada")
EVENTS: Final = 100
"""Of a message, a batch, a page."""
ROUNDS: Final = 30
SUBMISSIONS: Final = 100
"""That go through the publisher at once, of one event each."""


@pytest.fixture
def phone() -> DeviceFixture:
    """A device."""
    return DeviceFixture(ADA, "phone")


@pytest.fixture
def events(phone: DeviceFixture) -> list[SignedEvent]:
    """Events that follow one another."""
    return phone.events("notes", EVENTS)


def test_decode_a_publish(benchmark: Any, events: list[SignedEvent]) -> None:
    """A message of 100 events, which stay as they are in it."""
    message = encode(Publish(1, msgspec.Raw(wire_events(*events))))
    assert isinstance(benchmark(decode_from_device, message), Publish)


def test_encode_a_head(benchmark: Any) -> None:
    """The message that ends catching up."""
    message = CaughtUp("notes", (bytes(128), bytes(64)), NOW_MS)
    assert benchmark(encode, message)


def test_parse_a_publish(benchmark: Any, events: list[SignedEvent]) -> None:
    """One call for 100 events."""
    assert len(benchmark(parse, *events)) == EVENTS


def test_read_a_page_from_the_tail(benchmark: Any, phone: DeviceFixture) -> None:
    """100 events of ten commits."""

    async def fill() -> tuple[StoredLog, Principal]:
        place = MemoryPlace()
        log = place.node()
        principal = await create_account(place, log, phone)
        for _ in range(EVENTS // 10):
            await append(log, principal, *phone.events("notes", 10))
        return log, principal

    log, principal = trio.run(fill)
    limits = {"events_max": EVENTS, "bytes_max": PAGE_BYTES_MAX, "now_ms": NOW_MS}
    page = benchmark(lambda: log.read_in_memory(principal.user_pk, "notes", after=0, **limits))
    assert page.count == EVENTS


def test_append_a_batch(benchmark: Any) -> None:
    """100 events of one device to a log in memory, verified, with the hop to the event loop and back."""

    def prepare() -> tuple[tuple[StoredLog, Submission], dict[str, Any]]:
        device, place = DeviceFixture(ADA, "phone"), MemoryPlace()
        log = place.node()
        principal = trio.run(create_account, place, log, device)
        return (log, submission(principal, *device.events("notes", EVENTS))), {}

    def run(log: StoredLog, batch: Submission) -> int:
        async def once() -> int:
            return len((await log.append([batch], now_ms=NOW_MS)).results)

        return trio.run(once)

    assert benchmark.pedantic(run, setup=prepare, rounds=ROUNDS) == 1


def test_publish_many_submissions(benchmark: Any) -> None:
    """100 submissions of one event through the publisher's pipelines, until all are answered."""

    def prepare() -> tuple[tuple[DeviceFixture, list[SignedEvent]], dict[str, Any]]:
        device = DeviceFixture(ADA, "phone")
        return (device, device.events("notes", SUBMISSIONS)), {}

    def run(device: DeviceFixture, events: list[SignedEvent]) -> int:
        answers: list[list[Result]] = []

        async def once() -> None:
            parts = Parts()
            async with parts.running():
                principal = await create_account(parts, parts.log, device)  # type: ignore[arg-type]
                awaited = [AwaitedAnswer() for _ in events]
                for event, answer in zip(events, awaited, strict=True):
                    await parts.publisher.submit(principal, submission(principal, event), answer)
                answers.extend([await answer.wait() for answer in awaited])

        trio.run(once)
        return len(answers)

    assert benchmark.pedantic(run, setup=prepare, rounds=ROUNDS) == SUBMISSIONS
