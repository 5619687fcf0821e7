"""The server's parts over a database in memory, with clock and randomness that a test owns. No sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from keepstep import _keepstep
from keepstep.admin import Cuts
from keepstep.gateway import Gateway, GatewayLimits, Services
from keepstep.heads import HeadSigner
from keepstep.healing import Healing
from keepstep.identity import Identity, Registrations
from keepstep.memory import (
    MemoryAccounts,
    MemoryAdministration,
    MemoryDatabase,
    MemoryLog,
    MemoryMaintenance,
    MemoryRestores,
)
from keepstep.presence import Presences
from keepstep.protocol.messages import ResultAccepted
from keepstep.publish import Publisher, PublishLimits
from keepstep.relay import Relay
from keepstep.revocation import Revocations
from keepstep.safety import Safety
from keepstep.sessionservices import SessionLimits
from keepstep.subscriber import Subscriber
from keepstep.subscription import SubscriberLimits
from keepstep.telemetry import Metrics
from tests.support.events import NOW_MS, DeviceFixture, UserFixture, seed, submission
from tests.support.wire import MemoryConnection, WireDevice

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepstep.model import Principal
    from keepstep.protocol.handshake import Resume

SERVER_SECRET: Final = seed("server")
SERVER_KEY: Final = _keepstep.ed25519_public(SERVER_SECRET)

LIMITS: Final = GatewayLimits(
    handshake_timeout_s=10,
    session=SessionLimits(
        inflight_publishes_max=8,
        publish_events_max=16,
        payload_bytes_max=1024,
        read_events_max=100,
        read_bytes_max=4096,
        send_timeout_s=30,
        idle_timeout_s=120,
    ),
    subscriber=SubscriberLimits(
        subscriptions_max=5, page_events_max=4, page_bytes_max=1024 * 1024, unacked_bytes_max=1024 * 1024
    ),
)
HEAL_WINDOW_MS: Final = 600_000
PUBLISH_LIMITS: Final = PublishLimits(
    pipelines=2, queue_max=4, queue_bytes_max=1024 * 1024, batch_events_max=8, batch_bytes_max=64 * 1024
)


class TestClock:
    """Wall clock at a fixed moment plus what a test adds; Trio's clock for seconds."""

    __test__ = False

    def __init__(self) -> None:
        self.at_ms = NOW_MS

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return self.at_ms

    def monotonic_s(self) -> float:
        """Trio's time."""
        return trio.current_time()


class CountedRandomness:
    """Bytes that look random and are the same in every run."""

    def __init__(self, label: str = "randomness") -> None:
        self._label = label
        self._count = 0

    def bytes(self, count: int) -> bytes:
        """``count`` bytes, others at each call."""
        self._count += 1
        return (seed(f"{self._label} {self._count}") * (count // 32 + 1))[:count]


@dataclass
class Parts:
    """A server's parts; ``running`` starts those that run.

    Attributes:
        alice: a user with the devices ``phone`` and ``laptop``.
        rests: connections of idle devices have no task.
        probed: what the probe was called with.
    """

    database: MemoryDatabase = field(default_factory=MemoryDatabase)
    clock: TestClock = field(default_factory=TestClock)
    randomness: CountedRandomness = field(default_factory=CountedRandomness)
    metrics: Metrics = field(default_factory=Metrics)
    limits: GatewayLimits = LIMITS
    publish_limits: PublishLimits = PUBLISH_LIMITS
    log_arguments: dict[str, Any] = field(default_factory=dict)
    devices_per_user_max: int = 64
    rests: bool = True
    probed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = MemoryLog(self.database, **self.log_arguments)
        self.accounts = MemoryAccounts(self.database)
        self.administration = MemoryAdministration(self.database)
        self.safety = Safety(MemoryMaintenance(self.database, clock=self.clock))
        self.signer = HeadSigner(SERVER_SECRET, epoch=self.log.epoch, clock=self.clock, safe_at_ms=self.safety.at_ms)
        self.identity = Identity(
            self.log,
            self.accounts,
            Registrations("open", per_address_hour=100, per_hour=100, clock=self.clock),
            self.clock,
            devices_per_user_max=self.devices_per_user_max,
            quota=self.administration.quota,
        )
        self.restores = MemoryRestores(self.database)
        self.healing = Healing(
            self.log,
            self.accounts,
            self.restores,
            self.signer,
            self.clock,
            payload_bytes_max=self.limits.session.payload_bytes_max,
            window_ms=HEAL_WINDOW_MS,
        )
        self.publisher = Publisher(
            self.log, self.identity, self.clock, limits=self.publish_limits, metrics=self.metrics, gate=self.healing
        )
        self.relay = Relay(self.log, head_interval_s=60, reread_interval_s=30)
        self.presences = Presences(self.clock)
        services = Services(
            self.log,
            self.accounts,
            self.identity,
            self.publisher,
            self.relay,
            self.presences,
            self.signer,
            self.clock,
            self.randomness,
            self.metrics,
            structlog.get_logger(),
            self.probed.append,
            self.healing,
        )
        self.gateway = Gateway(SERVER_SECRET, services, self.limits)
        self.revocations = Revocations(self.log, self.accounts, self.gateway, self.clock)
        self.cuts = Cuts(self.administration, self.gateway, self.clock)

    async def register(self, name: str, *devices: str) -> list[DeviceFixture]:
        """A user with devices, the first of which made the account and enrolled the others."""
        user = UserFixture(name)
        first, *others = [DeviceFixture(user, device) for device in devices or ("phone",)]
        await self.log.create_account(first.genesis(), now_ms=self.clock.now_ms())
        for other in others:
            await self.enrol(first, other)
        return [first, *others]

    async def enrol(self, author: DeviceFixture, device: DeviceFixture) -> None:
        """Make a device live, past the publisher; ``devices_seen`` of both is the new head."""
        principal = await self.principal(author)
        head = (await self.log.stream(principal.user_pk, "$devices")).head
        author.seen["$devices"] = head.seq, head.chain
        event, change = author.enrol(device)
        appended = await self.log.append(
            [submission(principal, event)], now_ms=self.clock.now_ms(), account_change=change
        )
        assert isinstance(appended.results[0][0], ResultAccepted)
        head = (await self.log.stream(principal.user_pk, "$devices")).head
        author.seen["$devices"] = device.seen["$devices"] = head.seq, head.chain

    async def principal(self, device: DeviceFixture) -> Principal:
        """The device as the accounts know it."""
        principal = await self.accounts.principal(device.user.user_key, device.device_id)
        assert principal is not None
        return principal

    def subscriber(
        self,
        principal: Principal,
        wake: Callable[[], None],
        limits: SubscriberLimits = LIMITS.subscriber,
        *,
        holds: Callable[[], bool] = bool,
    ) -> Subscriber:
        """A device's, without a session."""
        return Subscriber(
            self.log,
            self.signer,
            self.clock,
            principal=principal,
            limits=limits,
            wake=wake,
            relayed=self.metrics.relayed_events,
            holds=holds,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[trio.Nursery]:
        """Publisher, relay and gateway run, and connections may be served in the nursery, until the block ends."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.publisher.run)
            await nursery.start(self.relay.run)
            await nursery.start(self.presences.run)
            await nursery.start(self.gateway.run)
            await nursery.start(self.revocations.run)
            await nursery.start(self.cuts.run)
            yield nursery
            nursery.cancel_scope.cancel()

    def serve(self, nursery: trio.Nursery) -> MemoryConnection:
        """A new connection that the gateway handles."""
        connection = MemoryConnection(nursery=nursery if self.rests else None)
        nursery.start_soon(self.gateway.handle, connection)
        return connection

    async def connect(
        self, nursery: trio.Nursery, device: DeviceFixture, *, resume: Resume = "none", **changes: Any
    ) -> WireDevice:
        """A device's session."""
        end = self.serve(nursery)
        return await WireDevice.connect(device, end, SERVER_KEY, resume=resume, **changes)


def limited(**changes: Any) -> GatewayLimits:
    """``LIMITS`` with other values; the fields of ``session`` and ``subscriber`` go by their own names."""
    session = {name: value for name, value in changes.items() if hasattr(LIMITS.session, name)}
    subscriber = {name: value for name, value in changes.items() if hasattr(LIMITS.subscriber, name)}
    rest = {name: value for name, value in changes.items() if name not in session and name not in subscriber}
    return replace(
        LIMITS,
        session=replace(LIMITS.session, **session),
        subscriber=replace(LIMITS.subscriber, **subscriber),
        **rest,
    )
