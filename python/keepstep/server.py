"""The composition root: builds every part, owns the root nursery, and the order of starting and stopping.

Starting: sockets are bound (a busy port shows before anything else happens), the database is opened and migrated, the
parts are built, housekeeping is done once, then devices and REST clients are let in. Stopping: no new connections,
devices are told when to come back, what is under way is committed and acknowledged, then everything below ends.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
import trio
from hypercorn.config import Config, Sockets
from hypercorn.trio import serve as serve_hypercorn

import keepstep
from keepstep import keys, websocket
from keepstep.admission import Admission
from keepstep.config import variable
from keepstep.errors import StartupError, Unavailable
from keepstep.gateway import Gateway, GatewayLimits, Services
from keepstep.heads import HeadSigner
from keepstep.identity import Identity, Registrations
from keepstep.jobs import Jobs
from keepstep.listening import BACKLOG, bind
from keepstep.postgres.opening import opened
from keepstep.protocol.messages import HANDSHAKE_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX
from keepstep.protocol.primitives import RECORD_TAG_BYTES
from keepstep.publish import Publisher, PublishLimits
from keepstep.relay import Relay
from keepstep.rest.app import RestServices, ServerInfo, create_app
from keepstep.runtime import OffsetClock, SystemClock, SystemRandomness, WorkerThreads
from keepstep.session import SessionLimits
from keepstep.subscriber import SubscriberLimits
from keepstep.telemetry import Metrics
from keepstep.validation import URL_PATH

if TYPE_CHECKING:
    from keepstep.config import Settings
    from keepstep.interfaces import Accounts, Clock, EventLog, Maintenance, Randomness, Threads
    from keepstep.telemetry import Log

DISMISSAL_S: Final = 5.0
"""How long closing the connections may take that have not drained in time."""
PIPELINE_GRACE_S: Final = 5.0
"""How long pipelines may take, once all sessions are gone, for what nobody waits for any more."""
REST_KEEP_ALIVE_S: Final = 15.0
"""How long an idle REST connection, or one whose request's head does not come, is kept."""
REST_READ_TIMEOUT_S: Final = 60
"""Longest silence on a REST connection with a request under way."""
REST_GRACE_S: Final = 2.0
"""How long REST requests under way may take when the server goes down."""
REST_SEND_TIMEOUT_MS: Final = 10_000
"""Hypercorn shields its sends without a deadline; the kernel drops a client that takes nothing for this long."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a server keeps what it is given.

    Attributes:
        log: the events.
        accounts: users, devices and sessions.
        maintenance: the log's housekeeping.
        place: which one it is, in words, without credentials.
        unsafe: whether it may lose what it acknowledged, which somebody asked for.
        is_away: whether it is not asked just now, because it did not answer.
        tail_bytes: what the newest events take up in memory.
    """

    log: EventLog
    accounts: Accounts
    maintenance: Maintenance
    place: str = "memory"
    unsafe: bool = False
    is_away: Callable[[], bool] = lambda: False
    tail_bytes: Callable[[], int] = lambda: 0


@dataclass(frozen=True, slots=True)
class Listeners:
    """Bound sockets that are not listening yet."""

    device: list[socket.socket]
    rest: list[socket.socket]

    def close(self) -> None:
        """Let the ports go; sockets that were handed on are closed already."""
        for sock in (*self.device, *self.rest):
            sock.close()


@dataclass(frozen=True, slots=True)
class Started:
    """Where a running server is reached.

    Attributes:
        rest_url: without a path.
        device_url: where devices connect, with the key they pin.
        server_key: that key, 32 bytes.
        database: in words, without credentials.
    """

    rest_url: str
    device_url: str
    server_key: bytes
    database: str


def _ignore(_point: str) -> None:
    """A probe that does nothing."""


async def run(
    settings: Settings,
    *,
    stop: trio.Event | None = None,
    clock: Clock | None = None,
    randomness: Randomness | None = None,
    threads: Threads | None = None,
    storage: Storage | None = None,
    listeners: Listeners | None = None,
    probe: Callable[[str], None] = _ignore,
    task_status: trio.TaskStatus[Started] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until ``stop``, then drain. Cancelling stops at once, without draining; commits under way are waited for.

    What is not given is real: this machine's clocks, randomness and threads, the database and the ports of the
    settings. A simulation gives its own.

    Args:
        settings: checked.
        stop: set to go down gracefully; ``None``: never.
        clock: this machine's clocks.
        randomness: cryptographic.
        threads: the hop to worker threads.
        storage: where things are kept.
        listeners: bound sockets, not listening yet; closed at the end.
        probe: called at ``before_commit``, ``after_commit`` and ``after_ack``.
        task_status: started once devices and REST clients are let in.

    Raises:
        StartupError: it cannot start; the message says what to do. Perhaps in an exception group.
    """
    clock = clock or SystemClock()
    randomness = randomness or SystemRandomness()
    threads = threads or WorkerThreads()
    async with AsyncExitStack() as stack:
        if listeners is None:
            listeners = bind_listeners(settings)
        stack.callback(listeners.close)
        if storage is None:
            database = await stack.enter_async_context(opened(settings, clock=clock, threads=threads, probe=probe))
            storage = Storage(
                database.log,
                database.accounts,
                database.maintenance,
                place=database.place,
                unsafe=bool(database.durability.unsafe_settings),
                is_away=database.is_away,
                tail_bytes=database.tail_bytes,
            )
        key = keys.load_or_create(settings.data_dir, randomness)
        server = await _build(settings, key, storage, listeners, clock, randomness, probe)
        started = Started(
            rest_url=_url("http", settings.rest_host, listeners.rest),
            device_url=server.info.pinned_url,
            server_key=key.public,
            database=storage.place,
        )
        await server.serve(
            settings, listeners, trio.Event() if stop is None else stop, lambda: task_status.started(started)
        )


def bind_listeners(settings: Settings) -> Listeners:
    """The sockets of the settings. Raises StartupError."""
    device = bind(settings.device_host, settings.device_port, setting=variable("device_port"))
    try:
        rest = bind(settings.rest_host, settings.rest_port, setting=variable("rest_port"))
    except StartupError:
        for sock in device:
            sock.close()
        raise
    return Listeners(device=device, rest=rest)


def _url(scheme: str, host: str, sockets: list[socket.socket]) -> str:
    """Where sockets bound for ``host`` are reached from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared only
    netloc = f"[{host}]" if ":" in host else host
    return f"{scheme}://{netloc}:{sockets[0].getsockname()[1]}"


@dataclass(frozen=True, slots=True)
class _Server:
    """Every part of a running server."""

    info: ServerInfo
    admission: Admission
    gateway: Gateway
    publisher: Publisher
    relay: Relay
    jobs: Jobs
    rest: Callable[..., object]
    metrics: Metrics
    logger: Log

    async def serve(
        self, settings: Settings, listeners: Listeners, stop: trio.Event, started: Callable[[], None]
    ) -> None:
        """Let connections in until ``stop``, then drain, in the order that loses nothing."""
        rest_stop, rest_stopped = trio.Event(), trio.Event()
        async with trio.open_nursery() as background:
            await background.start(self.relay.run)
            await background.start(self.gateway.run)
            await background.start(
                partial(
                    self.jobs.run,
                    clock_offset_interval_s=settings.clock_offset_interval_s,
                    cleanup_interval_s=settings.cleanup_interval_s,
                )
            )
            async with trio.open_nursery() as pipelines:
                await pipelines.start(self.publisher.run)
                await background.start(partial(self._serve_rest, listeners.rest, rest_stop, rest_stopped))
                await self._serve_devices(settings, listeners.device, stop, started)
                self.publisher.close()
                pipelines.cancel_scope.deadline = trio.current_time() + PIPELINE_GRACE_S
            rest_stop.set()
            await rest_stopped.wait()
            background.cancel_scope.cancel()
        self.logger.info("server_stopped")

    async def _serve_devices(
        self, settings: Settings, sockets: list[socket.socket], stop: trio.Event, started: Callable[[], None]
    ) -> None:
        """Device connections, from the first accepted to the last drained."""
        limits = websocket.Limits(
            upgrade_timeout_s=settings.handshake_timeout_s,
            unauthenticated_message_bytes_max=HANDSHAKE_MESSAGE_BYTES_MAX,
            message_bytes_max=MESSAGE_BYTES_MAX + RECORD_TAG_BYTES,
        )
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                await accepting.start(
                    partial(
                        websocket.serve,
                        _listen(sockets),
                        self.gateway.handle,
                        admit=self.admission.enter,
                        limits=limits,
                        connections=connections,
                        on_fault=self.gateway.report_fault,
                    )
                )
                self.logger.info("server_started", version=self.info.version)
                started()
                await stop.wait()
                self.logger.info("server_draining", count=self.gateway.sessions)
                accepting.cancel_scope.cancel()
            with trio.move_on_after(settings.drain_timeout_s):
                await self.gateway.drain()
            with trio.move_on_after(DISMISSAL_S):
                await self.gateway.dismiss()
            connections.cancel_scope.cancel()

    async def _serve_rest(
        self,
        sockets: list[socket.socket],
        stop: trio.Event,
        stopped: trio.Event,
        *,
        task_status: trio.TaskStatus[list[str]],
    ) -> None:
        try:
            await serve_hypercorn(
                self.rest,  # type: ignore[arg-type]
                _RestConfig(sockets),
                shutdown_trigger=stop.wait,
                mode="asgi",
                task_status=task_status,
            )
        finally:
            stopped.set()


async def _build(
    settings: Settings,
    key: keys.ServerKey,
    storage: Storage,
    listeners: Listeners,
    machine_clock: Clock,
    randomness: Randomness,
    probe: Callable[[str], None],
) -> _Server:
    """Every part, from the bottom up, and the housekeeping that comes before the first event."""
    clock = OffsetClock(machine_clock)
    metrics = Metrics()
    metrics.unsafe.set(int(storage.unsafe))
    logger: Log = structlog.get_logger()
    log, accounts = storage.log, storage.accounts
    identity = Identity(
        log, accounts, _registrations(settings, clock), clock, devices_per_user_max=settings.devices_per_user_max
    )
    publisher = Publisher(log, identity, clock, limits=_publish_limits(settings), metrics=metrics)
    relay = Relay(log, head_interval_s=settings.head_interval_s, reread_interval_s=settings.reread_interval_s)
    try:
        signer = HeadSigner(key.secret, epoch=await storage.maintenance.epoch(), clock=clock)
        services = Services(
            log, accounts, identity, publisher, relay, signer, clock, randomness, metrics, logger, probe
        )
        gateway = Gateway(key.secret, services, _gateway_limits(settings))
        jobs = Jobs(
            storage.maintenance,
            machine_clock,
            clock,
            gateway.save_acks,
            partitions_ahead=settings.partitions_ahead,
            metrics=metrics,
            logger=logger,
        )
        await jobs.prepare()
    except Unavailable as exc:
        raise StartupError("the database went away while the server was starting; start it again") from exc
    admission = _admission(settings, metrics)
    info = _info(settings, key, storage, listeners)
    rest = RestServices(
        info=info,
        identity=identity,
        signer=signer,
        maintenance=storage.maintenance,
        clock=clock,
        randomness=randomness,
        metrics=metrics,
        logger=logger,
        is_draining=gateway.is_draining,
        collect=partial(_collect, metrics, storage, admission, gateway, relay, publisher),
    )
    return _Server(info, admission, gateway, publisher, relay, jobs, create_app(rest), metrics, logger)


def _collect(
    metrics: Metrics, storage: Storage, admission: Admission, gateway: Gateway, relay: Relay, publisher: Publisher
) -> None:
    """What is counted where it happens, read when somebody asks."""
    metrics.connections.set(admission.connections)
    metrics.unauthenticated_connections.set(admission.unauthenticated)
    metrics.sessions.set(gateway.sessions)
    metrics.session_users.set(relay.users)
    metrics.submissions_waiting.set(publisher.waiting)
    metrics.database_away.set(int(storage.is_away()))
    metrics.tail_bytes.set(storage.tail_bytes())


def _info(settings: Settings, key: keys.ServerKey, storage: Storage, listeners: Listeners) -> ServerInfo:
    return ServerInfo(
        version=keepstep.__version__,
        name=settings.server_name,
        server_key=key.public,
        device_url=settings.public_device_url or _url("ws", settings.device_host, listeners.device) + URL_PATH,
        registration=settings.registration,
        unsafe=storage.unsafe,
    )


def _registrations(settings: Settings, clock: Clock) -> Registrations:
    return Registrations(
        settings.registration,
        per_address_hour=settings.registrations_per_address_hour,
        per_hour=settings.registrations_per_hour,
        clock=clock,
    )


def _admission(settings: Settings, metrics: Metrics) -> Admission:
    return Admission(
        connections_max=settings.connections_max,
        unauthenticated_max=settings.unauthenticated_connections_max,
        unauthenticated_per_address_max=settings.unauthenticated_connections_per_address_max,
        on_refused=metrics.connections_refused.inc,
    )


def _publish_limits(settings: Settings) -> PublishLimits:
    return PublishLimits(
        pipelines=settings.pipelines,
        queue_max=settings.pipeline_queue_max,
        batch_events_max=settings.batch_events_max,
        batch_bytes_max=settings.batch_bytes_max,
    )


def _gateway_limits(settings: Settings) -> GatewayLimits:
    return GatewayLimits(
        handshake_timeout_s=settings.handshake_timeout_s,
        session=SessionLimits(
            inflight_publishes_max=settings.inflight_publishes_max,
            publish_events_max=settings.publish_events_max,
            payload_bytes_max=settings.payload_bytes_max,
            read_events_max=settings.page_events_max,
            read_bytes_max=settings.page_bytes_max,
            send_timeout_s=settings.send_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
        ),
        subscriber=SubscriberLimits(
            subscriptions_max=settings.subscriptions_per_session_max,
            page_events_max=settings.page_events_max,
            page_bytes_max=settings.page_bytes_max,
            unacked_bytes_max=settings.unacked_bytes_max,
        ),
    )


def _listen(sockets: list[socket.socket]) -> list[trio.SocketListener]:
    """Bound sockets as Trio's listeners."""
    for sock in sockets:
        sock.listen(BACKLOG)
    return [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]


class _RestConfig(Config):
    """Hypercorn on sockets of ours, with its bounds set."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        for sock in sockets:
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; accepted sockets inherit it
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, REST_SEND_TIMEOUT_MS)
        self._sockets = sockets
        self.accesslog = None
        self.errorlog = logging.getLogger("hypercorn.error")
        self.backlog = BACKLOG
        self.include_server_header = False
        self.keep_alive_timeout = REST_KEEP_ALIVE_S
        self.read_timeout = REST_READ_TIMEOUT_S
        self.graceful_timeout = REST_GRACE_S

    def create_sockets(self) -> Sockets:
        """The sockets that were bound before anything else started."""
        return Sockets([], self._sockets, [])
