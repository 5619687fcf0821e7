"""What waits for a pipeline: a bounded queue with one taker, to which adding costs one call, as does a whole batch.

Users take turns (ADR 0396): each one's own goes in order, and whoever has much waiting holds nobody else up by it for
longer than a turn.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final, Generic, TypeVar

import trio

T = TypeVar("T")

TURN_EVENTS: Final = 16
"""After so many events in a batch the next user has its turn: a stream's events are stored, told and sent together."""

Weight = tuple[int, int, bool]
"""Of an item: the bytes it holds, how many events, and whether nothing else may be taken with it."""


class PublishQueue(Generic[T]):
    """Of each user first in, first out. One task takes; any number add. Live.

    Args:
        length_max: what may wait; beyond it ``add`` does.
        bytes_max: the bytes of what may wait; a single larger item still goes where nothing else waits.
    """

    __slots__ = ("_added", "_bytes", "_bytes_max", "_closed", "_length", "_length_max", "_waiting", "_waits_for_room")

    def __init__(self, length_max: int, bytes_max: int) -> None:
        self._length_max = length_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._length = 0
        self._waiting: OrderedDict[int, deque[tuple[T, Weight]]] = OrderedDict()  # by user, whose turn is next first
        self._added: trio.Event | None = None
        self._waits_for_room: OrderedDict[int, dict[trio.lowlevel.Task, tuple[T, Weight]]] = OrderedDict()
        self._closed = False

    def __len__(self) -> int:
        """How many wait."""
        return self._length

    def add_nowait(self, user: int, item: T, weight: Weight) -> bool:
        """Add where there is room and nobody waits for it; whether it was. Raises trio.ClosedResourceError."""
        if self._closed:
            raise trio.ClosedResourceError
        length, size_bytes = self._length, self._bytes + weight[0]
        if self._waits_for_room or (length and (length >= self._length_max or size_bytes > self._bytes_max)):
            return False
        own = self._waiting.get(user)
        if own is None:
            own = self._waiting[user] = deque()
        own.append((item, weight))
        self._length, self._bytes = length + 1, size_bytes
        if self._added is not None:
            self._added.set()
        return True

    async def add(self, user: int, item: T, weight: Weight) -> None:
        """Add; waits for room. Cancel-safe: a cancelled call has added nothing. Raises trio.ClosedResourceError."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.add_nowait(user, item, weight):
            return
        task, waits = trio.lowlevel.current_task(), self._waits_for_room

        def abort(_raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._give_up(user, task)
            self._let_in()  # it may have held up a smaller one
            return trio.lowlevel.Abort.SUCCEEDED

        waits.setdefault(user, {})[task] = (item, weight)
        await trio.lowlevel.wait_task_rescheduled(abort)
        if task in waits.get(user, ()):
            self._give_up(user, task)
            raise trio.ClosedResourceError

    def _give_up(self, user: int, task: trio.lowlevel.Task) -> None:
        """It waits for room no more."""
        own = self._waits_for_room[user]
        del own[task]
        if not own:
            del self._waits_for_room[user]

    def _let_in(self) -> None:
        """Add what waits for room, as far as there is some: users in turns, each one's own in order."""
        waits, self._waits_for_room = self._waits_for_room, OrderedDict()  # none that ``add_nowait`` would wait for
        while waits and not self._closed:
            user, own = next(iter(waits.items()))
            task, (item, weight) = next(iter(own.items()))
            if not self.add_nowait(user, item, weight):
                break
            del own[task]
            waits.move_to_end(user)
            if not own:
                del waits[user]
            trio.lowlevel.reschedule(task)
        self._waits_for_room = waits

    async def take(self, *, events_max: int, bytes_max: int) -> list[T]:
        """What fits in one batch; waits for something. Cancel-safe. Raises trio.EndOfChannel once closed and empty.

        Args:
            events_max: a single item with more still goes.
            bytes_max: of what the items hold; a single item with more still goes.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._waiting:
            if self._closed:
                raise trio.EndOfChannel
            self._added = trio.Event()
            try:
                await self._added.wait()
            finally:
                self._added = None
        return self.take_nowait(events_max=events_max, bytes_max=bytes_max)

    def take_nowait(self, *, events_max: int, bytes_max: int) -> list[T]:
        """As ``take``; nothing where nothing waits."""
        waiting = self._waiting
        taken: list[T] = []
        events = size_bytes = turn_events = 0
        while waiting:
            user = next(iter(waiting))
            own = waiting[user]
            item, (item_bytes, item_events, alone) = own[0]
            events += item_events
            size_bytes += item_bytes
            if taken and (alone or events > events_max or size_bytes > bytes_max):
                break
            own.popleft()
            turn_events += item_events
            if not own:
                del waiting[user]
                turn_events = 0
            elif turn_events >= TURN_EVENTS:
                waiting.move_to_end(user)
                turn_events = 0
            self._length -= 1
            self._bytes -= item_bytes
            taken.append(item)
            if self._waits_for_room:
                self._let_in()
            if alone:
                break
        if turn_events and waiting:
            # A turn ends with the batch, or who has large ones waiting would have one turn after the other.
            waiting.move_to_end(next(iter(waiting)))
        return taken

    def close(self) -> None:
        """Nothing more is added; what waits may still be taken."""
        if not self._closed:
            self._closed = True
            for own in self._waits_for_room.values():
                for task in own:
                    trio.lowlevel.reschedule(task)
        if self._added is not None:
            self._added.set()
