"""What a server leaves in a user's hands when it deletes the account: its signed word (protocol.md section 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from keepstep.protocol.codec import decode_strict, encode
from keepstep.protocol.messages import U64, Bytes32

if TYPE_CHECKING:
    from keepstep.protocol.primitives import Primitives

RECEIPT_PREFIX: Final = b"keepstep/v1/deletion\0"
RECEIPT_BYTES_MAX: Final = 64
"""Largest receipt, bytes: every field at its largest makes less."""


class DeletionReceipt(Struct, frozen=True, array_like=True, tag=1):
    """``[1, user_key, deleted_at_ms]``.

    Attributes:
        user_key: the user id of the account that was deleted.
        deleted_at_ms: unix milliseconds from which on nothing of it was let in.
    """

    user_key: Bytes32
    deleted_at_ms: U64


_RECEIPT: Final = msgspec.msgpack.Decoder(DeletionReceipt)


def sign_receipt(primitives: Primitives, server_secret: bytes, receipt: DeletionReceipt) -> tuple[bytes, bytes]:
    """The receipt as bytes, and the server's signature over them."""
    data = encode(receipt)
    return data, primitives.ed25519_sign(server_secret, RECEIPT_PREFIX + data)


def verify_receipt(primitives: Primitives, server_key: bytes, data: bytes, sig: bytes) -> DeletionReceipt:
    """The receipt, if the server signed it.

    Raises:
        ProtocolError: ``bad_signature``, ``malformed``, ``too_large``.
    """
    primitives.ed25519_verify(server_key, RECEIPT_PREFIX + data, sig)
    return decode_strict(_RECEIPT, data, "a deletion receipt", bytes_max=RECEIPT_BYTES_MAX)
