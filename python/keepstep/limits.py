"""What the settings allow each part: at the start, and after a reload."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from keepstep.access import RatePolicy
from keepstep.eventlog.retention import RetentionRules
from keepstep.gateway import GatewayLimits
from keepstep.publish import PublishLimits
from keepstep.rest.services import RestPolicy
from keepstep.sessionservices import SessionLimits
from keepstep.subscription import SubscriberLimits
from keepstep.telemetry import configure_logging
from keepstep.tokens import TokenLifetimes

if TYPE_CHECKING:
    from keepstep.access import AdminAccess
    from keepstep.config import Settings
    from keepstep.gateway import Gateway
    from keepstep.identity import Identity, Registrations
    from keepstep.reloading import Reloads
    from keepstep.rest.services import RestServices
    from keepstep.tokens import Tokens

MINUTE_S: Final = 60


def retention_rules(settings: Settings) -> RetentionRules:
    """How long events stay."""
    return RetentionRules(settings.retention_days, only_archived=settings.archive_url is not None)


_REGISTRATION: Final = ("registration", "registrations_per_address_hour", "registrations_per_hour")
_TOKENS: Final = ("access_token_lifetime_s", "refresh_token_lifetime_s", "challenge_lifetime_s")
_PUBLISHING: Final = ("publish_events_max", "payload_bytes_max")
_PAGES: Final = ("page_events_max", "page_bytes_max")
_BACKUPS: Final = (
    *("backup_interval_s", "backup_offset_s", "backups_kept", "backup_kept_days", "backup_wal_interval_s"),
    *("backup_bytes_per_s_max", "backup_verify"),
)
_SESSION: Final = (
    *("inflight_publishes_max", "unacked_bytes_max", "subscriptions_per_session_max"),
    *("send_timeout_s", "idle_timeout_s"),
)
_REST: Final = (
    *("rest_calls_per_user_minute", "rest_calls_per_address_minute"),
    *("cors_origins", "audit_retention_days", "retention_days"),
)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that are told of new settings.

    Attributes:
        registrations: who may make accounts, and how fast.
        identity: how many devices each has.
        tokens: how long they last.
        gateway: what new sessions may; those that are there keep what they were told.
        rest: what it allows and tells.
        make_admin: access with the settings' administration key, ``None`` without one.
    """

    registrations: Registrations
    identity: Identity
    tokens: Tokens
    gateway: Gateway
    rest: RestServices
    make_admin: Callable[[Settings], AdminAccess | None]


def register(reloads: Reloads, parts: Parts) -> None:
    """Have every part told of the settings that it uses."""

    def registration(settings: Settings) -> None:
        parts.registrations.allow(
            settings.registration,
            per_address_hour=settings.registrations_per_address_hour,
            per_hour=settings.registrations_per_hour,
        )
        parts.rest.info = replace(parts.rest.info, registration=settings.registration)

    def devices(settings: Settings) -> None:
        parts.identity.devices_per_user_max = settings.devices_per_user_max

    def tokens(settings: Settings) -> None:
        parts.tokens.lifetimes = token_lifetimes(settings)

    def sessions(settings: Settings) -> None:
        parts.gateway.limits = gateway_limits(settings)

    def rest(settings: Settings) -> None:
        parts.rest.policy = rest_policy(settings)

    def admin(settings: Settings) -> None:
        parts.rest.admin = parts.make_admin(settings)

    def logs(settings: Settings) -> None:
        configure_logging(settings.log_level, settings.log_format)

    reloads.on(("log_level",), logs)
    reloads.on(_REGISTRATION, registration)
    reloads.on(("devices_per_user_max",), devices)
    reloads.on(_TOKENS, tokens)
    reloads.on((*_PUBLISHING, *_PAGES, *_SESSION), sessions)
    reloads.on((*_PUBLISHING, *_PAGES, *_REST), rest)
    reloads.on(("admin_api_key",), admin)
    reloads.read_at_use("drain_timeout_s", *_BACKUPS)


def token_lifetimes(settings: Settings) -> TokenLifetimes:
    """How long REST's tokens last."""
    return TokenLifetimes(
        access_token_lifetime_s=settings.access_token_lifetime_s,
        refresh_token_lifetime_s=settings.refresh_token_lifetime_s,
        challenge_lifetime_s=settings.challenge_lifetime_s,
    )


def publish_limits(settings: Settings) -> PublishLimits:
    """What the commit pipelines take."""
    return PublishLimits(
        pipelines=settings.pipelines,
        queue_max=settings.pipeline_queue_max,
        queue_bytes_max=settings.pipeline_queue_bytes_max,
        batch_events_max=settings.batch_events_max,
        batch_bytes_max=settings.batch_bytes_max,
    )


def gateway_limits(settings: Settings) -> GatewayLimits:
    """What a session may."""
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


def rest_policy(settings: Settings) -> RestPolicy:
    """What REST allows."""
    return RestPolicy(
        per_user=RatePolicy("user", settings.rest_calls_per_user_minute, MINUTE_S),
        per_address=RatePolicy("address", settings.rest_calls_per_address_minute, MINUTE_S),
        cors_origins=frozenset(filter(None, settings.cors_origins.split(","))),
        publish_events_max=settings.publish_events_max,
        payload_bytes_max=settings.payload_bytes_max,
        page_events_max=settings.page_events_max,
        page_bytes_max=settings.page_bytes_max,
        bytes_per_user_max=settings.bytes_per_user_max,
        audit_retention_days=settings.audit_retention_days,
        retention_days=settings.retention_days,
    )
