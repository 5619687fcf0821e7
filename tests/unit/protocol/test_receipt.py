"""The receipt for a deleted account."""

from __future__ import annotations

import pytest

from keepstep import _keepstep
from keepstep.client import crypto
from keepstep.errors import ProtocolError
from keepstep.protocol.codec import encode
from keepstep.protocol.receipt import (
    RECEIPT_BYTES_MAX,
    RECEIPT_PREFIX,
    DeletionReceipt,
    sign_receipt,
    verify_receipt,
)
from tests.support.events import NOW_MS, seed

SECRET = seed("server")
KEY = _keepstep.ed25519_public(SECRET)
RECEIPT = DeletionReceipt(seed("user"), NOW_MS)


def test_both_sides_understand_a_receipt() -> None:
    """What the server's cryptography signs, the client's verifies."""
    data, sig = sign_receipt(_keepstep, SECRET, RECEIPT)
    assert data == encode([1, seed("user"), NOW_MS])
    assert verify_receipt(crypto, KEY, data, sig) == RECEIPT
    assert len(encode(DeletionReceipt(seed("user"), 2**64 - 1))) <= RECEIPT_BYTES_MAX


def test_a_receipt_of_another_server_proves_nothing() -> None:
    """Nor does one that was changed, or a signature for something else."""
    data, sig = sign_receipt(_keepstep, SECRET, RECEIPT)
    changed = encode(DeletionReceipt(seed("user"), NOW_MS + 1))
    bare = crypto.ed25519_sign(SECRET, data)
    for key, signed, by in (
        (_keepstep.ed25519_public(seed("other")), data, sig),
        (KEY, changed, sig),
        (KEY, data, bare),
    ):
        with pytest.raises(ProtocolError, match="bad_signature"):
            verify_receipt(crypto, key, signed, by)


@pytest.mark.parametrize("data", [b"", encode([2, seed("user"), NOW_MS]), encode([1, b"short", NOW_MS]), b"\x93" * 99])
def test_what_is_no_receipt_is_refused(data: bytes) -> None:
    """Whoever signed it."""
    with pytest.raises(ProtocolError, match=r"malformed|too_large"):
        verify_receipt(crypto, KEY, data, crypto.ed25519_sign(SECRET, RECEIPT_PREFIX + data))
