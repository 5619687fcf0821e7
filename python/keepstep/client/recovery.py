"""The recovery file: the user's root keys, sealed under a passphrase (protocol.md sections 1 and 5).

It is the only place where the root keys are. Text, so that it can be printed and typed back::

    -----BEGIN KEEPSTEP RECOVERY FILE-----
    base64 of: "KSRECOV1" ‖ passes(4) ‖ memory in bytes(8) ‖ salt(16) ‖ nonce(24) ‖ ciphertext
    -----END KEEPSTEP RECOVERY FILE-----

key = Argon2id(passphrase, salt, passes, memory); ciphertext = XChaCha20-Poly1305 with everything before it as
AAD, over a MessagePack ``Recovery``.
"""

from __future__ import annotations

import base64
import binascii
import textwrap
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from keepstep.client import crypto
from keepstep.client.files import replace_file
from keepstep.errors import ClientError, ProtocolError

if TYPE_CHECKING:
    from pathlib import Path

PASSPHRASE_CHARACTERS_MIN: Final = 12
"""A shorter passphrase is refused: the file may be copied, and guessing then costs nobody but the guesser."""
MEMORY_BYTES_MAX: Final = 1024 * 1024 * 1024
"""A file that asks for more is refused: it would be an attack on the machine that opens it."""
PASSES_MAX: Final = 16
FILE_BYTES_MAX: Final = 1024 * 1024

_BEGIN: Final = "-----BEGIN KEEPSTEP RECOVERY FILE-----"
_END: Final = "-----END KEEPSTEP RECOVERY FILE-----"
_MAGIC: Final = b"KSRECOV1"
_HEADER_BYTES: Final = len(_MAGIC) + 4 + 8 + crypto.PASSWORD_SALT_BYTES + crypto.XCHACHA_NONCE_BYTES

Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Epoch = Annotated[bytes, Meta(min_length=16, max_length=16)]


class Recovery(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the file holds.

    Attributes:
        version: 1.
        root_secret: Ed25519 seed whose public key is the user id.
        next_root_secret: Ed25519 seed of the key that ``rotate`` will be signed with.
        user_key: the user id.
        server_key: the pinned server identity key.
        server_url: where devices connect.
        heads: stream name to ``(seq, chain)`` as of the file's date.
        content_keys: ``(content_epoch, after, content_key, index_key)`` of every content epoch.
        created_at_ms: the file's date, unix milliseconds.
    """

    version: Literal[1]
    root_secret: Key
    next_root_secret: Key
    user_key: Key
    server_key: Key
    server_url: str
    heads: dict[str, tuple[int, Key]]
    content_keys: list[tuple[Epoch, int, Key, Key]]
    created_at_ms: int

    def __repr__(self) -> str:
        return f"Recovery({self.user_key.hex()})"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one guess of the passphrase costs (RFC 9106): passes over the memory, and how much of it, in bytes."""

    passes: int
    memory_bytes: int


COST: Final = Cost(passes=3, memory_bytes=256 * 1024 * 1024)
"""About a second (libsodium's MODERATE profile)."""


class RecoveryFile:
    """Seals under one passphrase; the key is derived once, so that writing the file again is cheap.

    Deriving takes about a second of CPU at the default ``cost``: call from a worker thread.
    """

    def __init__(self, passphrase: str, *, salt: bytes, cost: Cost = COST) -> None:
        if len(passphrase) < PASSPHRASE_CHARACTERS_MIN:
            raise ClientError(f"the passphrase must have at least {PASSPHRASE_CHARACTERS_MIN} characters")
        self._header = _MAGIC + cost.passes.to_bytes(4, "big") + cost.memory_bytes.to_bytes(8, "big") + salt
        self._key = _derive(passphrase, salt, cost)

    def write(self, path: Path, recovery: Recovery, *, nonce: bytes) -> None:
        """Put the sealed file in place: readable by its owner only, on the disk when this returns, never half.

        Args:
            path: replaced if it is there.
            recovery: what it will hold.
            nonce: 24 random bytes, never used twice.

        Raises:
            ClientError: it cannot be written there.
        """
        header = self._header + nonce
        sealed = header + crypto.xchacha_seal(self._key, nonce, header, msgspec.msgpack.encode(recovery))
        lines = textwrap.wrap(base64.b64encode(sealed).decode(), 64)
        replace_file(path, "\n".join([_BEGIN, *lines, _END, ""]).encode())


def read_recovery_file(path: Path, passphrase: str) -> Recovery:
    """Open a recovery file. About a second of CPU: call from a worker thread.

    Raises:
        ClientError: it is not one, it was changed, or the passphrase is wrong.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        text = file.read(FILE_BYTES_MAX).decode("ascii", "replace")
    body = text.partition(_BEGIN)[2].partition(_END)[0]
    try:
        sealed = base64.b64decode("".join(body.split()), validate=True)
    except binascii.Error:
        sealed = b""
    if not sealed.startswith(_MAGIC) or len(sealed) <= _HEADER_BYTES:
        raise ClientError(f"{path} is not a recovery file")
    header, ciphertext = sealed[:_HEADER_BYTES], sealed[_HEADER_BYTES:]
    cost = Cost(int.from_bytes(header[8:12], "big"), int.from_bytes(header[12:20], "big"))
    if cost.passes > PASSES_MAX or cost.memory_bytes > MEMORY_BYTES_MAX:
        raise ClientError(f"{path} asks for more work than a recovery file may")
    salt, nonce = header[20 : 20 + crypto.PASSWORD_SALT_BYTES], header[-crypto.XCHACHA_NONCE_BYTES :]
    try:
        content = crypto.xchacha_open(_derive(passphrase, salt, cost), nonce, header, ciphertext)
        return msgspec.msgpack.decode(content, type=Recovery)
    except ProtocolError as exc:
        raise ClientError(f"{path} does not open: another passphrase, or the file was changed") from exc
    except msgspec.DecodeError as exc:
        raise ClientError(f"{path} was made by another version of keepstep") from exc


def _derive(passphrase: str, salt: bytes, cost: Cost) -> bytes:
    # Keyboards differ in how they compose accents; NFC makes one byte string of them.
    secret = unicodedata.normalize("NFC", passphrase).encode()
    return crypto.argon2id(secret, salt, passes=cost.passes, memory_bytes=cost.memory_bytes)
