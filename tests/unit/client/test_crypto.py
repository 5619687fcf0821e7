"""The client library's cryptography against RFCs, papers and other libraries; never against itself alone."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from nacl.public import PrivateKey, SealedBox

from keepstep.client import crypto
from keepstep.errors import ProtocolError
from tests.support.events import seed
from tests.support.vectors import load, unhex

if TYPE_CHECKING:
    from collections.abc import Callable

KEY: Final = seed("key")


def refused(call: Callable[[], object]) -> str:
    """The code of the error that a call raises."""
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value.code


def by_name(vectors: list[dict[str, Any]]) -> pytest.MarkDecorator:
    """Every vector as a case of its own."""
    return pytest.mark.parametrize("vector", vectors, ids=[str(each.get("name", i)) for i, each in enumerate(vectors)])


# -- published vectors


@by_name(load("rfc8032.json")["ed25519"])
def test_ed25519_is_rfc_8032(vector: dict[str, str]) -> None:
    """Keys, signatures and their verification."""
    secret, public, message, signature = unhex(vector, "secret", "public", "message", "signature")
    assert crypto.ed25519_generate(secret) == (secret, public)
    assert crypto.ed25519_sign(secret, message) == signature
    crypto.ed25519_verify(public, message, signature)


@by_name(load("taming_the_many_eddsas.json")["cases"])
def test_edge_cases_of_ed25519_have_their_documented_answer(vector: dict[str, Any]) -> None:
    """Cofactorless, canonical, no small-order key: libsodium's answer to *Taming the many EdDSAs*."""
    public, message, signature = unhex(vector, "public", "message", "signature")
    if vector["accepted_by_libsodium"]:
        crypto.ed25519_verify(public, message, signature)
    else:
        assert refused(lambda: crypto.ed25519_verify(public, message, signature)) == "bad_signature"


@by_name(load("rfc7748.json")["x25519"])
def test_x25519_is_rfc_7748(vector: dict[str, str]) -> None:
    """Shared secrets."""
    secret, public, shared = unhex(vector, "secret", "public", "shared")
    assert crypto.x25519(secret, public) == shared


def test_x25519_keys_agree_from_both_sides() -> None:
    """Generation, public keys and agreement fit together."""
    (a, a_public), (b, b_public) = crypto.x25519_generate(seed("a")), crypto.x25519_generate(seed("b"))
    assert crypto.x25519(a, b_public) == crypto.x25519(b, a_public)
    assert a_public == bytes(PrivateKey(a).public_key)


@pytest.mark.parametrize(
    "public",
    [
        bytes(32),
        (1).to_bytes(32, "little"),
        bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
        (2**255 - 20).to_bytes(32, "little"),
        (2**255 - 19).to_bytes(32, "little"),
        (2**255 - 18).to_bytes(32, "little"),
    ],
)
def test_an_all_zero_shared_secret_is_refused(public: bytes) -> None:
    """Every point of small order (RFC 7748 section 6.1)."""
    assert refused(lambda: crypto.x25519(KEY, public)) == "malformed"
    assert refused(lambda: crypto.sealed_box(public, b"x")) == "malformed"


@by_name(load("rfc5869.json")["hkdf_sha256"])
def test_hkdf_is_rfc_5869(vector: dict[str, str]) -> None:
    """Extract and expand, and expand alone."""
    ikm, salt, info, prk, okm = unhex(vector, "ikm", "salt", "info", "prk", "okm")
    assert crypto.hkdf_sha256(salt, ikm, info, len(okm)) == okm
    assert crypto.hkdf_sha256_expand(prk, info, len(okm)) == okm


@pytest.mark.parametrize("length", [0, -1, 8161])
def test_hkdf_gives_no_other_lengths(length: int) -> None:
    """RFC 5869: at most 255 blocks, and something."""
    assert refused(lambda: crypto.hkdf_sha256(b"", b"", b"", length)) == "malformed"
    assert len(crypto.hkdf_sha256(b"", b"", b"", 8160)) == 8160


@by_name(load("rfc8439.json")["chacha20_poly1305"])
def test_suite_2_is_rfc_8439(vector: dict[str, str]) -> None:
    """Sealing and opening."""
    key, nonce, aad, plaintext, sealed = unhex(vector, "key", "nonce", "aad", "plaintext", "sealed")
    assert crypto.aead_seal(2, key, nonce, aad, plaintext) == sealed
    assert crypto.aead_open(2, key, nonce, aad, sealed) == plaintext


def test_xchacha20_poly1305_is_the_drafts() -> None:
    """draft-irtf-cfrg-xchacha-03, appendix A.3.1."""
    key, nonce = bytes(range(0x80, 0xA0)), bytes(range(0x40, 0x58))
    aad = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    plaintext = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    )
    sealed = bytes.fromhex(
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb"
        "731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b452"
        "2f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9"
        "21f9664c97637da9768812f615c68b13b52ec0875924c1c7987947deafd8780acf49"
    )
    assert crypto.xchacha_seal(key, nonce, aad, plaintext) == sealed
    assert crypto.xchacha_open(key, nonce, aad, sealed) == plaintext


def blake3_input(vector: dict[str, Any]) -> bytes:
    """The input of BLAKE3's own vectors."""
    return bytes(index % 251 for index in range(vector["input_len"]))


BLAKE3: Final = load("blake3.json")


@pytest.mark.parametrize("vector", BLAKE3["cases"], ids=lambda each: str(each["input_len"]))
def test_blake3_is_its_authors(vector: dict[str, Any]) -> None:
    """Hash and derive-key."""
    data = blake3_input(vector)
    assert [crypto.blake3(data), crypto.blake3_derive(BLAKE3["context"], data)] == unhex(vector, "hash", "derive_key")


def test_keyed_blake3_is_its_authors() -> None:
    """The first 32 bytes of keyed_hash for one byte, from BLAKE3's test_vectors.json."""
    expected = "6d7878dfff2f485635d39013278ae14f1454b8c0a3a2d34bc1ab38228a80c95b"
    assert crypto.blake3_keyed(b"whats the Elvish word for friend", b"\0").hex() == expected


def test_argon2id_is_openssls() -> None:
    """The same key from the ``cryptography`` package's implementation (RFC 9106)."""
    other = Argon2id(salt=seed("salt")[:16], length=32, iterations=2, lanes=1, memory_cost=64).derive(b"password")
    assert crypto.argon2id(b"password", seed("salt")[:16], passes=2, memory_bytes=64 * 1024) == other


def test_sealed_boxes_are_libsodiums() -> None:
    """PyNaCl's own class opens ours, and ours opens its."""
    secret, public = crypto.x25519_generate(seed("box"))
    theirs = PrivateKey(secret)
    assert SealedBox(theirs).decrypt(crypto.sealed_box(public, b"secret")) == b"secret"
    assert crypto.sealed_box_open(secret, SealedBox(theirs.public_key).encrypt(b"secret")) == b"secret"


# -- what is refused


def test_a_changed_record_does_not_open() -> None:
    """Neither ciphertext, nor tag, nor AAD, nor nonce, nor key can be changed."""
    nonce, aad, sealed = bytes(12), b"aad", crypto.aead_seal(2, KEY, bytes(12), b"aad", b"plaintext")
    for index in range(len(sealed)):
        changed = sealed[:index] + bytes([sealed[index] ^ 1]) + sealed[index + 1 :]
        assert refused(partial(crypto.aead_open, 2, KEY, nonce, aad, changed)) == "bad_record"
    assert refused(lambda: crypto.aead_open(2, KEY, nonce, b"other", sealed)) == "bad_record"
    assert refused(lambda: crypto.aead_open(2, KEY, b"\1" * 12, aad, sealed)) == "bad_record"
    assert refused(lambda: crypto.aead_open(2, seed("other"), nonce, aad, sealed)) == "bad_record"
    assert refused(lambda: crypto.aead_open(2, KEY, nonce, aad, sealed[:15])) == "bad_record"
    assert refused(lambda: crypto.aead_open(2, KEY, nonce, aad, b"")) == "bad_record"


def test_a_changed_payload_does_not_open() -> None:
    """The same for XChaCha20-Poly1305."""
    nonce, sealed = bytes(24), crypto.xchacha_seal(KEY, bytes(24), b"aad", b"plaintext")
    assert refused(lambda: crypto.xchacha_open(KEY, nonce, b"other", sealed)) == "bad_record"
    assert refused(lambda: crypto.xchacha_open(seed("other"), nonce, b"aad", sealed)) == "bad_record"
    assert refused(lambda: crypto.xchacha_open(KEY, nonce, b"aad", sealed[:-1])) == "bad_record"
    assert refused(lambda: crypto.xchacha_open(KEY, nonce, b"aad", sealed[:15])) == "bad_record"


def test_a_changed_sealed_box_does_not_open() -> None:
    """Nor for another recipient, nor cut short."""
    secret, public = crypto.x25519_generate(seed("box"))
    box = crypto.sealed_box(public, b"secret")
    assert refused(lambda: crypto.sealed_box_open(secret, box[:-1] + bytes([box[-1] ^ 1]))) == "bad_record"
    assert refused(lambda: crypto.sealed_box_open(seed("other"), box)) == "bad_record"
    assert refused(lambda: crypto.sealed_box_open(secret, box[:47])) == "bad_record"


def test_a_forged_signature_is_refused() -> None:
    """No bit of key, message or signature can be changed."""
    secret, public = crypto.ed25519_generate(seed("author"))
    signature = crypto.ed25519_sign(secret, b"message")
    assert refused(lambda: crypto.ed25519_verify(public, b"other", signature)) == "bad_signature"
    assert refused(lambda: crypto.ed25519_verify(seed("no key"), b"message", signature)) == "bad_signature"
    assert refused(lambda: crypto.ed25519_verify(public, b"message", bytes(64))) == "bad_signature"


@pytest.mark.parametrize(
    "call",
    [
        lambda: crypto.ed25519_generate(KEY[1:]),
        lambda: crypto.ed25519_public(KEY + b"\0"),
        lambda: crypto.ed25519_sign(KEY[1:], b""),
        lambda: crypto.ed25519_verify(KEY[1:], b"", bytes(64)),
        lambda: crypto.ed25519_verify(KEY, b"", bytes(63)),
        lambda: crypto.x25519_generate(KEY[1:]),
        lambda: crypto.x25519_public(KEY[1:]),
        lambda: crypto.x25519(KEY[1:], KEY),
        lambda: crypto.x25519(KEY, KEY[1:]),
        lambda: crypto.blake3_keyed(KEY[1:], b""),
        lambda: crypto.aead_seal(2, KEY[1:], bytes(12), b"", b""),
        lambda: crypto.aead_seal(2, KEY, bytes(11), b"", b""),
        lambda: crypto.aead_open(2, KEY[1:], bytes(12), b"", bytes(16)),
        lambda: crypto.aead_open(2, KEY, bytes(13), b"", bytes(16)),
        lambda: crypto.xchacha_seal(KEY[1:], bytes(24), b"", b""),
        lambda: crypto.xchacha_seal(KEY, bytes(12), b"", b""),
        lambda: crypto.xchacha_open(KEY[1:], bytes(24), b"", bytes(16)),
        lambda: crypto.xchacha_open(KEY, bytes(12), b"", bytes(16)),
        lambda: crypto.sealed_box(KEY[1:], b""),
        lambda: crypto.sealed_box_open(KEY[1:], bytes(48)),
        lambda: crypto.RecordSealer(2, KEY[1:], b""),
        lambda: crypto.argon2id(b"", bytes(15), passes=1, memory_bytes=8192),
        lambda: crypto.argon2id(b"", bytes(16), passes=0, memory_bytes=8192),
        lambda: crypto.argon2id(b"", bytes(16), passes=17, memory_bytes=8192),
        lambda: crypto.argon2id(b"", bytes(16), passes=1, memory_bytes=8191),
        lambda: crypto.argon2id(b"", bytes(16), passes=1, memory_bytes=2 * 1024**3 + 1),
    ],
)
def test_wrong_sizes_are_malformed(call: Callable[[], object]) -> None:
    """Keys, nonces, salts and costs outside their documented size: an error, before anything is computed."""
    assert refused(call) == "malformed"


@pytest.mark.parametrize("suite", [0, 1, 3])
def test_other_suites_are_unsupported(suite: int) -> None:
    """This library has suite 2."""
    assert refused(lambda: crypto.aead_seal(suite, KEY, bytes(12), b"", b"")) == "unsupported"
    assert refused(lambda: crypto.aead_open(suite, KEY, bytes(12), b"", bytes(16))) == "unsupported"
    assert refused(lambda: crypto.RecordSealer(suite, KEY, b"")) == "unsupported"
    assert refused(lambda: crypto.RecordOpener(suite, KEY, b"")) == "unsupported"


# -- records


def test_records_count_up_and_begin_anew_after_a_rekey() -> None:
    """The nonce is the counter, as another library sees it."""
    sealer, opener = crypto.RecordSealer(2, KEY, b"aad"), crypto.RecordOpener(2, KEY, b"aad")
    records = sealer.seal_many([b"a", b"b", b"c"])
    assert sealer.records == 3
    assert ChaCha20Poly1305(KEY).decrypt((2).to_bytes(12, "big"), records[2], b"aad") == b"c"
    assert opener.open_many(records) == [b"a", b"b", b"c"]
    assert opener.records == 3
    sealer.rekey()
    opener.rekey()
    assert (sealer.records, opener.records) == (0, 0)
    successor = crypto.hkdf_sha256_expand(KEY, b"keepstep/v1/rekey", 32)
    record = sealer.seal(b"d")
    assert ChaCha20Poly1305(successor).decrypt(bytes(12), record, b"aad") == b"d"
    assert opener.open(record) == b"d"


def test_a_record_that_does_not_open_moves_nothing() -> None:
    """The counter goes up on success only."""
    sealer, opener = crypto.RecordSealer(2, KEY, b""), crypto.RecordOpener(2, KEY, b"")
    record = sealer.seal(b"a")
    assert refused(lambda: opener.open(bytes(len(record)))) == "bad_record"
    assert opener.records == 0
    assert opener.open(record) == b"a"
    assert refused(lambda: opener.open(record)) == "bad_record"


def test_comparison_is_of_content() -> None:
    """Equal where the bytes are, also for other kinds of buffers and other lengths."""
    assert crypto.constant_time_equal(b"abc", bytearray(b"abc"))
    assert not crypto.constant_time_equal(b"abc", b"abd")
    assert not crypto.constant_time_equal(b"abc", b"ab")


def test_buffers_of_any_kind_are_taken() -> None:
    """As by the extension: memory views and byte arrays are as good as bytes."""
    secret, public = crypto.ed25519_generate(bytearray(KEY))
    signature = crypto.ed25519_sign(memoryview(secret), bytearray(b"m"))
    crypto.ed25519_verify(memoryview(public), memoryview(b"m"), bytearray(signature))
    assert crypto.blake3(memoryview(b"x")) == crypto.blake3(b"x")


def test_a_signing_key_receives_sealed_boxes() -> None:
    """The converted pair is an X25519 pair; the conversion is libsodium's, with its own test's values."""
    # libsodium test/default/ed25519_convert.c and its expected output
    seed_bytes = bytes.fromhex("421151a459faeade3d247115f94aedae42318124095afabe4d1451a559faedee")
    secret, public = crypto.ed25519_generate(seed_bytes)
    box_secret, box_key = crypto.box_secret_of_signer(secret), crypto.box_key_of_signer(public)
    assert box_secret.hex() == "8052030376d47112be7f73ed7a019293dd12ad910b654455798b4667d73de166"
    assert box_key.hex() == "f1814f0e8ff1043d8a44d25babff3cedcae6c22c3edaa48f857ae70de2baae50"
    assert crypto.x25519_public(box_secret) == box_key
    assert crypto.sealed_box_open(box_secret, crypto.sealed_box(box_key, b"key")) == b"key"


def test_what_is_no_signing_key_is_no_box_key() -> None:
    """A point of small order, and bytes that are no point."""
    for bad in (bytes([1]) + bytes(31), b"\xff" * 32, b"short"):
        with pytest.raises(ProtocolError, match="malformed"):
            crypto.box_key_of_signer(bad)
