"""The cryptography the protocol is handed: any object with the names of the extension ``keepstep._keepstep``.

The server hands in the extension, the client library hands in ``keepstep.client.crypto``, which is built on other
libraries; so each side checks the other's implementation. Nothing in ``protocol`` imports either of them.

Functions that can fail raise ``ProtocolError``; none returns a verdict as ``bool`` except the comparison.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

SUITE_AES_256_GCM: Final = 1
"""Record suite 1 (NIST SP 800-38D); browsers have it."""
SUITE_CHACHA20_POLY1305: Final = 2
"""Record suite 2 (RFC 8439)."""
RECORD_TAG_BYTES: Final = 16
"""What a record is longer than its plaintext, bytes; the same in every suite."""


class Signing(Protocol):
    """A secret key that signs often: what depends on the key alone is computed once."""

    @property
    def public(self) -> bytes:
        """Public key, 32 bytes (RFC 8032 section 5.1.5)."""

    def sign(self, message: Buffer, /) -> bytes:
        """Signature, 64 bytes (RFC 8032 section 5.1.6)."""


class Sealer(Protocol):
    """One direction's sealing key and counter (protocol.md section 2, Records)."""

    def seal(self, plaintext: Buffer, /) -> bytes:
        """The next record."""

    def seal_many(self, plaintexts: Sequence[Buffer], /) -> list[bytes]:
        """The next records, in order."""

    @property
    def records(self) -> int:
        """Records sealed under the current secret: the next counter."""

    def rekey(self) -> None:
        """Go on under the successor of the secret, at counter 0."""


class Opener(Protocol):
    """One direction's opening key and counter (protocol.md section 2, Records)."""

    def open(self, record: Buffer, /) -> bytes:
        """The plaintext of the next record. Raises ``bad_record``; the counter moves only on success."""

    def open_many(self, records: Sequence[Buffer], /) -> list[bytes]:
        """The plaintexts of the next records, in order. Raises ``bad_record``."""

    @property
    def records(self) -> int:
        """Records opened under the current secret: the next counter."""

    def rekey(self) -> None:
        """Go on under the successor of the secret, at counter 0."""


class Primitives(Protocol):
    """What the protocol needs. Keys, hashes, secrets are 32 bytes, signatures 64, nonces of records 12."""

    def ed25519_public(self, secret: Buffer, /) -> bytes:
        """Public key of a 32-byte secret seed (RFC 8032 section 5.1.5)."""

    def ed25519_sign(self, secret: Buffer, message: Buffer, /) -> bytes:
        """Signature (RFC 8032 section 5.1.6)."""

    def ed25519_verify(self, public: Buffer, message: Buffer, signature: Buffer, /) -> None:
        """Raises ``bad_signature``, or ``malformed`` where the key is none (protocol.md section 1)."""

    def x25519_public(self, secret: Buffer, /) -> bytes:
        """Public key of a 32-byte secret (RFC 7748)."""

    def x25519(self, secret: Buffer, public: Buffer, /) -> bytes:
        """Shared secret (RFC 7748). Raises ``malformed`` on the all-zero result."""

    def hkdf_sha256(self, salt: Buffer, ikm: Buffer, info: Buffer, length: int, /) -> bytes:
        """Extract and expand (RFC 5869)."""

    def hkdf_sha256_expand(self, prk: Buffer, info: Buffer, length: int, /) -> bytes:
        """Expand alone (RFC 5869 section 2.3)."""

    def aead_seal(self, suite: int, key: Buffer, nonce: Buffer, aad: Buffer, plaintext: Buffer, /) -> bytes:
        """Ciphertext and tag. Raises ``unsupported`` for a suite the implementation does not have."""

    def aead_open(self, suite: int, key: Buffer, nonce: Buffer, aad: Buffer, ciphertext: Buffer, /) -> bytes:
        """Plaintext. Raises ``bad_record``, or ``unsupported`` for a suite the implementation does not have."""

    def blake3(self, data: Buffer, /) -> bytes:
        """BLAKE3 hash."""

    def blake3_derive(self, context: str, data: Buffer, /) -> bytes:
        """``H(context, data)`` of protocol.md: BLAKE3 derive-key."""

    def constant_time_equal(self, a: Buffer, b: Buffer, /) -> bool:
        """Whether two values are equal, in time that depends on their lengths only."""

    @property
    def SigningKey(self) -> Callable[[bytes], Signing]:  # noqa: N802 - a class of the module handed in
        """``SigningKey(secret)`` of a 32-byte secret seed."""

    @property
    def RecordSealer(self) -> Callable[[int, bytes, bytes], Sealer]:  # noqa: N802 - a class of the module handed in
        """``RecordSealer(suite, secret, aad)``. Raises ``unsupported`` for a suite it does not have."""

    @property
    def RecordOpener(self) -> Callable[[int, bytes, bytes], Opener]:  # noqa: N802 - a class of the module handed in
        """``RecordOpener(suite, secret, aad)``. Raises ``unsupported`` for a suite it does not have."""
