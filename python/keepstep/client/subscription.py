"""A stream as an application reads it: verified and decrypted events, in order, each once, from any position.

A subscription reads the device's own store by position. What arrives is stored first, so that nothing is lost when the
application is slow, stops, or crashes; it goes on from the position it names. There are two ways to name it:

- keep ``event.seq`` with the application's own state, in one transaction of its own database, and give it as
  ``after``: every event then takes effect exactly once;
- let the store keep it under a name, ``cursor``, with ``commit``, which may carry up to 1 MiB of application state in
  the same transaction: exactly once for that state, at least once for anything else.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from keepstep.client.keys import MissingContentKey
from keepstep.client.locallog import Cursor
from keepstep.client.payload import PayloadError, Place
from keepstep.errors import ClientError, EventsPruned, EventsRewound, ProtocolError
from keepstep.model import Kind, inbox_of, is_inbox
from keepstep.protocol.event import decode_header
from keepstep.protocol.verified import Problem
from keepstep.validation import parse_application_stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepstep.client.keys import Keyring
    from keepstep.client.locallog import LocalLog, StoredEvent
    from keepstep.client.snapshots import Snapshot
    from keepstep.client.worker import Worker
    from keepstep.protocol.event import Header

PAGE_EVENTS: Final = 256
"""Events read from the store at a time."""
STATE_BYTES_MAX: Final = 1024 * 1024
DECISION_WAIT_S: Final = 30
"""How long an event waits for its content key, or for a second reading of its payload, seconds."""


def check_readable(stream: str, device_id: bytes) -> None:
    """Check that a device may read a stream, by its name. Raises ClientError."""
    if stream == inbox_of(device_id):
        return
    if is_inbox(stream):
        raise ClientError(f"{stream!r} is another device's inbox: only that device reads it")
    try:
        parse_application_stream(stream)
    except ProtocolError as exc:
        raise ClientError(f"{stream!r} cannot be read: {exc.detail}") from exc


@dataclass(frozen=True, slots=True)
class Event:
    """A verified event.

    Attributes:
        stream: the stream.
        seq: its place, the same on every device.
        device_id: its author, 16 bytes.
        n: its author's number.
        id: a UUIDv7, 16 bytes.
        hlc: unix milliseconds times 2^16, plus a counter, by the author's clock.
        received_at_ms: unix milliseconds, by the server's clock.
        key: 16 bytes that stand for the name that was written, in streams of the policy ``latest``.
        data: what was published; ``None`` where there is a ``problem``.
        concurrent_with: in streams of the policy ``fork`` the seqs (first, last) that it does not build on.
        problem: why there is no data: a value of ``protocol.reader.Problem``, ``no_content_key``, ``not_decryptable``.
    """

    stream: str
    seq: int
    device_id: bytes
    n: int
    id: bytes
    hlc: int
    received_at_ms: int
    key: bytes | None
    concurrent_with: tuple[int, int] | None
    data: bytes | None
    problem: str | None


class EventSource:
    """Where subscriptions read: the local log, the keys, and the news that there is more."""

    def __init__(self, log: LocalLog, keyring: Keyring, worker: Worker, user_key: bytes) -> None:
        self.log = log
        self.worker = worker
        self._keyring = keyring
        self._user_key = user_key
        self._changed = trio.Event()
        self._went_back: dict[str, tuple[int, int]] = {}

    def go_back(self, stream: str, seq: int) -> None:
        """A restore of the server took away what comes after a seq."""
        count, _ = self.went_back(stream)
        self._went_back[stream] = count + 1, seq
        self.announce()

    def went_back(self, stream: str) -> tuple[int, int]:
        """How often a stream went back since the device was opened, and the last time to where."""
        return self._went_back.get(stream, (0, 0))

    def changed(self) -> trio.Event:
        """Set once something changes after this call."""
        return self._changed

    def announce(self) -> None:
        """Something changed."""
        self._changed.set()
        self._changed = trio.Event()

    def open(self, stored: StoredEvent, *, decided: bool) -> Event | None:
        """Decrypt; ``None`` where what is missing may still come, unless it is ``decided`` that it does not."""
        header = decode_header(stored.header)
        if stored.payload is None or stored.problem is not None:
            undecided = stored.problem is Problem.MISSING and not decided
            return None if undecided else _event(stored, header, None, stored.problem and stored.problem.value)
        place = Place(self._user_key, stored.stream, stored.device_id, header.n)
        try:
            return _event(stored, header, self._keyring.open(place, stored.payload), None)
        except MissingContentKey:
            return _event(stored, header, None, "no_content_key") if decided else None
        except PayloadError:
            return _event(stored, header, None, "not_decryptable")


class Subscription:
    """Iterate it: ``async for event in subscription``. It ends only with an error or a cancellation.

    Attributes:
        stream: the stream.
        state: what was committed with the cursor, ``b""`` where nothing was.
        snapshot: what stands for the events before the first one that is given out; ``None`` for nothing.
    """

    def __init__(
        self,
        source: EventSource,
        stream: str,
        *,
        after: int | None,
        cursor: str | None,
        state: bytes,
        snapshot: Snapshot | None,
        failure: Callable[[], Exception | None],
        now_ms: Callable[[], int],
        rewound_from: int | None = None,
    ) -> None:
        self.stream = stream
        self.state = state
        self.snapshot = snapshot
        self._source = source
        self._after = after
        self._cursor = cursor
        self._failure = failure
        self._now_ms = now_ms
        self._ready: deque[Event] = deque()
        self._rewound_from = rewound_from
        self._times_back, _ = source.went_back(stream)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        """The next event; waits for it.

        Raises:
            VerificationError: the server or an author lies about this stream; what was given out before is true.
            ProtocolError: the server does not let this device read the stream, or the device was stopped.
            EventsRewound: events that were given out are no more; calling again goes on after those that are.
            EventsPruned: the next events are gone on the server; calling again goes on after them.
            ClientError: the events after the position are no longer kept here, or the device was closed.

        A cancellation loses no event.
        """
        give_up_s = math.inf
        self._check_back()
        while not self._ready:
            changed = self._source.changed()
            self._check_back()
            found = await self._load(decided=trio.current_time() >= give_up_s)
            if self._ready:
                break
            failure = self._failure()
            if found:
                give_up_s = min(give_up_s, trio.current_time() + DECISION_WAIT_S)
            elif failure is not None:
                raise failure
            with trio.move_on_at(give_up_s):
                await changed.wait()
        return self._ready.popleft()

    async def take_here(self) -> Event | None:
        """The next event that is on this device already, however long its disk takes; ``None`` where there is none.

        Raises:
            EventsRewound, EventsPruned, ClientError: as ``__anext__``.

        A cancellation loses no event.
        """
        self._check_back()
        if not self._ready:
            await self._load(decided=False)
        return self._ready.popleft() if self._ready else None

    def _check_back(self) -> None:
        """Go back where the stream did. Raises EventsRewound: beyond what was given out."""
        times, seq = self._source.went_back(self.stream)
        given = self._ready[0].seq - 1 if self._ready else self._after
        if times != self._times_back:
            self._times_back = times
            self._ready.clear()
            self._after = given
            if given is not None and given > seq:
                self._after, self._rewound_from = seq, given
        if self._rewound_from is not None:
            rewound_from, self._rewound_from = self._rewound_from, None
            raise EventsRewound(self.stream, self._after or 0, rewound_from)

    def waiting(self) -> int:
        """Events that the next calls give out at once."""
        return len(self._ready)

    async def commit(self, seq: int, *, state: bytes = b"") -> None:
        """Everything up to ``seq`` is done with: on the disk, with ``state``, when this returns.

        Raises:
            ClientError: the subscription has no cursor, the state is above 1 MiB, or the disk is full.
        """
        cursor = self._cursor
        if cursor is None:
            raise ClientError("this subscription was opened without a cursor")
        if len(state) > STATE_BYTES_MAX:
            raise ClientError(f"a cursor's state has at most {STATE_BYTES_MAX} bytes")
        log, now_ms = self._source.log, self._now_ms()
        await self._source.worker.run(lambda: log.commit(cursor, self.stream, Cursor(seq, state), now_ms=now_ms))
        self.state = state

    async def _load(self, *, decided: bool) -> bool:
        """Read and decrypt the next page; whether there was anything."""
        after = self._after
        try:
            found, after, events = await self._source.worker.run(lambda: self._page(after, decided=decided))
        except EventsPruned as gone:
            self._after = gone.last_seq
            raise
        self._ready.extend(events)
        self._after = after
        return found

    def _page(self, after: int | None, *, decided: bool) -> tuple[bool, int | None, list[Event]]:
        """In the worker thread: events up to the first that is undecided; ``decided`` counts for the first one.

        Returns:
            whether there is anything that was not passed over, the last seq that was read, and the events.
        """
        while True:
            gap = self._source.log.gap(self.stream, after=after or 0)
            rows = self._source.log.read(self.stream, after=after or 0, events_max=PAGE_EVENTS)
            if gap is not None:
                rows = [row for row in rows if row.seq <= gap[0]]
                if not rows:
                    raise EventsPruned(self.stream, (after or 0) + 1, gap[1])
            if after is not None and rows and rows[0].seq != after + 1:
                raise ClientError(f"{self.stream} is kept on this device from {rows[0].seq} on, not from {after + 1}")
            events: list[Event] = []
            for row in rows:
                if decode_header(row.header).kind == Kind.APPLICATION:
                    event = self._source.open(row, decided=decided and not events)
                    if event is None:
                        return True, after, events
                    events.append(event)
                after = row.seq
            if events or not rows:
                return bool(events), after, events


def _event(stored: StoredEvent, header: Header, data: bytes | None, problem: str | None) -> Event:
    return Event(
        stream=stored.stream,
        seq=stored.seq,
        device_id=stored.device_id,
        n=header.n,
        id=header.id,
        hlc=header.hlc,
        received_at_ms=stored.received_at_ms,
        key=header.key,
        concurrent_with=None if stored.concurrent_from is None else (stored.concurrent_from, stored.seq - 1),
        data=data,
        problem=problem,
    )
