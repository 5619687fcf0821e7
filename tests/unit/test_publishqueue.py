"""The queue before a pipeline: bounded, in order, one taker."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from keepstep.publishqueue import PublishQueue


async def test_what_is_added_is_taken_in_order() -> None:
    """With and without waiting."""
    queue: PublishQueue[int] = PublishQueue(3, 100)
    assert [queue.add_nowait(number, 1) for number in range(4)] == [True, True, True, False]
    assert (len(queue), await queue.take(), queue.take_nowait()) == (3, 0, 1)
    await queue.add(4, 1)
    assert [queue.take_nowait() for _ in range(3)] == [2, 4, None]


async def test_the_taker_is_woken_by_what_comes() -> None:
    """Once for several that come together."""
    queue: PublishQueue[int] = PublishQueue(3, 100)
    taken: list[int] = []

    async def take_two() -> None:
        taken.append(await queue.take())
        taken.append(await queue.take())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_two)
        await trio.testing.wait_all_tasks_blocked()
        assert queue.add_nowait(1, 1)
        assert queue.add_nowait(2, 1)
    assert taken == [1, 2]


async def test_who_waits_for_room_comes_before_who_does_not_wait() -> None:
    """And one that is cancelled has added nothing."""
    queue: PublishQueue[int] = PublishQueue(1, 100)
    assert queue.add_nowait(1, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.add, 2, 1)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as cancelled:
                cancelled.start_soon(queue.add, 3, 1)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert queue.take_nowait() == 1
        assert not queue.add_nowait(4, 1)
    assert (queue.take_nowait(), queue.take_nowait()) == (2, None)
    assert queue.add_nowait(4, 1)


async def test_who_waits_for_room_comes_before_who_adds_later() -> None:
    """Also where the room is there before the one that waits has run."""
    queue: PublishQueue[int] = PublishQueue(1, 100)
    assert queue.add_nowait(1, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.add, 2, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert queue.take_nowait() == 1
        nursery.start_soon(queue.add, 3, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert [queue.take_nowait() for _ in range(3)] == [2, 3, None]


async def test_one_that_is_cancelled_makes_way_for_smaller_ones() -> None:
    """For which there was room behind it."""
    queue: PublishQueue[int] = PublishQueue(9, 10)
    assert queue.add_nowait(1, 6)
    scope = trio.CancelScope()

    async def add_in_scope() -> None:
        with scope:
            await queue.add(2, 9)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(add_in_scope)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(queue.add, 3, 4)
        await trio.testing.wait_all_tasks_blocked()
        assert len(queue) == 1
        scope.cancel()
        assert [queue.take_nowait() for _ in range(3)] == [1, 3, None]


async def test_a_taker_that_is_cancelled_takes_nothing() -> None:
    """What comes after it is for the next one."""
    queue: PublishQueue[int] = PublishQueue(1, 100)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.take)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert queue.add_nowait(1, 1)
    assert await queue.take() == 1


async def test_a_closed_queue_is_emptied_and_ends() -> None:
    """Nothing is added any more, also not by who waited for room."""
    queue: PublishQueue[int] = PublishQueue(1, 100)
    assert queue.add_nowait(1, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raises_closed, queue)
        await trio.testing.wait_all_tasks_blocked()
        queue.close()
    assert await queue.take() == 1
    with pytest.raises(trio.ClosedResourceError):
        queue.add_nowait(2, 1)
    with pytest.raises(trio.EndOfChannel):
        await queue.take()


async def test_closing_ends_a_taker_that_waits() -> None:
    """There is nothing to wait for."""
    queue: PublishQueue[int] = PublishQueue(1, 100)

    async def take() -> None:
        with pytest.raises(trio.EndOfChannel):
            await queue.take()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        queue.close()


async def raises_closed(queue: PublishQueue[int]) -> None:
    """Add to a queue that is closed meanwhile."""
    with pytest.raises(trio.ClosedResourceError):
        await queue.add(2, 1)


async def test_the_bytes_of_what_waits_are_bounded() -> None:
    """One item above the bound goes alone; who waits goes in order, several at once where a large one left."""
    queue: PublishQueue[int] = PublishQueue(9, 10)
    assert [queue.add_nowait(1, 11), queue.add_nowait(2, 0), queue.add_nowait(2, 1)] == [True, False, False]
    async with trio.open_nursery() as nursery:
        for number in (2, 3, 4):
            nursery.start_soon(queue.add, number, 5)
            await trio.testing.wait_all_tasks_blocked()
        assert (len(queue), await queue.take()) == (1, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert len(queue) == 2
        assert [queue.take_nowait() for _ in range(2)] == [2, 3]
    assert queue.take_nowait() == 4
