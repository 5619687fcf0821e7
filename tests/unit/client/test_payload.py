"""End-to-end encryption of payloads: round trips, places, padding, and everything that must not open."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepstep.client import payload as payloads
from keepstep.client.payload import (
    ContentKey,
    PayloadError,
    Place,
    compress,
    content_epoch_in,
    content_epoch_of,
    decompress,
    key_name,
    open_payload,
    pad,
    padded_length,
    seal_payload,
    unpad,
)
from tests.support.vectors import load

KEY = ContentKey(content_epoch_of(b"k" * 32), 1, b"k" * 32, b"i" * 32)
PLACE = Place(b"u" * 32, "notes", b"d" * 16, 7)
NONCE = b"n" * 24
VECTORS = load("payload.json")


def unhex(text: str) -> bytes:
    """Bytes of a vector."""
    return bytes.fromhex(text)


@given(st.binary(max_size=3000), st.booleans())
def test_what_is_sealed_opens_again(data: bytes, repetitive: bool) -> None:
    """Whatever the bytes are, and whether or not they compress."""
    plaintext = data * 5 if repetitive else data
    assert open_payload(KEY, PLACE, seal_payload(KEY, PLACE, plaintext, nonce=NONCE)) == plaintext


@pytest.mark.parametrize(
    "change",
    [{"user_key": b"x" * 32}, {"stream": "other"}, {"device_id": b"x" * 16}, {"n": 8}],
    ids=["user", "stream", "device", "n"],
)
def test_a_payload_opens_in_its_place_only(change: dict[str, Any]) -> None:
    """Nobody can move it to another user, stream, device or number."""
    sealed = seal_payload(KEY, PLACE, b"text", nonce=NONCE)
    with pytest.raises(PayloadError, match="does not open"):
        open_payload(KEY, replace(PLACE, **change), sealed)


def test_a_payload_opens_under_its_key_only() -> None:
    """The content epoch tells which; another one with the same name does not open it."""
    sealed = seal_payload(KEY, PLACE, b"text", nonce=NONCE)
    assert content_epoch_in(sealed) == KEY.content_epoch
    with pytest.raises(PayloadError, match="another content key"):
        open_payload(replace(KEY, content_epoch=b"x" * 16), PLACE, sealed)
    with pytest.raises(PayloadError, match="does not open"):
        open_payload(replace(KEY, content_key=b"x" * 32), PLACE, sealed)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_payload_error(data: bytes) -> None:
    """What an author made of it is never our fault."""
    with pytest.raises(PayloadError):
        open_payload(KEY, PLACE, data)


def test_a_keystroke_and_a_short_word_look_the_same() -> None:
    """Everything short has one length."""
    lengths = {len(seal_payload(KEY, PLACE, b"x" * size, nonce=NONCE)) for size in range(60)}
    assert len(lengths) == 1


def test_padding_costs_an_eighth_at_most_and_hides_the_rest() -> None:
    """PADMÉ's bound, and that lengths never go down."""
    padded = [padded_length(length) for length in range(1, 5000)]
    assert padded == sorted(padded)
    assert all(after <= max(64, length * 1.12 + 1) for length, after in enumerate(padded, 1))
    assert len(set(padded)) < 150


@pytest.mark.parametrize(
    "padded", [b"", b"\0\0\0", b"\0\0\0\0\x09short", b"\0\0\0\0\x01ab"], ids=["empty", "short", "too long", "not zeros"]
)
def test_padding_other_than_documented_is_refused(padded: bytes) -> None:
    """A length that is not there, and padding that carries something."""
    with pytest.raises(PayloadError):
        unpad(padded)


def test_padding_is_taken_off_again() -> None:
    """Whatever was padded."""
    assert unpad(pad(compress(b"text"))) == compress(b"text")


@pytest.mark.parametrize(
    "framed",
    [
        b"\x02\0\0\0\0",
        b"\x01\0\0\0\x04junk",
        compress(b"a" * 1000)[:-3],
        compress(b"a" * 1000) + b"more",
    ],
    ids=["method", "junk", "cut short", "trailing"],
)
def test_what_does_not_inflate_is_refused(framed: bytes) -> None:
    """An unknown method, bytes that are no zlib stream, half a stream, and more than one."""
    with pytest.raises(PayloadError):
        decompress(framed)


def test_a_payload_cannot_fill_a_readers_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It inflates to no more than the limit."""
    monkeypatch.setattr(payloads, "PLAINTEXT_BYTES_MAX", 1000)
    body = zlib.compress(bytes(1001))
    with pytest.raises(PayloadError, match="limit"):
        decompress(b"\x01" + len(body).to_bytes(4, "big") + body)
    with pytest.raises(ValueError, match="at most 1000"):
        seal_payload(KEY, PLACE, bytes(1001), nonce=NONCE)


def test_secrets_are_not_shown() -> None:
    """A content key's text names its epoch only."""
    assert repr(KEY) == f"ContentKey({KEY.content_epoch.hex()}, after=1)"


def test_the_vectors_open_and_are_made_again() -> None:
    """Another implementation can use them, and so do we."""
    key = ContentKey(unhex(VECTORS["content_epoch"]), 1, unhex(VECTORS["content_key"]), unhex(VECTORS["index_key"]))
    assert content_epoch_of(key.content_key) == key.content_epoch
    for vector in VECTORS["payloads"]:
        place = Place(unhex(VECTORS["user_key"]), vector["stream"], unhex(VECTORS["device_id"]), vector["n"])
        assert open_payload(key, place, unhex(vector["payload"])) == unhex(vector["plaintext"])
    named = VECTORS["key_name"]
    stream = VECTORS["payloads"][0]["stream"]
    assert key_name(key.index_key, stream, named["name"]) == unhex(named["key"])
    for length, padded in VECTORS["padded_lengths"]:
        assert padded_length(length) == padded


def test_another_form_is_refused() -> None:
    """A later version, a missing field, a field too many."""
    fields = msgspec.msgpack.decode(seal_payload(KEY, PLACE, b"text", nonce=NONCE))
    for changed in ([2, *fields[1:]], fields[:-1], [*fields, 1]):
        with pytest.raises(PayloadError, match="form"):
            content_epoch_in(msgspec.msgpack.encode(changed))
