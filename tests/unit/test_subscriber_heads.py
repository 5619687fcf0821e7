"""The signed heads that a session is sent of streams that move."""

from __future__ import annotations

from keepstep.protocol.messages import Head, decode_from_server
from keepstep.subscriber import HEADS_AHEAD_MAX
from tests.support.events import NOW_MS
from tests.support.following import Following, seqs, verified


async def moved() -> Following:
    """A session that has both events of a stream, the second of them since the last signed head."""
    bench, pk = await Following.caught_up()
    await bench.publish("notes")
    bench.committed(pk, 1, 2)
    await bench.pull_all()
    return bench


async def test_a_moving_stream_gets_a_signed_head_now_and_then() -> None:
    """When the timer says and the position is the head; a stream that stood still gets none."""
    bench, pk = await Following.caught_up()
    await bench.head_tick()
    assert not await bench.pull_all()
    await bench.publish("notes")
    bench.committed(pk, 1, 2)
    await bench.pull_all()
    await bench.head_tick()
    (message,) = await bench.pull_all()
    assert isinstance(message, Head)
    assert verified(message.head).seq == 2
    await bench.head_tick()
    assert not await bench.pull_all()


async def test_a_head_that_is_due_does_not_have_the_database_asked_for_the_page() -> None:
    """Where the session has what the database says is the head; the writer may take it without asking."""
    bench = await moved()
    wakes = bench.wakes
    await bench.head_tick()
    assert bench.wakes == wakes + 1
    (head,) = [decode_from_server(each) for each in bench.subscriber.pull_nowait() or ()]
    assert isinstance(head, Head)
    assert verified(head.head).seq == 2


async def test_a_head_goes_at_once_where_the_session_is_beyond_what_was_read() -> None:
    """The database answered a moment ago, and this node has committed since: nobody need ask again."""
    bench = await moved()
    streams = await bench.parts.log.streams(bench.principal.user_pk)
    await bench.publish("notes")
    bench.committed(await bench.pk("notes"), 1, 3)
    await bench.pull_all()
    bench.subscriber.head_tick(streams)
    (head,) = [decode_from_server(each) for each in bench.subscriber.pull_nowait() or ()]
    assert isinstance(head, Head)
    assert verified(head.head).seq == 3


async def test_a_head_waits_for_what_is_being_read() -> None:
    """Which may be beyond it: a head never comes after events that it does not have."""
    bench = await moved()
    bench.subscribe({"other": "start"})
    assert bench.subscriber.pull_nowait() is None
    await bench.head_tick()
    assert not bench.subscriber.ahead
    assert any(isinstance(each, Head) for each in await bench.pull_all())


async def test_a_head_that_is_due_waits_until_the_position_is_the_head() -> None:
    """It comes with the page that reaches it."""
    bench = await moved()
    await bench.publish("notes")
    await bench.head_tick()
    events, head = await bench.pull()
    assert seqs([events]) == [3]
    assert verified(head.head).seq == 3


async def test_a_head_is_of_the_epoch_that_its_position_is_of() -> None:
    """A thread may learn of a restore within a session's turn: a head under the new epoch would prove a fork."""
    bench = await moved()
    bench.parts.database.epoch = NOW_MS
    await bench.head_tick()
    (head,) = [decode_from_server(each) for each in bench.subscriber.pull_nowait() or ()]
    assert isinstance(head, Head)
    assert (verified(head.head).epoch, verified(head.head).seq) == (0, 2)


async def test_so_many_heads_are_signed_at_once_and_the_others_in_turns() -> None:
    """A device that follows thousands of streams must not hold up the others."""
    bench = await Following.start(subscriptions_max=100)
    names = [f"notes.{number}" for number in range(HEADS_AHEAD_MAX + 2)]
    for name in names:
        await bench.publish(name)
    bench.subscribe(dict.fromkeys(names, "start"))
    await bench.pull_all()
    for name in names:
        await bench.publish(name)
        bench.committed(await bench.pk(name), 2, 2, name=name)
    await bench.pull_all()
    await bench.head_tick()
    assert len(bench.subscriber.ahead) == HEADS_AHEAD_MAX
    heads = [each.stream for each in await bench.pull_all() if isinstance(each, Head)]
    assert sorted(heads) == sorted(names)
