"""The extension's cryptography, held against PyNaCl, ``cryptography``, ``blake3`` and published vectors."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import blake3
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from hypothesis import given
from hypothesis import strategies as st
from nacl import bindings as sodium
from nacl.exceptions import BadSignatureError

import keepstep
from keepstep import _keepstep
from keepstep.errors import ProtocolError
from tests.support.events import seed
from tests.support.vectors import load, unhex

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT: Final = Path(__file__).parents[2]
RAW: Final = (serialization.Encoding.Raw, serialization.PublicFormat.Raw)
SUITES: Final[dict[int, type[AESGCM | ChaCha20Poly1305]]] = {1: AESGCM, 2: ChaCha20Poly1305}

keys = st.binary(min_size=32, max_size=32)
messages = st.binary(max_size=2000)
nonces = st.binary(min_size=12, max_size=12)
suites = st.sampled_from(sorted(SUITES))


def refused(code: str, call: Callable[..., object], *arguments: object) -> None:
    """Assert that a call raises the protocol error of that code."""
    with pytest.raises(ProtocolError) as raised:
        call(*arguments)
    assert raised.value.code == code
    assert raised.value.detail


def answer(public: bytes, message: bytes, signature: bytes) -> str:
    """``accepted``, or the code a signature is refused with."""
    try:
        _keepstep.ed25519_verify(public, message, signature)
    except ProtocolError as error:
        return error.code
    return "accepted"


def libsodium_verdict(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether libsodium accepts a signature."""
    try:
        sodium.crypto_sign_open(signature + message, public)
    except BadSignatureError:
        return False
    return True


# -- the build ----------------------------------------------------------------------------------------------------


def source_digest() -> str:
    """The digest of the Rust sources as ``SOURCE_DIGEST``'s documentation defines it."""
    folders = [ROOT / "rust/core/src", ROOT / "rust/py/src"]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    names = [".cargo/config.toml", "Cargo.lock", "Cargo.toml"]
    names += ["rust/core/Cargo.toml", "rust/py/Cargo.toml", "rust/py/build.rs"]
    names += [file.relative_to(ROOT).as_posix() for file in files]
    digest = hashlib.sha256()
    for name in sorted(names):
        content = (ROOT / name).read_bytes()
        digest.update(name.encode() + b"\0" + len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def test_the_extension_was_built_from_these_sources() -> None:
    """A stale build would be tested in place of the sources."""
    assert source_digest() == _keepstep.SOURCE_DIGEST


def test_the_extension_has_the_version_of_the_package() -> None:
    """Both come from one place."""
    assert _keepstep.__version__ == keepstep.__version__


def test_the_backend_is_the_fastest_that_the_processor_has() -> None:
    """The build switches AVX-512 on, and falls back at run time."""
    flags = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
    if {"avx512ifma", "avx512vl"} <= flags:
        expected = "avx512"
    else:
        expected = "avx2" if "avx2" in flags else _keepstep.BACKEND
    assert expected == _keepstep.BACKEND
    assert _keepstep.BACKEND in {"avx512", "avx2", "serial"}


# -- signatures ---------------------------------------------------------------------------------------------------


@given(keys, messages)
def test_keys_and_signatures_are_those_of_libsodium_and_cryptography(seed: bytes, message: bytes) -> None:
    """Ed25519 is deterministic: three libraries must agree byte for byte."""
    public, sodium_secret = sodium.crypto_sign_seed_keypair(seed)
    assert _keepstep.ed25519_generate(seed) == (seed, public)
    assert _keepstep.ed25519_public(seed) == public
    signature = _keepstep.ed25519_sign(seed, message)
    assert signature == sodium.crypto_sign(message, sodium_secret)[:64]
    assert signature == Ed25519PrivateKey.from_private_bytes(seed).sign(message)
    _keepstep.ed25519_verify(public, message, signature)


@given(keys, st.binary(min_size=1, max_size=200), st.data())
def test_a_changed_message_or_signature_is_refused_by_all(seed: bytes, message: bytes, data: st.DataObject) -> None:
    """No changed bit anywhere is accepted, here or elsewhere."""
    public = _keepstep.ed25519_public(seed)
    signed = bytearray(_keepstep.ed25519_sign(seed, message) + message)
    signed[data.draw(st.integers(0, len(signed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    signature, changed = bytes(signed[:64]), bytes(signed[64:])
    assert answer(public, changed, signature) == "bad_signature"
    assert not libsodium_verdict(public, changed, signature)
    with pytest.raises(InvalidSignature):
        Ed25519PublicKey.from_public_bytes(public).verify(signature, changed)


def test_rfc_8032_signatures_are_made_and_accepted() -> None:
    """RFC 8032 section 7.1."""
    for case in load("rfc8032.json")["ed25519"]:
        seed, public, message, signature = unhex(case, "secret", "public", "message", "signature")
        assert _keepstep.ed25519_generate(seed) == (seed, public)
        assert _keepstep.ed25519_sign(seed, message) == signature
        assert answer(public, message, signature) == "accepted"


def edge_cases() -> list[Any]:
    """The twelve vectors of 'Taming the many EdDSAs'."""
    cases = load("taming_the_many_eddsas.json")["cases"]
    return [pytest.param(case, id=f"{case['number']}: {case['comment']}") for case in cases]


@pytest.mark.parametrize("case", edge_cases())
def test_an_edge_signature_has_its_documented_answer_on_both_sides(case: dict[str, Any]) -> None:
    """protocol.md section 1: the server's answer, and a device's whose library is cofactorless."""
    public, message, signature = unhex(case, "public", "message", "signature")
    assert answer(public, message, signature) == ("accepted" if case["accepted"] else "bad_signature")
    assert libsodium_verdict(public, message, signature) is case["accepted_by_libsodium"]


def test_every_edge_signature_keeps_its_answer_in_company() -> None:
    """Signatures whose key is usable at all, in one batch with honest ones."""
    items = []
    expected = []
    for case in load("taming_the_many_eddsas.json")["cases"]:
        public, message, signature = unhex(case, "public", "message", "signature")
        if case["comment"].startswith(("key of small order", "key not canonical")):
            refused("malformed", _keepstep.DeviceKey, public)
            continue
        honest = seed(f"honest {case['number']}")
        honest_key = _keepstep.DeviceKey(_keepstep.ed25519_public(honest))
        items += [(_keepstep.DeviceKey(public), message, signature)]
        items += [(honest_key, message, _keepstep.ed25519_sign(honest, message))]
        expected += [case["accepted"], True]
    assert _keepstep.ed25519_verify_many(items) == expected
    assert expected.count(True) > len(expected) // 2


@given(st.lists(st.booleans(), max_size=80))
def test_a_batch_names_exactly_the_culprits(good: list[bool]) -> None:
    """One verdict per signature, whatever shares the batch."""
    seeds = [seed(f"signer {index % 5}") for index in range(len(good))]
    device_keys = [_keepstep.DeviceKey(_keepstep.ed25519_public(seed)) for seed in seeds]
    signed = [
        _keepstep.ed25519_sign(seed, b"a" if is_good else b"b") for seed, is_good in zip(seeds, good, strict=True)
    ]
    items = [(key, b"a", signature) for key, signature in zip(device_keys, signed, strict=True)]
    assert _keepstep.ed25519_verify_many(items) == good


def test_a_signature_of_another_length_is_bad() -> None:
    """64 bytes, neither more nor fewer."""
    public = _keepstep.ed25519_public(bytes(32))
    signature = _keepstep.ed25519_sign(bytes(32), b"")
    for wrong in (signature[:63], signature + b"\0", b""):
        refused("bad_signature", _keepstep.ed25519_verify, public, b"", wrong)
        assert _keepstep.ed25519_verify_many([(_keepstep.DeviceKey(public), b"", wrong)]) == [False]
    refused("bad_signature", _keepstep.ed25519_verify, public[:31], b"", signature)


@pytest.mark.parametrize(
    "public",
    [
        pytest.param(bytes(31), id="too short"),
        pytest.param(bytes(33), id="too long"),
        pytest.param(bytes([2]) + bytes(31), id="not on the curve"),
        pytest.param(bytes([0xF0]) + bytes([0xFF] * 30) + bytes([0x7F]), id="not reduced"),
        pytest.param(bytes([1]) + bytes(31), id="the identity"),
        pytest.param(bytes(32), id="of order 4"),
        pytest.param(
            bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"), id="of order 8"
        ),
        pytest.param(bytes([1]) + bytes(30) + bytes([0x80]), id="negative zero"),
    ],
)
def test_a_key_that_is_not_a_canonical_point_of_large_order_is_refused(public: bytes) -> None:
    """As a device key it is malformed; a signature under it is bad."""
    refused("malformed", _keepstep.DeviceKey, public)
    refused("bad_signature", _keepstep.ed25519_verify, public, b"", bytes(64))


def test_a_device_key_gives_its_bytes_back() -> None:
    """The only thing to be read from it."""
    public = _keepstep.ed25519_public(bytes(32))
    assert _keepstep.DeviceKey(public).public == public


# -- key agreement and derivation ---------------------------------------------------------------------------------


@given(keys, keys)
def test_shared_secrets_are_those_of_libsodium_and_cryptography(mine: bytes, theirs: bytes) -> None:
    """RFC 7748, three libraries."""
    public = _keepstep.x25519_public(theirs)
    assert public == sodium.crypto_scalarmult_base(theirs)
    assert public == X25519PrivateKey.from_private_bytes(theirs).public_key().public_bytes(*RAW)
    shared = _keepstep.x25519(mine, public)
    assert shared == _keepstep.x25519(theirs, _keepstep.x25519_public(mine))
    assert shared == sodium.crypto_scalarmult(mine, public)
    assert shared == X25519PrivateKey.from_private_bytes(mine).exchange(X25519PublicKey.from_public_bytes(public))


def test_rfc_7748_secrets_are_agreed() -> None:
    """RFC 7748 sections 5.2 and 6.1."""
    for case in load("rfc7748.json")["x25519"]:
        mine, public, shared = unhex(case, "secret", "public", "shared")
        assert _keepstep.x25519(mine, public) == shared


@pytest.mark.parametrize("public", [bytes(32), bytes([1]) + bytes(31)], ids=["zero", "of order 1"])
def test_an_all_zero_shared_secret_is_refused(public: bytes) -> None:
    """protocol.md section 1: a peer's low-order point gives no secret."""
    refused("malformed", _keepstep.x25519, seed("any"), public)


def test_a_public_key_of_another_length_is_malformed() -> None:
    """A peer may send any number of bytes."""
    refused("malformed", _keepstep.x25519, bytes(32), bytes(31))


@given(st.binary(max_size=100), st.binary(max_size=100), st.binary(max_size=100), st.integers(1, 300))
def test_derived_keys_are_those_of_cryptography(salt: bytes, ikm: bytes, info: bytes, length: int) -> None:
    """RFC 5869, extract and expand, and expand alone."""
    assert _keepstep.hkdf_sha256(salt, ikm, info, length) == HKDF(hashes.SHA256(), length, salt, info).derive(ikm)
    prk = hashlib.sha256(ikm).digest()
    assert _keepstep.hkdf_sha256_expand(prk, info, length) == HKDFExpand(hashes.SHA256(), length, info).derive(prk)


def test_rfc_5869_keys_are_derived() -> None:
    """RFC 5869 appendix A.1 to A.3."""
    for case in load("rfc5869.json")["hkdf_sha256"]:
        salt, ikm, info, prk, okm = unhex(case, "salt", "ikm", "info", "prk", "okm")
        assert _keepstep.hkdf_sha256(salt, ikm, info, len(okm)) == okm
        assert _keepstep.hkdf_sha256_expand(prk, info, len(okm)) == okm


def test_derived_lengths_outside_the_rfc_are_the_callers_mistake() -> None:
    """1 to 8160 bytes, from a key of at least 32."""
    assert len(_keepstep.hkdf_sha256(b"", b"", b"", 8160)) == 8160
    for length in (0, 8161):
        with pytest.raises(ValueError, match="HKDF length"):
            _keepstep.hkdf_sha256(b"", b"", b"", length)
        with pytest.raises(ValueError, match="HKDF length"):
            _keepstep.hkdf_sha256_expand(bytes(32), b"", length)
    with pytest.raises(ValueError, match="HKDF key"):
        _keepstep.hkdf_sha256_expand(bytes(31), b"", 32)


# -- sealing ------------------------------------------------------------------------------------------------------


@given(suites, keys, nonces, st.binary(max_size=100), messages)
def test_sealed_bytes_are_those_of_cryptography(
    suite: int, key: bytes, nonce: bytes, aad: bytes, plaintext: bytes
) -> None:
    """Both suites, both directions."""
    sealed = _keepstep.aead_seal(suite, key, nonce, aad, plaintext)
    assert sealed == SUITES[suite](key).encrypt(nonce, plaintext, aad)
    assert _keepstep.aead_open(suite, key, nonce, aad, sealed) == plaintext


@given(suites, st.binary(max_size=60), st.data())
def test_changed_bytes_do_not_open(suite: int, plaintext: bytes, data: st.DataObject) -> None:
    """Neither a flipped bit, nor a cut, nor other additional data."""
    key, nonce = bytes(32), bytes(12)
    sealed = _keepstep.aead_seal(suite, key, nonce, b"aad", plaintext)
    changed = bytearray(sealed)
    changed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    refused("bad_record", _keepstep.aead_open, suite, key, nonce, b"aad", bytes(changed))
    refused(
        "bad_record",
        _keepstep.aead_open,
        suite,
        key,
        nonce,
        b"aad",
        sealed[: data.draw(st.integers(0, len(sealed) - 1))],
    )
    refused("bad_record", _keepstep.aead_open, suite, key, nonce, b"other", sealed)


def test_rfc_8439_text_is_sealed() -> None:
    """RFC 8439 section 2.8.2."""
    for case in load("rfc8439.json")["chacha20_poly1305"]:
        key, nonce, aad, plaintext, sealed = unhex(case, "key", "nonce", "aad", "plaintext", "sealed")
        assert _keepstep.aead_seal(2, key, nonce, aad, plaintext) == sealed


@pytest.mark.parametrize("suite", [0, 3])
def test_another_suite_is_unsupported(suite: int) -> None:
    """3 is reserved for a hybrid; 0 never was one."""
    refused("unsupported", _keepstep.aead_seal, suite, bytes(32), bytes(12), b"", b"")
    refused("unsupported", _keepstep.aead_open, suite, bytes(32), bytes(12), b"", bytes(16))
    refused("unsupported", _keepstep.RecordSealer, suite, bytes(32), b"")
    refused("unsupported", _keepstep.RecordOpener, suite, bytes(32), b"")


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_records_are_sealed_under_a_counter(suite: int) -> None:
    """protocol.md section 2, Records: nonce = 32 zero bits and the counter."""
    key = seed("record key")
    sealer = _keepstep.RecordSealer(suite, key, b"th3")
    plaintexts = [b"", b"x", b"y" * 5000]
    records = [sealer.seal(plaintexts[0]), *sealer.seal_many(plaintexts[1:])]
    for counter, (plaintext, record) in enumerate(zip(plaintexts, records, strict=True)):
        assert record == SUITES[suite](key).encrypt(counter.to_bytes(12, "big"), plaintext, b"th3")
    assert sealer.records == 3
    opener = _keepstep.RecordOpener(suite, key, b"th3")
    assert [opener.open(records[0]), *opener.open_many(records[1:])] == plaintexts
    assert opener.records == 3


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_a_record_that_does_not_open_moves_nothing(suite: int) -> None:
    """Lost, replayed, reordered, forged; alone and among many."""
    sealer = _keepstep.RecordSealer(suite, bytes(32), b"")
    opener = _keepstep.RecordOpener(suite, bytes(32), b"")
    first, second, third = sealer.seal_many([b"1", b"2", b"3"])
    refused("bad_record", opener.open, second)
    refused("bad_record", opener.open_many, [first, third])
    assert opener.records == 0
    assert opener.open_many([first, second]) == [b"1", b"2"]
    refused("bad_record", opener.open, first)
    assert opener.open(third) == b"3"


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_rekeying_goes_on_under_the_expanded_secret(suite: int) -> None:
    """protocol.md section 2: secret' = HKDF-Expand(secret, "keepstep/v1/rekey"), counter 0."""
    sealer = _keepstep.RecordSealer(suite, bytes(32), b"")
    opener = _keepstep.RecordOpener(suite, bytes(32), b"")
    opener.open(sealer.seal(b"before"))
    sealer.rekey()
    opener.rekey()
    assert (sealer.records, opener.records) == (0, 0)
    record = sealer.seal(b"after")
    successor = HKDFExpand(hashes.SHA256(), 32, b"keepstep/v1/rekey").derive(bytes(32))
    assert record == SUITES[suite](successor).encrypt(bytes(12), b"after", b"")
    assert opener.open(record) == b"after"


def test_threads_may_share_a_direction() -> None:
    """Every record gets a counter of its own."""
    sealer = _keepstep.RecordSealer(2, bytes(32), b"")
    with ThreadPoolExecutor(4) as threads:
        batches = list(threads.map(lambda _: sealer.seal_many([b"x" * 2000] * 10), range(8)))
    records = {record for batch in batches for record in batch}
    assert len(records) == sealer.records == 80
    expected = {ChaCha20Poly1305(bytes(32)).encrypt(n.to_bytes(12, "big"), b"x" * 2000, b"") for n in range(80)}
    assert records == expected


# -- hashes -------------------------------------------------------------------------------------------------------


@given(messages, st.text(max_size=40))
def test_hashes_are_those_of_blake3(data: bytes, context: str) -> None:
    """Plain and derive-key."""
    assert _keepstep.blake3(data) == blake3.blake3(data).digest()
    assert _keepstep.blake3_derive(context, data) == blake3.blake3(data, derive_key_context=context).digest()


def test_blake3_vectors_are_met() -> None:
    """BLAKE3's own vectors."""
    vectors = load("blake3.json")
    for case in vectors["cases"]:
        data = bytes(index % 251 for index in range(case["input_len"]))
        assert _keepstep.blake3(data).hex() == case["hash"]
        assert _keepstep.blake3_derive(vectors["context"], data).hex() == case["derive_key"]


def test_large_input_is_hashed_without_the_lock() -> None:
    """The same answer from several threads at once."""
    data = bytes(1 << 20)
    with ThreadPoolExecutor(4) as threads:
        answers = set(threads.map(_keepstep.blake3, [data] * 4))
        derived = set(threads.map(_keepstep.blake3_derive, ["context"] * 4, [data] * 4))
    assert answers == {blake3.blake3(data).digest()}
    assert derived == {blake3.blake3(data, derive_key_context="context").digest()}


@given(messages, messages)
def test_constant_time_comparison_is_equality(a: bytes, b: bytes) -> None:
    """Whatever the lengths."""
    assert _keepstep.constant_time_equal(a, b) is (a == b)
    assert _keepstep.constant_time_equal(a, bytes(a))


# -- arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview, lambda data: memoryview(data * 2)[: len(data)]])
def test_any_buffer_of_bytes_is_taken(buffer: Callable[[bytes], Any]) -> None:
    """Not only ``bytes``: also what a socket or a decoder hands out."""
    secret, message = seed("secret"), b"message"
    signature = _keepstep.ed25519_sign(buffer(secret), buffer(message))
    assert signature == _keepstep.ed25519_sign(secret, message)
    _keepstep.ed25519_verify(buffer(_keepstep.ed25519_public(secret)), buffer(message), buffer(signature))
    assert _keepstep.blake3(buffer(message)) == _keepstep.blake3(message)
    opener = _keepstep.RecordOpener(2, buffer(secret), buffer(b"aad"))
    assert opener.open(buffer(_keepstep.RecordSealer(2, secret, b"aad").seal(buffer(message)))) == message


def test_what_is_no_buffer_of_bytes_is_a_type_error() -> None:
    """Neither text nor numbers nor a buffer of something wider."""
    untyped: Any = _keepstep
    for wrong in ("text", 5, None, [1, 2]):
        with pytest.raises(TypeError):
            untyped.blake3(wrong)
    with pytest.raises((BufferError, TypeError)):
        untyped.blake3(memoryview(bytes(16)).cast("I"))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ed25519_generate", (bytes(31),)),
        ("ed25519_public", (bytes(33),)),
        ("ed25519_sign", (bytes(31), b"")),
        ("x25519_public", (bytes(31),)),
        ("x25519", (bytes(31), bytes(32))),
        ("aead_seal", (1, bytes(31), bytes(12), b"", b"")),
        ("aead_seal", (1, bytes(32), bytes(11), b"", b"")),
        ("aead_open", (1, bytes(31), bytes(12), b"", bytes(16))),
        ("aead_open", (1, bytes(32), bytes(13), b"", bytes(16))),
        ("RecordSealer", (1, bytes(31), b"")),
        ("RecordOpener", (1, bytes(33), b"")),
    ],
)
def test_keys_and_nonces_of_another_length_are_the_callers_mistake(name: str, arguments: tuple[object, ...]) -> None:
    """No peer chooses them, so it is no protocol error."""
    with pytest.raises(ValueError, match="bytes, not"):
        getattr(_keepstep, name)(*arguments)


def test_objects_that_hold_keys_do_not_show_them() -> None:
    """Nothing to read in a log or a traceback."""
    key = seed("never shown")
    for holder in (_keepstep.RecordSealer(1, key, b""), _keepstep.RecordOpener(1, key, b"")):
        assert key.hex() not in repr(holder)
        assert not hasattr(holder, "__dict__")
        assert not {name for name in dir(holder) if not name.startswith("__")} - {
            "seal", "seal_many", "open", "open_many", "records", "rekey",
        }  # fmt: skip
