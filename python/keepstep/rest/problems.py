"""Errors as RFC 9457 problem documents, from the one table of errors."""

from __future__ import annotations

import http
from typing import Any, Final

import msgspec

from keepstep.errors import ProtocolError, Retry
from keepstep.rest.endpoints import BadRequest

CONTENT_TYPE: Final = "application/problem+json"
RETRY_AFTER_S_DEFAULT: Final = 1


def problem(error: ProtocolError, request_id: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body that tell a client of an error: code and fixed text, no internals."""
    row = error.row
    document: dict[str, Any] = {
        "type": f"urn:keepstep:error:{row.code}",
        "title": row.meaning,
        "status": row.http_status,
        "code": row.code,
        "request_id": request_id,
    }
    if isinstance(error, BadRequest):
        document["detail"] = error.where
    headers = {"content-type": CONTENT_TYPE}
    if row.http_status == 401:  # RFC 9110 section 11.6.1, RFC 6750 section 3
        headers["www-authenticate"] = 'Bearer error="invalid_token"' if row.code == "invalid_token" else "Bearer"
    if row.retry is Retry.LATER:
        retry_after_ms = error.retry_after_ms
        if retry_after_ms is not None:
            document["retry_after_ms"] = retry_after_ms
        # RFC 9110 section 10.2.3: whole seconds
        headers["retry-after"] = str(-(-retry_after_ms // 1000) if retry_after_ms else RETRY_AFTER_S_DEFAULT)
    return row.http_status, headers, msgspec.json.encode(document)


def http_problem(status: int, request_id: str, *, detail: str = "") -> tuple[int, dict[str, str], bytes]:
    """The same for what HTTP itself has a status for (404, 405, 415); RFC 9457 section 4.2.1.

    Args:
        status: of HTTP.
        request_id: of the request.
        detail: what would be right, in words that name nothing of the server; empty where the status says it all.
    """
    document = {
        "type": "about:blank",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "request_id": request_id,
    } | ({"detail": detail} if detail else {})
    return status, {"content-type": CONTENT_TYPE}, msgspec.json.encode(document)


def refusal(code: str, request_id: str) -> tuple[int, dict[str, str], bytes]:
    """As ``problem``, from a code alone."""
    return problem(ProtocolError(code), request_id)
