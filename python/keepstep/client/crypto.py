"""The client library's cryptography, over PyNaCl (libsodium), ``blake3`` and the standard library.

This module has the function and class names of the extension ``keepstep._keepstep`` that the protocol needs
(``protocol.primitives.Primitives``) and shares no code with it, so a client checks what the server's extension does.
Record suite 2 only. Beyond that it has what end-to-end encryption needs (protocol.md section 5): XChaCha20-Poly1305,
sealed boxes, Argon2id, and key generation from random bytes that the caller gives.

libsodium's Ed25519 verification is cofactorless and refuses small-order and non-canonical keys: a signature that
only its key's own holder can craft may be refused here and accepted by a server (protocol.md section 1).
Python cannot erase secrets from memory; objects only drop their references.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

import blake3 as _blake3
from nacl import bindings as _sodium
from nacl.exceptions import CryptoError
from nacl.exceptions import RuntimeError as SodiumError

from keepstep.errors import ProtocolError
from keepstep.model import KEY_BYTES, SIGNATURE_BYTES
from keepstep.protocol.primitives import RECORD_TAG_BYTES, SUITE_CHACHA20_POLY1305

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

REKEY_INFO: Final = b"keepstep/v1/rekey"
RECORD_NONCE_BYTES: Final = 12
XCHACHA_NONCE_BYTES: Final = 24
SEALED_BOX_OVERHEAD_BYTES: Final = 48
"""A sealed box is longer than what it holds by an ephemeral key (32) and a tag (16)."""
PASSWORD_SALT_BYTES: Final = 16
ARGON2_PASSES_MAX: Final = 16
"""Above libsodium's SENSITIVE profile (4); bounds how long a hostile recovery file can keep a device busy."""
ARGON2_MEMORY_BYTES_MAX: Final = 2 * 1024 * 1024 * 1024
"""Above libsodium's SENSITIVE profile (1 GiB); bounds what a hostile recovery file can make a device allocate."""
HKDF_BYTES_MAX: Final = 255 * 32


def _exactly(value: Buffer, size: int, what: str) -> bytes:
    data = bytes(value)
    if len(data) != size:
        raise ProtocolError("malformed", f"{what} must have {size} bytes")
    return data


# -- signatures and key agreement -------------------------------------------------------------------------------


def ed25519_generate(seed: Buffer) -> tuple[bytes, bytes]:
    """(secret seed, public key) from 32 random bytes (RFC 8032 section 5.1.5). Raises malformed."""
    secret = _exactly(seed, KEY_BYTES, "an Ed25519 seed")
    return secret, ed25519_public(secret)


def ed25519_public(secret: Buffer) -> bytes:
    """Public key of a secret seed. Raises malformed."""
    return SigningKey(secret).public


def ed25519_sign(secret: Buffer, message: Buffer) -> bytes:
    """64-byte signature (RFC 8032 section 5.1.6). Raises malformed."""
    return SigningKey(secret).sign(message)


class SigningKey:
    """A secret key that signs often, as ``primitives.Signing``. Raises malformed."""

    def __init__(self, secret: Buffer) -> None:
        public, self._expanded = _sodium.crypto_sign_seed_keypair(_exactly(secret, KEY_BYTES, "an Ed25519 secret"))
        self.public = bytes(public)

    def sign(self, message: Buffer, /) -> bytes:
        """Signature (RFC 8032 section 5.1.6)."""
        return bytes(_sodium.crypto_sign(bytes(message), self._expanded)[:SIGNATURE_BYTES])


def ed25519_verify(public: Buffer, message: Buffer, signature: Buffer) -> None:
    """Cofactorless verification with canonical encodings and no small-order key. Raises malformed, bad_signature."""
    key = _exactly(public, KEY_BYTES, "an Ed25519 public key")
    signed = _exactly(signature, SIGNATURE_BYTES, "an Ed25519 signature") + bytes(message)
    try:
        _sodium.crypto_sign_open(signed, key)
    except CryptoError as exc:
        raise ProtocolError("bad_signature") from exc


def x25519_generate(seed: Buffer) -> tuple[bytes, bytes]:
    """(secret, public key) from 32 random bytes (RFC 7748 section 6.1). Raises malformed."""
    secret = _exactly(seed, KEY_BYTES, "an X25519 secret")
    return secret, x25519_public(secret)


def x25519_public(secret: Buffer) -> bytes:
    """Public key of a secret (RFC 7748). Raises malformed."""
    return bytes(_sodium.crypto_scalarmult_base(_exactly(secret, KEY_BYTES, "an X25519 secret")))


def x25519(secret: Buffer, public: Buffer) -> bytes:
    """Shared secret (RFC 7748 section 6.1). Raises malformed, also on the all-zero result."""
    mine = _exactly(secret, KEY_BYTES, "an X25519 secret")
    theirs = _exactly(public, KEY_BYTES, "an X25519 public key")
    try:
        return bytes(_sodium.crypto_scalarmult(mine, theirs))
    except SodiumError as exc:  # libsodium refuses the all-zero result
        raise ProtocolError("malformed", "an X25519 public key gives the all-zero secret") from exc


# -- hashing and key derivation ---------------------------------------------------------------------------------


def hkdf_sha256(salt: Buffer, ikm: Buffer, info: Buffer, length: int) -> bytes:
    """Extract and expand (RFC 5869); length 1..=8160 bytes. Raises malformed."""
    return hkdf_sha256_expand(hmac.digest(bytes(salt), bytes(ikm), "sha256"), info, length)


def hkdf_sha256_expand(prk: Buffer, info: Buffer, length: int) -> bytes:
    """Expand alone (RFC 5869 section 2.3); length 1..=8160 bytes. Raises malformed."""
    if not 1 <= length <= HKDF_BYTES_MAX:
        raise ProtocolError("malformed", f"HKDF gives 1 to {HKDF_BYTES_MAX} bytes")
    key, suffix, block, out = bytes(prk), bytes(info), b"", b""
    for index in range(1, -(-length // hashlib.sha256().digest_size) + 1):
        block = hmac.digest(key, block + suffix + bytes([index]), "sha256")
        out += block
    return out[:length]


def blake3(data: Buffer) -> bytes:
    """BLAKE3 hash, 32 bytes."""
    return _blake3.blake3(bytes(data)).digest()


def blake3_derive(context: str, data: Buffer) -> bytes:
    """``H(context, data)`` of protocol.md: BLAKE3 derive-key, 32 bytes."""
    return _blake3.blake3(bytes(data), derive_key_context=context).digest()


def blake3_keyed(key: Buffer, data: Buffer) -> bytes:
    """Keyed BLAKE3, 32 bytes (the MAC behind a ``latest`` key, protocol.md section 5). Raises malformed."""
    return _blake3.blake3(bytes(data), key=_exactly(key, KEY_BYTES, "a BLAKE3 key")).digest()


def constant_time_equal(a: Buffer, b: Buffer) -> bool:
    """Whether two values are equal, in time that depends on their lengths only."""
    return hmac.compare_digest(bytes(a), bytes(b))


# -- records ----------------------------------------------------------------------------------------------------


def _check_suite(suite: int) -> None:
    if suite != SUITE_CHACHA20_POLY1305:
        raise ProtocolError("unsupported", "this library has record suite 2 only")


def aead_seal(suite: int, key: Buffer, nonce: Buffer, aad: Buffer, plaintext: Buffer) -> bytes:
    """ChaCha20-Poly1305 (RFC 8439), suite 2; key 32, nonce 12 bytes. Raises unsupported, malformed."""
    _check_suite(suite)
    secret = _exactly(key, KEY_BYTES, "a record key")
    counter = _exactly(nonce, RECORD_NONCE_BYTES, "a record nonce")
    sealed = _sodium.crypto_aead_chacha20poly1305_ietf_encrypt(bytes(plaintext), bytes(aad), counter, secret)
    return bytes(sealed)


def aead_open(suite: int, key: Buffer, nonce: Buffer, aad: Buffer, ciphertext: Buffer) -> bytes:
    """The inverse of ``aead_seal``. Raises bad_record, unsupported, malformed."""
    _check_suite(suite)
    secret = _exactly(key, KEY_BYTES, "a record key")
    counter = _exactly(nonce, RECORD_NONCE_BYTES, "a record nonce")
    sealed = bytes(ciphertext)
    if len(sealed) < RECORD_TAG_BYTES:
        raise ProtocolError("bad_record")
    try:
        return bytes(_sodium.crypto_aead_chacha20poly1305_ietf_decrypt(sealed, bytes(aad), counter, secret))
    except CryptoError as exc:
        raise ProtocolError("bad_record") from exc


class _RecordKey:
    """One direction's key: its secret, its AAD, its counter (protocol.md section 2, Records)."""

    def __init__(self, suite: int, secret: Buffer, aad: Buffer) -> None:
        _check_suite(suite)
        self._suite = suite
        self._secret = _exactly(secret, KEY_BYTES, "a record secret")
        self._aad = bytes(aad)
        self._counter = 0

    @property
    def records(self) -> int:
        """Records under the current secret: the next counter."""
        return self._counter

    def rekey(self) -> None:
        """secret' = HKDF-Expand(secret, "keepstep/v1/rekey", 32), counter 0."""
        self._secret = hkdf_sha256_expand(self._secret, REKEY_INFO, KEY_BYTES)
        self._counter = 0

    def _nonce(self) -> bytes:
        # protocol.md section 2: "nonce = 32 zero bits || u64 counter per direction"
        return self._counter.to_bytes(RECORD_NONCE_BYTES, "big")


class RecordSealer(_RecordKey):
    """Seals records in one direction."""

    def seal(self, plaintext: Buffer) -> bytes:
        """The next record."""
        record = aead_seal(self._suite, self._secret, self._nonce(), self._aad, plaintext)
        self._counter += 1
        return record

    def seal_many(self, plaintexts: Sequence[Buffer]) -> list[bytes]:
        """The next records, in order."""
        return [self.seal(plaintext) for plaintext in plaintexts]


class RecordOpener(_RecordKey):
    """Opens records in one direction."""

    def open(self, record: Buffer) -> bytes:
        """The plaintext of the next record. Raises bad_record; the counter moves only on success."""
        plaintext = aead_open(self._suite, self._secret, self._nonce(), self._aad, record)
        self._counter += 1
        return plaintext

    def open_many(self, records: Sequence[Buffer]) -> list[bytes]:
        """The plaintexts of the next records, in order. Raises bad_record."""
        return [self.open(record) for record in records]


# -- end-to-end encryption (protocol.md section 5) ----------------------------------------------------------------


def xchacha_seal(key: Buffer, nonce: Buffer, aad: Buffer, plaintext: Buffer) -> bytes:
    """XChaCha20-Poly1305; key 32, nonce 24 random bytes, never used twice under one key. Raises malformed."""
    secret = _exactly(key, KEY_BYTES, "a content key")
    number = _exactly(nonce, XCHACHA_NONCE_BYTES, "a payload nonce")
    return bytes(_sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(bytes(plaintext), bytes(aad), number, secret))


def xchacha_open(key: Buffer, nonce: Buffer, aad: Buffer, ciphertext: Buffer) -> bytes:
    """The inverse of ``xchacha_seal``. Raises bad_record where it does not open, malformed."""
    secret = _exactly(key, KEY_BYTES, "a content key")
    number = _exactly(nonce, XCHACHA_NONCE_BYTES, "a payload nonce")
    sealed = bytes(ciphertext)
    if len(sealed) < RECORD_TAG_BYTES:
        raise ProtocolError("bad_record", "a payload is shorter than its tag")
    try:
        return bytes(_sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, bytes(aad), number, secret))
    except CryptoError as exc:
        raise ProtocolError("bad_record", "a payload does not open under its content key") from exc


def box_key_of_signer(public: Buffer) -> bytes:
    """The X25519 public key that belongs to an Ed25519 public key (libsodium's conversion). Raises malformed."""
    try:
        return bytes(_sodium.crypto_sign_ed25519_pk_to_curve25519(_exactly(public, KEY_BYTES, "a public key")))
    except SodiumError as exc:
        raise ProtocolError("malformed", "an Ed25519 public key is no point that could receive a box") from exc


def box_secret_of_signer(secret: Buffer) -> bytes:
    """The X25519 secret that belongs to an Ed25519 seed (libsodium's conversion). Raises malformed."""
    seed = _exactly(secret, KEY_BYTES, "an Ed25519 seed")
    return bytes(_sodium.crypto_sign_ed25519_sk_to_curve25519(seed + ed25519_public(seed)))


def sealed_box(box_key: Buffer, plaintext: Buffer) -> bytes:
    """libsodium's anonymous sealed box to an X25519 key: 48 bytes longer than the plaintext. Raises malformed."""
    public = _exactly(box_key, KEY_BYTES, "a box key")
    try:
        return bytes(_sodium.crypto_box_seal(bytes(plaintext), public))
    except CryptoError as exc:  # libsodium refuses a key that gives the all-zero secret
        raise ProtocolError("malformed", "a box key gives the all-zero secret") from exc


def sealed_box_open(box_secret: Buffer, sealed: Buffer) -> bytes:
    """The inverse of ``sealed_box``. Raises bad_record where it does not open, malformed."""
    secret = _exactly(box_secret, KEY_BYTES, "a box secret")
    box = bytes(sealed)
    if len(box) < SEALED_BOX_OVERHEAD_BYTES:
        raise ProtocolError("bad_record", "a sealed box is shorter than its overhead")
    try:
        return bytes(_sodium.crypto_box_seal_open(box, x25519_public(secret), secret))
    except CryptoError as exc:
        raise ProtocolError("bad_record", "a sealed box does not open") from exc


def argon2id(password: Buffer, salt: Buffer, *, passes: int, memory_bytes: int) -> bytes:
    """32-byte key from a password (RFC 9106, Argon2id 1.3, one lane).

    Args:
        password: any length.
        salt: 16 random bytes.
        passes: over the memory, 1 to 16.
        memory_bytes: 8 KiB to 2 GiB.

    Raises:
        ProtocolError: ``malformed``: the salt or the parameters are outside their limits.
    """
    number = _exactly(salt, PASSWORD_SALT_BYTES, "a password salt")
    memory_bytes_min = _sodium.crypto_pwhash_argon2id_MEMLIMIT_MIN
    if not (1 <= passes <= ARGON2_PASSES_MAX and memory_bytes_min <= memory_bytes <= ARGON2_MEMORY_BYTES_MAX):
        raise ProtocolError("malformed", "Argon2id parameters are outside their limits")
    return bytes(
        _sodium.crypto_pwhash_alg(
            KEY_BYTES, bytes(password), number, passes, memory_bytes, _sodium.crypto_pwhash_ALG_ARGON2ID13
        )
    )
