"""What waits for a pipeline: a bounded queue with one taker, to which adding costs one call."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class PublishQueue(Generic[T]):
    """First in, first out. One task takes; any number add. Live.

    Args:
        length_max: what may wait; beyond it ``add`` does.
        bytes_max: the bytes of what may wait; a single larger item still goes where nothing else waits.
    """

    __slots__ = ("_added", "_bytes", "_bytes_max", "_closed", "_length_max", "_waiting", "_waits_for_room")

    def __init__(self, length_max: int, bytes_max: int) -> None:
        self._length_max = length_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._waiting: deque[tuple[T, int]] = deque()
        self._added: trio.Event | None = None
        self._waits_for_room: dict[trio.lowlevel.Task, tuple[T, int]] = {}
        self._closed = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def add_nowait(self, item: T, size_bytes: int) -> bool:
        """Add where there is room and nobody waits for it; whether it was. Raises trio.ClosedResourceError."""
        if self._closed:
            raise trio.ClosedResourceError
        if self._waits_for_room or self._is_full(size_bytes):
            return False
        self._add(item, size_bytes)
        return True

    async def add(self, item: T, size_bytes: int) -> None:
        """Add; waits for room. Cancel-safe: a cancelled call has added nothing. Raises trio.ClosedResourceError."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.add_nowait(item, size_bytes):
            return
        task, waits = trio.lowlevel.current_task(), self._waits_for_room

        def abort(_raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            del waits[task]
            self._let_in()  # it may have held up a smaller one
            return trio.lowlevel.Abort.SUCCEEDED

        waits[task] = (item, size_bytes)
        await trio.lowlevel.wait_task_rescheduled(abort)
        if waits.pop(task, None) is not None:
            raise trio.ClosedResourceError

    def _let_in(self) -> None:
        """Add what waits for room, as far as there is some: in order, so that who comes later overtakes nobody."""
        while self._waits_for_room and not self._closed:
            task, (item, size_bytes) = next(iter(self._waits_for_room.items()))
            if self._is_full(size_bytes):
                return
            del self._waits_for_room[task]
            self._add(item, size_bytes)
            trio.lowlevel.reschedule(task)

    def _is_full(self, size_bytes: int) -> bool:
        """Whether one more item would be too much."""
        waiting = len(self._waiting)
        return waiting >= self._length_max or (waiting > 0 and self._bytes + size_bytes > self._bytes_max)

    def _add(self, item: T, size_bytes: int) -> None:
        self._waiting.append((item, size_bytes))
        self._bytes += size_bytes
        if self._added is not None:
            self._added.set()

    async def take(self) -> T:
        """The next one; waits for it. Cancel-safe. Raises trio.EndOfChannel once it is closed and empty."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._waiting:
            if self._closed:
                raise trio.EndOfChannel
            self._added = trio.Event()
            try:
                await self._added.wait()
            finally:
                self._added = None
        return self._first()

    def take_nowait(self) -> T | None:
        """The next one, ``None`` where none waits."""
        return self._first() if self._waiting else None

    def _first(self) -> T:
        item, size_bytes = self._waiting.popleft()
        self._bytes -= size_bytes
        if self._waits_for_room:
            self._let_in()
        return item

    def close(self) -> None:
        """Nothing more is added; what waits may still be taken."""
        if not self._closed:
            self._closed = True
            for task in self._waits_for_room:
                trio.lowlevel.reschedule(task)
        if self._added is not None:
            self._added.set()
