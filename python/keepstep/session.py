"""One authenticated device connection: a reader, a writer, and what waits between them (protocol.md section 4).

The reader opens records and acts on them; it stops reading when the session has too much under way, so that a device
feels backpressure instead of the server growing. The writer sends answers, then pages of the streams the session
follows. Whoever ends the session says why; what is already answered still goes out.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from keepstep._keepstep import DeviceKey, Events, Submission
from keepstep.errors import ProtocolError, Unavailable
from keepstep.interfaces import ConnectionClosed
from keepstep.model import Capability
from keepstep.pages import encode_read_result
from keepstep.protocol.messages import (
    SUBSCRIBE_STREAMS_MAX,
    Accepted,
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
    Publish,
    Read,
    Rekey,
    Signal,
    Signalled,
    Subscribe,
    Unsubscribe,
    encode,
)
from keepstep.subscriber import reading_refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keepstep.healing import Healing
    from keepstep.interfaces import Clock, Connection, EventLog
    from keepstep.model import Principal
    from keepstep.presence import LiveSession
    from keepstep.protocol.messages import FromDevice
    from keepstep.protocol.session import ServerSession
    from keepstep.publish import Answered, Publisher
    from keepstep.subscriber import Subscriber
    from keepstep.telemetry import Metrics

REPLIES_MAX: Final = 256
"""Answers that wait for the writer; above it the session is not read."""
REPLIES_BYTES_MAX: Final = 2 * 1024 * 1024
"""Their bytes; a single larger answer still goes."""
FAREWELL_TIMEOUT_S: Final = 1.0
"""How long an ending session's writer may take for what is already answered."""
HURRIED_FAREWELL_TIMEOUT_S: Final = 0.25
"""The same for a device that has ended or is cut off: all of it is over within a second."""
_HURRIED: Final = frozenset({"revoked", "account_disabled", "session_cut"})
RETRY_MS_DEFAULT: Final = 1_000
"""When to read the log again after it was away, where it did not say."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What a session may cost.

    Attributes:
        inflight_publishes_max: publishes without an answer; above it the session is not read.
        publish_events_max: events in one publish.
        payload_bytes_max: bytes of one payload.
        read_events_max: events in the answer to one ``read``.
        read_bytes_max: bytes in it; one event above it still goes.
        send_timeout_s: for one write to the device.
        idle_timeout_s: without a message from the device.
    """

    inflight_publishes_max: int
    publish_events_max: int
    payload_bytes_max: int
    read_events_max: int
    read_bytes_max: int
    send_timeout_s: float
    idle_timeout_s: float


class Session:
    """A device's session, from ``active`` to its end. Live; owned by the gateway, which runs it once.

    Args:
        connection: the device's transport.
        protocol: the session's records.
        principal: who the device is.
        session_no: how many sessions it has had, this one included.
        follow: makes the session's subscriber from its wake-up.
        join: makes its part in presence and signals, from its wake-up and what takes a message for it.
        log: the log, for ``read``.
        publisher: where publishes go.
        healing: what answers after a restore.
        clock: the one ``received_at`` follows.
        limits: see ``SessionLimits``.
        metrics: counted into.
        probe: called with ``after_ack`` when acknowledgements have been handed to the socket.
    """

    def __init__(
        self,
        connection: Connection,
        protocol: ServerSession,
        *,
        principal: Principal,
        session_no: int,
        follow: Callable[[Callable[[], None]], Subscriber],
        join: Callable[[Callable[[], None], Callable[[bytes], bool]], LiveSession],
        log: EventLog,
        publisher: Publisher,
        healing: Healing,
        clock: Clock,
        limits: SessionLimits,
        metrics: Metrics,
        probe: Callable[[str], None],
    ) -> None:
        self.principal = principal
        self.session_no = session_no
        self.subscriber = follow(self._wake)
        self._connection = connection
        self._protocol = protocol
        self._log = log
        self._publisher = publisher
        self._healing = healing
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self._probe = probe
        self._device_key = DeviceKey(principal.device_key)
        self._suspect = False
        self._replies: deque[tuple[bytes, bool]] = deque()
        self._replies_bytes = 0
        self._inflight = 0
        self._news = trio.Event()
        self._room = trio.Event()
        self._draining = False
        self._ended = trio.Event()
        self._written = trio.Event()
        self._pull_at_s = -math.inf
        self._receiving_since_s = math.inf
        self._sending_since_s = math.inf
        self.end_reason: ProtocolError | None = None
        self.said_bye = False
        self.live = join(self._wake, self._offer)

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until the session is over; afterwards ``end_reason`` says why, ``None`` where the device left."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ending, self._read)
            nursery.start_soon(self._ending, self._write)
            await self._ended.wait()
            hurries = self.end_reason is not None and self.end_reason.code in _HURRIED
            with trio.move_on_after(HURRIED_FAREWELL_TIMEOUT_S if hurries else FAREWELL_TIMEOUT_S):
                await self._written.wait()
            nursery.cancel_scope.cancel()

    def end(self, reason: ProtocolError | None) -> None:
        """Finish: the first reason counts. What is already answered still goes out."""
        if not self._ended.is_set():
            self.end_reason = reason
            self._ended.set()
            self._wake()

    @property
    def is_over(self) -> bool:
        """Whether it has ended, though it may not be cleared away yet."""
        return self._ended.is_set()

    def check_timeouts(self) -> None:
        """End where the device says nothing or takes nothing for too long; called now and then.

        So a message costs a look at the clock and not two cancel scopes.
        """
        now_s = trio.current_time()
        if now_s - self._receiving_since_s > self._limits.idle_timeout_s:
            self.end(ProtocolError("timeout", "no message from the device"))
        if now_s - self._sending_since_s > self._limits.send_timeout_s:
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
        if self._ended.is_set() or self._is_full():
            return False
        self._reply(encoded)
        return True

    def revoke(self, notice: bytes | None) -> None:
        """The device has ended: tell it by what (``messages.Revoked``), where that is known, and finish."""
        if notice is not None and not self._ended.is_set():
            self._reply(notice)
        self.end(ProtocolError("revoked"))

    def devices_changed(self, seq: int) -> None:
        """``$devices`` moved, and the session does not follow it."""
        self._reply(encode(DevicesChanged(seq)))

    async def _ending(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Run the reader or the writer; however it ends, the session ends."""
        try:
            await loop()
        except ProtocolError as error:
            self.end(error)
        except ConnectionClosed:
            self.end(None)
        finally:
            self.end(None)

    # -- reader -----------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            self._receiving_since_s = trio.current_time()
            data = await self._connection.receive()
            self._receiving_since_s = math.inf
            self._metrics.received_bytes.inc(len(data))
            try:
                message = self._protocol.receive(data)
            except ProtocolError as error:
                if error.code != "unsupported":
                    raise
                self._reply_error(None, error)
            else:
                self._check_standing()
                self._metrics.received(type(message))
                await self._act(message)
            while self._crowded():
                self._room = trio.Event()
                await self._room.wait()

    def _crowded(self) -> bool:
        """Whether reading on would make the session hold more than it may."""
        return (
            self._inflight >= self._limits.inflight_publishes_max
            or self._is_full()
            or self.subscriber.refusals >= SUBSCRIBE_STREAMS_MAX
        )

    def _is_full(self) -> bool:
        """Whether as many answers wait for the writer as may."""
        return len(self._replies) >= REPLIES_MAX or self._replies_bytes >= REPLIES_BYTES_MAX

    def _check_standing(self) -> None:
        """The device may go on, and its row numbers mean what they did. Raises ProtocolError."""
        self.subscriber.check_log()
        if self.principal.is_expired(self._clock.now_ms()):
            raise ProtocolError("auth_failed", "the device has expired")

    async def _act(self, message: FromDevice) -> None:
        match message:
            case Publish():
                await self._publish(message)
            case Ack():
                self.subscriber.acknowledge(message.positions)
            case Ping():
                self._reply(encode(Pong(message.rid)))
            case Subscribe():
                self.subscriber.subscribe(message)
            case Unsubscribe():
                self.subscriber.unsubscribe(message.streams)
            case Read():
                await self._read_page(message)
            case ChainAt() | Heal():
                await self._heal(message)
            case Signal():
                self._signal(message)
            case Presence():
                self._announce(message)
            case Rekey():
                pass  # the session's records have it already
            case _:
                assert isinstance(message, Bye)
                self.said_bye = True
                self._draining = True
                self._wake()

    async def _heal(self, message: ChainAt | Heal) -> None:
        try:
            if isinstance(message, ChainAt):
                self._reply(encode(await self._healing.chains(self.principal, message)))
            else:
                self._reply(encode(await self._healing.heal(self.principal, message)))
        except ProtocolError as error:
            self._reply_error(message.rid, error)

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

    async def _publish(self, message: Publish) -> None:
        rid = message.rid
        try:
            if self._draining:
                raise ProtocolError("draining")
            events = Events.parse(
                memoryview(message.events),
                events_max=self._limits.publish_events_max,
                payload_bytes_max=self._limits.payload_bytes_max,
            )
        except ProtocolError as error:
            self._reply_error(rid, error)
            return
        submission = Submission(
            user_pk=self.principal.user_pk,
            user_key=self.principal.user_key,
            device_pk=self.principal.device_pk,
            device_id=self.principal.device_id,
            device_key=self._device_key,
            capabilities=int(self.principal.capabilities_at(self._clock.now_ms())),
            events=events,
            suspect=self._suspect,
        )

        def answer(answered: Answered) -> None:
            self._inflight -= 1
            self._suspect = self._suspect or answered.suspect
            self._reply(encode(Accepted(rid, answered.results)), ack=True)

        self._inflight += 1
        await self._publisher.submit(self.principal, submission, answer)

    async def _read_page(self, message: Read) -> None:
        try:
            if not self.principal.capabilities & Capability.SUBSCRIBE:
                raise ProtocolError("forbidden")
            refusal = reading_refusal(message.stream, self.principal.device_id)
            if refusal is not None:
                raise ProtocolError(refusal)
            page = await self._log.read(
                self.principal.user_pk,
                message.stream,
                after=message.after,
                events_max=min(message.limit, self._limits.read_events_max),
                bytes_max=self._limits.read_bytes_max,
                now_ms=self._clock.now_ms(),
            )
        except ProtocolError as error:
            self._reply_error(message.rid, error)
        else:
            self._reply(encode_read_result(message.rid, message.stream, page))

    # -- between them -------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._news.set()

    def _reply(self, encoded: bytes, *, ack: bool = False) -> None:
        self._replies.append((encoded, ack))
        self._replies_bytes += len(encoded)
        self._wake()

    def _reply_error(self, rid: int | None, error: ProtocolError) -> None:
        self._reply(encode(Error(rid, error.code, error.retry_after_ms)))

    # -- writer -----------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        try:
            while True:
                # protocol.md section 4: "one wake-up flag (clear, read, then wait)"
                self._news = trio.Event()
                while await self._turn():
                    pass
                if self._ended.is_set():
                    return
                if self._draining and not self._inflight:
                    self.end(None if self.said_bye else ProtocolError("draining"))
                    return
                if self._pull_at_s <= trio.current_time():
                    await self._news.wait()
                else:
                    with trio.move_on_at(self._pull_at_s):  # the next try to read the log, which was away
                        await self._news.wait()
        finally:
            self._written.set()

    async def _turn(self) -> bool:
        """Send what there is, at most one page of it; whether there was anything."""
        messages = [message for message, _ in self._replies]
        acks = any(ack for _, ack in self._replies)
        self._replies.clear()
        self._replies_bytes = 0
        messages += self.live.pull()
        if not self._ended.is_set() and self._pull_at_s <= trio.current_time():
            messages += await self._pull()
        self._room.set()
        if not messages:
            return False
        records = self._protocol.send(messages, now_s=self._clock.monotonic_s())
        self._sending_since_s = trio.current_time()
        await self._connection.send(records)
        self._sending_since_s = math.inf
        self._metrics.sent_records.inc(len(records))
        self._metrics.sent_bytes.inc(sum(map(len, records)))
        if acks:
            self._probe("after_ack")
        return True

    async def _pull(self) -> list[bytes]:
        """The next messages of the streams the session follows; none while the log is away."""
        try:
            self._check_standing()
            messages = await self.subscriber.pull()
            self.subscriber.check_log()  # what was read and signed meanwhile may be of two logs
        except Unavailable as error:
            self._pull_at_s = trio.current_time() + (error.retry_after_ms or RETRY_MS_DEFAULT) / 1000
        except ProtocolError as error:
            self.end(error)
        else:
            return messages
        return []
