"""A REST application over a server's parts in memory, asked without sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import httpx
import structlog

from keepstep.access import RatePolicy
from keepstep.account_intake import AccountIntake
from keepstep.diskspace import EnoughRoom
from keepstep.errors import ProtocolError, Unavailable
from keepstep.links import Links
from keepstep.memory import MemoryLinks, MemoryMaintenance
from keepstep.ratelimit import MemoryRateLimiter
from keepstep.rest.app import create_app
from keepstep.rest.readiness import Readiness
from keepstep.rest.services import RestPolicy, RestServices, ServerInfo
from keepstep.rest.table import ENDPOINTS
from keepstep.rest.waiting import Watches
from keepstep.runtime import WorkerThreads
from tests.support.parts import SERVER_KEY, Parts
from tests.support.tokens import make_tokens

if TYPE_CHECKING:
    from keepstep.model import Principal
    from keepstep.protocol.succession import Succession
    from keepstep.rest.endpoints import Endpoint
    from tests.support.events import DeviceFixture

INFO: Final = ServerInfo(
    version="1.2.3",
    name="home",
    server_key=SERVER_KEY,
    device_url="ws://here:8441/v1/connect",
    registration="open",
    unsafe=False,
)
POLICY: Final = RestPolicy(
    per_user=RatePolicy("user", 600, 60),
    per_address=RatePolicy("address", 600, 60),
    cors_origins=frozenset(),
    publish_events_max=16,
    payload_bytes_max=1024,
    page_events_max=100,
    page_bytes_max=64 * 1024,
    audit_retention_days=365,
)


class NamedTokens:
    """Tokens that are names: ``Bearer phone`` is whatever device a test said it is."""

    def __init__(self) -> None:
        self.principals: dict[str, Principal] = {}
        self.away: ProtocolError | None = None

    async def authenticate(self, authorization: str | None) -> Principal:
        """See ``access.TokenAuthentication``."""
        if self.away is not None:
            raise self.away
        principal = self.principals.get((authorization or "").removeprefix("Bearer "))
        if principal is None:
            raise ProtocolError("invalid_token")
        return principal


class NoSuccessor:
    """The keys of a server that has no successor and makes none."""

    async def successor(self) -> None:
        """See ``administration.ServerKeys``."""

    async def announce(self, *, from_ms: int, until_ms: int) -> Succession:
        """See ``administration.ServerKeys``."""
        del from_ms, until_ms
        raise Unavailable


@dataclass
class Site:
    """A REST application.

    Attributes:
        parts: below it.
        http: asks it.
        services: what it was made of.
        tokens: who is let in.
    """

    parts: Parts
    http: httpx.AsyncClient
    services: RestServices
    tokens: NamedTokens = field(default_factory=NamedTokens)

    async def token(self, device: DeviceFixture, name: str = "token") -> dict[str, str]:
        """Headers that prove a device."""
        self.tokens.principals[name] = await self.parts.principal(device)
        return {"authorization": f"Bearer {name}"}


@asynccontextmanager
async def site(
    *, parts: Parts | None = None, endpoints: Sequence[Endpoint] = ENDPOINTS, **changes: Any
) -> AsyncIterator[Site]:
    """``changes`` replace services, or fields of what the server tells of itself or allows."""
    parts = parts or Parts()
    info = {name: value for name, value in changes.items() if hasattr(INFO, name)}
    policy = {name: value for name, value in changes.items() if hasattr(POLICY, name)}
    tokens = NamedTokens()
    services = RestServices(
        info=replace(INFO, **info),
        policy=replace(POLICY, **policy),
        log=parts.log,
        accounts=parts.accounts,
        publisher=parts.publisher,
        limiter=MemoryRateLimiter(parts.clock),
        watches=Watches(parts.log),
        identity=parts.identity,
        presences=parts.presences,
        signer=parts.signer,
        readiness=Readiness(MemoryMaintenance(parts.database, clock=parts.clock)),
        clock=parts.clock,
        randomness=parts.randomness,
        metrics=parts.metrics,
        logger=structlog.get_logger(),
        is_draining=lambda: False,
        collect=lambda: None,
        auth=make_tokens(parts),
        links=Links(MemoryLinks(parts.database), parts.clock),
        administration=parts.administration,
        cuts=parts.cuts,
        server_keys=NoSuccessor(),
        announcements=list,
        account_intake=AccountIntake(parts.log, parts.accounts, parts.administration, WorkerThreads(), EnoughRoom()),
        tokens=tokens,
    )
    services = replace(services, **{name: value for name, value in changes.items() if name not in info | policy})
    transport = httpx.ASGITransport(app=create_app(services, endpoints))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
        yield Site(parts, http, services, tokens)
