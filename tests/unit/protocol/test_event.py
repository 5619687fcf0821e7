"""Headers, and which kind goes where (protocol.md section 3). The exact bytes are in tests/vectors/event.json."""

from __future__ import annotations

from typing import Any

import pytest

from keepstep.client import crypto
from keepstep.errors import ProtocolError
from keepstep.protocol.event import (
    HEADER_BYTES_MAX,
    TTL_S_MAX,
    Header,
    check_placement,
    decode_header,
    sign_event,
    signing_input,
    verify_event,
)
from keepstep.protocol.messages import INTEGER_MAX
from tests.support.events import NOW_MS, event_id, seed

CHAIN = seed("chain")
EVENT_ID = event_id(NOW_MS, "event")
INBOX = f"$inbox/{'a' * 32}"


def header(**changes: Any) -> Header:
    """A header; ``changes`` replace fields."""
    fields: dict[str, Any] = {
        "kind": 0,
        "id": EVENT_ID,
        "stream": "notes",
        "n": 1,
        "prev": bytes(16),
        "base": None,
        "seen": (0, CHAIN),
        "devices_seen": (1, CHAIN),
        "key": None,
        "hlc": 0,
        "ttl_s": None,
        "payload_len": 0,
        "payload_hash": CHAIN,
    }
    return Header(**(fields | changes))


LARGEST = header(
    kind=INTEGER_MAX,
    stream="x" * 128,
    n=INTEGER_MAX,
    base=(INTEGER_MAX, CHAIN),
    seen=(INTEGER_MAX, CHAIN),
    devices_seen=(INTEGER_MAX, CHAIN),
    key=bytes(16),
    hlc=INTEGER_MAX,
    ttl_s=TTL_S_MAX,
    payload_len=INTEGER_MAX,
)


@pytest.mark.parametrize("each", [header(), LARGEST, header(base=0), header(base=INTEGER_MAX), header(base=(7, CHAIN))])
def test_headers_round_trip(each: Header) -> None:
    """Every form of every field comes back as it was."""
    assert decode_header(each.encode()) == each


def test_the_largest_header_is_below_the_limit() -> None:
    """The limit refuses nothing that could be right."""
    assert len(LARGEST.encode()) <= HEADER_BYTES_MAX


@pytest.mark.parametrize(
    ("each", "code"),
    [
        (header(base=-1), "malformed"),
        (header(base=INTEGER_MAX + 1), "malformed"),
        (header(kind=-1), "malformed"),
        (header(n=0), "malformed"),
        (header(ttl_s=0), "malformed"),
        (header(ttl_s=TTL_S_MAX + 1), "malformed"),
        (header(key=bytes(15)), "malformed"),
        (header(stream="a b"), "malformed"),
        (header(id=bytes(16)), "malformed"),
        (header(id=EVENT_ID[:8] + b"\xc0" + EVENT_ID[9:]), "malformed"),
        (header(stream="x" * 600), "too_large"),
    ],
)
def test_values_outside_their_bounds_are_refused(each: Header, code: str) -> None:
    """A header with such a value can be made, but not read."""
    with pytest.raises(ProtocolError) as caught:
        decode_header(each.encode())
    assert caught.value.code == code


@pytest.mark.parametrize("data", [b"", b"\xc0", b"\x90", b"\x91\xa1x"])
def test_what_is_no_array_with_a_version_is_malformed(data: bytes) -> None:
    """Only another version number is unsupported."""
    with pytest.raises(ProtocolError, match="malformed"):
        decode_header(data)


def test_a_header_of_another_version_is_unsupported() -> None:
    """Whatever that version's fields are."""
    with pytest.raises(ProtocolError, match="unsupported"):
        decode_header(b"\x92\x02\xc0")


@pytest.mark.parametrize(
    ("kind", "stream", "ttl_s", "code"),
    [
        (0, "notes", None, None),
        (0, "notes", 60, None),
        (0, "a$b", None, None),
        (5, "$devices", None, None),
        (6, "$keys", None, None),
        (0, "$devices", None, "malformed"),
        (0, "$keys", None, "malformed"),
        (5, "$keys", None, "malformed"),
        (6, "$devices", None, "malformed"),
        (5, "notes", None, "malformed"),
        (6, "notes", None, "malformed"),
        (5, "$devices", 60, "malformed"),
        (6, "$keys", 60, "malformed"),
        (0, INBOX, None, None),
        (0, INBOX, 60, "malformed"),
        (6, INBOX, None, "malformed"),
        (0, "$inbox/x", None, "unknown_stream"),
        (0, f"$inbox/{'A' * 32}", None, "unknown_stream"),
        (0, "$", None, "unknown_stream"),
        (5, "$other", None, "unknown_stream"),
        (1, "notes", None, None),
        (1, "notes", 60, "malformed"),
        (1, "$devices", None, "malformed"),
        (1, INBOX, None, "malformed"),
        (1, "$other", None, "unknown_stream"),
        (2, "notes", None, None),
        (3, "notes", None, None),
        (4, "notes", None, None),
        (4, "notes", 60, "malformed"),
        (4, "$keys", None, "malformed"),
        (7, "notes", None, "unsupported"),
        (4, "$other", None, "unknown_stream"),
    ],
)
def test_each_kind_has_its_streams(kind: int, stream: str, ttl_s: int | None, code: str | None) -> None:
    """Kind 5 goes into $devices, 6 into $keys, 0 into inboxes and every stream that is not reserved; else nothing."""
    each = header(kind=kind, stream=stream, ttl_s=ttl_s)
    if code is None:
        check_placement(each)
        return
    with pytest.raises(ProtocolError) as caught:
        check_placement(each)
    assert caught.value.code == code


def test_a_signature_binds_user_device_and_header() -> None:
    """Changing any of the three breaks it."""
    secret, public = crypto.ed25519_generate(seed("author"))
    user_key, device_id, encoded = seed("user"), seed("device")[:16], header().encode()
    sig = sign_event(crypto, secret=secret, user_key=user_key, device_id=device_id, header=encoded)
    good = {"device_key": public, "user_key": user_key, "device_id": device_id, "header": encoded, "sig": sig}
    verify_event(crypto, **good)
    for name in good:
        changed = good | {name: good[name][:-1] + bytes([good[name][-1] ^ 1])}
        with pytest.raises(ProtocolError, match="bad_signature"):
            verify_event(crypto, **changed)


def test_what_is_signed_says_what_it_is() -> None:
    """The prefix keeps an event's signature from being one of anything else."""
    assert signing_input(b"u" * 32, b"d" * 16, b"h") == b"keepstep/v1/event\0" + b"u" * 32 + b"d" * 16 + b"h"
