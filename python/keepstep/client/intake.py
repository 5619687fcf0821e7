"""Into the outbox: whoever publishes at the same moment shares one transaction and one wait for the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from keepstep.errors import ClientError

if TYPE_CHECKING:
    from keepstep.client.outbox import Draft, Entry, Outbox
    from keepstep.client.publication import Publication
    from keepstep.client.worker import Worker

GROUP_EVENTS_MAX: Final = 1024
"""Events put into the outbox in one transaction."""


@dataclass(slots=True, eq=False)
class _Request:
    """Drafts that wait to be put into the outbox together with those of others."""

    drafts: Sequence[Draft]
    entries: Sequence[Entry] = ()
    publications: Sequence[Publication] = ()
    error: Exception | None = None


class Intake:
    """The way into one outbox.

    Args:
        outbox: takes the events.
        worker: for calls that block.
        is_sending: whether there is a connection on which they go out at once.
        added: called with new entries, and whether 'sent' is recorded for them; makes their publications.
    """

    def __init__(
        self,
        outbox: Outbox,
        worker: Worker,
        *,
        is_sending: Callable[[], bool],
        added: Callable[[Sequence[Entry], bool], Sequence[Publication]],
    ) -> None:
        self._outbox = outbox
        self._worker = worker
        self._is_sending = is_sending
        self._added = added
        self._requests: deque[_Request] = deque()
        self._adding = trio.Lock()

    async def add(self, drafts: Sequence[Draft]) -> Sequence[Publication]:
        """Put events into the outbox: all are on the disk when this returns.

        Raises:
            ClientError: an event cannot be published like that, or the disk is full; none was kept.

        After a cancellation either all of the events are in the outbox or none.
        """
        request = _Request(drafts)
        self._requests.append(request)
        try:
            # Whoever comes first writes for all who wait.
            async with self._adding:
                if request in self._requests:
                    await self._add_group()
        finally:
            if request in self._requests:
                self._requests.remove(request)
        if request.error is not None:
            raise request.error
        return request.publications

    async def _add_group(self) -> None:
        group: list[_Request] = []
        events = 0
        while self._requests and (not group or events + len(self._requests[0].drafts) <= GROUP_EVENTS_MAX):
            group.append(self._requests.popleft())
            events += len(group[-1].drafts)
        sending = self._is_sending()
        try:
            await self._worker.run(lambda: self._write(group, sending=sending))
        finally:
            for request in group:
                request.publications = self._added(request.entries, sending)

    def _write(self, group: Sequence[_Request], *, sending: bool) -> None:
        """In the worker: all in one transaction; where one request is at fault, each in its own."""
        try:
            entries = self._outbox.add([draft for request in group for draft in request.drafts], sending=sending)
        except ClientError as error:
            if len(group) == 1:
                group[0].error = error
                return
            for request in group:
                self._write([request], sending=sending)
            return
        start = 0
        for request in group:
            request.entries = entries[start : start + len(request.drafts)]
            start += len(request.drafts)
