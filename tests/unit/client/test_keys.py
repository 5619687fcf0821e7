"""Content keys: which one is current, and how they reach another device."""

from __future__ import annotations

import pytest

from keepstep.client import crypto
from keepstep.client.environment import SYSTEM
from keepstep.client.keys import Keyring, generate_content_key, open_label, seal_label, unwrap, wrap
from keepstep.client.payload import ContentKey, PayloadError, Place, content_epoch_of, seal_payload
from keepstep.errors import ClientError
from keepstep.model import DEVICES_STREAM
from keepstep.protocol.keys import KeysPayload, encode_keys

DEVICE = b"d" * 16
BOX_SECRET, BOX_KEY = crypto.x25519_generate(b"b" * 32)


def key(name: bytes, after: int) -> ContentKey:
    """A content key."""
    secret = crypto.blake3(name)
    return ContentKey(content_epoch_of(secret), after, secret, b"i" * 32)


def test_authors_use_the_latest_epoch() -> None:
    """The highest ``after``; of two the one with the higher name."""
    first, second, third = key(b"1", 1), key(b"2", 5), key(b"3", 5)
    keyring = Keyring([second, first, third])
    assert keyring.current() == max(second, third, key=lambda each: each.content_epoch)
    assert keyring.get(first.content_epoch) == first
    assert keyring.get(b"x" * 16) is None
    assert len(keyring.all()) == 3


def test_a_key_that_is_known_is_taken_once() -> None:
    """Unless it is told to be used from later on."""
    keyring = Keyring([key(b"1", 1)])
    assert not keyring.add(key(b"1", 1))
    assert keyring.add(key(b"1", 2))
    assert keyring.current().after == 2


def test_without_a_key_nothing_can_be_written() -> None:
    """And the message says what to do."""
    with pytest.raises(ClientError, match="connect it once"):
        Keyring([]).current()


def test_a_wrapped_key_opens_on_its_device_only() -> None:
    """Another device finds nothing, or nothing that opens."""
    made = generate_content_key(SYSTEM, after=3)
    payload = wrap(made, {DEVICE: BOX_KEY})
    assert unwrap(payload, device_id=DEVICE, box_secret=BOX_SECRET) == made
    assert unwrap(payload, device_id=b"x" * 16, box_secret=BOX_SECRET) is None
    with pytest.raises(PayloadError, match="does not open"):
        unwrap(payload, device_id=DEVICE, box_secret=b"x" * 32)
    with pytest.raises(PayloadError, match="does not open"):
        unwrap(b"junk", device_id=DEVICE, box_secret=BOX_SECRET)


def test_a_wrapped_key_is_the_one_it_is_called() -> None:
    """A manager cannot make two devices use two keys under one name."""
    payload = encode_keys(KeysPayload(b"x" * 16, 1, {DEVICE: crypto.sealed_box(BOX_KEY, b"k" * 64)}))
    with pytest.raises(PayloadError, match="not the one it is called"):
        unwrap(payload, device_id=DEVICE, box_secret=BOX_SECRET)


def test_a_devices_name_is_sealed() -> None:
    """Devices of the user read it, others do not; and it is bound to its device."""
    current = key(b"1", 1)
    sealed = seal_label(current, user_key=b"u" * 32, device_id=DEVICE, name="Élise's phone", nonce=b"n" * 24)
    assert len(sealed) <= 256
    keyring = Keyring([current])
    assert open_label(keyring, user_key=b"u" * 32, device_id=DEVICE, sealed_label=sealed) == "Élise's phone"
    assert open_label(keyring, user_key=b"u" * 32, device_id=b"x" * 16, sealed_label=sealed) is None
    assert open_label(Keyring([]), user_key=b"u" * 32, device_id=DEVICE, sealed_label=sealed) is None


@pytest.mark.parametrize(
    "name", [b"\x1b]0;owned\x07", b"two\nlines", "\N{RIGHT-TO-LEFT OVERRIDE}x".encode(), b"\xff", b""]
)
def test_a_name_that_is_none_is_not_shown(name: bytes) -> None:
    """Another device may have sealed anything as its own: it is shown on terminals."""
    current = key(b"1", 1)
    place = Place(b"u" * 32, DEVICES_STREAM, DEVICE, 0)
    sealed = seal_payload(current, place, name, nonce=b"n" * 24)
    assert open_label(Keyring([current]), user_key=b"u" * 32, device_id=DEVICE, sealed_label=sealed) is None


@pytest.mark.parametrize("name", ["", "two\nlines", "x" * 161])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    """Empty, more than a line, or too long for its place."""
    with pytest.raises(ClientError, match="no name for a device"):
        seal_label(key(b"1", 1), user_key=b"u" * 32, device_id=DEVICE, name=name, nonce=b"n" * 24)


def test_the_longest_name_fits_its_place() -> None:
    """256 bytes of a device entry, sealed."""
    sealed = seal_label(key(b"1", 1), user_key=b"u" * 32, device_id=DEVICE, name="x" * 160, nonce=b"n" * 24)
    assert len(sealed) <= 256
