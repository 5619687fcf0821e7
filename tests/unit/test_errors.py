"""The error table and what is raised from it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from keepstep.errors import ERRORS, ErrorCode, ProtocolError, Retry, Unavailable, VerificationError, reference

REFERENCE: Final = Path(__file__).resolve().parents[2] / "docs" / "reference" / "errors.md"


def test_the_reference_is_the_table() -> None:
    """``docs/reference/errors.md`` is what ``keepstep.errors.reference()`` gives."""
    assert REFERENCE.read_text(encoding="utf-8") == reference()


def test_codes_and_close_codes_are_unique() -> None:
    """Each error can be told from every other by either."""
    assert len({row.close_code for row in ERRORS.values()}) == len(ERRORS)
    assert all(code == row.code for code, row in ERRORS.items())


@pytest.mark.parametrize("row", ERRORS.values(), ids=lambda row: row.code)
def test_close_codes_tell_whether_to_reconnect(row: ErrorCode) -> None:
    """4000-4499 exactly where the same device may succeed later, and every row has an HTTP error status."""
    assert (4000 <= row.close_code <= 4499) == (row.retry is not Retry.NEVER)
    assert 4000 <= row.close_code <= 4999
    assert 400 <= row.http_status <= 599


def test_an_error_says_its_detail_to_us_and_its_meaning_otherwise() -> None:
    """The detail is for our logs; without one the fixed text stands there."""
    assert str(ProtocolError("malformed", "a nonce is all zeros")) == "malformed: a nonce is all zeros"
    assert str(ProtocolError("malformed")) == "malformed: the message does not have the documented form"
    assert ProtocolError("malformed").row is ERRORS["malformed"]
    assert ProtocolError("rate_limited", retry_after_ms=5).retry_after_ms == 5


def test_only_codes_of_the_table_can_be_raised() -> None:
    """A code that nobody documented is our bug."""
    with pytest.raises(AssertionError):
        ProtocolError("surprise")


def test_unavailable_tells_when_to_come_back() -> None:
    """After a second where nothing better is known."""
    error = Unavailable("the database is away")
    assert (error.code, error.retry_after_ms) == ("unavailable", 1000)


def test_a_verification_error_says_where_and_carries_its_evidence() -> None:
    """Evidence is signed heads that prove the lie to others."""
    error = VerificationError("two histories", stream="notes", seq=5, evidence=((b"head", b"sig"),))
    assert str(error) == "notes#5: two histories"
    assert error.evidence == ((b"head", b"sig"),)
    assert str(VerificationError("gone", stream="notes")) == "notes: gone"
