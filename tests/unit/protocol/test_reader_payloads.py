"""Payloads that are gone: expired, or withheld (protocol.md section 3)."""

from __future__ import annotations

from typing import Any

import pytest

from keepstep.model import inbox_of
from keepstep.protocol import reader as reader_module
from keepstep.protocol.reader import StreamVerifier
from keepstep.protocol.verified import Problem, VerifiedEvent
from tests.support.events import NOW_MS, seed
from tests.support.scripted_log import ScriptedStream, ScriptedUser, follow, lie, replaced

OTHER_CHAIN = seed("another chain")


def payloads(events: list[VerifiedEvent]) -> list[bytes | None]:
    """Payloads in order."""
    return [event.payload for event in events]


def with_missing(**changes: Any) -> tuple[ScriptedStream, StreamVerifier]:
    """A stream of three events whose second has lost its payload, and its reader at the end."""
    user = ScriptedUser()
    stream = user.stream()
    stream.append(user.laptop, b"one")
    stream.append(user.laptop, b"two", stored_payload=None, **changes)
    stream.append(user.laptop, b"three")
    return stream, follow(stream)


def test_a_payload_whose_ttl_is_over_is_expired() -> None:
    """By the time in a signed head, which the reader may have before the event or get later."""
    stream, reader = with_missing(ttl_s=1)
    reader.resumed(stream.head(time_ms=NOW_MS + 2 + 1000))
    assert reader.feed(*stream.page(0))[1].problem is Problem.EXPIRED
    stream, reader = with_missing(ttl_s=1)
    assert reader.feed(*stream.page(0))[1].problem is Problem.MISSING
    assert reader.caught_up(stream.head(time_ms=NOW_MS + 2 + 1000)) == []
    assert reader.state.missing == {}


@pytest.mark.parametrize("ttl_s", [None, 1])
def test_a_payload_that_is_gone_without_reason_is_reported_as_withheld(ttl_s: int | None) -> None:
    """It is read once more when the reader has caught up; if it is still gone, the server withholds it."""
    stream, reader = with_missing(ttl_s=ttl_s)
    events = reader.feed(*stream.page(0))
    assert payloads(events) == [b"one", None, b"three"]
    assert events[1].problem is Problem.MISSING
    assert reader.caught_up(stream.head(time_ms=NOW_MS + 2 + 999)) == [2]
    (event,) = reader.reread(stream.rows)
    assert (event.seq, event.payload, event.problem) == (2, None, Problem.WITHHELD)
    assert reader.caught_up(stream.head(time_ms=NOW_MS + 2 + 999)) == []


def test_a_payload_that_comes_at_the_second_reading_is_delivered() -> None:
    """A mishap of the server is forgiven."""
    stream, reader = with_missing()
    before = reader.feed(*stream.page(0))[1]
    assert reader.caught_up(stream.head()) == [2]
    (event,) = reader.reread([replaced(stream.rows[1], 5, b"two")])
    assert (event.payload, event.problem) == (b"two", None)
    assert (event.seq, event.chain, event.hash, event.header) == (2, before.chain, before.hash, before.header)
    assert reader.reread(stream.rows) == []


@pytest.mark.parametrize(
    ("index", "value", "reason"),
    [
        (1, seed("another device")[:16], "another event than before"),
        (2, NOW_MS, "another event than before"),
        (4, bytes(64), "another event than before"),
        (5, b"three", "not the one that the author signed for"),
        (3, b"", "documented form"),
    ],
)
def test_a_second_reading_shows_the_same_event(index: int, value: Any, reason: str) -> None:
    """Another author, time, header, signature or payload in its place is a lie."""
    stream, reader = with_missing()
    reader.feed(*stream.page(0))
    assert reason in lie(lambda: reader.reread([replaced(stream.rows[1], index, value)])).reason


def test_there_is_a_bound_on_missing_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that drops payloads wholesale is stopped; expired ones do not count."""
    monkeypatch.setattr(reader_module, "MISSING_MAX", 0)
    stream, reader = with_missing()
    assert "too many payloads" in lie(lambda: reader.feed(*stream.page(0))).reason
    stream, reader = with_missing(ttl_s=1)
    reader.resumed(stream.head(time_ms=NOW_MS + 10_000))
    assert reader.feed(*stream.page(0))[1].problem is Problem.EXPIRED


def test_in_its_own_inbox_a_device_takes_what_is_gone_as_acknowledged() -> None:
    """The server drops what it had; nothing is read once more."""
    user = ScriptedUser()
    stream = user.stream(inbox_of(user.laptop.device_id))
    stream.append(user.laptop, b"one", stored_payload=None)
    stream.append(user.laptop, b"two")
    reader = follow(stream, is_own_inbox=True)
    assert [event.problem for event in reader.feed(*stream.page(0))] == [Problem.ACKNOWLEDGED, None]
    assert reader.caught_up(stream.head()) == []


def test_an_event_with_a_fault_is_not_reported_as_missing_too() -> None:
    """One problem is enough."""
    stream, reader = with_missing(sig=bytes(64))
    assert reader.feed(*stream.page(0))[1].problem is Problem.BAD_SIGNATURE
    assert reader.caught_up(stream.head()) == []
