"""Builds every part of a server from the bottom up, and runs them in the order that loses nothing.

``server`` opens what they need and says when to stop.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import structlog
import trio

import keepstep
from keepstep import _keepstep, keys, websocket, websocket_connection
from keepstep.account_intake import AccountIntake
from keepstep.admin import AdminKey, Cuts
from keepstep.announcements import Announcements
from keepstep.archive.opening import ArchiveKeys, archive_run, read_through
from keepstep.backup.schedule import scheduled
from keepstep.cleanup import HOLDER_BYTES, Housekeeping
from keepstep.edge import (
    build_entrance,
    device_admission,
    device_url,
    rest_origin,
    rest_server,
    server_certificate,
)
from keepstep.gateway import Gateway, Services
from keepstep.heads import HeadSigner
from keepstep.healing import Healing
from keepstep.identity import Identity, Registrations
from keepstep.journal import NO_JOURNAL
from keepstep.limits import (
    Parts,
    gateway_limits,
    publish_limits,
    register,
    rest_policy,
    token_lifetimes,
)
from keepstep.links import Links
from keepstep.listening import BACKLOG
from keepstep.measuring import MeasuredDatabase
from keepstep.presence import Presences
from keepstep.protocol.messages import HANDSHAKE_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX
from keepstep.protocol.primitives import RECORD_TAG_BYTES
from keepstep.protocol.succession import verify_announcement
from keepstep.publish import Publisher
from keepstep.ratelimit import MemoryRateLimiter
from keepstep.relay import Relay
from keepstep.reloading import Reloads
from keepstep.rest.app import create_app
from keepstep.rest.readiness import Readiness
from keepstep.rest.services import RestServices, ServerInfo
from keepstep.rest.waiting import Watches
from keepstep.revocation import Revocations
from keepstep.runtime import OffsetClock
from keepstep.safety import Safety
from keepstep.telemetry import Metrics
from keepstep.tokenkeys import TokenKeyFile
from keepstep.tokens import Tokens
from keepstep.upkeep import disk_space, prepared_jobs

if TYPE_CHECKING:
    from keepstep.administration import Administration
    from keepstep.admission import Admission
    from keepstep.archive.opening import Archive
    from keepstep.backup.schedule import Backups
    from keepstep.config import Settings
    from keepstep.diskspace import DiskSpace, Room
    from keepstep.entrance import Entrance
    from keepstep.eventlog.retention import Retention
    from keepstep.hits import Hits
    from keepstep.interfaces import Accounts, Clock, EventLog, Maintenance, Randomness, Threads
    from keepstep.jobs import Jobs
    from keepstep.journal import AccountJournal
    from keepstep.links import LinkStore
    from keepstep.postgres.backups import Source
    from keepstep.reloading import ReloadRequests
    from keepstep.rest.serving import RestServer
    from keepstep.restores import Restores
    from keepstep.telemetry import Log
    from keepstep.tls import ServerCertificate
    from keepstep.tokenstore import TokenStore

DISMISSAL_S: Final = 5.0
"""How long closing the connections may take that have not drained in time."""
PIPELINE_GRACE_S: Final = 5.0
"""How long pipelines may take, once all sessions are gone, for what nobody waits for any more."""


class HousekeptDatabase(Housekeeping, MeasuredDatabase, Protocol):
    """Cleaned up and measured."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a server keeps what it is given.

    Attributes:
        log: the events.
        accounts: users, devices and sessions.
        maintenance: the log's housekeeping.
        retention: takes away the oldest events.
        tokens: challenges and tokens of REST.
        administration: users, sessions, invites and the audit trail, for administrators.
        links: mailboxes through which devices are linked.
        housekeeping: clean-up and measuring.
        restores: rewinds and heal windows.
        place: which one it is, in words, without credentials.
        unsafe: whether it may lose what it acknowledged, which somebody asked for.
        is_away: whether it is not asked just now, because it did not answer.
        tail_bytes: what the newest events take up in memory.
        cache_hits: what the log's caches had, by their names.
        journal: takes the events of ``$devices`` before they are acknowledged.
        backup_source: how backups reach the database; ``None`` where none can be made.
        archive: where events go before they are pruned; ``None``: they are gone then.
    """

    log: EventLog
    accounts: Accounts
    maintenance: Maintenance
    retention: Retention
    tokens: TokenStore
    administration: Administration
    links: LinkStore
    housekeeping: HousekeptDatabase
    restores: Restores
    place: str = "memory"
    unsafe: bool = False
    is_away: Callable[[], bool] = lambda: False
    tail_bytes: Callable[[], int] = lambda: 0
    cache_hits: Callable[[], Mapping[str, Hits]] = dict
    journal: AccountJournal = NO_JOURNAL
    backup_source: Source | None = None
    archive: Archive | None = None


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
class Server:
    """Every part of a running server."""

    info: ServerInfo
    admission: Admission
    gateway: Gateway
    revocations: Revocations
    cuts: Cuts
    announcements: Announcements
    disk: DiskSpace
    publisher: Publisher
    relay: Relay
    presences: Presences
    tokens: Tokens
    jobs: Jobs
    backups: Backups | None
    rest: RestServer
    entrance: Entrance
    certificate: ServerCertificate | None
    reloads: Reloads
    metrics: Metrics
    logger: Log

    async def serve(
        self,
        settings: Settings,
        listeners: Listeners,
        stop: trio.Event,
        started: Callable[[], None],
        reload_requests: ReloadRequests | None = None,
    ) -> None:
        """Let connections in until ``stop``, then drain, in the order that loses nothing."""
        rest_stop, rest_stopped = trio.Event(), trio.Event()
        async with trio.open_nursery() as background:
            await background.start(self.disk.run)
            await background.start(self.relay.run)
            await background.start(self.presences.run)
            await background.start(self.tokens.run)
            await background.start(self.gateway.run)
            await background.start(self.revocations.run)
            await background.start(self.cuts.run)
            if self.backups is not None:
                await background.start(self.backups.run)
            await background.start(partial(self.announcements.run, self.gateway.tell_announcement))
            if self.certificate is not None:
                await background.start(self.certificate.run)
            if reload_requests is not None:
                await background.start(partial(self.reloads.run, reload_requests))
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
        limits = websocket_connection.Limits(
            upgrade_timeout_s=settings.handshake_timeout_s,
            unauthenticated_message_bytes_max=HANDSHAKE_MESSAGE_BYTES_MAX,
            message_bytes_max=MESSAGE_BYTES_MAX + RECORD_TAG_BYTES,
            unfinished_bytes_max=settings.unfinished_bytes_max,
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
                        entrance=self.entrance,
                        connections=connections,
                        on_fault=self.gateway.report_fault,
                    )
                )
                self.logger.info("server_started", version=self.info.version)
                started()
                await stop.wait()
                self.logger.info("server_draining", count=self.gateway.sessions)
                accepting.cancel_scope.cancel()
            with trio.move_on_after(self.reloads.settings.drain_timeout_s):
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
    reloads = Reloads(settings, threads, metrics, logger)
    log, accounts = storage.log, storage.accounts
    registrations = _registrations(settings, clock)
    disk = disk_space(settings, threads, metrics, logger)
    identity = _identity(settings, storage, registrations, clock, disk)
    safety = Safety(storage.maintenance)
    signer = _signer(settings, key, log, clock, safety)
    healing = _healing(settings, storage, signer, clock)
    publisher = _publisher(settings, storage, identity, clock, metrics, healing, disk, logger)
    relay = Relay(log, head_interval_s=settings.head_interval_s, reread_interval_s=settings.reread_interval_s)
    presences = Presences(clock)
    tokens = _tokens(settings, key, storage, listeners, clock, randomness, threads, metrics, logger)
    links = Links(storage.links, clock)
    services = Services(
        *(log, accounts, identity, publisher, relay, presences, signer, clock, randomness, metrics, logger, probe),
        healing,
    )
    announcements = Announcements(settings.data_dir, clock, threads, logger)
    gateway = Gateway(key.secret, services, gateway_limits(settings), announcement=announcements.current)
    revocations = Revocations(log, accounts, gateway, clock)
    cuts = Cuts(storage.administration, gateway, clock)
    archiving = _archiving(settings, key, storage, clock, randomness, threads, reloads, metrics, logger)
    jobs = await prepared_jobs(
        settings, storage, gateway, machine_clock, clock, reloads, randomness, safety, metrics, logger, archiving
    )
    certificate = server_certificate(settings, clock, threads, metrics, logger)
    entrance = build_entrance(settings, certificate, metrics, reloads)
    admission = device_admission(settings, entrance, metrics)
    info = _info(settings, key, storage, listeners)
    rest_services = _rest_services(
        settings, storage, services, info, gateway, admission, tokens, links, cuts, announcements, threads, disk
    )
    rest = rest_server(settings, create_app(rest_services), entrance, metrics)
    make_admin = partial(_admin, storage=storage, services=services)
    register(reloads, Parts(registrations, identity, tokens, gateway, rest_services, make_admin))
    return Server(
        info,
        admission,
        gateway,
        revocations,
        cuts,
        announcements,
        disk,
        publisher,
        relay,
        presences,
        tokens,
        jobs,
        scheduled(lambda: reloads.settings, storage.backup_source, machine_clock, metrics, logger),
        rest,
        entrance,
        certificate,
        reloads,
        metrics,
        logger,
    )


def _archiving(
    settings: Settings,
    key: keys.ServerKey,
    storage: Storage,
    clock: Clock,
    randomness: Randomness,
    threads: Threads,
    reloads: Reloads,
    metrics: Metrics,
    logger: Log,
) -> dict[str, Callable[[], Awaitable[None]]]:
    """The job that archives, and the log's way to what is archived; nothing without an archive. Raises StartupError."""
    archive = storage.archive
    if archive is None:
        return {}
    archive_keys = ArchiveKeys(key.secret, _predecessors(settings))
    read_through(settings, archive, archive_keys, threads, metrics, logger)
    run = archive_run(
        lambda: reloads.settings,
        archive,
        archive_keys,
        storage.housekeeping,
        randomness.bytes(HOLDER_BYTES),
        clock,
        threads,
        metrics=metrics,
        logger=logger,
    )
    return {"archive": run.job}


def _admin(settings: Settings, *, storage: Storage, services: Services) -> AdminKey | None:
    """Access with the administration key; ``None`` where there is none."""
    if settings.admin_api_key is None:
        return None
    key = settings.admin_api_key.get_secret_value()
    return AdminKey(key, storage.administration, services.clock, services.metrics, services.logger)


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
    announcements: Announcements,
    threads: Threads,
    room: Room,
) -> RestServices:
    """What REST has of the parts that devices speak to, and what is its own."""
    return RestServices(
        info=info,
        policy=rest_policy(settings),
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
        server_keys=keys.ServerKeys(settings.data_dir, services.randomness, threads, announcements.look_now),
        announcements=announcements.all,
        account_intake=AccountIntake(
            services.log, services.accounts, storage.administration, threads, room, journal=storage.journal
        ),
        admin=_admin(settings, storage=storage, services=services),
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
    metrics.cache_lookups.read(storage.cache_hits())


def _info(settings: Settings, key: keys.ServerKey, storage: Storage, listeners: Listeners) -> ServerInfo:
    return ServerInfo(
        version=keepstep.__version__,
        name=settings.server_name,
        server_key=key.public,
        device_url=device_url(settings, listeners.device),
        registration=settings.registration,
        unsafe=storage.unsafe,
    )


def _publisher(
    settings: Settings,
    storage: Storage,
    identity: Identity,
    clock: Clock,
    metrics: Metrics,
    healing: Healing,
    disk: DiskSpace,
    logger: Log,
) -> Publisher:
    return Publisher(
        storage.log,
        identity,
        clock,
        limits=publish_limits(settings),
        metrics=metrics,
        gate=healing,
        journal=storage.journal,
        room=disk,
        logger=logger,
    )


def _identity(settings: Settings, storage: Storage, registrations: Registrations, clock: Clock, room: Room) -> Identity:
    return Identity(
        storage.log,
        storage.accounts,
        registrations,
        clock,
        devices_per_user_max=settings.devices_per_user_max,
        quota=storage.administration.quota,
        journal=storage.journal,
        room=room,
    )


def _signer(settings: Settings, key: keys.ServerKey, log: EventLog, clock: Clock, safety: Safety) -> HeadSigner:
    former = _predecessors(settings)
    return HeadSigner(key.secret, epoch=log.epoch, clock=clock, predecessors=former, safe_at_ms=safety.at_ms)


def _predecessors(settings: Settings) -> list[bytes]:
    """The server's identity keys before this one: heads that they signed prove events too. Raises StartupError."""
    announcements = keys.load_announcements(settings.data_dir)
    return [verify_announcement(_keepstep, announcement).old_key for announcement in announcements]


def _healing(settings: Settings, storage: Storage, signer: HeadSigner, clock: Clock) -> Healing:
    return Healing(
        storage.log,
        storage.accounts,
        storage.restores,
        signer,
        clock,
        payload_bytes_max=settings.payload_bytes_max,
        window_ms=settings.heal_window_s * 1000,
        journal=storage.journal,
    )


def _registrations(settings: Settings, clock: Clock) -> Registrations:
    return Registrations(
        settings.registration,
        per_address_hour=settings.registrations_per_address_hour,
        per_hour=settings.registrations_per_hour,
        clock=clock,
    )


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
        origin=rest_origin(settings, listeners.rest),
        lifetimes=token_lifetimes(settings),
        metrics=metrics,
        logger=logger,
    )


def _listen(sockets: list[socket.socket]) -> list[trio.SocketListener]:
    """Bound sockets as Trio's listeners."""
    for sock in sockets:
        sock.listen(BACKLOG)
    return [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]
