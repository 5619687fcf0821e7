"""The REST application: routes, request ids, time limits, and errors as problem documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from keepstep.errors import ProtocolError, Unavailable
from keepstep.model import DEVICES_STREAM
from keepstep.rest.guard import BODY_BYTES_MAX, BODY_TIMEOUT_S, REQUEST_ID, Guard
from keepstep.rest.problems import http_problem, problem, refusal
from keepstep.telemetry import METRICS_CONTENT_TYPE, describe

if TYPE_CHECKING:
    from keepstep.heads import HeadSigner
    from keepstep.identity import Identity, Registered
    from keepstep.interfaces import Clock, Maintenance, Randomness
    from keepstep.telemetry import Log, Metrics

REQUEST_TIMEOUT_S: Final = 20.0
"""For one request; a commit that has begun is waited for all the same."""
READY_TIMEOUT_S: Final = 2.0
"""For the database to answer the readiness check."""
METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
"""Counted by name; a client could make up any number of others, each a series of its own."""
MSGPACK: Final = "application/msgpack"
_REQUEST_ID_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What ``GET /api/v1/server`` tells.

    Attributes:
        version: of keepstep.
        name: what the server calls itself to people.
        server_key: the identity key that devices pin, 32 bytes.
        device_url: where devices connect, without the key.
        registration: ``open`` or ``closed``.
        unsafe: whether it was told to go on although commits are not durable.
    """

    version: str
    name: str
    server_key: bytes
    device_url: str
    registration: str
    unsafe: bool

    @property
    def pinned_url(self) -> str:
        """The URL a device is given: address and key."""
        return f"{self.device_url}#{self.server_key.hex()}"


@dataclass(frozen=True, slots=True)
class RestServices:
    """What REST needs of the rest of the server; ``is_draining`` says whether it is going down."""

    info: ServerInfo
    identity: Identity
    signer: HeadSigner
    maintenance: Maintenance
    clock: Clock
    randomness: Randomness
    metrics: Metrics
    logger: Log
    is_draining: Callable[[], bool]
    collect: Callable[[], None]


def create_app(services: RestServices) -> Guard:
    """The whole application, guarded, as ASGI."""
    app = QuartTrio("keepstep")
    app.config["MAX_CONTENT_LENGTH"] = BODY_BYTES_MAX
    app.config["BODY_TIMEOUT"] = BODY_TIMEOUT_S
    app.config["PROPAGATE_EXCEPTIONS"] = False
    _add_requests(app, services)
    _add_errors(app, services)
    _add_health(app, services)
    _add_api(app, services)
    return Guard(app, refusal, make_id=lambda: services.randomness.bytes(_REQUEST_ID_BYTES).hex())


def _add_requests(app: QuartTrio, services: RestServices) -> None:
    """Request ids, metrics and log lines of every request."""

    @app.before_request
    async def begin() -> None:
        g.request_id = request.scope[REQUEST_ID]  # type: ignore[typeddict-item]
        g.started_s = services.clock.monotonic_s()

    @app.after_request
    async def end(response: Response) -> Response:
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        route = request.url_rule.rule if request.url_rule is not None else "none"
        seconds = services.clock.monotonic_s() - g.started_s
        method = request.method if request.method in METHODS else "other"
        services.metrics.rest_requests.labels(method, route, str(response.status_code)).inc()
        services.metrics.rest_seconds.labels(route).observe(seconds)
        services.logger.info(
            "rest_request",
            request_id=g.request_id,
            api_version="1" if route.startswith("/api/v1/") else None,
            method=method,
            route=route,
            status=response.status_code,
            duration_ms=round(seconds * 1000, 3),
        )
        return response


def _add_errors(app: QuartTrio, services: RestServices) -> None:
    @app.errorhandler(ProtocolError)
    async def of_the_protocol(error: ProtocolError) -> Response:
        return _response(problem(error, g.request_id))

    @app.errorhandler(HTTPException)
    async def of_http(error: HTTPException) -> Response:
        return _response(http_problem(error.code or 500, g.request_id))

    @app.errorhandler(Exception)
    async def of_ours(error: Exception) -> Response:
        services.metrics.faults.inc()
        services.logger.error("rest_fault", request_id=g.request_id, **describe(error))
        return _response(problem(ProtocolError("internal"), g.request_id))


def _add_health(app: QuartTrio, services: RestServices) -> None:
    @app.get("/health/live")
    async def live() -> Response:
        """The process answers."""
        return _json({"status": "live"})

    @app.get("/health/ready")
    async def ready() -> Response:
        """Whether devices should be sent here."""
        database = "away"
        with trio.move_on_after(READY_TIMEOUT_S):
            try:
                await services.maintenance.ping()
                database = "ok"
            except Unavailable:
                pass
        draining = services.is_draining()
        is_ready = database == "ok" and not draining
        return _json(
            {
                "status": "ready" if is_ready else "not_ready",
                "database": database,
                "draining": draining,
                "unsafe": services.info.unsafe,
            },
            status=200 if is_ready else 503,
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus' text format."""
        services.collect()
        return Response(services.metrics.exposition(), content_type=METRICS_CONTENT_TYPE)


def _add_api(app: QuartTrio, services: RestServices) -> None:
    info = services.info

    @app.get("/api/v1/server")
    async def server() -> Response:
        """What a device needs to know before it connects."""
        return _json(
            {
                "version": info.version,
                "name": info.name,
                "server_key": info.server_key.hex(),
                "device_url": info.pinned_url,
                "registration": info.registration,
            }
        )

    @app.post("/api/v1/accounts")
    async def accounts() -> Response:
        """Create an account from its genesis event (protocol.md section 1)."""
        if request.mimetype != MSGPACK:
            return _response(http_problem(415, g.request_id))
        body = await request.get_data(as_text=False)
        assert isinstance(body, bytes)
        try:
            registered = await _register(services, body)
        except ProtocolError as error:
            services.metrics.registrations.labels(error.code).inc()
            raise
        services.metrics.registrations.labels("created" if registered.is_new else "duplicate").inc()
        head = services.signer.sign(
            registered.user_key, DEVICES_STREAM, seq=registered.head.seq, chain=registered.head.chain
        )
        answer = msgspec.msgpack.encode([registered.seq, registered.received_at_ms, registered.chain, head])
        return Response(answer, status=201 if registered.is_new else 200, content_type=MSGPACK)


async def _register(services: RestServices, body: bytes) -> Registered:
    with trio.move_on_after(REQUEST_TIMEOUT_S):
        return await services.identity.register(body, address=request.remote_addr or "")
    raise Unavailable("the request took too long")


def _json(document: dict[str, Any], *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status=status, content_type="application/json")


def _response(answer: tuple[int, dict[str, str], bytes]) -> Response:
    status, headers, body = answer
    return Response(body, status=status, headers=headers)
