"""Device connections from the upgraded socket to the end of the session (protocol.md sections 2 and 4).

One nursery per connection. A stranger gets one deadline up to ``active`` and costs little until then; a device that
connects again replaces its earlier session; draining lets what is under way finish.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from keepstep import _keepstep
from keepstep.arrivals import DeviceEnded, open_session
from keepstep.errors import ProtocolError, Unavailable
from keepstep.interfaces import ConnectionClosed
from keepstep.model import DEVICES_STREAM, KEY_BYTES, SESSION_ID_BYTES
from keepstep.protocol.handshake import ServerHandshake
from keepstep.protocol.messages import MESSAGE_BYTES_MAX, PUBLISH_BYTES_MAX, KeyAnnounced, Ready, Subscribe, encode
from keepstep.protocol.primitives import SUITE_AES_256_GCM, SUITE_CHACHA20_POLY1305
from keepstep.revocation import read_notice
from keepstep.session import Session
from keepstep.sessionservices import SessionServices
from keepstep.telemetry import BoundedLines, describe
from keepstep.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keepstep.heads import HeadSigner
    from keepstep.healing import Healing
    from keepstep.identity import Identity
    from keepstep.interfaces import Accounts, Clock, Connection, EventLog, OpenedSession, Randomness
    from keepstep.model import DevicePk, Position, Principal, UserPk
    from keepstep.presence import Presences
    from keepstep.protocol.messages import ClientAuthCore, SignedHead
    from keepstep.protocol.session import ServerSession
    from keepstep.publish import Publisher
    from keepstep.relay import Relay
    from keepstep.sessionservices import SessionLimits
    from keepstep.subscription import SubscriberLimits
    from keepstep.telemetry import Log, Metrics

SUITES: Final = (SUITE_AES_256_GCM, SUITE_CHACHA20_POLY1305)
"""Record suites in order of preference; AES-256-GCM first, which processors have instructions for."""
HANDSHAKES_AT_ONCE: Final = 64
"""Proofs that are checked and looked up at the same time, so that a rush of them never delays active sessions: as many
as one statement takes."""
TIMEOUT_CHECKS: Final = 8
"""Looks at the sessions' timeouts within the shortest of them: each ends at most an eighth of that too late."""
CLEANUP_TIMEOUT_S: Final = 5.0
"""How long recording the end of a session may take."""
RECONNECT_AFTER_MS_MIN: Final = 500
RECONNECT_AFTER_MS_MAX: Final = 5_000
"""Draining spreads the devices' return over this span."""
REPLACED_MAX: Final = 5
REPLACED_WINDOW_S: Final = 600.0
"""protocol.md section 2: a device that replaces itself "more than five" times "in ten minutes is `cloned`"."""
REPLACED_DEVICES_MAX: Final = 10_000
"""Devices whose replacements are remembered; beyond it the oldest are forgotten."""
NORMAL_CLOSE: Final = 1000
"""WebSocket's own code for a device that said bye."""


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """What connections may cost.

    Attributes:
        handshake_timeout_s: from the accepted socket to ``active``.
        session: of each session.
        subscriber: of each session's positions.
    """

    handshake_timeout_s: float
    session: SessionLimits
    subscriber: SubscriberLimits


@dataclass(frozen=True, slots=True)
class Services:
    """What the gateway needs of the rest of the server; ``clock`` is the one ``received_at`` follows."""

    log: EventLog
    accounts: Accounts
    identity: Identity
    publisher: Publisher
    relay: Relay
    presences: Presences
    signer: HeadSigner
    clock: Clock
    randomness: Randomness
    metrics: Metrics
    logger: Log
    probe: Callable[[str], None]
    healing: Healing


@dataclass(slots=True, eq=False)
class _Record:
    """What is known of a connection so far, for its log line and for recording its end.

    ``is_open``: its session was logged; ``rests``: it has no task until the session resumes.
    """

    connection: Connection
    principal: Principal | None = None
    session_id: bytes | None = None
    session_no: int = 0
    session: Session | None = None
    is_open: bool = False
    rests: bool = False
    reason: str = "stopped"


class Gateway:
    """Every device connection of this process.

    Args:
        server_secret: the seed of the server's identity key, 32 bytes.
        services: see ``Services``.
        limits: see ``GatewayLimits``.
        announcement: what devices are told of the server's next identity key (``messages.KeyAnnounced``), if anything.
    """

    def __init__(
        self,
        server_secret: bytes,
        services: Services,
        limits: GatewayLimits,
        *,
        announcement: Callable[[], bytes | None] = lambda: None,
    ) -> None:
        self._identity = _keepstep.SigningKey(server_secret)
        self._announcement = announcement
        self._services = services
        self._turns = Turns()
        self._session_services = SessionServices(
            services.log,
            services.signer,
            services.publisher,
            services.healing,
            services.presences,
            services.clock,
            services.metrics,
            services.probe,
            self._turns,
            self._resume,
        )
        self.limits = limits
        self._by_device: dict[tuple[UserPk, DevicePk], Session] = {}
        self._by_user: dict[UserPk, list[Session]] = {}
        self._sessions: dict[Session, _Record] = {}
        self._connections = 0
        self._left = trio.Event()
        self._replaced: OrderedDict[tuple[UserPk, DevicePk], deque[float]] = OrderedDict()
        self._strangers: set[trio.CancelScope] = set()
        self._handshakes = trio.CapacityLimiter(HANDSHAKES_AT_ONCE)
        self._draining = False
        self._refusals = BoundedLines(services.logger)

    def is_draining(self) -> bool:
        """Whether the server is going down."""
        return self._draining

    @property
    def sessions(self) -> int:
        """Active sessions."""
        return len(self._sessions)

    def session(self, user_pk: UserPk, device_pk: DevicePk) -> Session | None:
        """A device's session."""
        return self._by_device.get((user_pk, device_pk))

    def sessions_of(self, user_pk: UserPk) -> list[Session]:
        """All sessions of a user."""
        return self._by_user.get(user_pk, [])

    def tell_announcement(self, announcement: bytes) -> None:
        """Tell every connected device of the server's next identity key (``messages.KeyAnnounced``)."""
        encoded = encode(KeyAnnounced(announcement))
        for session in tuple(self._sessions):
            session.tell(encoded)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Give the sessions their turns, and look after their timeouts and their log, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._turns.run)
            nursery.start_soon(self._look_after_sessions)
            task_status.started()

    async def _look_after_sessions(self) -> None:
        session = self.limits.session
        interval_s = min(session.idle_timeout_s, session.send_timeout_s) / TIMEOUT_CHECKS
        while True:
            await trio.sleep(interval_s)
            for each in tuple(self._sessions):
                each.check_timeouts()
                each.check_log()

    async def handle(self, connection: Connection) -> None:
        """Serve one upgraded connection until it rests, or to its end. Never raises but on cancellation."""
        self._connections += 1
        await self._serve(_Record(connection))

    async def _resume(self, session: Session) -> None:
        """Serve a session that rested to its end, and close its connection."""
        record = self._sessions[session]
        record.rests = False
        resting = record.connection.resting
        assert resting is not None, "it rested"
        try:
            reason = await self._until_over(record, self._run)
        except BaseException:  # cancelled: its connection is closed by whoever cancelled
            self._has_left()
            raise
        resting.part(*_closing(reason), self._has_left)

    async def _serve(self, record: _Record) -> None:
        """Connection, handshake and session; close the connection unless it rests."""
        try:
            reason = await self._until_over(record, self._begin)
            if not record.rests:
                await record.connection.close(*_closing(reason))
        finally:
            if not record.rests:
                self._has_left()

    def _has_left(self) -> None:
        self._connections -= 1
        self._left.set()

    def report_fault(self, error: Exception, address: str) -> None:
        """Count and log what ended a connection from that IP address and should not have been."""
        self._services.metrics.faults.inc()
        self._services.logger.error("connection_fault", address=address, **describe(error))

    async def _until_over(
        self, record: _Record, work: Callable[[_Record], Awaitable[ProtocolError | None]]
    ) -> ProtocolError | None:
        """Do ``work``; unless the connection rests, its end is logged and recorded."""
        try:
            return await work(record)
        except Exception as error:  # a fault of ours ends this connection, not the server
            record.reason = "fault"
            self.report_fault(error, record.connection.address)
            return ProtocolError("internal")
        finally:
            if not record.rests:
                self._tell_end(record)
                with trio.move_on_after(CLEANUP_TIMEOUT_S, shield=True):
                    await self._record_end(record)

    async def _begin(self, record: _Record) -> ProtocolError | None:
        """Handshake and session; why it ended, ``None`` where the device left or the session rests."""
        connection, metrics = record.connection, self._services.metrics
        try:
            session, core = await self._admit(connection, record)
        except ProtocolError as error:
            record.reason = error.code
            if error.code == "cloned":
                await self._record_clone(record)
            metrics.handshakes.count(error.code)
            self._refusals.write(
                "handshake_refused", now_s=trio.current_time(), address=connection.address, code=error.code
            )
            return error
        except ConnectionClosed:
            metrics.handshakes.count("lost")
            return None
        metrics.handshakes.count("ready")
        metrics.handshake_seconds.observe_all((trio.current_time() - connection.accepted_at_s,))
        self._open(session, core, record)
        resting = connection.resting
        if resting is None:
            return await self._run(record)
        session.rest(resting)
        record.rests = True  # an idle device has no task
        return None

    # -- handshake --------------------------------------------------------------------------------------------------

    async def _admit(self, connection: Connection, record: _Record) -> tuple[Session, ClientAuthCore]:
        """The handshake up to ``active``, under one deadline; the session is in its device's place."""
        with trio.CancelScope(deadline=connection.accepted_at_s + self.limits.handshake_timeout_s) as scope:
            self._strangers.add(scope)
            try:
                if self._draining:
                    raise ProtocolError("draining")
                return await self._shake_hands(connection, record)
            finally:
                self._strangers.discard(scope)
        raise ProtocolError("draining" if self._draining else "timeout")

    async def _shake_hands(self, connection: Connection, record: _Record) -> tuple[Session, ClientAuthCore]:
        services = self._services
        drawn = services.randomness.bytes(2 * KEY_BYTES + SESSION_ID_BYTES)  # once, for it is a call of the system
        handshake = ServerHandshake(
            _keepstep,
            identity=self._identity,
            ephemeral_secret=drawn[:KEY_BYTES],
            nonce=drawn[KEY_BYTES : 2 * KEY_BYTES],
            server_time_ms=services.clock.now_ms(),
            epoch=services.signer.epoch,
            suites=SUITES,
        )
        await connection.send([handshake.receive_hello(await connection.receive())])
        data = await connection.receive()
        try:
            self._handshakes.acquire_nowait()
        except trio.WouldBlock:
            await self._handshakes.acquire()
        try:
            core = handshake.receive_auth(data)
            generation = services.log.generation()
            opened = await self._open_session(connection, handshake, core, record, drawn[2 * KEY_BYTES :])
            await services.healing.arrived(opened.known.principal)
        finally:
            self._handshakes.release()
        principal, session_id = opened.known.principal, record.session_id
        assert session_id is not None
        heads = [] if core.resume == "none" else [self._sign(principal, opened.devices)]
        # Only now: a thread may learn of another log at any time, and of its generation before its epoch.
        if services.log.generation() != generation:
            raise Unavailable("the log has become another one during the handshake")
        ready = Ready(session_id, record.session_no, self._told_limits(), [], heads)
        sealed, protocol = handshake.ready(ready, now_s=trio.current_time())
        record.session = session = self._session(connection, protocol, record, opened)
        connection.authenticated()
        await connection.send([sealed])
        announcement = self._announcement()
        if announcement is not None:
            session.tell(encode(KeyAnnounced(announcement)))
        return session, core

    async def _open_session(
        self,
        connection: Connection,
        handshake: ServerHandshake,
        core: ClientAuthCore,
        record: _Record,
        session_id: bytes,
    ) -> OpenedSession:
        """Who the device is; one that has ended is shown the event that ended it, sealed, before the refusal.

        protocol.md section 2: "A proven holder of a revoked key gets the signed revocation".
        """
        services = self._services
        now_ms = services.clock.now_ms()
        try:
            opened, record.session_no = await open_session(services.accounts, core, session_id, now_ms=now_ms)
        except DeviceEnded as error:
            ended = error
        else:
            record.principal, record.session_id = opened.known.principal, session_id
            return opened
        notice = await read_notice(services.log, ended.user_pk, ended.seq, now_ms=services.clock.now_ms())
        if notice is not None:
            await connection.send([handshake.refuse(notice, now_s=services.clock.monotonic_s())])
        raise ended

    def _sign(self, principal: Principal, head: Position) -> SignedHead:
        return self._services.signer.sign(principal.user_key, DEVICES_STREAM, seq=head.seq, chain=head.chain)

    def _told_limits(self) -> dict[str, int]:
        """``Ready.limits``."""
        session = self.limits.session
        return {
            "message_bytes": MESSAGE_BYTES_MAX,
            "publish_events": session.publish_events_max,
            "publish_bytes": PUBLISH_BYTES_MAX,
            "inflight_publishes": session.inflight_publishes_max,
            "unacked_bytes": self.limits.subscriber.unacked_bytes_max,
            "payload_bytes": session.payload_bytes_max,
        }

    def _session(
        self,
        connection: Connection,
        protocol: ServerSession,
        record: _Record,
        opened: OpenedSession,
    ) -> Session:
        """A session in its device's place, which an earlier one leaves."""
        principal = opened.known.principal
        self._take_place(principal, record.session_no)
        session = Session(
            connection,
            protocol,
            self._session_services,
            principal=principal,
            session_no=record.session_no,
            limits=self.limits.session,
            subscriber_limits=self.limits.subscriber,
        )
        self._sessions[session] = record
        self._by_user.setdefault(principal.user_pk, []).append(session)
        self._by_device[principal.user_pk, principal.device_pk] = session
        self._services.relay.add(
            session.subscriber, devices_pk=opened.devices_pk, devices_changed=session.devices_changed
        )
        return session

    def _take_place(self, principal: Principal, session_no: int) -> None:
        """End the device's earlier session.

        Raises:
            ProtocolError: ``replaced``: a later one is there already; ``cloned``: too many took each other's place.
        """
        device = principal.user_pk, principal.device_pk
        earlier = self._by_device.get(device)
        if earlier is None:
            return
        if earlier.session_no > session_no:
            raise ProtocolError("replaced")
        if earlier.is_over:
            return
        times = self._replaced.setdefault(device, deque())
        self._replaced.move_to_end(device)
        if len(self._replaced) > REPLACED_DEVICES_MAX:
            self._replaced.popitem(last=False)
        now_s = self._services.clock.monotonic_s()
        while times and times[0] <= now_s - REPLACED_WINDOW_S:
            times.popleft()
        if len(times) >= REPLACED_MAX:
            raise ProtocolError("cloned")
        times.append(now_s)
        earlier.end(ProtocolError("replaced"))

    async def _record_clone(self, record: _Record) -> None:
        """Remember that a device is in more than one place; ``revocation`` tells the user's sessions, on every node."""
        assert record.principal is not None
        services = self._services
        try:
            await services.accounts.record_clone(record.principal, now_ms=services.clock.now_ms())
        except Unavailable:
            services.logger.warning("clone_not_recorded", device_pk=record.principal.device_pk)

    # -- session ----------------------------------------------------------------------------------------------------

    def _open(self, session: Session, core: ClientAuthCore, record: _Record) -> None:
        principal = session.principal
        self._services.logger.info(
            "session_open", user_pk=principal.user_pk, device_pk=principal.device_pk, session_no=session.session_no
        )
        record.is_open = True
        if core.resume == "all":
            session.subscriber.subscribe(Subscribe("all"))
        elif core.resume != "none":
            session.subscriber.subscribe(Subscribe({DEVICES_STREAM: core.resume[0]}))
        if self._draining:
            session.drain(self._reconnect_after_ms())

    async def _run(self, record: _Record) -> ProtocolError | None:
        """The session, to its end."""
        session = record.session
        assert session is not None
        await session.run()
        end = session.end_reason
        record.reason = end.code if end is not None else "bye" if session.said_bye else "lost"
        return end

    def _tell_end(self, record: _Record) -> None:
        if record.is_open:
            assert record.principal is not None
            user_pk, device_pk, session_no = record.principal.user_pk, record.principal.device_pk, record.session_no
            self._services.metrics.session_ends.count(record.reason)
            self._services.logger.info(
                "session_closed", user_pk=user_pk, device_pk=device_pk, session_no=session_no, code=record.reason
            )

    async def _record_end(self, record: _Record) -> None:
        """Let a session's place go, and record its end; without the database the record stays open.

        The caller shields it and bounds its time.
        """
        session = record.session
        if session is not None:
            device = session.principal.user_pk, session.principal.device_pk
            if self._by_device.get(device) is session:
                del self._by_device[device]
            self._sessions.pop(session, None)
            of_user = self._by_user[session.principal.user_pk]
            of_user.remove(session)
            if not of_user:
                del self._by_user[session.principal.user_pk]
            self._services.relay.remove(session.subscriber)
            self._services.presences.leave(session.live)
        if record.session_id is None:
            return
        try:
            await self._services.accounts.close_session(
                record.session_id, now_ms=self._services.clock.now_ms(), reason=record.reason
            )
            if session is not None:
                await self._save_acks(session)
        except Unavailable:
            self._services.logger.warning("session_end_not_recorded", session_no=record.session_no)

    async def save_acks(self) -> None:
        """Record the acknowledged positions of every session. Raises Unavailable."""
        for session in tuple(self._sessions):
            await self._save_acks(session)

    async def _save_acks(self, session: Session) -> None:
        acks = session.subscriber.unsaved_acks
        if acks:
            await self._services.accounts.save_acks(session.principal, acks)
            session.subscriber.acks_saved(acks)

    # -- going down -------------------------------------------------------------------------------------------------

    def _reconnect_after_ms(self) -> int:
        span = RECONNECT_AFTER_MS_MAX - RECONNECT_AFTER_MS_MIN
        return RECONNECT_AFTER_MS_MIN + int.from_bytes(self._services.randomness.bytes(4), "big") % span

    async def drain(self) -> None:
        """Send strangers away, let sessions finish what is under way, return when every connection is closed.

        The caller bounds the time, and has stopped accepting.
        """
        self._draining = True
        self._services.metrics.draining.set(1)
        for scope in tuple(self._strangers):
            scope.cancel()
        for session in tuple(self._sessions):
            session.drain(self._reconnect_after_ms())
        await self._wait_until_left()

    async def dismiss(self) -> None:
        """End the sessions that have not drained, with what is answered by now; return when every connection is closed.

        The caller bounds the time.
        """
        for session in tuple(self._sessions):
            session.end(ProtocolError("draining"))
        await self._wait_until_left()

    async def _wait_until_left(self) -> None:
        while self._connections:
            self._left = trio.Event()
            await self._left.wait()


def _closing(reason: ProtocolError | None) -> tuple[int, str]:
    """Code and reason of the close frame that tells why a connection ends."""
    return (NORMAL_CLOSE, "") if reason is None else (reason.row.close_code, reason.code)
