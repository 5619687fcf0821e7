"""One session's incoming side: what arrives is queued, verified and stored together, then acknowledged.

Only what is stored is acknowledged, and the server sends no more than it has acknowledgements for, so the queue is
bounded by both: by the server's credit, and by a number of messages and of bytes against a server that ignores it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from keepstep.errors import ProtocolError
from keepstep.model import DEVICES_STREAM
from keepstep.protocol.messages import (
    READ_EVENTS_MAX,
    SUBSCRIBE_STREAMS_MAX,
    Ack,
    Events,
    Pruned,
    Read,
    ReadResult,
    Resumed,
    Rewound,
    Subscribe,
    Unsubscribe,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keepstep.client.connection import Connection
    from keepstep.client.follower import Arrived, Follower, Outcome
    from keepstep.client.worker import Worker

QUEUE_MESSAGES_MAX: Final = 1024
"""Messages that wait to be verified; more are left in the socket."""
QUEUE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Their bytes; a single larger message still enters."""
WAITING_MESSAGES_MAX: Final = 4096
"""Messages that wait for ``$devices``; more end the session."""
WAITING_BYTES_MAX: Final = 320 * 1024 * 1024
"""Their bytes: above the largest credit that a server can be configured to give, 256 MiB."""
APPLY_MESSAGES_MAX: Final = 64
"""Messages verified and stored in one transaction."""
ROW_BYTES: Final = 256
"""What a row takes in memory beside its header and payload, about."""
READ_RID_FIRST: Final = 2**62
"""Requests of this side have numbers from here on; a publisher's begin at 1."""
CHAIN_PREFIX_BYTES: Final = 16


class Inbox:
    """Takes what one connection brings for the streams that are followed."""

    def __init__(
        self, connection: Connection, follower: Follower, worker: Worker, report: Callable[[Outcome], None]
    ) -> None:
        self._connection = connection
        self._follower = follower
        self._worker = worker
        self._report = report
        self._queue: deque[Arrived] = deque()
        self._queue_bytes = 0
        self._room = trio.Event()
        self._wake = trio.Event()
        self._asked: set[str] = set()
        self._waiting: list[Arrived] = []
        self._before_devices: set[int] = set()
        self._next_rid = READ_RID_FIRST

    async def subscribe(self, streams: Sequence[str]) -> None:
        """Ask for streams from where this device is in them. Raises Disconnected."""
        for first in range(0, len(streams), SUBSCRIBE_STREAMS_MAX):
            await self._subscribe(streams[first : first + SUBSCRIBE_STREAMS_MAX])

    async def _subscribe(self, names: Sequence[str]) -> None:
        # What is still coming under an older subscription is not what these positions continue.
        self._asked.update(names)
        self._queue = deque(message for message in self._queue if message.stream not in self._asked)
        self._queue_bytes = sum(map(_size, self._queue))
        positions = await self._worker.run(lambda: {name: self._follower.ask_from(name) for name in names})
        await self._connection.send(Subscribe(positions))

    async def put(self, message: Arrived) -> None:
        """Queue a message; waits while the queue is full."""
        if isinstance(message, Resumed | Rewound):
            self._asked.discard(message.stream)
        if message.stream in self._asked or message.stream not in self._follower.followed:
            return
        while self._queue and (len(self._queue) >= QUEUE_MESSAGES_MAX or self._queue_bytes >= QUEUE_BYTES_MAX):
            self._room = trio.Event()
            await self._room.wait()
        self._queue.append(message)
        self._queue_bytes += _size(message)
        self._wake.set()

    async def run(self) -> None:
        """Verify, store and acknowledge until the session ends.

        Raises:
            Disconnected: the connection is gone.
            ClientError: the disk is full.
            ProtocolError: more waits for ``$devices`` than a session may hold.
        """
        while True:
            self._wake = trio.Event()
            if not self._queue:
                await self._wake.wait()
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), APPLY_MESSAGES_MAX))]
            self._queue_bytes -= sum(map(_size, batch))
            self._room.set()
            waiting, self._waiting = self._waiting, []
            await self._apply(waiting, batch)

    async def _apply(self, waiting: Sequence[Arrived], new: Sequence[Arrived]) -> None:
        outcome = await self._worker.run(lambda: self._follower.apply([*waiting, *new], again=len(waiting)))
        await self._settle(outcome)
        if not self._before_devices and self._waiting:
            self._before_devices = {id(message) for message in self._waiting}
            await self.subscribe([DEVICES_STREAM])
        elif self._before_devices and DEVICES_STREAM in outcome.caught_up:
            # $devices was read to its head after these had come: what they know beyond it is hidden from this device.
            old = [message for message in self._waiting if id(message) in self._before_devices]
            self._waiting = [message for message in self._waiting if id(message) not in self._before_devices]
            self._before_devices = set()
            await self._settle(
                await self._worker.run(lambda: self._follower.apply(old, again=len(old), devices_complete=True))
            )

    async def _settle(self, outcome: Outcome) -> None:
        self._waiting += outcome.waiting
        if len(self._waiting) > WAITING_MESSAGES_MAX or sum(map(_size, self._waiting)) > WAITING_BYTES_MAX:
            raise ProtocolError("limit_exceeded", "the server sends more than its own $devices explains")
        if outcome.acks:
            await self._connection.send(
                Ack({name: (at.seq, at.chain[:CHAIN_PREFIX_BYTES]) for name, at in outcome.acks.items()})
            )
        if outcome.failed:
            await self._connection.send(Unsubscribe(outcome.failed))
        for message in self._reads(outcome.missing):
            await self._connection.send(message)
        self._report(outcome)

    def _reads(self, missing: Sequence[tuple[str, int]]) -> list[Read]:
        """Requests for payloads that are missing, adjacent ones together."""
        runs: list[tuple[str, int, int]] = []
        for stream, seq in missing:
            if runs and runs[-1][0] == stream and runs[-1][2] == seq - 1 and seq - runs[-1][1] < READ_EVENTS_MAX:
                runs[-1] = (stream, runs[-1][1], seq)
            else:
                runs.append((stream, seq, seq))
        reads = []
        for stream, first, last in runs:
            reads.append(Read(self._next_rid, stream, first - 1, last - first + 1))
            self._next_rid += 1
        return reads


def _size(message: Arrived) -> int:
    """What a message takes in memory, bytes, about."""
    rows = message.rows if isinstance(message, Events | ReadResult) else ()
    if isinstance(message, Pruned):
        rows = message.kept
    return ROW_BYTES + sum(ROW_BYTES + len(row[3]) + len(row[5] or b"") for row in rows)
