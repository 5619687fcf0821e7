"""End-to-end encryption of payloads: compress, pad, encrypt (protocol.md section 5).

The server never takes part: it stores what ``seal_payload`` makes and cannot open it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from keepstep.client import crypto
from keepstep.errors import KeepstepError, ProtocolError

PLAINTEXT_BYTES_MAX: Final = 4 * 1024 * 1024
"""Largest plaintext of one event, bytes: bounds what a payload may inflate to on a reader."""
PADDED_BYTES_MIN: Final = 64
"""Anything shorter is padded to this many bytes: a keystroke and a short word look the same."""
COMPRESS_BYTES_MIN: Final = 64
"""Below this, compression costs more than it saves."""
CONTENT_EPOCH_BYTES: Final = 16
NONCE_BYTES: Final = crypto.XCHACHA_NONCE_BYTES
KEY_NAME_BYTES: Final = 16

_PLAIN: Final = 0
_ZLIB: Final = 1
_PREFIX_BYTES: Final = 5
_VERSION: Final = 1


class PayloadError(KeepstepError):
    """A payload that does not open: made by a faulty or hostile author, or under a key this device does not have."""


@dataclass(frozen=True, slots=True)
class ContentKey:
    """One content epoch's keys (protocol.md section 5).

    Attributes:
        content_epoch: 16 bytes that name the key without showing it.
        after: the ``$devices`` seq from which it is used; authors use the epoch with the highest one.
        content_key: 32 bytes, secret.
        index_key: 32 bytes, secret, the same in every epoch.
    """

    content_epoch: bytes
    after: int
    content_key: bytes
    index_key: bytes

    def __repr__(self) -> str:
        return f"ContentKey({self.content_epoch.hex()}, after={self.after})"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a payload belongs; it opens nowhere else."""

    user_key: bytes
    stream: str
    device_id: bytes
    n: int


class _Sealed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``[1, content_epoch, nonce, ciphertext]``."""

    version: Literal[1]
    content_epoch: Annotated[bytes, Meta(min_length=CONTENT_EPOCH_BYTES, max_length=CONTENT_EPOCH_BYTES)]
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    ciphertext: bytes


_DECODER: Final = msgspec.msgpack.Decoder(_Sealed)
_ENCODER: Final = msgspec.msgpack.Encoder()


def content_epoch_of(content_key: bytes) -> bytes:
    """The public name of a content key: first 16 bytes of H("keepstep/v1/content-key", key)."""
    return crypto.blake3_derive("keepstep/v1/content-key", content_key)[:CONTENT_EPOCH_BYTES]


def seal_payload(key: ContentKey, place: Place, plaintext: bytes, *, nonce: bytes) -> bytes:
    """Compress, pad and encrypt an application payload (XChaCha20-Poly1305).

    Args:
        key: the current content epoch.
        place: bound into the ciphertext, so that nobody can move it elsewhere.
        plaintext: at most ``PLAINTEXT_BYTES_MAX`` bytes.
        nonce: 24 random bytes, never used twice.

    Returns:
        MessagePack ``[1, content_epoch, nonce, ciphertext]``.

    Raises:
        ValueError: the plaintext is too long.
    """
    if len(plaintext) > PLAINTEXT_BYTES_MAX:
        raise ValueError(f"a payload holds at most {PLAINTEXT_BYTES_MAX} bytes, this one has {len(plaintext)}")
    associated = _associated_data(place, key.content_epoch)
    ciphertext = crypto.xchacha_seal(key.content_key, nonce, associated, pad(compress(plaintext)))
    return _ENCODER.encode(_Sealed(_VERSION, key.content_epoch, nonce, ciphertext))


def content_epoch_in(payload: bytes) -> bytes:
    """The content epoch a payload names.

    Raises:
        PayloadError: it does not have the documented form.
    """
    return _decode(payload).content_epoch


def open_payload(key: ContentKey, place: Place, payload: bytes) -> bytes:
    """The plaintext of a payload.

    Raises:
        PayloadError: it was not sealed under this key for this place, or not in the documented form.
    """
    sealed = _decode(payload)
    if sealed.content_epoch != key.content_epoch:
        raise PayloadError("sealed under another content key")
    associated = _associated_data(place, sealed.content_epoch)
    try:
        padded = crypto.xchacha_open(key.content_key, sealed.nonce, associated, sealed.ciphertext)
    except ProtocolError as exc:
        raise PayloadError("does not open with its content key") from exc
    return decompress(unpad(padded))


def key_name(index_key: bytes, stream: str, name: str) -> bytes:
    """What the server sees instead of a key's name: keyed BLAKE3(index key, stream ‖ 0x00 ‖ name), 16 bytes."""
    return crypto.blake3_keyed(index_key, stream.encode() + b"\0" + name.encode())[:KEY_NAME_BYTES]


def _decode(payload: bytes) -> _Sealed:
    try:
        return _DECODER.decode(payload)
    except msgspec.DecodeError as exc:
        raise PayloadError("not the documented form") from exc


def _associated_data(place: Place, content_epoch: bytes) -> bytes:
    return _ENCODER.encode([place.user_key, place.stream, place.device_id, place.n, content_epoch])


# -- what is inside the ciphertext: method(1) ‖ length(4, big-endian) ‖ body ‖ zeros


def compress(plaintext: bytes) -> bytes:
    """``method ‖ length ‖ body``: the shorter of the plaintext and its zlib form."""
    if len(plaintext) >= COMPRESS_BYTES_MIN:
        squeezed = zlib.compress(plaintext, 6)
        if len(squeezed) < len(plaintext):
            return bytes([_ZLIB]) + len(squeezed).to_bytes(4, "big") + squeezed
    return bytes([_PLAIN]) + len(plaintext).to_bytes(4, "big") + plaintext


def decompress(framed: bytes) -> bytes:
    """The inverse of ``compress``; never makes more than ``PLAINTEXT_BYTES_MAX`` bytes.

    Raises:
        PayloadError: not what ``compress`` makes, or it inflates beyond the limit.
    """
    method, body = framed[0], framed[_PREFIX_BYTES:]
    if method == _PLAIN:
        return body
    if method != _ZLIB:
        raise PayloadError("unknown compression method")
    inflater = zlib.decompressobj()
    try:
        plaintext = inflater.decompress(body, PLAINTEXT_BYTES_MAX)
    except zlib.error as exc:
        raise PayloadError("does not inflate") from exc
    if not inflater.eof or inflater.unused_data:
        raise PayloadError("inflates beyond the limit, or is cut short")
    return plaintext


def padded_length(length: int) -> int:
    """PADMÉ (Nikitin and others, 2019): at most 12 % more, and only log log of the length can be told apart."""
    if length <= PADDED_BYTES_MIN:
        return PADDED_BYTES_MIN
    exponent = length.bit_length() - 1
    rounded_bits = exponent - exponent.bit_length()
    mask = (1 << rounded_bits) - 1
    return (length + mask) & ~mask


def pad(framed: bytes) -> bytes:
    """``framed`` followed by zeros up to ``padded_length``."""
    return framed.ljust(padded_length(len(framed)), b"\0")


def unpad(padded: bytes) -> bytes:
    """``framed`` again, its length taken from its own prefix.

    Raises:
        PayloadError: shorter than it says, or padded with something other than zeros.
    """
    if len(padded) < _PREFIX_BYTES:
        raise PayloadError("too short")
    end = _PREFIX_BYTES + int.from_bytes(padded[1:_PREFIX_BYTES], "big")
    if end > len(padded) or padded[end:].strip(b"\0"):
        raise PayloadError("padding is not as documented")
    return padded[:end]
