"""The queue before a pipeline: bounded, in order, one taker."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from keepstep.publishqueue import PublishQueue


async def test_what_is_added_is_taken_in_order() -> None:
    """With and without waiting."""
    queue: PublishQueue[int] = PublishQueue(3)
    assert [queue.add_nowait(number) for number in range(4)] == [True, True, True, False]
    assert (len(queue), await queue.take(), queue.take_nowait()) == (3, 0, 1)
    await queue.add(4)
    assert [queue.take_nowait() for _ in range(3)] == [2, 4, None]


async def test_the_taker_is_woken_by_what_comes() -> None:
    """Once for several that come together."""
    queue: PublishQueue[int] = PublishQueue(3)
    taken: list[int] = []

    async def take_two() -> None:
        taken.append(await queue.take())
        taken.append(await queue.take())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_two)
        await trio.testing.wait_all_tasks_blocked()
        assert queue.add_nowait(1)
        assert queue.add_nowait(2)
    assert taken == [1, 2]


async def test_who_waits_for_room_comes_before_who_does_not_wait() -> None:
    """And one that is cancelled has added nothing."""
    queue: PublishQueue[int] = PublishQueue(1)
    assert queue.add_nowait(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.add, 2)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as cancelled:
                cancelled.start_soon(queue.add, 3)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert queue.take_nowait() == 1
        assert not queue.add_nowait(4)
    assert (queue.take_nowait(), queue.take_nowait()) == (2, None)
    assert queue.add_nowait(4)


async def test_a_taker_that_is_cancelled_takes_nothing() -> None:
    """What comes after it is for the next one."""
    queue: PublishQueue[int] = PublishQueue(1)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.take)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert queue.add_nowait(1)
    assert await queue.take() == 1


async def test_a_closed_queue_is_emptied_and_ends() -> None:
    """Nothing is added any more, also not by who waited for room."""
    queue: PublishQueue[int] = PublishQueue(1)
    assert queue.add_nowait(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raises_closed, queue)
        await trio.testing.wait_all_tasks_blocked()
        queue.close()
    assert await queue.take() == 1
    with pytest.raises(trio.ClosedResourceError):
        queue.add_nowait(2)
    with pytest.raises(trio.EndOfChannel):
        await queue.take()


async def test_closing_ends_a_taker_that_waits() -> None:
    """There is nothing to wait for."""
    queue: PublishQueue[int] = PublishQueue(1)

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
        await queue.add(2)
