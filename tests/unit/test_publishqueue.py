"""The queue before a pipeline: bounded, in order, one taker."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from keepstep.publishqueue import TURN_EVENTS, PublishQueue, Weight

USER, ANOTHER = 7, 8


def weight(size_bytes: int, events: int = 1, *, alone: bool = False) -> Weight:
    """Of one event, unless it is said."""
    return size_bytes, events, alone


def next_of(queue: PublishQueue[int]) -> int | None:
    """The next one, by itself; ``None`` where none waits."""
    return next(iter(queue.take_nowait(events_max=1, bytes_max=0)), None)


async def take(queue: PublishQueue[int]) -> int:
    """The next one, by itself; waits for it."""
    (taken,) = await queue.take(events_max=1, bytes_max=0)
    return taken


async def test_what_is_added_is_taken_in_order() -> None:
    """With and without waiting."""
    queue: PublishQueue[int] = PublishQueue(3, 100)
    assert [queue.add_nowait(USER, number, weight(1)) for number in range(4)] == [True, True, True, False]
    assert (len(queue), await take(queue), next_of(queue)) == (3, 0, 1)
    await queue.add(USER, 4, weight(1))
    assert [next_of(queue) for _ in range(3)] == [2, 4, None]


async def test_the_taker_is_woken_by_what_comes() -> None:
    """Once for several that come together."""
    queue: PublishQueue[int] = PublishQueue(3, 100)
    taken: list[int] = []

    async def take_two() -> None:
        taken.append(await take(queue))
        taken.append(await take(queue))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_two)
        await trio.testing.wait_all_tasks_blocked()
        assert queue.add_nowait(USER, 1, weight(1))
        assert queue.add_nowait(USER, 2, weight(1))
    assert taken == [1, 2]


async def test_who_waits_for_room_comes_before_who_does_not_wait() -> None:
    """And one that is cancelled has added nothing."""
    queue: PublishQueue[int] = PublishQueue(1, 100)
    assert queue.add_nowait(USER, 1, weight(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.add, USER, 2, weight(1))
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as cancelled:
                cancelled.start_soon(queue.add, USER, 3, weight(1))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert next_of(queue) == 1
        assert not queue.add_nowait(USER, 4, weight(1))
    assert (next_of(queue), next_of(queue)) == (2, None)
    assert queue.add_nowait(USER, 4, weight(1))


async def test_who_waits_for_room_comes_before_who_adds_later() -> None:
    """Also where the room is there before the one that waits has run."""
    queue: PublishQueue[int] = PublishQueue(1, 100)
    assert queue.add_nowait(USER, 1, weight(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.add, USER, 2, weight(1))
        await trio.testing.wait_all_tasks_blocked()
        assert next_of(queue) == 1
        nursery.start_soon(queue.add, USER, 3, weight(1))
        await trio.testing.wait_all_tasks_blocked()
        assert [next_of(queue) for _ in range(3)] == [2, 3, None]


async def test_one_that_is_cancelled_makes_way_for_smaller_ones() -> None:
    """For which there was room behind it."""
    queue: PublishQueue[int] = PublishQueue(9, 10)
    assert queue.add_nowait(USER, 1, weight(6))
    scope = trio.CancelScope()

    async def add_in_scope() -> None:
        with scope:
            await queue.add(USER, 2, weight(9))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(add_in_scope)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(queue.add, USER, 3, weight(4))
        await trio.testing.wait_all_tasks_blocked()
        assert len(queue) == 1
        scope.cancel()
        assert [next_of(queue) for _ in range(3)] == [1, 3, None]


async def test_a_taker_that_is_cancelled_takes_nothing() -> None:
    """What comes after it is for the next one."""
    queue: PublishQueue[int] = PublishQueue(1, 100)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, queue)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert queue.add_nowait(USER, 1, weight(1))
    assert await take(queue) == 1


async def test_a_closed_queue_is_emptied_and_ends() -> None:
    """Nothing is added any more, also not by who waited for room."""
    queue: PublishQueue[int] = PublishQueue(1, 100)
    assert queue.add_nowait(USER, 1, weight(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raises_closed, queue)
        await trio.testing.wait_all_tasks_blocked()
        queue.close()
    assert await take(queue) == 1
    with pytest.raises(trio.ClosedResourceError):
        queue.add_nowait(USER, 2, weight(1))
    with pytest.raises(trio.EndOfChannel):
        await take(queue)


async def test_closing_ends_a_taker_that_waits() -> None:
    """There is nothing to wait for."""
    queue: PublishQueue[int] = PublishQueue(1, 100)

    async def find_it_closed() -> None:
        with pytest.raises(trio.EndOfChannel):
            await take(queue)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(find_it_closed)
        await trio.testing.wait_all_tasks_blocked()
        queue.close()


async def raises_closed(queue: PublishQueue[int]) -> None:
    """Add to a queue that is closed meanwhile."""
    with pytest.raises(trio.ClosedResourceError):
        await queue.add(USER, 2, weight(1))


async def test_the_bytes_of_what_waits_are_bounded() -> None:
    """One item above the bound goes alone; who waits goes in order, several at once where a large one left."""
    queue: PublishQueue[int] = PublishQueue(9, 10)
    assert [
        queue.add_nowait(USER, 1, weight(11)),
        queue.add_nowait(USER, 2, weight(0)),
        queue.add_nowait(USER, 2, weight(1)),
    ] == [
        True,
        False,
        False,
    ]
    async with trio.open_nursery() as nursery:
        for number in (2, 3, 4):
            nursery.start_soon(queue.add, USER, number, weight(5))
            await trio.testing.wait_all_tasks_blocked()
        assert (len(queue), await take(queue)) == (1, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert len(queue) == 2
        assert [next_of(queue) for _ in range(2)] == [2, 3]
    assert next_of(queue) == 4


async def test_a_batch_is_what_fits() -> None:
    """Events and bytes are bounded, a single larger one goes, and what is to be alone is."""
    queue: PublishQueue[int] = PublishQueue(9, 10_000)
    weights = [weight(1, 3), weight(1, 2), weight(1), weight(9), weight(1, alone=True), weight(5), weight(1), weight(1)]
    for number, each in enumerate(weights):
        assert queue.add_nowait(USER, number, each)
    batches = []
    while batch := queue.take_nowait(events_max=5, bytes_max=6):
        batches.append(batch)
    assert batches == [[0, 1], [2], [3], [4], [5, 6], [7]]


def filled(*names: str, events: int) -> PublishQueue[str]:
    """A queue in which these wait, each of so many events and a byte, of the user that its letter stands for."""
    queue: PublishQueue[str] = PublishQueue(99, 99)
    for name in names:
        assert queue.add_nowait(ord(name[0]), name, weight(1, events))
    return queue


def test_users_take_turns() -> None:
    """Of one who has much waiting a turn goes, then one of each other, also across batches; each one's own in order."""
    queue = filled("a1", "a2", "a3", "a4", "b1", "c1", "b2", events=TURN_EVENTS)
    assert queue.take_nowait(events_max=2 * TURN_EVENTS, bytes_max=99) == ["a1", "b1"]
    assert queue.add_nowait(ord("c"), "c2", weight(1, TURN_EVENTS))
    assert queue.take_nowait(events_max=4 * TURN_EVENTS, bytes_max=99) == ["c1", "a2", "b2", "c2"]
    assert queue.take_nowait(events_max=9 * TURN_EVENTS, bytes_max=99) == ["a3", "a4"]
    assert len(queue) == 0


def test_a_turn_is_of_many_small_ones() -> None:
    """They are stored and told together."""
    queue = filled("a1", "a2", "a3", "b1", "b2", "a4", events=TURN_EVENTS // 2)
    assert queue.take_nowait(events_max=9 * TURN_EVENTS, bytes_max=99) == ["a1", "a2", "b1", "b2", "a3", "a4"]


def test_a_batch_that_is_full_ends_a_turn() -> None:
    """One whose submissions fill batches does not have one batch after the other."""
    queue = filled("a1", "a2", "a3", "b1", "c1", events=1)
    assert [queue.take_nowait(events_max=9, bytes_max=1) for _ in range(5)] == [["a1"], ["b1"], ["c1"], ["a2"], ["a3"]]


async def test_users_that_wait_for_room_take_turns() -> None:
    """One who has many sessions that wait does not keep another one out until all of them are in."""
    queue: PublishQueue[str] = PublishQueue(1, 99)
    assert queue.add_nowait(USER, "a1", weight(1))
    async with trio.open_nursery() as nursery:
        for user, name in ((USER, "a2"), (USER, "a3"), (USER, "a4"), (ANOTHER, "b1")):
            nursery.start_soon(queue.add, user, name, weight(1))
            await trio.testing.wait_all_tasks_blocked()
        taken = [queue.take_nowait(events_max=1, bytes_max=9) for _ in range(5)]
    assert taken == [["a1"], ["a2"], ["b1"], ["a3"], ["a4"]]
