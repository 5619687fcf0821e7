"""Announcements of the server's next identity key: both keys sign, and the form is strict."""

from __future__ import annotations

import pytest

from keepstep import _keepstep
from keepstep.client import crypto
from keepstep.errors import ProtocolError
from keepstep.protocol.codec import encode
from keepstep.protocol.messages import INTEGER_MAX
from keepstep.protocol.succession import (
    ANNOUNCEMENT_BYTES_MAX,
    SUCCESSION_BYTES_MAX,
    Succession,
    announce,
    decode_announcement,
    encode_announcement,
    verify_announcement,
)
from tests.support.events import seed

OLD, NEW = seed("old server key"), seed("new server key")


def test_an_announcement_goes_through_a_document() -> None:
    """Each library verifies what the other one signed, at the largest values too."""
    for signer, reader in ((crypto, _keepstep), (_keepstep, crypto)):
        announcement = announce(signer, old_secret=OLD, new_secret=NEW, from_ms=INTEGER_MAX - 1, until_ms=INTEGER_MAX)
        data = encode_announcement(announcement)
        assert len(announcement[0]) <= SUCCESSION_BYTES_MAX
        assert len(data) <= ANNOUNCEMENT_BYTES_MAX
        assert decode_announcement(data) == announcement
        assert verify_announcement(reader, announcement) == Succession(
            crypto.ed25519_public(OLD), crypto.ed25519_public(NEW), INTEGER_MAX - 1, INTEGER_MAX
        )


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "malformed"),
        (encode([b"", bytes(64)]), "malformed"),
        (encode([b"", bytes(64), bytes(64), None]), "malformed"),
        (bytes(ANNOUNCEMENT_BYTES_MAX + 1), "too_large"),
    ],
)
def test_what_is_no_announcement_is_refused(data: bytes, code: str) -> None:
    """A document may hold anything."""
    with pytest.raises(ProtocolError) as caught:
        decode_announcement(data)
    assert caught.value.code == code


def test_what_both_keys_did_not_sign_is_refused() -> None:
    """Either signature alone makes no successor."""
    signed, old_sig, new_sig = announce(crypto, old_secret=OLD, new_secret=NEW, from_ms=1, until_ms=2)
    for announcement in ((signed, old_sig, old_sig), (signed, new_sig, new_sig), (signed + b"\0", old_sig, new_sig)):
        with pytest.raises(ProtocolError, match=r"bad_signature|malformed"):
            verify_announcement(crypto, announcement)
