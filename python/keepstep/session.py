"""One authenticated device connection: what comes is acted on as it comes, what is to go goes in turns (protocol.md 4).

The connection calls ``received``; most messages are handled on the spot. What has to wait (a reading of the database,
a full pipeline) waits in a task that exists only meanwhile, and what came after it is held back, in order. A session
that has too much under way pauses its connection, so that a device feels backpressure instead of the server growing.
What is to be sent gathers until the session's turn (``turns``) and goes in one write. Whoever ends the session says
why; what is already answered still goes out.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from keepstep.errors import ProtocolError, Unavailable
from keepstep.lookups import look_up
from keepstep.protocol.codec import encode
from keepstep.protocol.messages import (
    SUBSCRIBE_STREAMS_MAX,
    Ack,
    Bye,
    ChainAt,
    DevicesChanged,
    Draining,
    Error,
    Heal,
    Ping,
    Pong,
    Presence,
    Read,
    Rekey,
    Signal,
    Signalled,
    Subscribe,
    Unsubscribe,
    decode_from_device,
)
from keepstep.protocol.primitives import RECORD_TAG_BYTES
from keepstep.protocol.results import encode_accepted
from keepstep.sessionrecords import session_records
from keepstep.sessionservices import farewell_timeout_s
from keepstep.subscriber import Subscriber
from keepstep.suspects import SUSPECT_INFLIGHT_MAX

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from keepstep._keepstep import Submission
    from keepstep.interfaces import Connection, Opened, Resting
    from keepstep.model import Principal
    from keepstep.protocol.session import ServerSession
    from keepstep.sessionservices import SessionLimits, SessionServices
    from keepstep.subscription import SubscriberLimits

REPLIES_MAX: Final = 256
"""Answers that wait for a turn; above it the session is not read."""
REPLIES_BYTES_MAX: Final = 2 * 1024 * 1024
"""Their bytes; a single larger answer still goes."""
TURN_BYTES_MAX: Final = 256 * 1024
"""Bytes of events in one turn; one page above it still goes."""
RETRY_MS_DEFAULT: Final = 1_000
"""When to read the log again after it was away, where it did not say."""


class Session:
    """A device's session, from ``active`` to its end: an ``interfaces.RestingReceiver``. Live, run once.

    Args:
        connection: the device's transport.
        protocol: the session's records.
        services: see ``SessionServices``.
        principal: who the device is.
        session_no: how many sessions it has had, this one included.
        limits: see ``SessionLimits``.
        subscriber_limits: see ``SubscriberLimits``.
    """

    __slots__ = (
        "_acks",
        "_connection",
        "_draining",
        "_ended",
        "_ends_at_s",
        "_fault",
        "_heard_at_s",
        "_held",
        "_inflight",
        "_limits",
        "_listens",
        "_paused",
        "_protocol",
        "_pulled",
        "_pulling",
        "_reading",
        "_replies",
        "_replies_bytes",
        "_resting",
        "_scope",
        "_sent_at_s",
        "_services",
        "_suspect",
        "_wait_over",
        "_waiting",
        "end_reason",
        "live",
        "principal",
        "said_bye",
        "session_no",
        "subscriber",
    )

    def __init__(
        self,
        connection: Connection,
        protocol: ServerSession,
        services: SessionServices,
        *,
        principal: Principal,
        session_no: int,
        limits: SessionLimits,
        subscriber_limits: SubscriberLimits,
    ) -> None:
        self.principal = principal
        self.session_no = session_no
        self._connection = connection
        self._protocol = protocol
        self._services = services
        self._limits = limits
        self._suspect = services.publisher.suspects.knows(principal)
        self._inflight = 0
        self._replies: list[bytes] = []
        self._replies_bytes = 0
        self._acks = False
        self._held: deque[Opened] | None = None
        self._paused = False
        self._pulled: list[bytes] | None = None
        self._waiting: trio.CancelScope | None = None
        self._pulling: trio.CancelScope | None = None
        self._reading = False
        self._wait_over: trio.Event | None = None
        self._listens = False
        self._draining = False
        self._ended = False
        self._resting: Resting | None = None
        self._ends_at_s = math.inf
        self._scope: trio.CancelScope | None = None
        self._fault: Exception | None = None
        self._heard_at_s = trio.current_time()
        self._sent_at_s = -math.inf
        self.end_reason: ProtocolError | None = None
        self.said_bye = False
        wake = partial(services.turns.ask, self)  # the same object wherever it is kept
        self.subscriber = Subscriber(
            services.log,
            services.signer,
            services.clock,
            principal=principal,
            limits=subscriber_limits,
            wake=wake,
            relayed=services.metrics.relayed_events,
            rewinds=services.healing.rewinds,
            holds=self._holds,
        )
        self.live = services.presences.join(principal, wake=wake, offer=self._offer)

    # -- life -------------------------------------------------------------------------------------------------------

    def rest(self, resting: Resting) -> None:
        """Serve without a task until there is an end to see to, where the connection can; then ``run`` does that."""
        self._resting = resting
        self._begin()
        resting.rest(self, session_records(self._protocol, self.principal, self._limits))
        if self._ended:  # while Ready was on its way
            self._rouse()

    async def resume(self) -> None:
        """As ``RestingReceiver.resume``."""
        await self._services.resume(self)

    async def run(self) -> None:
        """Serve until the session is over; afterwards ``end_reason`` says why, ``None`` where the device left."""
        try:
            resting = self._resting
            with self._bounds() if resting is None or not resting.is_over else nullcontext():
                if resting is not None:
                    await resting.over()
                else:
                    self._begin()
                    await self._connection.listen(self, session_records(self._protocol, self.principal, self._limits))
        finally:
            self._listens = False
            self.end(None)
            if self._waiting is not None or self._pulling is not None:
                with trio.CancelScope(shield=True):
                    await self._stop_waiting()
        if self._fault is not None:
            raise self._fault

    def _begin(self) -> None:
        self._listens = True
        self._heard_at_s = trio.current_time()
        self._services.turns.ask(self)

    def _bounds(self) -> trio.CancelScope:
        """What ends ``run``: made when there is something to end."""
        self._scope = self._scope or trio.CancelScope(deadline=self._ends_at_s)
        return self._scope

    async def _stop_waiting(self) -> None:
        """End what the session waits for, and return when it has ended: what cannot be cancelled is short."""
        self._wait_over = trio.Event()
        for scope in (self._waiting, self._pulling):
            if scope is not None:
                scope.cancel()
        while self._waiting is not None or self._pulling is not None:
            await self._wait_over.wait()
            self._wait_over = trio.Event()

    def end(self, reason: ProtocolError | None) -> None:
        """Finish: the first reason counts. What is already answered still goes out."""
        if not self._ended:
            self._ended = True
            self.end_reason = reason
            self._ends_at_s = trio.current_time() + farewell_timeout_s(reason)
            if self._scope is not None:
                self._scope.deadline = self._ends_at_s
            self._services.turns.ask(self)
            self._rouse()

    def _rouse(self) -> None:
        if self._resting is not None:
            self._resting.rouse()

    def fail(self, error: Exception) -> None:
        """A fault of ours ends the session at once; ``run`` raises it."""
        self._fault = self._fault or error
        self._bounds().cancel()
        self._rouse()

    @property
    def is_over(self) -> bool:
        """Whether it has ended, though it may not be cleared away yet."""
        return self._ended

    def check_timeouts(self) -> None:
        """End where the device says nothing or takes nothing for too long; called now and then.

        So a message costs a look at the clock and not a cancel scope. Until it listens the handshake's time counts.
        """
        if not self._listens:
            return
        now_s = trio.current_time()
        if not self._paused and now_s - self._heard_at_s > self._limits.idle_timeout_s:
            self.end(ProtocolError("timeout", "no message from the device"))
        if self._connection.blocked and now_s - self._sent_at_s > self._limits.send_timeout_s:
            self.end(ProtocolError("timeout", "the device does not take what it is sent"))

    def check_log(self) -> None:
        """End where the log is another one than it was, so that the device resumes in the one that is."""
        try:
            self.subscriber.check_log()
        except ProtocolError as error:
            self.end(error)

    def drain(self, reconnect_after_ms: int) -> None:
        """Take nothing new, tell the device, and end when what is under way is answered."""
        if not self._draining:
            self._draining = True
            self._reply(encode(Draining(reconnect_after_ms)))

    def tell(self, encoded: bytes) -> None:
        """Send the device a message that it has not asked for."""
        self._reply(encoded)

    def _offer(self, encoded: bytes) -> bool:
        """Send the device a message of another device's, unless too much waits already; whether it was taken."""
        if self._ended or self._is_full():
            return False
        self._reply(encoded)
        return True

    def revoke(self, notice: bytes | None) -> None:
        """The device has ended: tell it by what (``messages.Revoked``), where that is known, and finish."""
        if notice is not None and not self._ended:
            self._reply(notice)
        self.end(ProtocolError("revoked"))

    def devices_changed(self, seq: int) -> None:
        """``$devices`` moved, and the session does not follow it."""
        self._reply(encode(DevicesChanged(seq)))

    # -- what comes -------------------------------------------------------------------------------------------------

    def received(self, opened: Sequence[Opened], record_bytes: int, now_s: float) -> None:
        """As ``Receiver.received``."""
        self._heard_at_s = now_s
        self._services.metrics.received_bytes.total += record_bytes
        if self._held:
            self._held.extend(opened)
        else:
            self._take(opened)

    def lost(self, reason: ProtocolError | None) -> None:
        """As ``Receiver.lost``."""
        self.end(reason)

    def writable(self) -> None:
        """As ``Receiver.writable``."""
        self._services.turns.ask(self)

    def _take(self, opened: Iterable[Opened]) -> None:
        """Act on messages in order; hold back those that have to wait for what came before."""
        following = iter(opened)
        publishes = 0
        # Otherwise nothing has come to wait since it was last asked.
        crowded = (self._paused or self._suspect or bool(self._replies)) and self._crowded()
        try:
            self._check_standing()
            for each in following:
                if self._ended:
                    break
                if crowded:
                    self._held = deque((each, *following))
                    break
                if isinstance(each, tuple):
                    publishes += 1
                    self._publish(*each)
                elif isinstance(each, bytes):
                    self._act(each)
                else:
                    raise each
                crowded = self._crowded()
        except ProtocolError as error:
            self.end(error)
        self._services.metrics.messages_received.count("Publish", publishes)
        if crowded and not self._paused:
            self._paused = True
            self._connection.pause()

    def _go_on(self) -> None:
        """Take what was held back, and read on, where there is room again."""
        if self._ended or self._crowded():
            return
        if self._held:
            held, self._held = self._held, None
            self._take(held)
        if not self._crowded() and not self._ended:
            self._paused = False
            self._heard_at_s = trio.current_time()
            self._connection.resume()

    def _crowded(self) -> bool:
        """Whether acting on more would make the session hold more than it may, or get ahead of what waits."""
        return (
            self._waiting is not None
            or self._inflight >= (SUSPECT_INFLIGHT_MAX if self._suspect else self._limits.inflight_publishes_max)
            or (bool(self._replies) and self._is_full())
            or len(self.subscriber.refusals) >= SUBSCRIBE_STREAMS_MAX
        )

    def _is_full(self) -> bool:
        """Whether as many answers wait for a turn as may."""
        return len(self._replies) >= REPLIES_MAX or self._replies_bytes >= REPLIES_BYTES_MAX

    def _check_standing(self) -> None:
        """The device may go on, and its row numbers mean what they did. Raises ProtocolError."""
        if self._services.log.generation() != self.subscriber.generation:
            self.subscriber.check_log()
        # Most have no end, and need no look at the clock.
        if self.principal.expires_at_ms is not None and self.principal.is_expired(self._services.clock.now_ms()):
            raise ProtocolError("auth_failed", "the device has expired")

    def _act(self, plaintext: bytes) -> None:
        """Do what a message says that is no publish."""
        try:
            message = decode_from_device(plaintext)
        except ProtocolError as error:
            if error.code != "unsupported":
                raise
            self._reply_error(None, error)
            return
        self._services.metrics.messages_received.count(type(message).__name__)
        match message:
            case Ack():
                self.subscriber.acknowledge(message.positions)
            case Ping():
                self._reply(encode(Pong(message.rid)))
            case Subscribe():
                self.subscriber.subscribe(message)
            case Unsubscribe():
                self.subscriber.unsubscribe(message.streams)
            case Read() | ChainAt() | Heal():
                self._wait_for(partial(self._look_up, message))
            case Signal():
                self._signal(message)
            case Presence():
                self._announce(message)
            case Rekey():
                pass  # the reader of the session's records has heeded it
            case _:
                assert isinstance(message, Bye)
                self.said_bye = True
                self._draining = True
                self._services.turns.ask(self)

    def _signal(self, message: Signal) -> None:
        try:
            self.live.signal(message.to, message.sealed)
        except ProtocolError as error:
            self._reply_error(message.rid, error)
        else:
            self._reply(encode(Signalled(message.rid)))

    def _announce(self, message: Presence) -> None:
        try:
            self.live.announce(message.sealed)
        except ProtocolError as error:
            self._reply_error(None, error)

    def _publish(self, rid: int, published: Submission | ProtocolError) -> None:
        publisher = self._services.publisher
        if self._suspect:
            self._suspect = publisher.suspects.knows(self.principal)
            if publisher.suspects.wait_ms(self.principal):
                self._wait_for(partial(self._publish_later, rid, published))
                return
        submission = self._admitted(rid, published)
        if submission is not None and not publisher.submit_nowait(
            self.principal, submission, self, rid, self.subscriber.generation, self._heard_at_s
        ):
            self._wait_for(partial(self._submit, rid, submission))

    async def _publish_later(self, rid: int, published: Submission | ProtocolError) -> None:
        """Publish when a device that sent too many bad signatures may have more verified (``suspects``)."""
        await self._services.publisher.suspects.wait(self.principal)
        submission = self._admitted(rid, published)
        if submission is not None:
            await self._submit(rid, submission)

    async def _submit(self, rid: int, submission: Submission) -> None:
        publisher, generation = self._services.publisher, self.subscriber.generation
        await publisher.submit(self.principal, submission, self, rid, generation=generation)

    def _admitted(self, rid: int, published: Submission | ProtocolError) -> Submission | None:
        """A publish as the device may send it now, counted as in flight; ``None`` where it is refused."""
        if self._draining:
            published = ProtocolError("draining")
        if isinstance(published, ProtocolError):
            self._reply_error(rid, published)
            return None
        if self._suspect:
            published = published.as_suspect()
        if self.principal.manage_from_ms:  # most have no cool-down, and need no look at the clock
            capabilities = self.principal.capabilities_at(self._services.clock.now_ms())
            published = published.with_capabilities(capabilities)
        self._inflight += 1
        return published

    def answered(self, rid: int, results: bytes, *, suspect: bool) -> None:
        """As ``Submitter.answered``."""
        self._inflight -= 1
        self._suspect = self._suspect or suspect
        self._acks = True
        self._reply(encode_accepted(rid, results))

    # -- what takes a while -----------------------------------------------------------------------------------------

    def _wait_for(self, work: Callable[[], Awaitable[object]]) -> None:
        """Do nothing of what comes next before ``work`` is done."""
        self._waiting = self._services.turns.wait_for(self, partial(self._wait, work))

    async def _wait(self, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        finally:
            self._waiting = None
            self._waited()

    def _waited(self) -> None:
        """Something that was waited for is over."""
        if self._wait_over is not None:
            self._wait_over.set()
        self._services.turns.ask(self)

    async def _look_up(self, message: Read | ChainAt | Heal) -> None:
        """Answer what only the log knows."""
        try:
            answer = await look_up(self._services, self._limits, self.principal, message)
        except ProtocolError as error:
            self._reply_error(message.rid, error)
        else:
            self._reply(answer)

    async def _pull_stored(self) -> None:
        """Take what the session follows from the database, for its next turn; wait while the log is away."""
        self._reading = True
        try:
            pulled = await self.subscriber.pull()
            self.subscriber.check_log()  # what was read and signed meanwhile may be of two logs
            self._pulled = pulled
        except Unavailable as error:
            self._reading = False
            self._services.turns.ask(self)
            await trio.sleep((error.retry_after_ms or RETRY_MS_DEFAULT) / 1000)
        except ProtocolError as error:
            self.end(error)
        finally:
            self._reading = False
            self._pulling = None
            self._waited()

    def _holds(self) -> bool:
        """Whether what is to be sent waits longer than for the next turn."""
        return self._pulling is not None or not self._listens or self._connection.blocked

    # -- what goes --------------------------------------------------------------------------------------------------

    def _reply(self, encoded: bytes) -> None:
        self._replies.append(encoded)
        self._replies_bytes += len(encoded)
        self._services.turns.ask(self)

    def _reply_error(self, rid: int | None, error: ProtocolError) -> None:
        self._reply(encode(Error(rid, error.code, error.retry_after_ms)))

    def turn(self) -> bool:
        """As ``TakesTurns.turn``: answers, what other devices tell, then pages of the streams the session follows."""
        connection = self._connection
        if not self._listens or connection.blocked:
            return False  # ``run`` and ``writable`` ask again
        if self._reading and not self._ended:
            # What is read says how far the device's own events got: it must not come after the answers to later ones.
            return False
        messages, acks = self._replies, self._acks
        self._replies, self._replies_bytes, self._acks = [], 0, False
        if self._pulled is not None:
            messages[:0], self._pulled = self._pulled, None
        if self.live.marked:
            messages += self.live.pull()
        subscriber = self.subscriber
        more = False
        if (subscriber.ahead or subscriber.is_marked) and not self._ended and self._pulling is None:
            more = self._pull(messages, subscriber)
        if messages:
            services = self._services
            self._sent_at_s = now_s = services.turns.now_s
            connection.write(self._protocol.prepare(messages, now_s=now_s))
            metrics = services.metrics
            metrics.sent_records.total += len(messages)
            metrics.sent_bytes.total += sum(map(len, messages)) + RECORD_TAG_BYTES * len(messages)
            if acks:
                services.probe("after_ack")
        elif self._draining and not self._inflight:
            self.end(None if self.said_bye else ProtocolError("draining"))
        if self._ended:
            return self._take_leave()
        if self._paused:
            self._go_on()
        return more or bool(self.live.marked) or (bool(messages) and self._draining)

    def _pull(self, messages: list[bytes], subscriber: Subscriber) -> bool:
        """Add what the streams that the session follows have for it; whether there may be more at once."""
        try:
            if self._services.log.generation() != subscriber.generation or self.principal.expires_at_ms is not None:
                self._check_standing()
            messages += subscriber.ahead
            size = subscriber.ahead_bytes
            subscriber.ahead.clear()
            subscriber.ahead_bytes = 0
            while subscriber.is_marked:
                page = subscriber.pull_nowait()
                if page is None:
                    self._pulling = self._services.turns.wait_for(self, self._pull_stored)
                    return False
                if not page:
                    subscriber.is_marked = subscriber.is_due  # something may wait for credit
                    return False
                messages += page
                size += sum(map(len, page))
                if size >= TURN_BYTES_MAX:
                    return True
        except ProtocolError as error:
            self.end(error)
            return True
        return False

    def _take_leave(self) -> bool:
        """Stop listening once everything has gone; whether to look again at once."""
        if self._connection.backlog_bytes:
            return not self._connection.blocked
        if self._resting is not None:
            self._resting.stop()
        else:
            self._bounds().cancel()
        return False
