"""A session's credit: what it was sent and has not acknowledged."""

from __future__ import annotations

import pytest

from keepstep.credit import UNACKED_PAGES_MAX
from keepstep.errors import ProtocolError
from tests.support.following import Following, seqs


async def credit_bench() -> tuple[Following, int]:
    """A session with credit for about one page, and the bytes of a page."""
    bench = await Following.start(unacked_bytes_max=1_000)
    await bench.publish("notes", 12)
    return bench, 1_000


async def test_unacknowledged_bytes_are_bounded() -> None:
    """Above it nothing more of any stream is sent until the device acknowledges."""
    bench, _ = await credit_bench()
    await bench.publish("other")
    bench.subscribe({"notes": "start"})
    messages = await bench.pull_all()
    assert seqs(messages) == [1, 2, 3, 4]
    bench.subscribe({"other": "start"})
    (resumed,) = await bench.pull_all()
    assert resumed.answer == "contiguous"
    wakes = bench.wakes
    bench.subscriber.acknowledge({"notes": (4, messages[-1].chain[:16])})
    assert bench.wakes == wakes + 1
    messages = await bench.pull_all()
    assert (seqs(messages), seqs(messages, "other")) == ([5, 6, 7, 8], [])
    bench.subscriber.acknowledge({"notes": (8, messages[-1].chain[:16])})
    assert seqs(await bench.pull_all(), "other") == [1]


async def test_acknowledging_half_a_page_frees_nothing_yet() -> None:
    """Bytes are counted by page."""
    bench, _ = await credit_bench()
    bench.subscribe({"notes": "start"})
    await bench.pull_all()
    chain = await bench.parts.log.chain_at(bench.principal.user_pk, "notes", 3)
    bench.subscriber.acknowledge({"notes": (3, chain[:16])})
    assert not await bench.pull_all()


async def test_acknowledged_positions_only_move_up() -> None:
    """An older one changes nothing; what is to be saved is the newest."""
    bench = await Following.start()
    await bench.publish("notes", 4)
    bench.subscribe({"notes": "start"})
    (*_, page, _) = await bench.pull_all()
    bench.subscriber.acknowledge({"notes": (4, page.chain[:16])})
    bench.subscriber.acknowledge({"notes": (2, bytes(16))})
    acks = bench.subscriber.unsaved_acks
    assert acks == {"notes": (4, page.chain[:16])}
    bench.subscriber.acks_saved({"notes": (2, bytes(16))})
    assert bench.subscriber.unsaved_acks == acks
    bench.subscriber.acks_saved(acks)
    assert not bench.subscriber.unsaved_acks


@pytest.mark.parametrize("stream", ["notes", "never"])
async def test_acknowledging_what_was_not_sent_ends_the_session(stream: str) -> None:
    """A device cannot hold it."""
    bench = await Following.start()
    await bench.publish("notes", 4)
    bench.subscribe({"notes": "start"})
    await bench.pull_all()
    with pytest.raises(ProtocolError, match="malformed"):
        bench.subscriber.acknowledge({stream: (5, bytes(16))})


async def test_acknowledging_another_chain_ends_the_session() -> None:
    """The device was shown something else than this server sent."""
    bench = await Following.start()
    await bench.publish("notes", 4)
    bench.subscribe({"notes": "start"})
    await bench.pull_all()
    with pytest.raises(ProtocolError, match="unknown_position"):
        bench.subscriber.acknowledge({"notes": (4, bytes(16))})


async def test_an_ack_that_crosses_a_new_subscription_is_no_fault() -> None:
    """It was under way when the device asked anew, or left the stream."""
    bench = await Following.start()
    await bench.publish("notes", 4)
    bench.subscribe({"notes": "start"})
    (*_, page, _) = await bench.pull_all()
    bench.subscribe({"notes": "start"})
    bench.subscriber.acknowledge({"notes": (4, page.chain[:16])})
    assert seqs(await bench.pull_all()) == [1, 2, 3, 4]
    bench.subscriber.unsubscribe(["notes"])
    bench.subscriber.acknowledge({"notes": (4, page.chain[:16])})
    assert not bench.subscriber.unsaved_acks


async def test_leaving_a_stream_frees_its_credit() -> None:
    """Its pages will not be acknowledged any more."""
    bench, _ = await credit_bench()
    await bench.publish("other")
    bench.subscribe({"notes": "start", "other": "start"})
    await bench.pull_all()
    bench.subscriber.unsubscribe(["notes"])
    assert seqs(await bench.pull_all(), "other") in ([1], [])
    bench.subscribe({"other": "start"})
    assert seqs(await bench.pull_all(), "other") == [1]


async def test_a_stream_that_waited_for_credit_goes_on_when_another_is_left() -> None:
    """At once: the device may have nothing to say for a long time, and nothing to acknowledge."""
    bench, _ = await credit_bench()
    await bench.publish("other")
    bench.subscribe({"notes": "start", "other": "start"})
    assert seqs(await bench.pull_all(), "other") == []
    wakes = bench.wakes
    bench.subscriber.unsubscribe(["notes"])
    assert bench.wakes == wakes + 1
    assert bench.subscriber.is_marked
    assert seqs(await bench.pull_all(), "other") == [1]


async def test_what_is_remembered_of_unacknowledged_pages_is_bounded() -> None:
    """Beyond it the newest are joined; acknowledging the last one frees everything."""
    count = UNACKED_PAGES_MAX + 3
    bench = await Following.start(page_events_max=1)
    await bench.append(*bench.phone.events("notes", 200))
    await bench.append(*bench.phone.events("notes", count - 200))
    bench.subscribe({"notes": "start"})
    messages = await bench.pull_all()
    assert seqs(messages) == list(range(1, count + 1))
    (subscription,) = bench.subscriber._subscriptions.values()
    credit = bench.subscriber._credit
    assert len(subscription.unacked) == UNACKED_PAGES_MAX
    last = (await bench.head("notes")).chain
    bench.subscriber.acknowledge({"notes": (count, last[:16])})
    assert credit.left_bytes == bench.subscriber._limits.unacked_bytes_max
    assert subscription.unacked == []
