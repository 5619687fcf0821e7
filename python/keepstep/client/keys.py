"""Content keys: which ones a device has, which one it writes under, and how they reach other devices.

protocol.md section 5. ``$keys`` carries ``[content_epoch, after, {device_id: sealed box of content_key ‖ index_key}]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keepstep.client import crypto
from keepstep.client.payload import (
    ContentKey,
    PayloadError,
    Place,
    content_epoch_in,
    content_epoch_of,
    open_payload,
    seal_payload,
)
from keepstep.errors import ClientError, ProtocolError
from keepstep.model import DEVICE_ID_BYTES, DEVICES_STREAM, KEY_BYTES
from keepstep.protocol.keys import KeysPayload, decode_keys, encode_keys
from keepstep.validation import parse_label

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from keepstep.client.environment import Environment

_LABEL_N: Final = 0
"""A label is sealed for the author number 0, which no event has."""


class Wraps:
    """For whom which content epoch is wrapped, as ``$keys`` says."""

    def __init__(self) -> None:
        self._devices: dict[bytes, set[bytes]] = {}

    def add(self, payload: bytes) -> None:
        """Take an event's payload. Raises ProtocolError where it is none."""
        keys = decode_keys(payload)
        self._devices.setdefault(keys.content_epoch, set()).update(keys.wraps)

    def missing(self, content_epoch: bytes, device_ids: Iterable[bytes]) -> list[bytes]:
        """Those of the devices for whom it is not wrapped."""
        wrapped = self._devices.get(content_epoch, set())
        return [each for each in device_ids if each not in wrapped]


def generate_content_key(environment: Environment, *, after: int, index_key: bytes | None = None) -> ContentKey:
    """A fresh content epoch; ``index_key`` is the user's, made once at genesis."""
    content_key = environment.random_bytes(KEY_BYTES)
    return ContentKey(
        content_epoch=content_epoch_of(content_key),
        after=after,
        content_key=content_key,
        index_key=index_key or environment.random_bytes(KEY_BYTES),
    )


class Keyring:
    """The content keys of one device, in memory; the store keeps them."""

    def __init__(self, keys: Iterable[ContentKey]) -> None:
        self._keys: dict[bytes, ContentKey] = {}
        for key in keys:
            self.add(key)

    def add(self, key: ContentKey) -> bool:
        """Take a key; returns whether it changed anything."""
        known = self._keys.get(key.content_epoch)
        if known is not None and known.after >= key.after:
            return False
        self._keys[key.content_epoch] = key
        return True

    def get(self, content_epoch: bytes) -> ContentKey | None:
        """The key of an epoch, where this device has it."""
        return self._keys.get(content_epoch)

    def current(self) -> ContentKey:
        """What to write under: the epoch with the highest ``after``, of equal ones the one with the higher bytes.

        Raises:
            ClientError: this device has no key yet.
        """
        if not self._keys:
            raise ClientError("this device has not received its content keys yet: connect it once")
        return max(self._keys.values(), key=lambda key: (key.after, key.content_epoch))

    def all(self) -> list[ContentKey]:
        """Every key."""
        return list(self._keys.values())

    def open(self, place: Place, payload: bytes) -> bytes:
        """The plaintext of a payload.

        Raises:
            MissingContentKey: this device does not have the key.
            PayloadError: it does not open.
        """
        content_epoch = content_epoch_in(payload)
        key = self.get(content_epoch)
        if key is None:
            raise MissingContentKey("this device does not have its content key")
        return open_payload(key, place, payload)


class MissingContentKey(PayloadError):
    """The key may still come in ``$keys``."""


def wrap(key: ContentKey, box_keys: Mapping[bytes, bytes]) -> bytes:
    """The payload of a ``$keys`` event that hands ``key`` to devices, given their box keys by device id."""
    secret = key.content_key + key.index_key
    boxes = {device_id: crypto.sealed_box(box_key, secret) for device_id, box_key in box_keys.items()}
    return encode_keys(KeysPayload(key.content_epoch, key.after, boxes))


def recovery_box(root_key: bytes) -> tuple[bytes, bytes]:
    """Under which id, and to which box key, content keys are wrapped for the recovery file that holds a root key.

    Without it a file would know only the content keys of its own date (protocol.md section 5).
    """
    return root_key[:DEVICE_ID_BYTES], crypto.box_key_of_signer(root_key)


def unwrap(payload: bytes, *, device_id: bytes, box_secret: bytes) -> ContentKey | None:
    """The key that a ``$keys`` event hands to this device, ``None`` where it is for others only.

    Raises:
        PayloadError: it does not open, is not of the documented form, or names another key than it holds.
    """
    try:
        keys = decode_keys(payload)
        if device_id not in keys.wraps:
            return None
        secret = crypto.sealed_box_open(box_secret, keys.wraps[device_id])
    except ProtocolError as exc:
        raise PayloadError("a wrapped content key does not open") from exc
    content_key, index_key = secret[:KEY_BYTES], secret[KEY_BYTES:]
    if content_epoch_of(content_key) != keys.content_epoch:
        raise PayloadError("a wrapped content key is not the one it is called")
    return ContentKey(keys.content_epoch, keys.after, content_key, index_key)


def seal_label(key: ContentKey, *, user_key: bytes, device_id: bytes, name: str, nonce: bytes) -> bytes:
    """A device's name for its entry in ``$devices``.

    Raises:
        ClientError: the name is empty, too long, or not one printable line.
    """
    try:
        encoded = parse_label(name).encode()
    except ProtocolError as exc:
        raise ClientError(f"{name!r} is no name for a device: {exc.detail}") from exc
    return seal_payload(key, Place(user_key, DEVICES_STREAM, device_id, _LABEL_N), encoded, nonce=nonce)


def open_label(keyring: Keyring, *, user_key: bytes, device_id: bytes, sealed_label: bytes) -> str | None:
    """A device's name, ``None`` where it does not open or is no printable line."""
    try:
        return parse_label(keyring.open(Place(user_key, DEVICES_STREAM, device_id, _LABEL_N), sealed_label).decode())
    except (PayloadError, UnicodeDecodeError, ProtocolError):
        return None
