"""From the outbox to the server and back: batches, the credit window, answers, and what to do about each of them.

One publisher lives as long as its device; ``run`` is one session of it. Everything that has to survive a crash is the
outbox's; what is in memory here can be lost at any moment: events that were not acknowledged are sent again, and
the server answers what it has as a duplicate (protocol.md section 3).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from keepstep.client.intake import Intake
from keepstep.client.mending import Mender
from keepstep.client.publication import Publication, Receipt
from keepstep.client.sending import UNCHECKED, Held, Sending, Trouble
from keepstep.errors import ERRORS, ClientError, ProtocolError, Retry
from keepstep.model import Position
from keepstep.protocol.messages import (
    INTEGER_MAX,
    PUBLISH_BYTES_MAX,
    PUBLISH_EVENTS_MAX,
    Accepted,
    Error,
    Publish,
    ResultAccepted,
    ResultError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from keepstep.client.connection import Connection
    from keepstep.client.environment import Environment
    from keepstep.client.outbox import Draft, Entry, Outbox
    from keepstep.client.rewinds import Rewinds
    from keepstep.client.store import Store
    from keepstep.client.worker import Worker
    from keepstep.protocol.messages import Result

INFLIGHT_PUBLISHES_MAX: Final = 64
"""Publishes sent and not answered, at most; the server may name a smaller number."""
QUEUE_EVENTS_MAX: Final = 4096
"""Events of the outbox held in memory; the others wait on the disk."""
OUTBOX_EVENTS_MAX: Final = 1_000_000
"""Events waiting in the outbox in all; more are refused."""
SETTLE_S: Final = 1.0
"""What was acknowledged is written down when nothing else was written for this long, seconds."""
FRAMING_BYTES: Final = 32
"""A publish beside its events, bytes at most."""


@dataclass(slots=True)
class _Queued:
    """An event in memory; ``marked``: 'sent' is on the disk."""

    entry: Entry
    marked: bool


class Publisher:
    """Publishes for one device."""

    def __init__(
        self,
        store: Store,
        outbox: Outbox,
        worker: Worker,
        environment: Environment,
        waiting: int,
        rewinds: Rewinds,
    ) -> None:
        self._outbox = outbox
        self._worker = worker
        self._intake = Intake(outbox, worker, is_sending=lambda: self._session is not None, added=self._added)
        self._mender = Mender(store, outbox, worker, environment, self._done, rewinds, self.queued)
        self._queue: deque[_Queued] = deque()
        self._more_on_disk = waiting > 0
        self._loading = False
        self._waiting = waiting
        self._publications: dict[int, Publication] = {}
        self._session: Sending | None = None
        self._wake = trio.Event()

    @property
    def waiting(self) -> int:
        """Events in the outbox."""
        return self._waiting

    @property
    def postponed(self) -> str:
        """As ``Mender.postponed``."""
        return self._mender.postponed

    # -- into the outbox ------------------------------------------------------------------------------------------

    async def publish(self, drafts: Sequence[Draft]) -> Sequence[Publication]:
        """Put events into the outbox: on the disk when this returns, and on their way if there is a connection.

        Raises:
            ClientError: an event cannot be published like that, or the outbox or the disk is full; nothing was kept.

        After a cancellation either all of the events are in the outbox or none.
        """
        if self._waiting + len(drafts) > OUTBOX_EVENTS_MAX:
            raise ClientError(f"the outbox is full: {self._waiting} events wait for the server")
        return await self._intake.add(drafts)

    def _added(self, entries: Sequence[Entry], marked: bool) -> Sequence[Publication]:
        publications = [Publication(entry) for entry in entries]
        for entry, publication in zip(entries, publications, strict=True):
            self._publications[entry.entry] = publication
            self._enqueue(entry, marked=marked)
        return publications

    def queued(self, count: int) -> None:
        """Events entered the outbox that nobody publishes now: a restore of the server had lost them."""
        self._waiting += count
        self._forget_queue()

    def _enqueue(self, entry: Entry, *, marked: bool) -> None:
        self._waiting += 1
        if self._more_on_disk or self._loading or len(self._queue) >= QUEUE_EVENTS_MAX:
            self._more_on_disk = True
        else:
            self._queue.append(_Queued(entry, marked))
        self.wake()

    # -- a session ------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def begin(self, connection: Connection, followed: Collection[str]) -> None:
        """A session begins; streams that are followed wait for the answer to their subscription."""
        self._session = Sending(connection, followed, {stream: Held(until_resumed=True) for stream in followed})
        self._forget_queue()

    def ask(self, streams: Collection[str]) -> None:
        """Streams that are not read are about to be subscribed to: what did a restore leave of this device's events?"""
        session = self._session
        if session is not None:
            session.asking.update(streams)
            session.held.update({stream: Held(until_resumed=True) for stream in streams})

    def not_told(self, stream: str) -> None:
        """The server did not take a subscription, and so does not say what it has of this device."""
        held = None if self._session is None else self._session.held.get(stream)
        if self._session is not None and held is not None and held.until_resumed:
            held.until_resumed, held.until_s = False, 0
            self._session.asking.discard(stream)
            self.wake()

    async def hold_until_resumed(self, stream: str) -> None:
        """A stream is about to be subscribed to: the answer says what the server has of this device in it."""
        session = self._session
        floor_n = await self._worker.run(lambda: self._outbox.own(stream).accepted_n)
        if session is not None and session is self._session:
            session.held.setdefault(stream, Held(until_resumed=True, floor_n=floor_n))

    def hold(self) -> None:
        """The server takes nothing new in this session; what is on its way is still answered."""
        if self._session is not None:
            self._session.draining = True

    def end(self) -> None:
        """The session is over: what was on its way may or may not have arrived."""
        self._session = None
        self._forget_queue()

    def _forget_queue(self) -> None:
        self._queue.clear()
        self._more_on_disk = True
        self.wake()

    def fail(self, error: Exception) -> None:
        """The device stops: whoever waits is told."""
        for publication in self._publications.values():
            publication.settle(error)
        self._publications.clear()

    async def run(self) -> None:
        """Send until the session ends.

        Raises:
            Disconnected: the connection is gone.
            ProtocolError: ``cloned``, or the server's answers make no sense.
            VerificationError: the server lost what it had acknowledged.
        """
        session = self._session
        assert session is not None
        while True:
            self._wake = trio.Event()
            if await self._mender.release(session):
                self._forget_queue()
            batch = await self._next_batch(session)
            if batch:
                await self._send(session, batch)
                continue
            wake_at_s = min((held.until_s for held in session.held.values()), default=math.inf)
            if self._outbox.unsettled:
                wake_at_s = min(wake_at_s, trio.current_time() + SETTLE_S)
            with trio.move_on_at(wake_at_s) as scope:
                await self._wake.wait()
            if scope.cancelled_caught and self._outbox.unsettled:
                await self._worker.run(self._outbox.settle)

    async def _next_batch(self, session: Sending) -> list[_Queued]:
        """What to send now: at most 256 events or 1 MiB, within the credit window."""
        window = session.connection.limit("inflight_publishes", INFLIGHT_PUBLISHES_MAX)
        if session.draining or len(session.inflight) >= window:
            return []
        if not self._queue and self._more_on_disk:
            await self._load(session)
        events_max = session.connection.limit("publish_events", PUBLISH_EVENTS_MAX)
        bytes_left = session.connection.limit("publish_bytes", PUBLISH_BYTES_MAX) - FRAMING_BYTES
        batch: list[_Queued] = []
        while self._queue and len(batch) < events_max:
            queued = self._queue[0]
            if queued.entry.stream in session.held:
                self._queue.popleft()  # it is on the disk, and read again when the stream is released
                continue
            if batch and queued.entry.size_bytes > bytes_left:
                break
            bytes_left -= queued.entry.size_bytes
            batch.append(self._queue.popleft())
        return batch

    async def _load(self, session: Sending) -> None:
        on_their_way = {entry.entry for batch in session.inflight.values() for entry in batch}
        held = frozenset(session.held)
        # What enters meanwhile may or may not be in the answer: it is read again.
        self._more_on_disk, self._loading = False, True
        try:
            entries = await self._worker.run(
                lambda: self._outbox.pending(skip=on_their_way, held=held, entries_max=QUEUE_EVENTS_MAX)
            )
        finally:
            self._loading = False
        self._queue.extend(_Queued(entry, entry.sent) for entry in entries)
        self._more_on_disk = self._more_on_disk or len(entries) == QUEUE_EVENTS_MAX

    async def _send(self, session: Sending, batch: list[_Queued]) -> None:
        # protocol.md section 3: "Devices record 'sent' before the first send"
        unmarked = [queued.entry for queued in batch if not queued.marked]
        if unmarked:
            await self._worker.run(lambda: self._outbox.mark_sent(unmarked))
        rid = session.next_rid
        session.next_rid += 1
        entries = [queued.entry for queued in batch]
        session.inflight[rid] = entries
        session.per_stream.update(entry.stream for entry in entries)
        events = [(entry.header, entry.sig, entry.payload, None) for entry in entries]
        await session.connection.send(Publish(rid, msgspec.Raw(msgspec.msgpack.encode(events))))

    # -- answers --------------------------------------------------------------------------------------------------

    def accepted(self, message: Accepted) -> None:
        """Take the answer to a publish.

        Raises:
            ProtocolError: it does not answer what was sent.
        """
        session, batch = self._answered(message.rid)
        answers: list[tuple[Sequence[Entry], Result]] = []
        at = 0
        for result in message.results:
            count = result.count if isinstance(result, ResultAccepted) else 1
            answers.append((batch[at : at + count], result))
            at += count
        # Consecutive numbers are consecutive in one stream only.
        fits = at == len(batch) and all(len({entry.stream for entry in entries}) == 1 for entries, _ in answers)
        if not fits or any(_is_beyond(result) for _, result in answers):
            raise ProtocolError("malformed", "an answer does not fit what was published")
        for entries, result in answers:
            self._take(session, entries, result)
        self.wake()

    def refused(self, message: Error) -> None:
        """Take the refusal of a whole publish.

        Raises:
            ProtocolError: it is for good, which no single event is the reason of.
        """
        assert message.rid is not None
        session, batch = self._answered(message.rid)
        row = ERRORS.get(message.code, ERRORS["internal"])
        if row.retry is Retry.NEVER:
            raise ProtocolError(row.code, "the server refused a whole publish")
        for entry in reversed(batch):
            session.held[entry.stream] = Held(trouble=Trouble(entry, row.code, [message.retry_after_ms]))
        self.wake()

    def resumed(self, stream: str, author: tuple[int, bytes]) -> None:
        """A subscription was answered: the last event that the server has of this device."""
        held = None if self._session is None else self._session.held.get(stream)
        if held is not None and held.until_resumed:
            held.until_resumed, held.author, held.until_s = False, author, 0
            self.wake()

    def _answered(self, rid: int) -> tuple[Sending, list[Entry]]:
        session = self._session
        assert session is not None
        batch = session.inflight.pop(rid, None)
        if batch is None:
            raise ProtocolError("unexpected", "an answer to a publish that was not sent")
        session.per_stream.subtract(entry.stream for entry in batch)
        return session, batch

    def _take(self, session: Sending, entries: Sequence[Entry], result: Result) -> None:
        last = entries[-1]
        if isinstance(result, ResultAccepted):
            for seq, entry in enumerate(entries, result.first_seq):
                self._done(entry, Receipt(entry.stream, entry.n, seq, result.received_at_ms))
            place = Position(result.first_seq + result.count - 1, result.chain)
            self._outbox.accept(last, place, result.received_at_ms)
        elif isinstance(result, ResultError):
            # What follows a refused event is out of order: only the first answer says what is wrong.
            session.held.setdefault(last.stream, Held(trouble=Trouble(last, result.code, result.detail)))
            return
        elif result.seq is None and not last.sent:
            session.held.setdefault(last.stream, Held(trouble=Trouble(last, UNCHECKED, [])))
            return
        else:
            self._done(last, Receipt(last.stream, last.n, result.seq, result.received_at_ms))
            known = result.seq is not None and result.chain is not None
            place_told = Position(result.seq or 0, result.chain or b"") if known else None
            self._outbox.accept(last, place_told, result.received_at_ms)
        session.fruitless[last.stream] = session.retries[last.stream] = 0

    def _done(self, entry: Entry, outcome: Receipt | Exception) -> None:
        self._waiting -= 1
        publication = self._publications.pop(entry.entry, None)
        if publication is not None:
            publication.settle(outcome)


def _is_beyond(result: Result) -> bool:
    """Whether the last seq of a run is above every integer of the protocol."""
    return isinstance(result, ResultAccepted) and result.first_seq + result.count - 1 > INTEGER_MAX
