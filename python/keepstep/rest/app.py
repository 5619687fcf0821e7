"""The REST application: the table's endpoints, request ids, and errors as problem documents."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from keepstep.errors import ProtocolError
from keepstep.rest.decoding import UnsupportedMediaType
from keepstep.rest.dispatch import add_endpoints
from keepstep.rest.endpoints import BODY_BYTES_MAX, Access
from keepstep.rest.guard import BODY_TIMEOUT_S, REQUEST_ID, BodyLimit, Guard, Scope
from keepstep.rest.headers import (
    EVERY_ANSWER,
    USER_ID_HEADER,
    VERSION_HEADER,
    check_request_headers,
    cors_headers,
    rate_headers,
)
from keepstep.rest.problems import http_problem, problem, refusal
from keepstep.rest.table import ENDPOINTS
from keepstep.telemetry import BoundedLines, describe

if TYPE_CHECKING:
    from keepstep.rest.endpoints import Endpoint
    from keepstep.rest.services import RestServices

METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
"""Counted by name; a client could make up any number of others, each a series of its own."""
_REQUEST_ID_BYTES: Final = 8


def create_app(services: RestServices, endpoints: Sequence[Endpoint] = ENDPOINTS) -> Guard:
    """The whole application, guarded, as ASGI."""
    limits = {
        (each.method, each.path): BODY_BYTES_MAX if each.access is Access.ADMIN else each.body_bytes_max
        for each in endpoints
    }
    app = QuartTrio("keepstep", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max(each.body_bytes_max for each in endpoints)
    app.config["BODY_TIMEOUT"] = BODY_TIMEOUT_S
    app.config["PROPAGATE_EXCEPTIONS"] = False
    _add_requests(app, services, {each.operation: each.path for each in endpoints})
    _add_errors(app, services)
    add_endpoints(app, endpoints, services)
    return Guard(
        app,
        refusal,
        make_id=lambda: services.randomness.bytes(_REQUEST_ID_BYTES).hex(),
        body_bytes_max=lambda method, path: limits.get((method, path), BODY_BYTES_MAX),
        headers=EVERY_ANSWER,
        larger_body=_larger_body(services, endpoints),
    )


def _larger_body(services: RestServices, endpoints: Sequence[Endpoint]) -> Callable[[Scope], Awaitable[BodyLimit]]:
    """Which requests may have a larger body than anybody's: those of an administrator, of which the key is asked."""
    limits = {
        (each.method, each.path): BodyLimit(each.body_bytes_max, each.body_timeout_s)
        for each in endpoints
        if each.access is Access.ADMIN and each.body_bytes_max > BODY_BYTES_MAX
    }

    async def larger_body(scope: Scope) -> BodyLimit:
        limit = limits.get((scope["method"], scope["path"]))
        if limit is None or services.admin is None:
            raise ProtocolError("too_large")
        shown = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        address = scope["client"][0] if scope.get("client") else ""
        authorization = None if shown is None else bytes(shown).decode("latin-1")
        await services.admin.authenticate(authorization, address=address)
        return limit

    return larger_body


def _add_requests(app: QuartTrio, services: RestServices, routes: Mapping[str, str]) -> None:
    """What holds for every request: ids, headers, metrics and log lines."""
    strangers = BoundedLines(services.logger)

    @app.before_request
    async def begin() -> Response | None:
        g.request_id = request.scope[REQUEST_ID]  # type: ignore[typeddict-item]
        g.started_s = services.clock.monotonic_s()
        g.rate = None
        g.is_proven = False
        g.refusal = None
        if _is_preflight() and services.policy.cors_origins:
            response = Response(b"", status=204)
            del response.headers["content-type"]
            return response
        headers = request.headers
        check_request_headers(user_id=headers.get(USER_ID_HEADER), version=headers.get(VERSION_HEADER))
        return None

    @app.after_request
    async def end(response: Response) -> Response:
        origin = request.headers.get("Origin")
        allowed = services.policy.cors_origins
        response.headers.update(cors_headers(origin, allowed=allowed, preflight=_is_preflight()))
        if g.rate is not None:
            response.headers.update(rate_headers(g.rate))
        _report(services, strangers, routes.get(request.endpoint or "", "none"), response.status_code)
        return response


def _is_preflight() -> bool:
    """Whether a browser asks what a page of another origin may send."""
    headers = request.headers
    return request.method == "OPTIONS" and "Origin" in headers and "Access-Control-Request-Method" in headers


def _report(services: RestServices, strangers: BoundedLines, route: str, status: int) -> None:
    """Count and log one answered request; of those who prove nobody so many lines, and then how many more there were.

    Who proves somebody has a bound already: the calls of one user.
    """
    monotonic_s = services.clock.monotonic_s()
    seconds = monotonic_s - g.started_s
    method = request.method if request.method in METHODS else "other"
    services.metrics.rest_requests.labels(method, route, str(status)).inc()
    services.metrics.rest_seconds.labels(route).observe(seconds)
    write = services.logger.info if g.is_proven else partial(strangers.write, now_s=monotonic_s)
    write(
        "rest_request",
        request_id=g.request_id,
        api_version="1" if route.startswith("/api/v1/") else None,
        method=method,
        route=route,
        status=status,
        **({} if g.refusal is None else {"code": g.refusal.code, "detail": g.refusal.detail or None}),
        duration_ms=round(seconds * 1000, 3),
    )


def _add_errors(app: QuartTrio, services: RestServices) -> None:
    @app.errorhandler(ProtocolError)
    async def of_the_protocol(error: ProtocolError) -> Response:
        g.refusal = error
        return _response(problem(error, g.request_id))

    @app.errorhandler(UnsupportedMediaType)
    async def of_the_body(error: UnsupportedMediaType) -> Response:
        wanted = " or ".join(error.wanted)
        response = _response(http_problem(error.http_status, g.request_id, detail=f"Content-Type has to be {wanted}"))
        if request.method == "POST":
            response.headers["Accept-Post"] = ", ".join(error.wanted)
        return response

    @app.errorhandler(HTTPException)
    async def of_http(error: HTTPException) -> Response:
        response = _response(http_problem(error.code or 500, g.request_id))
        response.headers.update({name: value for name, value in error.get_headers() if name == "Allow"})
        return response

    @app.errorhandler(Exception)
    async def of_ours(error: Exception) -> Response:
        services.metrics.faults.inc()
        services.logger.error("rest_fault", request_id=g.request_id, **describe(error))
        return _response(problem(ProtocolError("internal"), g.request_id))


def _response(answer: tuple[int, dict[str, str], bytes]) -> Response:
    status, headers, body = answer
    return Response(body, status=status, headers=headers)
