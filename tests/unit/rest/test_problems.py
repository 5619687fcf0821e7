"""Errors as problem documents."""

from __future__ import annotations

import json

import pytest

from keepstep.errors import ERRORS, ProtocolError, Retry
from keepstep.rest.problems import http_problem, problem, refusal


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_every_code_of_the_table_is_a_problem_document(code: str) -> None:
    """RFC 9457, with the table's status and text, and nothing of the detail."""
    status, headers, body = problem(ProtocolError(code, "internals"), "id-1")
    row = ERRORS[code]
    assert (status, headers["content-type"]) == (row.http_status, "application/problem+json")
    assert json.loads(body) == {
        "type": f"urn:keepstep:error:{code}",
        "title": row.meaning,
        "status": row.http_status,
        "code": code,
        "request_id": "id-1",
    }
    assert ("retry-after" in headers) == (row.retry is Retry.LATER)


@pytest.mark.parametrize(("retry_after_ms", "seconds"), [(None, "1"), (1, "1"), (1_000, "1"), (1_001, "2")])
def test_when_to_come_back_is_told_in_whole_seconds(retry_after_ms: int | None, seconds: str) -> None:
    """Rounded up; in milliseconds in the document."""
    _, headers, body = problem(ProtocolError("rate_limited", retry_after_ms=retry_after_ms), "id-1")
    assert headers["retry-after"] == seconds
    assert json.loads(body).get("retry_after_ms") == retry_after_ms


def test_what_http_has_a_status_for_is_about_blank() -> None:
    """RFC 9457 section 4.2.1."""
    status, headers, body = http_problem(405, "id-1")
    assert (status, headers) == (405, {"content-type": "application/problem+json"})
    assert json.loads(body) == {
        "type": "about:blank",
        "title": "Method Not Allowed",
        "status": 405,
        "request_id": "id-1",
    }


def test_a_refusal_is_the_problem_of_its_code() -> None:
    """Nothing but the code is known there."""
    assert refusal("too_large", "id-1") == problem(ProtocolError("too_large"), "id-1")
