"""Headers that belong to no single endpoint: version, security, CORS, rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from keepstep.errors import ProtocolError

if TYPE_CHECKING:
    from keepstep.access import RateState

API_VERSION: Final = "1"
VERSION_HEADER: Final = "Keepstep-Version"
USER_ID_HEADER: Final = "X-User-ID"
IDEMPOTENCY_HEADER: Final = "Idempotency-Key"

EVERY_ANSWER: Final[Mapping[str, str]] = {
    VERSION_HEADER: API_VERSION,
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Nothing is cached, guessed at, framed, or told to other sites, also where a body is refused."""

_REQUEST_HEADERS: Final = (
    "Authorization, Content-Type, Idempotency-Key, If-None-Match, Keepstep-Invite, Keepstep-Version, Last-Event-ID, "
    "X-Request-ID"
)
_ANSWER_HEADERS: Final = "ETag, Keepstep-Version, RateLimit, RateLimit-Policy, Retry-After, X-Request-ID"
_PREFLIGHT_S: Final = "600"


def check_request_headers(*, user_id: str | None, version: str | None) -> None:
    """What a request may not say of itself, whatever it asks for.

    Args:
        user_id: ``X-User-ID``, ``None`` where it is not there.
        version: ``Keepstep-Version``, likewise.

    Raises:
        ProtocolError: ``user_id_header``, ``unsupported_version``.
    """
    if user_id is not None:
        raise ProtocolError("user_id_header")
    if version not in (None, API_VERSION):
        raise ProtocolError("unsupported_version")


def cors_headers(origin: str | None, *, allowed: frozenset[str], preflight: bool) -> dict[str, str]:
    """What a browser needs to let a page of an allowed origin read the answer (Fetch standard, CORS protocol).

    Credentials of the browser's own (cookies) are never allowed: tokens go in ``Authorization``.

    Args:
        origin: the ``Origin`` header, ``None`` where there is none.
        allowed: exact origins.
        preflight: whether the browser asks what it may send.
    """
    if not allowed:
        return {}
    headers = {"Vary": "Origin"}
    if origin not in allowed:
        return headers
    assert origin is not None
    headers |= {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _ANSWER_HEADERS}
    if preflight:
        headers |= {
            "Access-Control-Allow-Methods": "DELETE, GET, PATCH, POST, PUT",
            "Access-Control-Allow-Headers": _REQUEST_HEADERS,
            "Access-Control-Max-Age": _PREFLIGHT_S,
        }
    return headers


def rate_headers(state: RateState) -> dict[str, str]:
    """What a caller has left (draft-ietf-httpapi-ratelimit-headers-10, sections 3 and 4)."""
    policy = state.policy
    return {
        "RateLimit-Policy": f'"{policy.name}";q={policy.calls};w={policy.window_s}',
        "RateLimit": f'"{policy.name}";r={state.remaining};t={state.reset_s}',
    }
