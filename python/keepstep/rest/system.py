"""Health, metrics, and what the server is: open to everybody."""

from __future__ import annotations

from typing import Final, Literal

from keepstep.rest.endpoints import Access, AnswerBody, Binary, Call, Endpoint, Example, NoParameters, Reply
from keepstep.rest.fields import Base64url, Hex32
from keepstep.telemetry import METRICS_CONTENT_TYPE
from keepstep.validation import format_base64url

_CORE_REQUESTS_MAX: Final = 256
"""Health and metrics are asked by machines that must not be turned away because people ask too."""

Simple = Call[NoParameters, NoParameters, None]


class Live(AnswerBody, frozen=True, kw_only=True):
    """The process answers."""

    status: Literal["live"] = "live"


class Ready(AnswerBody, frozen=True, kw_only=True):
    """Whether devices should be sent here. `disk` is `low` while publishing waits for room and all else goes on."""

    status: Literal["ready", "not_ready"]
    database: Literal["ok", "away"]
    disk: Literal["ok", "low"]
    draining: bool
    unsafe: bool


class Server(AnswerBody, frozen=True, kw_only=True):
    """What a device needs to know before it connects."""

    version: str
    name: str
    server_key: Hex32
    device_url: str
    registration: Literal["open", "invite", "closed"]
    server_key_announcements: list[Base64url]


async def _live(_call: Simple) -> Reply:
    return Reply(Live())


async def _ready(call: Simple) -> Reply:
    services = call.services
    database: Literal["ok", "away"] = "ok" if await services.readiness.is_database_there() else "away"
    draining = services.is_draining()
    is_ready = database == "ok" and not draining
    answer = Ready(
        status="ready" if is_ready else "not_ready",
        database=database,
        disk="low" if services.publisher.waits_for_room else "ok",
        draining=draining,
        unsafe=services.info.unsafe,
    )
    return Reply(answer, status=200 if is_ready else 503)


async def _metrics(call: Simple) -> Reply:
    call.services.collect()
    return Reply(call.services.metrics.exposition())


async def _server(call: Simple) -> Reply:
    info = call.services.info
    return Reply(
        Server(
            version=info.version,
            name=info.name,
            server_key=info.server_key.hex(),
            device_url=info.pinned_url,
            registration=info.registration,
            server_key_announcements=[format_base64url(each) for each in call.services.announcements()],
        )
    )


_KEY: Final = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"

ENDPOINTS: Final = (
    Endpoint(
        method="GET",
        path="/health/live",
        access=Access.PUBLIC,
        summary="Whether the process answers",
        handler=_live,
        answers={200: Live},
        example=Example(answer={"status": "live"}),
        concurrency_max=_CORE_REQUESTS_MAX,
        limited=False,
    ),
    Endpoint(
        method="GET",
        path="/health/ready",
        access=Access.PUBLIC,
        summary="Whether devices should be sent here",
        handler=_ready,
        answers={200: Ready, 503: Ready},
        example=Example(answer={"status": "ready", "database": "ok", "disk": "ok", "draining": False, "unsafe": False}),
        concurrency_max=_CORE_REQUESTS_MAX,
        limited=False,
    ),
    Endpoint(
        method="GET",
        path="/metrics",
        access=Access.PUBLIC,
        summary="Metrics in Prometheus' text format",
        handler=_metrics,
        answers={200: Binary(METRICS_CONTENT_TYPE, "Prometheus' text format")},
        concurrency_max=_CORE_REQUESTS_MAX,
        limited=False,
    ),
    Endpoint(
        method="GET",
        path="/api/v1/server",
        access=Access.PUBLIC,
        summary="What a device needs to know before it connects",
        handler=_server,
        answers={200: Server},
        example=Example(
            answer={
                "version": "1.2.3",
                "name": "home",
                "server_key": _KEY,
                "device_url": f"wss://home.example/v1/connect#{_KEY}",
                "registration": "open",
                "server_key_announcements": [],
            }
        ),
    ),
)
