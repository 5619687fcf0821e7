"""What REST needs of the rest of the server; the composition root fills it in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from keepstep.access import AdminAccess, RateLimiter, RatePolicy, TokenAuthentication
    from keepstep.account_intake import AccountIntake
    from keepstep.admin import Cuts
    from keepstep.administration import Administration, ServerKeys
    from keepstep.heads import HeadSigner
    from keepstep.identity import Identity
    from keepstep.interfaces import Accounts, Clock, EventLog, Randomness
    from keepstep.links import Links
    from keepstep.presence import Presences
    from keepstep.publish import Publisher
    from keepstep.rest.readiness import Readiness
    from keepstep.rest.waiting import Watches
    from keepstep.telemetry import Log, Metrics
    from keepstep.tokens import Tokens


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What ``GET /api/v1/server`` tells.

    Attributes:
        version: of keepstep.
        name: what the server calls itself to people.
        server_key: the identity key that devices pin, 32 bytes.
        device_url: where devices connect, without the key.
        registration: who may make an account.
        unsafe: whether it was told to go on although commits are not durable.
    """

    version: str
    name: str
    server_key: bytes
    device_url: str
    registration: Literal["open", "invite", "closed"]
    unsafe: bool

    @property
    def pinned_url(self) -> str:
        """The URL a device is given: address and key."""
        return f"{self.device_url}#{self.server_key.hex()}"


@dataclass(frozen=True, slots=True)
class RestPolicy:
    """What REST allows.

    Attributes:
        per_user: calls of one user's devices.
        per_address: calls of one address prefix that prove nobody, or prove nothing.
        cors_origins: whose pages a browser may let read answers.
        publish_events_max: events in one publish.
        payload_bytes_max: bytes of one payload.
        page_events_max: events in one page.
        page_bytes_max: bytes of one page; one event above it still goes.
        audit_retention_days: how long calls of administrators stay recorded.
        bytes_per_user_max: what an account without a quota of its own may store; ``None`` for no bound.
        retention_days: how long events stay on this server in general; ``None``: for ever.
    """

    per_user: RatePolicy
    per_address: RatePolicy
    cors_origins: frozenset[str]
    publish_events_max: int
    payload_bytes_max: int
    page_events_max: int
    page_bytes_max: int
    audit_retention_days: int
    bytes_per_user_max: int | None = None
    retention_days: int | None = None


@dataclass(eq=False, slots=True)
class RestServices:
    """What REST needs of the rest of the server; ``info``, ``policy`` and ``admin`` are replaced when settings change.

    Attributes:
        info: what the server tells of itself.
        policy: what it allows.
        log: the events.
        accounts: devices.
        publisher: where publishes go, as those over WebSocket do.
        limiter: counts calls.
        watches: requests that wait for events.
        identity: registration.
        presences: who is here.
        links: mailboxes through which devices are linked.
        signer: signs heads.
        readiness: whether the database answers.
        clock: the one ``received_at`` follows.
        randomness: for request ids.
        metrics: counted into.
        logger: one line for every request.
        is_draining: whether the server is going down.
        collect: called before metrics are shown.
        auth: gives out challenges and tokens.
        tokens: who a device's access token belongs to.
        administration: users, sessions, invites, the audit trail, for administrators.
        cuts: ends sessions that were cut; told to look at once.
        server_keys: the successor of the identity key.
        announcements: of successors of the identity key, encoded, the oldest first (protocol.md section 1).
        account_intake: takes accounts of other servers in.
        admin: who may administer; ``None``: nobody, and no administration endpoint is there.
    """

    info: ServerInfo
    policy: RestPolicy
    log: EventLog
    accounts: Accounts
    publisher: Publisher
    limiter: RateLimiter
    watches: Watches
    identity: Identity
    presences: Presences
    signer: HeadSigner
    readiness: Readiness
    clock: Clock
    randomness: Randomness
    metrics: Metrics
    logger: Log
    is_draining: Callable[[], bool]
    collect: Callable[[], None]
    auth: Tokens
    links: Links
    tokens: TokenAuthentication
    administration: Administration
    cuts: Cuts
    server_keys: ServerKeys
    announcements: Callable[[], Sequence[bytes]]
    account_intake: AccountIntake
    admin: AdminAccess | None = None
