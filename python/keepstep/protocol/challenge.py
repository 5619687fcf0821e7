"""How a device proves itself over REST: it signs a challenge of the server (protocol.md section 2, Over REST)."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keepstep.errors import ProtocolError
from keepstep.model import DEVICE_ID_BYTES, KEY_BYTES
from keepstep.validation import ORIGIN_BYTES_MAX

if TYPE_CHECKING:
    from keepstep.protocol.primitives import Primitives

REST_AUTH_PREFIX: Final = b"keepstep/v1/rest-auth\0"
NONCE_BYTES: Final = 32
_LENGTH_BYTES: Final = 2


class Purpose(enum.StrEnum):
    """What a signed challenge is good for; a signature for one purpose is none for another."""

    TOKEN = "token"  # noqa: S105 - a word of the protocol
    DELETE_ACCOUNT = "delete-account"


@dataclass(frozen=True, slots=True)
class Statement:
    """What a device signs.

    Attributes:
        server_key: the identity key of the server that asked, 32 bytes.
        origin: where the device reaches that server's REST: scheme, host, and port where it is not the scheme's own.
        user_key: the user id, 32 bytes.
        device_id: 16 bytes.
        nonce: the server's, 32 bytes.
        purpose: what the signature is good for.
    """

    server_key: bytes
    origin: str
    user_key: bytes
    device_id: bytes
    nonce: bytes
    purpose: Purpose

    def signing_input(self) -> bytes:
        """The bytes that are signed. Raises ProtocolError (``malformed``): a field does not have its length."""
        origin = self.origin.encode()
        sizes = (len(self.server_key), len(self.user_key), len(self.device_id), len(self.nonce))
        if sizes != (KEY_BYTES, KEY_BYTES, DEVICE_ID_BYTES, NONCE_BYTES) or len(origin) > ORIGIN_BYTES_MAX:
            raise ProtocolError("malformed", "a statement's field does not have its length")
        return b"".join(
            (
                *(REST_AUTH_PREFIX, self.server_key, _sized(origin), self.user_key, self.device_id, self.nonce),
                _sized(self.purpose.value.encode()),
            )
        )


def sign_statement(primitives: Primitives, device_secret: bytes, statement: Statement) -> bytes:
    """The device's signature, 64 bytes. Raises ProtocolError as ``signing_input``."""
    return primitives.ed25519_sign(device_secret, statement.signing_input())


def verify_statement(primitives: Primitives, device_key: bytes, statement: Statement, signature: bytes) -> None:
    """That the holder of ``device_key`` signed it. Raises ProtocolError: ``bad_signature`` or ``malformed``."""
    primitives.ed25519_verify(device_key, statement.signing_input(), signature)


def _sized(value: bytes) -> bytes:
    """With its length before it, big-endian."""
    return len(value).to_bytes(_LENGTH_BYTES, "big") + value
