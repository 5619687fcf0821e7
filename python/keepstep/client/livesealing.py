"""Presence and signals as sealed bytes, bound to who says them to whom, in which session (protocol.md section 5).

``[1, content_epoch, session, counter, nonce, ciphertext]``; what is inside is compressed, padded and encrypted as a
payload is. ``session`` is the author's own name for its connection, higher with each one; ``counter`` rises within it:
a receiver takes nothing that is not above what it has seen. A signal is also bound to the session that its receiver
has now, which that receiver makes known in its own presence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from keepstep.client import crypto
from keepstep.client.payload import (
    CONTENT_EPOCH_BYTES,
    NONCE_BYTES,
    ContentKey,
    PayloadError,
    compress,
    decompress,
    pad,
    unpad,
)
from keepstep.errors import ProtocolError
from keepstep.protocol.codec import encode
from keepstep.protocol.messages import U64

LIVE_SESSION_BYTES: Final = 16
STATE_BYTES_MAX: Final = 3 * 1024
"""Largest state that an application may tell, bytes: sealed it fits into a presence message."""
SIGNAL_DATA_BYTES_MAX: Final = 15 * 1024
"""Largest data of a signal, bytes."""
_VERSION: Final = 1
PRESENCE_LABEL: Final = "keepstep/v1/presence"
SIGNAL_LABEL: Final = "keepstep/v1/signal"


@dataclass(frozen=True, slots=True)
class LivePlace:
    """Who says something to whom; it opens nowhere else.

    Attributes:
        user_key: 32 bytes.
        author: device id, 16 bytes.
        receiver: device id; ``None`` for presence, which is for all other devices.
        receiver_session: the session that the receiver has now, 16 bytes; ``None`` for presence.
    """

    user_key: bytes
    author: bytes
    receiver: bytes | None = None
    receiver_session: bytes | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """What was sealed, and its author's session and counter, by which a replay shows."""

    session: bytes
    counter: int
    plaintext: bytes


class _Sealed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``[1, content_epoch, session, counter, nonce, ciphertext]``."""

    version: Literal[1]
    content_epoch: Annotated[bytes, Meta(min_length=CONTENT_EPOCH_BYTES, max_length=CONTENT_EPOCH_BYTES)]
    session: Annotated[bytes, Meta(min_length=LIVE_SESSION_BYTES, max_length=LIVE_SESSION_BYTES)]
    counter: U64
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    ciphertext: bytes


class _State(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``[sent_at_ms, state | nil]``: what presence holds."""

    sent_at_ms: U64
    state: bytes | None


_SEALED: Final = msgspec.msgpack.Decoder(_Sealed)
_STATE: Final = msgspec.msgpack.Decoder(_State)


def seal_live(
    key: ContentKey, place: LivePlace, plaintext: bytes, *, session: bytes, counter: int, nonce: bytes
) -> bytes:
    """Seal presence (``encode_state``) or the data of a signal.

    Args:
        key: the current content epoch.
        place: bound into the ciphertext.
        plaintext: at most ``SIGNAL_DATA_BYTES_MAX`` bytes.
        session: the author's, 16 bytes.
        counter: above every one that was used in this session.
        nonce: 24 random bytes, never used twice.
    """
    associated = _associated_data(place, key.content_epoch, session, counter)
    ciphertext = crypto.xchacha_seal(key.content_key, nonce, associated, pad(compress(plaintext)))
    return encode(_Sealed(_VERSION, key.content_epoch, session, counter, nonce, ciphertext))


def open_live(key: ContentKey, place: LivePlace, data: bytes) -> Opened:
    """Open what ``seal_live`` made.

    Raises:
        PayloadError: it was not sealed under this key for this place, or not in the documented form.
    """
    try:
        sealed = _SEALED.decode(data)
    except (ValueError, RecursionError) as exc:
        raise PayloadError("not the documented form") from exc
    if sealed.content_epoch != key.content_epoch:
        raise PayloadError("sealed under another content key than the current one")
    associated = _associated_data(place, sealed.content_epoch, sealed.session, sealed.counter)
    try:
        padded = crypto.xchacha_open(key.content_key, sealed.nonce, associated, sealed.ciphertext)
    except ProtocolError as exc:
        raise PayloadError("does not open with its content key") from exc
    return Opened(sealed.session, sealed.counter, decompress(unpad(padded)))


def encode_state(state: bytes | None, *, sent_at_ms: int) -> bytes:
    """What presence holds."""
    return encode(_State(sent_at_ms, state))


def decode_state(plaintext: bytes) -> tuple[int, bytes | None]:
    """``(sent_at_ms, state)``. Raises PayloadError."""
    try:
        decoded = _STATE.decode(plaintext)
    except (ValueError, RecursionError) as exc:
        raise PayloadError("not the documented form") from exc
    return decoded.sent_at_ms, decoded.state


def _associated_data(place: LivePlace, content_epoch: bytes, session: bytes, counter: int) -> bytes:
    label = PRESENCE_LABEL if place.receiver is None else SIGNAL_LABEL
    return encode(
        [
            label,
            place.user_key,
            place.author,
            place.receiver,
            place.receiver_session,
            content_epoch,
            session,
            counter,
        ]
    )
