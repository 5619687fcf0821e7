"""Chains and signed heads. The exact bytes are in tests/vectors/chain.json and head.json."""

from __future__ import annotations

import pytest

from keepstep.client import crypto
from keepstep.errors import ProtocolError
from keepstep.model import Position
from keepstep.protocol.chain import (
    Head,
    chain_0,
    chain_next,
    decode_head,
    encode_head,
    event_hash,
    sign_head,
    start_of_devices,
    verify_head,
)
from keepstep.protocol.messages import HEAD_BYTES_MAX, INTEGER_MAX
from tests.support.events import seed

USER = seed("user")
HEAD = Head(USER, "notes", 1, 2, seed("chain"), 3)
SERVER_SECRET, SERVER_KEY = crypto.ed25519_generate(seed("server"))


def test_a_chain_depends_on_all_that_it_covers() -> None:
    """Another past, place, time or event gives another chain."""
    base = (chain_0(crypto, USER, "notes"), 1, 2, seed("event"))
    chains = {
        chain_next(crypto, *base),
        chain_next(crypto, chain_0(crypto, USER, "other"), *base[1:]),
        chain_next(crypto, base[0], 2, *base[2:]),
        chain_next(crypto, *base[:2], 3, base[3]),
        chain_next(crypto, *base[:3], seed("other event")),
    }
    assert len(chains) == 5


def test_streams_of_different_users_begin_differently() -> None:
    """Chain 0 names user and stream, so no history fits two of them."""
    assert len({chain_0(crypto, user, name) for user in (USER, seed("other")) for name in ("a", "b")}) == 4
    assert start_of_devices(crypto, USER) == Position(0, chain_0(crypto, USER, "$devices"))


def test_an_events_hash_covers_header_and_signature() -> None:
    """The same header signed twice is two events."""
    assert len({event_hash(crypto, b"h", b"s"), event_hash(crypto, b"g", b"s"), event_hash(crypto, b"h", b"t")}) == 3


def test_a_signed_head_comes_back() -> None:
    """What the server signed is what the device reads."""
    assert verify_head(crypto, SERVER_KEY, sign_head(crypto.SigningKey(SERVER_SECRET), HEAD)) == HEAD


def test_the_largest_head_fits() -> None:
    """The limit refuses nothing that could be right."""
    largest = Head(USER, "x" * 128, INTEGER_MAX, INTEGER_MAX, seed("chain"), INTEGER_MAX)
    assert len(encode_head(largest)) <= HEAD_BYTES_MAX
    assert decode_head(encode_head(largest)) == largest


def test_a_head_that_another_key_signed_is_refused() -> None:
    """Only the pinned server states heads."""
    signed = sign_head(crypto.SigningKey(seed("another server")), HEAD)
    with pytest.raises(ProtocolError, match="bad_signature"):
        verify_head(crypto, SERVER_KEY, signed)


def test_no_byte_of_a_signed_head_can_be_changed() -> None:
    """Neither of the head nor of the signature."""
    data, sig = sign_head(crypto.SigningKey(SERVER_SECRET), HEAD)
    both = data + sig
    for index in range(len(both)):
        changed = both[:index] + bytes([both[index] ^ 1]) + both[index + 1 :]
        with pytest.raises(ProtocolError):
            verify_head(crypto, SERVER_KEY, (changed[: len(data)], changed[len(data) :]))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "malformed"),
        (encode_head(HEAD) + b"\0", "malformed"),
        (b"\x98" + encode_head(HEAD)[1:] + b"\0", "malformed"),
        (bytes(HEAD_BYTES_MAX + 1), "too_large"),
        (encode_head(HEAD)[:1] + b"\x02" + encode_head(HEAD)[2:], "malformed"),
    ],
    ids=["nothing", "longer", "a field more", "too large", "version 2"],
)
def test_a_head_in_another_form_is_refused(data: bytes, code: str) -> None:
    """Also where the server signed it."""
    signed = (data, crypto.ed25519_sign(SERVER_SECRET, b"keepstep/v1/head\0" + data))
    with pytest.raises(ProtocolError) as caught:
        verify_head(crypto, SERVER_KEY, signed)
    assert caught.value.code == code
