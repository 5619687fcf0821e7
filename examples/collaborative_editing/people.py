"""The people of a session: authors, who write as the trace says, and readers, who come when they like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from examples.collaborative_editing.replica import Replica
from keepstep.client import Publication

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from examples.collaborative_editing.measures import Measures
    from examples.collaborative_editing.trace import Step, Trace
    from keepstep.client import Device, Event, Receipt

STREAM: Final = "text"
GROUP_EVENTS: Final = 64
"""Edits published together, at most, where nothing has to be waited for."""
ACKS_WAITING_MAX: Final = 4096


class Reader:
    """Somebody with a device who takes in every edit.

    Attributes:
        replica: the text as this person has it.
        received: how many edits of others, and own ones, came back from the server.
    """

    def __init__(self, trace: Trace, device: Device, author_ids: Sequence[bytes], author: int | None = None) -> None:
        self.device = device
        self.replica = Replica(author, is_ascii=trace.is_ascii)
        self.received = 0
        self._total = len(trace.steps)
        self._indices = {
            device_id: [step.index for step in trace.steps if step.author == number]
            for number, device_id in enumerate(author_ids)
        }

    async def read(self) -> None:
        """Take in everything, until the last edit of the trace is there."""
        subscription = await self.device.subscribe(STREAM)
        while self.received < self._total:
            event = await anext(subscription)
            # The k-th event of a device is the k-th edit of its author.
            self._take(self._indices[event.device_id][event.n - 1], event)
            self.received += 1

    def _take(self, index: int, event: Event) -> None:  # noqa: ARG002 - authors keep it by its index
        self.replica.merge(_update(event))


class Author(Reader):
    """Somebody who writes: each edit as soon as everything is there that its author had seen.

    Attributes:
        written: how many own edits are in the outbox.
        resting: waiting for an edit of somebody else, or done.
        receipts: what the server answered to the edits so far, in order.
    """

    def __init__(
        self, trace: Trace, device: Device, author_ids: Sequence[bytes], author: int, measures: Measures
    ) -> None:
        super().__init__(trace, device, author_ids, author)
        self.written = 0
        self.resting = False
        self.receipts: list[Receipt] = []
        self._device_id = author_ids[author]
        self._steps = [step for step in trace.steps if step.author == author]
        self._measures = measures
        self._arrived: dict[int, bytes] = {}
        self._news = trio.Event()
        self._progress = trio.Event()
        self._acks_in, self._acks_out = trio.open_memory_channel[tuple[int, Publication]](ACKS_WAITING_MAX)

    def _take(self, index: int, event: Event) -> None:
        if event.device_id != self._device_id:
            self._arrived[index] = _update(event)
            self._measures.delivered(index)
            self._news.set()

    async def write(self) -> None:
        """Write everything, then take in what is left of the others."""
        async with self._acks_in:
            group: list[tuple[int, bytes]] = []
            for step in self._steps:
                if not self._has(step):
                    await self._publish(group)
                    await self._wait_for(step)
                for merged in step.merges:
                    self.replica.merge(self._arrived.pop(merged))
                group.append((step.index, self.replica.edit(step.patches)))
                if len(group) == GROUP_EVENTS:
                    await self._publish(group)
            await self._publish(group)
        self._rest()

    def _rest(self) -> None:
        self.resting = True
        self._progress.set()

    async def wait_until_writing(self) -> None:
        """Wait until something can be written."""
        while self.resting:
            self._progress = trio.Event()
            await self._progress.wait()

    async def write_on(self, edits: int) -> None:
        """Wait until that many more edits are written, or nothing can be written."""
        target = self.written + edits
        while self.written < target and not self.resting:
            self._progress = trio.Event()
            await self._progress.wait()

    def _has(self, step: Step) -> bool:
        return all(index in self._arrived for index in step.merges)

    async def _wait_for(self, step: Step) -> None:
        self._rest()
        while not self._has(step):
            self._news = trio.Event()
            await self._news.wait()
        self.resting = False
        self._progress.set()

    async def _publish(self, group: list[tuple[int, bytes]]) -> None:
        if not group:
            return
        for index, _ in group:
            self._measures.published(index)
        publications = await self.device.publish_many(STREAM, [update for _, update in group])
        self.written += len(group)
        self._progress.set()
        for (index, _), publication in zip(group, publications, strict=True):
            await self._acks_in.send((index, publication))
        group.clear()

    async def wait_for_acks(self, tell: Callable[[int], None]) -> None:
        """Wait until the server has every edit; ``tell`` is called with how many more it has."""
        async with self._acks_out:
            async for index, publication in self._acks_out:
                self.receipts.append(await publication.accepted())
                self._measures.acknowledged(index)
                tell(1)

    def finish(self) -> None:
        """Take in what came after the last own edit."""
        for index in sorted(self._arrived):
            self.replica.merge(self._arrived.pop(index))


def _update(event: Event) -> bytes:
    assert event.data is not None, event.problem
    return event.data
