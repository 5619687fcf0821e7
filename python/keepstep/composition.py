"""Builds every part of a server from the bottom up, and runs them in the order that loses nothing.

``server`` opens what they need and says when to stop.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
import trio

import keepstep
from keepstep import _keepstep, keys, websocket
from keepstep.admin import AdminKey, Cuts, clean_up
from keepstep.admission import Admission
from keepstep.errors import StartupError, Unavailable
from keepstep.gateway import Gateway, GatewayLimits, Services
from keepstep.heads import HeadSigner
from keepstep.identity import Identity, Registrations
from keepstep.interfaces import RatePolicy
from keepstep.jobs import Jobs
from keepstep.links import Links
from keepstep.listening import BACKLOG
from keepstep.presence import Presences
from keepstep.protocol.messages import HANDSHAKE_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX
from keepstep.protocol.primitives import RECORD_TAG_BYTES
from keepstep.protocol.succession import encode_announcement, verify_announcement
from keepstep.publish import Publisher, PublishLimits
from keepstep.ratelimit import MemoryRateLimiter
from keepstep.relay import Relay
from keepstep.rest.app import create_app
from keepstep.rest.readiness import Readiness
from keepstep.rest.services import RestPolicy, RestServices, ServerInfo
from keepstep.rest.serving import RestServer
from keepstep.rest.waiting import Watches
from keepstep.revocation import Revocations
from keepstep.runtime import OffsetClock
from keepstep.session import SessionLimits
from keepstep.subscriber import SubscriberLimits
from keepstep.telemetry import Metrics
from keepstep.tokenkeys import TokenKeyFile
from keepstep.tokens import TokenLifetimes, Tokens
from keepstep.validation import URL_PATH, parse_origin, rest_url_beside

if TYPE_CHECKING:
    from keepstep.administration import Administration
    from keepstep.config import Settings
    from keepstep.interfaces import Accounts, Clock, EventLog, Maintenance, Randomness, Threads, TokenStore
    from keepstep.links import LinkStore
    from keepstep.telemetry import Log

DISMISSAL_S: Final = 5.0
"""How long closing the connections may take that have not drained in time."""
PIPELINE_GRACE_S: Final = 5.0
"""How long pipelines may take, once all sessions are gone, for what nobody waits for any more."""
MINUTE_S: Final = 60


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a server keeps what it is given.

    Attributes:
        log: the events.
        accounts: users, devices and sessions.
        maintenance: the log's housekeeping.
        tokens: challenges and tokens of REST.
        administration: users, sessions, invites and the audit trail, for administrators.
        links: mailboxes through which devices are linked.
        place: which one it is, in words, without credentials.
        unsafe: whether it may lose what it acknowledged, which somebody asked for.
        is_away: whether it is not asked just now, because it did not answer.
        tail_bytes: what the newest events take up in memory.
    """

    log: EventLog
    accounts: Accounts
    maintenance: Maintenance
    tokens: TokenStore
    administration: Administration
    links: LinkStore
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


def local_url(scheme: str, host: str, sockets: list[socket.socket]) -> str:
    """Where sockets bound for ``host`` are reached from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared only
    netloc = f"[{host}]" if ":" in host else host
    return f"{scheme}://{netloc}:{sockets[0].getsockname()[1]}"


@dataclass(frozen=True, slots=True)
class Server:
    """Every part of a running server."""

    info: ServerInfo
    admission: Admission
    gateway: Gateway
    revocations: Revocations
    cuts: Cuts
    publisher: Publisher
    relay: Relay
    presences: Presences
    tokens: Tokens
    jobs: Jobs
    rest: RestServer
    metrics: Metrics
    logger: Log

    async def serve(
        self, settings: Settings, listeners: Listeners, stop: trio.Event, started: Callable[[], None]
    ) -> None:
        """Let connections in until ``stop``, then drain, in the order that loses nothing."""
        rest_stop, rest_stopped = trio.Event(), trio.Event()
        async with trio.open_nursery() as background:
            await background.start(self.relay.run)
            await background.start(self.presences.run)
            await background.start(self.tokens.run)
            await background.start(self.gateway.run)
            await background.start(self.revocations.run)
            await background.start(self.cuts.run)
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
        task_status: trio.TaskStatus[None],
    ) -> None:
        try:
            await self.rest.serve(sockets, stop, task_status=task_status)
        finally:
            stopped.set()


async def build(
    settings: Settings,
    key: keys.ServerKey,
    storage: Storage,
    listeners: Listeners,
    machine_clock: Clock,
    randomness: Randomness,
    threads: Threads,
    probe: Callable[[str], None],
) -> Server:
    """Every part, from the bottom up, and the housekeeping that comes before the first event."""
    clock = OffsetClock(machine_clock)
    metrics = Metrics()
    metrics.unsafe.set(int(storage.unsafe))
    logger: Log = structlog.get_logger()
    log, accounts = storage.log, storage.accounts
    identity = Identity(
        log,
        accounts,
        _registrations(settings, clock),
        clock,
        devices_per_user_max=settings.devices_per_user_max,
        quota=storage.administration.quota,
    )
    publisher = Publisher(log, identity, clock, limits=_publish_limits(settings), metrics=metrics)
    relay = Relay(log, head_interval_s=settings.head_interval_s, reread_interval_s=settings.reread_interval_s)
    presences = Presences(clock)
    tokens = _tokens(settings, key, storage, listeners, clock, randomness, threads, metrics, logger)
    links = Links(storage.links, clock)
    try:
        signer = HeadSigner(key.secret, epoch=log.epoch, clock=clock)
        services = Services(
            log, accounts, identity, publisher, relay, presences, signer, clock, randomness, metrics, logger, probe
        )
        announcement = _announcement(settings, clock)
        gateway = Gateway(key.secret, services, _gateway_limits(settings), announcement=announcement)
        revocations = Revocations(log, accounts, gateway, clock)
        cuts = Cuts(storage.administration, gateway, clock)
        jobs = Jobs(
            storage.maintenance,
            machine_clock,
            clock,
            gateway.save_acks,
            partial(_clean_up, tokens, links),
            partial(clean_up, storage.administration, clock, audit_retention_days=settings.audit_retention_days),
            partitions_ahead=settings.partitions_ahead,
            metrics=metrics,
            logger=logger,
        )
        await jobs.prepare()
    except Unavailable as exc:
        raise StartupError("the database went away while the server was starting; start it again") from exc
    admission = _admission(settings, metrics)
    info = _info(settings, key, storage, listeners)
    application = create_app(
        _rest_services(settings, storage, services, info, gateway, admission, tokens, links, cuts, threads)
    )
    rest = _rest_server(settings, application, metrics)
    return Server(
        info, admission, gateway, revocations, cuts, publisher, relay, presences, tokens, jobs, rest, metrics, logger
    )


async def _clean_up(tokens: Tokens, links: Links) -> None:
    """Drop what REST keeps for a while only. Raises Unavailable."""
    await tokens.clean_up()
    await links.clean_up()


def _rest_server(settings: Settings, application: Callable[..., object], metrics: Metrics) -> RestServer:
    server = RestServer(
        application,
        connections_max=settings.rest_connections_max,
        on_refused=metrics.rest_connections_refused.inc,
    )
    metrics.rest_connections.set_function(lambda: server.connections)
    return server


def _rest_services(
    settings: Settings,
    storage: Storage,
    services: Services,
    info: ServerInfo,
    gateway: Gateway,
    admission: Admission,
    tokens: Tokens,
    links: Links,
    cuts: Cuts,
    threads: Threads,
) -> RestServices:
    """What REST has of the parts that devices speak to, and what is its own."""
    key = settings.admin_api_key
    return RestServices(
        info=info,
        policy=_rest_policy(settings),
        log=services.log,
        accounts=services.accounts,
        publisher=services.publisher,
        limiter=MemoryRateLimiter(services.clock),
        watches=Watches(services.log),
        identity=services.identity,
        presences=services.presences,
        signer=services.signer,
        readiness=Readiness(storage.maintenance),
        clock=services.clock,
        randomness=services.randomness,
        metrics=services.metrics,
        logger=services.logger,
        is_draining=gateway.is_draining,
        collect=partial(_collect, services.metrics, storage, admission, gateway, services.relay, services.publisher),
        tokens=tokens,
        auth=tokens,
        links=links,
        administration=storage.administration,
        cuts=cuts,
        server_keys=keys.ServerKeys(settings.data_dir, services.randomness, threads),
        admin=None
        if key is None
        else AdminKey(
            key.get_secret_value(), storage.administration, services.clock, services.metrics, services.logger
        ),
    )


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
        device_url=settings.public_device_url or local_url("ws", settings.device_host, listeners.device) + URL_PATH,
        registration=settings.registration,
        unsafe=storage.unsafe,
        announcements=tuple(map(encode_announcement, keys.load_announcements(settings.data_dir))),
    )


def _announcement(settings: Settings, clock: Clock) -> Callable[[], bytes | None]:
    """What devices are told of the server's next identity key, as long as both may be met."""
    announcements = keys.load_announcements(settings.data_dir)
    if not announcements:
        return lambda: None
    succession = verify_announcement(_keepstep, announcements[-1])
    encoded = encode_announcement(announcements[-1])
    return lambda: encoded if clock.now_ms() < succession.until_ms else None


def _registrations(settings: Settings, clock: Clock) -> Registrations:
    return Registrations(
        settings.registration,
        per_address_hour=settings.registrations_per_address_hour,
        per_hour=settings.registrations_per_hour,
        clock=clock,
    )


def _origin(settings: Settings, listeners: Listeners) -> str:
    """Where devices reach REST, by the rule that they follow themselves."""
    if settings.public_rest_url is not None:
        return settings.public_rest_url
    if settings.public_device_url is not None:
        return parse_origin(rest_url_beside(settings.public_device_url))
    return local_url("http", settings.rest_host, listeners.rest)


def _tokens(
    settings: Settings,
    key: keys.ServerKey,
    storage: Storage,
    listeners: Listeners,
    clock: Clock,
    randomness: Randomness,
    threads: Threads,
    metrics: Metrics,
    logger: Log,
) -> Tokens:
    """Tokens for REST, with the keys of the data directory. Raises StartupError."""
    token_keys = TokenKeyFile(settings.data_dir, randomness)
    token_keys.open(clock.now_ms())
    return Tokens(
        storage.tokens,
        storage.accounts,
        storage.log,
        token_keys,
        clock,
        randomness,
        threads,
        server_key=key.public,
        origin=_origin(settings, listeners),
        lifetimes=TokenLifetimes(
            access_token_lifetime_s=settings.access_token_lifetime_s,
            refresh_token_lifetime_s=settings.refresh_token_lifetime_s,
            challenge_lifetime_s=settings.challenge_lifetime_s,
        ),
        metrics=metrics,
        logger=logger,
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


def _rest_policy(settings: Settings) -> RestPolicy:
    return RestPolicy(
        per_user=RatePolicy("user", settings.rest_calls_per_user_minute, MINUTE_S),
        per_address=RatePolicy("address", settings.rest_calls_per_address_minute, MINUTE_S),
        cors_origins=frozenset(filter(None, settings.cors_origins.split(","))),
        publish_events_max=settings.publish_events_max,
        payload_bytes_max=settings.payload_bytes_max,
        page_events_max=settings.page_events_max,
        page_bytes_max=settings.page_bytes_max,
        audit_retention_days=settings.audit_retention_days,
    )


def _listen(sockets: list[socket.socket]) -> list[trio.SocketListener]:
    """Bound sockets as Trio's listeners."""
    for sock in sockets:
        sock.listen(BACKLOG)
    return [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]
