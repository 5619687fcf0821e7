"""From a request to its endpoint's handler and back: the only code between the table and the web framework.

A request is checked in a fixed order, which the tests of access rely on: who calls, how often, what it may do, then
the form of path, query and body. A stranger learns nothing about the form of what only devices may ask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import trio
from quart import Response, g, request
from werkzeug.routing import BaseConverter

from keepstep import _keepstep
from keepstep.admission import address_prefix
from keepstep.errors import ProtocolError, Unavailable
from keepstep.ratelimit import RateLimited
from keepstep.rest.decoding import UnsupportedMediaType, decode_body, decode_parameters, decode_query
from keepstep.rest.endpoints import JSON, Access, Binary, Call, Reply
from keepstep.rest.headers import IDEMPOTENCY_HEADER
from keepstep.rest.idempotency import RepeatedAnswers
from keepstep.validation import format_base64url

if TYPE_CHECKING:
    from quart_trio import QuartTrio

    from keepstep.access import RatePolicy
    from keepstep.model import Principal, UserPk
    from keepstep.rest.endpoints import Endpoint
    from keepstep.rest.services import RestServices

K = TypeVar("K", bound=Hashable)

STREAM_PARAMETER: Final = "{stream}"
"""Matches slashes too, also at the beginning: a stream's name may be ``/a//b``."""
AUDIT_TIMEOUT_S: Final = 5.0
"""How long recording a call of an administrator may take."""
_ETAG_BYTES: Final = 16


class _Rest(BaseConverter):
    """The rest of a path."""

    part_isolating = False
    regex = ".+"


@contextmanager
def _place(calls: Counter[K], caller: K, calls_max: int | None) -> Iterator[None]:
    """One of a caller's places among the calls of an endpoint. Raises ``rate_limited`` where all are taken."""
    if calls_max is not None and calls[caller] >= calls_max:
        raise ProtocolError("rate_limited", "too many calls of one caller at a time", retry_after_ms=1_000)
    calls[caller] += 1
    try:
        yield
    finally:
        calls[caller] -= 1
        if not calls[caller]:
            del calls[caller]


def add_endpoints(app: QuartTrio, endpoints: Sequence[Endpoint], services: RestServices) -> None:
    """Make the endpoints of the table answer."""
    app.url_map.merge_slashes = False
    app.url_map.converters["rest"] = _Rest
    answers = RepeatedAnswers(services.clock)
    for endpoint in endpoints:
        rule = endpoint.path.replace(STREAM_PARAMETER, "<rest:stream>").replace("{", "<").replace("}", ">")
        view = _Dispatcher(endpoint, services, answers).view
        app.add_url_rule(rule, endpoint.operation, view, methods=[endpoint.method])


class _Dispatcher:
    """One endpoint, as the framework calls it.

    Args:
        endpoint: of the table.
        services: the rest of the server.
        answers: to calls with an ``Idempotency-Key``.
    """

    def __init__(self, endpoint: Endpoint, services: RestServices, answers: RepeatedAnswers) -> None:
        self._endpoint = endpoint
        self._services = services
        self._answers = answers
        self._calls = 0
        self._calls_by_user: Counter[UserPk] = Counter()
        self._calls_by_prefix: Counter[str] = Counter()

    async def view(self, **path: str) -> Response:
        """Check, call, answer. Raises ProtocolError, which the application answers as a problem."""
        if self._calls >= self._endpoint.concurrency_max:
            raise Unavailable("too many calls of this endpoint at a time")
        self._calls += 1
        try:
            with trio.move_on_after(self._endpoint.timeout_s):
                return await self._serve(path)
            raise Unavailable("the request took too long")
        finally:
            self._calls -= 1

    async def _serve(self, path: dict[str, str]) -> Response:
        generation = self._services.log.generation()
        address = request.remote_addr or ""
        device = await self._authenticate(address)
        if device is None:
            with _place(self._calls_by_prefix, address_prefix(address), self._endpoint.concurrency_per_address_max):
                return await self._answer(path, address, None)
        with _place(self._calls_by_user, device.user_pk, self._endpoint.concurrency_per_user_max):
            response = await self._answer(path, address, device)
        if self._services.log.generation() != generation:
            # The device's row numbers belong to a log that is not there any more.
            raise Unavailable("the log has become another one during the request")
        return response

    # -- who calls --------------------------------------------------------------------------------------------------

    async def _authenticate(self, address: str) -> Principal | None:
        """Who calls, as far as the endpoint asks, and whether it may do so now."""
        endpoint, services = self._endpoint, self._services
        authorization = request.headers.get("Authorization")
        if endpoint.access is not Access.DEVICE:
            await self._count(f"address:{address_prefix(address)}", services.policy.per_address)
            if endpoint.access is Access.ADMIN:
                if services.admin is None:
                    raise ProtocolError("not_found")
                await services.admin.authenticate(authorization, address=address)
                g.is_proven = True
            return None
        try:
            principal = await services.tokens.authenticate(authorization)
        except ProtocolError as error:
            if error.code != "invalid_token":
                raise
            refused = error
        else:
            await self._count(f"user:{principal.user_pk}", services.policy.per_user)
            g.is_proven = True
            if endpoint.capability is not None and endpoint.capability & ~principal.capabilities_at(
                services.clock.now_ms()
            ):
                raise ProtocolError("forbidden")
            return principal
        await self._count(f"address:{address_prefix(address)}", services.policy.per_address)
        raise refused

    async def _count(self, caller: str, policy: RatePolicy) -> None:
        """One call of a caller; what it has left is told in the answer."""
        if not self._endpoint.limited:
            return
        try:
            g.rate = await self._services.limiter.take(caller, policy)
        except RateLimited as error:
            g.rate = error.state
            raise

    # -- what is asked ----------------------------------------------------------------------------------------------

    async def _answer(self, path: dict[str, str], address: str, device: Principal | None) -> Response:
        body = await request.get_data(as_text=False)
        assert isinstance(body, bytes)
        if self._endpoint.access is Access.ADMIN:
            return self._response(await self._audited(path, body, address))
        return self._response(await self._once(self._call(path, body, address, device), body))

    def _call(self, path: dict[str, str], body: bytes, address: str, device: Principal | None) -> Call[Any, Any, Any]:
        """The request in its declared form. Raises ``malformed``, UnsupportedMediaType."""
        endpoint = self._endpoint
        return Call(
            services=self._services,
            path=decode_parameters(endpoint.path_type, path, "the path"),
            query=decode_query(endpoint.query_type, list(request.args.items(multi=True))),
            body=decode_body(endpoint, request.mimetype, body),
            # the first of a name, as what has been checked: with another one somebody else would go on with the call
            headers={name.lower(): request.headers[name] for name in request.headers.keys()},  # noqa: SIM118
            address=address,
            request_id=g.request_id,
            device=device,
        )

    async def _once(self, call: Call[Any, Any, Any], body: bytes) -> Reply:
        """The handler's answer, or the one that it gave before to the same key."""
        endpoint = self._endpoint
        key = request.headers.get(IDEMPOTENCY_HEADER)
        if key is None or not endpoint.idempotent:
            return await endpoint.handler(call)
        caller = "admin" if call.device is None else f"user:{call.device.user_pk}"
        digest = _keepstep.blake3(request.full_path.encode() + b"\0" + body)
        return await self._answers.once(f"{endpoint.operation} {caller}", key, digest, lambda: endpoint.handler(call))

    async def _audited(self, path: dict[str, str], body: bytes, address: str) -> Reply:
        """An administrator's call: recorded however it ends, also where its form is wrong."""
        admin = self._services.admin
        assert admin is not None
        status = 500
        try:
            reply = await self._once(self._call(path, body, address, None), body)
            status = reply.status
        except ProtocolError as error:
            status = error.row.http_status
            raise
        except UnsupportedMediaType:
            status = UnsupportedMediaType.http_status
            raise
        finally:
            with trio.move_on_after(AUDIT_TIMEOUT_S, shield=True):
                await admin.audit(
                    self._endpoint.operation, path, status=status, address=address, request_id=g.request_id
                )
        return reply

    # -- what is answered -------------------------------------------------------------------------------------------

    def _response(self, reply: Reply) -> Response:
        declared = self._endpoint.answers[reply.status]
        body = reply.body
        if isinstance(body, msgspec.Struct):
            assert isinstance(declared, type), "the table promises another body"
            assert isinstance(body, declared), "the table promises another body"
            encoded = msgspec.json.encode(body)
            response = Response(encoded, status=reply.status, content_type=JSON)
            if self._endpoint.etag:
                response = self._versioned(response, encoded if reply.version is None else reply.version)
        elif body is None:
            assert declared is None, "the table promises a body"
            response = Response(b"", status=reply.status)
            del response.headers["content-type"]
        else:
            assert isinstance(declared, Binary), "the table promises another body"
            if request.method == "HEAD":
                body = b""  # pieces would come, and nobody would take them
            response = Response(body, status=reply.status, content_type=declared.content_type)
            if not isinstance(body, bytes):
                response.timeout = None  # they come for as long as the handler has them
        response.headers.update(dict(reply.headers))
        return response

    def _versioned(self, response: Response, version: bytes) -> Response:
        """The answer with its ``ETag``, or 304 where the client has it already (RFC 9110 section 13.1.2)."""
        etag = format_base64url(_keepstep.blake3(version)[:_ETAG_BYTES])
        if request.if_none_match.contains_weak(etag):
            response = Response(b"", status=304)
            del response.headers["content-type"]
        response.set_etag(etag)
        response.headers["Cache-Control"] = "private, no-cache"
        return response
