"""Makes the protocol's test vectors: ``python -m tests.vectors.generate``.

Every value is computed here step by step as protocol.md writes it down, over the client library's cryptography (and
the ``cryptography`` package for AES-256-GCM), and not by the code under ``keepstep.protocol``: the tests hold that
code, and the server's extension, against these files. All secrets are fixed: the same files come out every time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nacl import bindings

from keepstep.client import crypto

FOLDER: Final = Path(__file__).parent
NOW_MS: Final = 1_750_000_000_000
H: Final = crypto.blake3_derive


def secret(name: str) -> bytes:
    """32 bytes that stand for random ones."""
    return crypto.blake3(b"keepstep test vector: " + name.encode())


def pack(value: Any) -> bytes:
    """MessagePack with minimal encoding."""
    return msgspec.msgpack.encode(value)


def u64(number: int) -> bytes:
    """How integers are hashed."""
    return number.to_bytes(8, "big")


def seal(suite: int, key: bytes, counter: int, aad: bytes, plaintext: bytes) -> bytes:
    """A record: nonce = 32 zero bits, then the counter."""
    nonce = bytes(4) + u64(counter)
    if suite == 1:
        return AESGCM(key).encrypt(nonce, plaintext, aad)
    return crypto.aead_seal(suite, key, nonce, aad, plaintext)


SERVER_SECRET: Final = secret("server identity key")
SERVER_KEY: Final = crypto.ed25519_public(SERVER_SECRET)
ROOT_SECRET: Final = secret("user root key")
USER_KEY: Final = crypto.ed25519_public(ROOT_SECRET)
NEXT_ROOT_SECRET: Final = secret("next user root key")
NEXT_ROOT_KEY: Final = crypto.ed25519_public(NEXT_ROOT_SECRET)
DEVICE_SECRET: Final = secret("device key")
DEVICE_KEY: Final = crypto.ed25519_public(DEVICE_SECRET)
BOX_SECRET: Final = secret("device box key")
BOX_KEY: Final = crypto.x25519_public(BOX_SECRET)
DEVICE_ID: Final = bytes.fromhex("0197711f3a0070008000000000000001")
PHONE_SECRET: Final = secret("second device key")
PHONE_ID: Final = bytes.fromhex("0197711f3a0070008000000000000002")
TABLET_SECRET: Final = secret("third device key")
TABLET_ID: Final = bytes.fromhex("0197711f3a0070008000000000000004")
EVENT_ID: Final = bytes.fromhex("0197711f3a0170008000000000000003")
DEVICES_CHAIN_0: Final = H("keepstep/v1/chain-0", USER_KEY + b"$devices")


# -- handshake ----------------------------------------------------------------------------------------------------


def handshake(name: str, *, offered: list[int], suite: int, resume: Any, options: dict[str, Any]) -> dict[str, Any]:
    """One handshake, every intermediate value included."""
    device_ephemeral, server_ephemeral = secret("device ephemeral"), secret("server ephemeral")
    device_nonce, server_nonce = secret("device nonce"), secret("server nonce")
    epoch = NOW_MS - 86_400_000
    client_hello = pack([1, [1], offered, crypto.x25519_public(device_ephemeral), device_nonce])
    server_core = pack([1, suite, crypto.x25519_public(server_ephemeral), server_nonce, SERVER_KEY, NOW_MS, epoch])
    th1 = H("keepstep/v1/th1", client_hello + server_core)
    server_sig = crypto.ed25519_sign(SERVER_SECRET, b"keepstep/v1/server-auth\0" + th1)
    shared = crypto.x25519(device_ephemeral, crypto.x25519_public(server_ephemeral))
    hs = crypto.hkdf_sha256(th1, shared, b"keepstep/v1/hs", 64)
    client_core = pack([USER_KEY, DEVICE_ID, DEVICE_KEY, resume, options])
    th2 = H("keepstep/v1/th2", th1 + server_sig + client_core)
    device_sig = crypto.ed25519_sign(DEVICE_SECRET, b"keepstep/v1/device-auth\0" + th2)
    client_auth = pack([3, client_core, device_sig])
    th3 = H("keepstep/v1/th3", th2 + device_sig)
    ap = crypto.hkdf_sha256(th3, shared, b"keepstep/v1/ap", 96)
    session_id = secret("session id")[:16]
    ready = pack([4, session_id, 7, {"message_bytes": 2_097_152, "publish_events": 256}, ["example"], []])
    ping, pong = pack([25, 1]), pack([72, 1])
    return {
        "name": name,
        "server_secret": SERVER_SECRET,
        "server_key": SERVER_KEY,
        "server_ephemeral_secret": server_ephemeral,
        "server_nonce": server_nonce,
        "server_time_ms": NOW_MS,
        "epoch": epoch,
        "suites_offered": offered,
        "suite": suite,
        "user_key": USER_KEY,
        "device_id": DEVICE_ID,
        "device_secret": DEVICE_SECRET,
        "device_ephemeral_secret": device_ephemeral,
        "device_nonce": device_nonce,
        "resume": resume,
        "options": options,
        "client_hello": client_hello,
        "server_core": server_core,
        "th1": th1,
        "s_sig": server_sig,
        "server_hello": pack([2, server_core, server_sig]),
        "dh": shared,
        "hs_c": hs[:32],
        "hs_s": hs[32:],
        "client_core": client_core,
        "th2": th2,
        "c_sig": device_sig,
        "client_auth_plaintext": client_auth,
        "client_auth": seal(suite, hs[:32], 0, th1, client_auth),
        "th3": th3,
        "ap_c": ap[:32],
        "ap_s": ap[32:64],
        "exporter": ap[64:],
        "session_id": session_id,
        "session_no": 7,
        "ready_plaintext": ready,
        "ready": seal(suite, ap[32:64], 0, th3, ready),
        "first_message_of_device": ping,
        "first_record_of_device": seal(suite, ap[:32], 0, th3, ping),
        "first_message_of_server": pong,
        "first_record_of_server": seal(suite, ap[32:64], 1, th3, pong),
    }


def handshake_vectors() -> Any:
    """Both suites, with and without a position to resume from."""
    return [
        handshake("suite 2, nothing to resume", offered=[2], suite=2, resume="none", options={}),
        handshake("suite 1, all streams", offered=[1], suite=1, resume="all", options={}),
        handshake(
            "suite 1 by the server's preference, position in $devices, an option",
            offered=[3, 2, 1],
            suite=1,
            resume=[[2, secret("chain at 2")]],
            options={"example": 1},
        ),
    ]


def record_vectors() -> Any:
    """Records of both suites, over a rekey."""
    aad = secret("th3")
    vectors = []
    for suite in (1, 2):
        key = secret(f"record secret of suite {suite}")
        successor = crypto.hkdf_sha256_expand(key, b"keepstep/v1/rekey", 32)
        plaintexts = [b"", pack([25, 1]), bytes(range(256)), pack([26])]
        vectors.append(
            {
                "suite": suite,
                "secret": key,
                "aad": aad,
                "records": [
                    {"counter": counter, "plaintext": plaintext, "record": seal(suite, key, counter, aad, plaintext)}
                    for counter, plaintext in enumerate(plaintexts)
                ],
                "secret_after_rekey": successor,
                "first_after_rekey": {
                    "counter": 0,
                    "plaintext": plaintexts[1],
                    "record": seal(suite, successor, 0, aad, plaintexts[1]),
                },
            }
        )
    return vectors


# -- events, chain, heads -----------------------------------------------------------------------------------------

HEADER_FIELDS: Final = (
    *("version", "kind", "id", "stream", "n", "prev", "base", "seen", "devices_seen", "key", "hlc", "ttl_s"),
    *("payload_len", "payload_hash"),
)


def header_fields(payload: bytes, **changes: Any) -> dict[str, Any]:
    """A header's fields by name, in their order."""
    fields: dict[str, Any] = {
        "version": 1,
        "kind": 0,
        "id": EVENT_ID,
        "stream": "notes",
        "n": 1,
        "prev": bytes(16),
        "base": None,
        "seen": [0, H("keepstep/v1/chain-0", USER_KEY + b"notes")],
        "devices_seen": [1, secret("chain of $devices at 1")],
        "key": None,
        "hlc": NOW_MS << 16,
        "ttl_s": None,
        "payload_len": len(payload),
        "payload_hash": crypto.blake3(payload),
    }
    return fields | changes


def signed(fields: dict[str, Any], device_secret: bytes, device_id: bytes) -> tuple[bytes, bytes, bytes]:
    """(header, sig, hash) of an event."""
    header = pack(list(fields.values()))
    sig = crypto.ed25519_sign(device_secret, b"keepstep/v1/event\0" + USER_KEY + device_id + header)
    return header, sig, H("keepstep/v1/event-hash", header + sig)


def event(name: str, payload: bytes = b"sealed", **changes: Any) -> dict[str, Any]:
    """One event with everything that is computed from it."""
    fields = header_fields(payload, **changes)
    header, sig, hash_ = signed(fields, DEVICE_SECRET, DEVICE_ID)
    return {
        "name": name,
        "user_key": USER_KEY,
        "device_id": DEVICE_ID,
        "device_secret": DEVICE_SECRET,
        "device_key": DEVICE_KEY,
        "fields": fields,
        "payload": payload,
        "header": header,
        "signing_input": b"keepstep/v1/event\0" + USER_KEY + DEVICE_ID + header,
        "sig": sig,
        "hash": hash_,
        "prev_of_next": hash_[:16],
        "in_publish": pack([header, sig, payload, None]),
    }


def event_vectors() -> Any:
    """Events that are accepted, and headers that are refused."""
    values = list(header_fields(b"sealed").values())
    good = pack(values)

    def changed(index: int, value: Any) -> bytes:
        return pack([*values[:index], value, *values[index + 1 :]])

    refused = {
        "a byte after the value": (good + b"\0", "malformed"),
        "cut short": (good[:-1], "malformed"),
        "a field more": (pack([*values, None]), "malformed"),
        "a field less": (pack(values[:-1]), "malformed"),
        "a number not minimally encoded": (good[:2] + b"\xcc\x00" + good[3:], "malformed"),
        "an array header not minimally encoded": (b"\xdc\x00\x0e" + good[1:], "malformed"),
        "version 2": (changed(0, 2), "unsupported"),
        "author number 0": (changed(4, 0), "malformed"),
        "an id of version 4": (changed(2, EVENT_ID[:6] + b"\x40" + EVENT_ID[7:]), "malformed"),
        "an empty stream name": (changed(3, ""), "malformed"),
        "a space in the stream name": (changed(3, "my notes"), "malformed"),
        "a stream name of 129 characters": (changed(3, "x" * 129), "malformed"),
        "a prev of 15 bytes": (changed(5, bytes(15)), "malformed"),
        "a ttl of 0": (changed(11, 0), "malformed"),
        "a ttl above 100 years": (changed(11, 100 * 365 * 86_400 + 1), "malformed"),
        "an integer above 2^63 - 1": (changed(10, 2**63), "malformed"),
        "a negative integer": (changed(12, -1), "malformed"),
        "a text where bytes belong": (changed(5, "x" * 16), "malformed"),
    }
    return {
        "fields": HEADER_FIELDS,
        "accepted": [
            event("first event of an author"),
            event("an empty payload", b""),
            event("ttl, key and base position", ttl_s=60, key=secret("key")[:16], base=[4, secret("base")], n=5),
            event("base as a number, long integers", base=299, n=300, hlc=2**63 - 1, prev=secret("prev")[:16]),
            event("the longest stream name", stream="A-Za-z0-9._:@/" + "x" * 114),
        ],
        "refused": [{"name": name, "header": data, "code": code} for name, (data, code) in refused.items()],
    }


def chain_vectors() -> Any:
    """Chains of a few events."""
    vectors = []
    for stream in ("notes", "$devices", "a/b:c@d.e_f-g$"):
        chain = H("keepstep/v1/chain-0", USER_KEY + stream.encode())
        steps: list[dict[str, Any]] = []
        vectors.append({"user_key": USER_KEY, "stream": stream, "chain_0": chain, "steps": steps})
        for seq, received_at_ms in enumerate((0, NOW_MS, NOW_MS, 2**63 - 1), start=1):
            hash_ = secret(f"event {seq}")
            chain = H("keepstep/v1/chain", chain + u64(seq) + u64(received_at_ms) + hash_)
            steps.append({"seq": seq, "received_at_ms": received_at_ms, "hash": hash_, "chain": chain})
    return vectors


def head_vectors() -> Any:
    """Signed heads."""
    vectors = []
    for stream, epoch, seq in (("notes", 1, 1), ("$devices", NOW_MS, 2**40), ("x" * 128, 2**63 - 1, 0)):
        chain = secret(f"chain of {stream}")
        head = pack([1, USER_KEY, stream, epoch, seq, chain, NOW_MS])
        vectors.append(
            {
                "user_key": USER_KEY,
                "stream": stream,
                "epoch": epoch,
                "seq": seq,
                "chain": chain,
                "time_ms": NOW_MS,
                "head": head,
                "server_secret": SERVER_SECRET,
                "server_key": SERVER_KEY,
                "sig": crypto.ed25519_sign(SERVER_SECRET, b"keepstep/v1/head\0" + head),
            }
        )
    return vectors


def rewind_vectors() -> Any:
    """Signed rewinds."""
    vectors = []
    for stream, epoch, seq in (("notes", NOW_MS, 1), ("$devices", NOW_MS, 2**40), ("x" * 128, 2**63 - 1, 0)):
        chain = secret(f"chain of {stream}")
        rewind = pack([1, USER_KEY, stream, epoch, seq, chain])
        vectors.append(
            {
                "user_key": USER_KEY,
                "stream": stream,
                "epoch": epoch,
                "seq": seq,
                "chain": chain,
                "rewind": rewind,
                "server_secret": SERVER_SECRET,
                "server_key": SERVER_KEY,
                "sig": crypto.ed25519_sign(SERVER_SECRET, b"keepstep/v1/rewind\0" + rewind),
            }
        )
    return vectors


def challenge_vectors() -> Any:
    """Challenges over REST, signed by a device."""
    vectors = []
    for purpose, origin in (
        ("token", "http://127.0.0.1:8440"),
        ("token", "https://sync.example.org"),
        ("delete-account", f"https://{'x' * 250}.org:65535"),
    ):
        nonce = secret(f"nonce of {purpose} at {origin}")
        signing_input = (
            b"keepstep/v1/rest-auth\0"
            + SERVER_KEY
            + len(origin).to_bytes(2, "big")
            + origin.encode()
            + USER_KEY
            + DEVICE_ID
            + nonce
            + len(purpose).to_bytes(2, "big")
            + purpose.encode()
        )
        vectors.append(
            {
                "server_key": SERVER_KEY,
                "origin": origin,
                "user_key": USER_KEY,
                "device_id": DEVICE_ID,
                "nonce": nonce,
                "purpose": purpose,
                "device_secret": DEVICE_SECRET,
                "device_key": DEVICE_KEY,
                "signing_input": signing_input,
                "signature": crypto.ed25519_sign(DEVICE_SECRET, signing_input),
            }
        )
    return vectors


# -- account and keys ---------------------------------------------------------------------------------------------


def entry(device_id: bytes, device_secret: bytes, box_secret: bytes, capabilities: int) -> list[Any]:
    """A device entry."""
    keys = [crypto.ed25519_public(device_secret), crypto.x25519_public(box_secret)]
    return [device_id, *keys, capabilities, NOW_MS, None, b"sealed label"]


def genesis_payload(device: list[Any]) -> dict[str, bytes]:
    """A genesis payload and what goes into its signature."""
    next_root_hash = H("keepstep/v1/next-root", NEXT_ROOT_KEY)
    unsigned = pack([0, USER_KEY, next_root_hash, device])
    root_input = b"keepstep/v1/root\0" + USER_KEY + DEVICES_CHAIN_0 + crypto.blake3(unsigned)
    root_sig = crypto.ed25519_sign(ROOT_SECRET, root_input)
    return {
        "next_root_hash": next_root_hash,
        "payload_without_root_sig": unsigned,
        "root_signing_input": root_input,
        "root_sig": root_sig,
        "payload": pack([0, USER_KEY, next_root_hash, device, root_sig]),
    }


def rotate_payload(chain: bytes, staying: list[bytes], device: list[Any]) -> dict[str, bytes]:
    """The payload of a rotation and what goes into its signature."""
    next_root_hash = H("keepstep/v1/next-root", crypto.ed25519_public(secret("the user root key after the next")))
    unsigned = [3, NEXT_ROOT_KEY, next_root_hash, staying, device]
    root_input = b"keepstep/v1/root\0" + USER_KEY + chain + crypto.blake3(pack(unsigned))
    root_sig = crypto.ed25519_sign(NEXT_ROOT_SECRET, root_input)
    return {
        "next_root_hash": next_root_hash,
        "root_signing_input": root_input,
        "root_sig": root_sig,
        "payload": pack([*unsigned, root_sig]),
    }


def announcement() -> list[bytes]:
    """A successor of the server's identity key."""
    successor = secret("next server identity key")
    data = pack([1, SERVER_KEY, crypto.ed25519_public(successor), NOW_MS, NOW_MS + 86_400_000])
    return [data, *(crypto.ed25519_sign(key, b"keepstep/v1/server-key\0" + data) for key in (SERVER_SECRET, successor))]


def account_event(
    seq: int,
    chain: bytes,
    prev: bytes,
    payload: bytes,
    *,
    n: int,
    author: tuple[bytes, bytes] = (DEVICE_SECRET, DEVICE_ID),
) -> dict[str, Any]:
    """The event of the account log that comes after a chain, with the chain after it."""
    position = [seq - 1, chain]
    changes = {"kind": 5, "stream": "$devices", "n": n, "prev": prev, "seen": position, "devices_seen": position}
    header, sig, hash_ = signed(header_fields(payload, **changes), *author)
    received_at_ms = NOW_MS + seq
    return {
        "seq": seq,
        "device_id": author[1],
        "received_at_ms": received_at_ms,
        "header": header,
        "sig": sig,
        "payload": payload,
        "hash": hash_,
        "chain": H("keepstep/v1/chain", chain + u64(seq) + u64(received_at_ms) + hash_),
    }


def account_vectors() -> Any:
    """An account log with every operation, and payloads that are refused."""
    laptop = entry(DEVICE_ID, DEVICE_SECRET, BOX_SECRET, 7)
    phone = entry(PHONE_ID, PHONE_SECRET, secret("second device box key"), 3)
    genesis = genesis_payload(laptop)
    tablet = entry(TABLET_ID, TABLET_SECRET, secret("third device box key"), 7)
    payloads = [
        (genesis["payload"], [DEVICE_ID]),
        (pack([1, phone]), [DEVICE_ID, PHONE_ID]),
        (pack([4, {"$devices": [0, DEVICES_CHAIN_0], "notes": [3, secret("a chain")]}]), [DEVICE_ID, PHONE_ID]),
        (pack([5, announcement()]), [DEVICE_ID, PHONE_ID]),
        (pack([2, PHONE_ID, {"notes": 2}]), [DEVICE_ID]),
    ]
    events: list[dict[str, Any]] = []
    chain, prev = DEVICES_CHAIN_0, bytes(16)
    for seq, (payload, live) in enumerate(payloads, 1):
        events.append({**account_event(seq, chain, prev, payload, n=seq), "live": live})
        chain, prev = events[-1]["chain"], events[-1]["hash"][:16]
    rotate = rotate_payload(chain, [PHONE_ID], tablet)
    recovering = account_event(6, chain, bytes(16), rotate["payload"], n=1, author=(TABLET_SECRET, TABLET_ID))
    events.append({**recovering, "live": [PHONE_ID, TABLET_ID]})
    refused = {
        "an operation of a later version": (pack([6, DEVICE_ID, {}]), "unsupported"),
        "a revocation that names a stream twice": (
            b"\x93\x02" + pack(PHONE_ID) + b"\x82\xa1n\x01\xa1n\x02",
            "malformed",
        ),
        "a checkpoint of nothing": (pack([4, {}]), "malformed"),
        "an unknown capability": (pack([1, [*phone[:3], 8, *phone[4:]]]), "unsupported"),
        "a label of 257 bytes": (pack([1, [*phone[:6], bytes(257)]]), "malformed"),
        "an entry of six fields": (pack([1, phone[:6]]), "malformed"),
        "a field more": (pack([1, phone, None]), "malformed"),
        "a byte after the value": (pack([1, phone]) + b"\0", "malformed"),
    }
    return {
        "user_key": USER_KEY,
        "root_secret": ROOT_SECRET,
        "next_root_key": NEXT_ROOT_KEY,
        "device_secret": DEVICE_SECRET,
        "chain_0": DEVICES_CHAIN_0,
        "genesis": {"device_entry": laptop, **genesis},
        "enrol": {"device_entry": phone},
        "rotate": {"device_entry": tablet, **rotate},
        "events": events,
        "refused_payloads": [{"name": name, "payload": data, "code": code} for name, (data, code) in refused.items()],
    }


def sealed_box(recipient: bytes, plaintext: bytes) -> bytes:
    """libsodium's sealed box, with a fixed ephemeral key."""
    ephemeral = secret("ephemeral key of the sealed box")
    public = crypto.x25519_public(ephemeral)
    nonce = hashlib.blake2b(public + recipient, digest_size=24).digest()
    return public + bindings.crypto_box(plaintext, nonce, recipient, ephemeral)


def payload_vectors() -> Any:
    """End-to-end encryption: content keys, their wraps, application payloads."""
    content_key, index_key, nonce = secret("content key"), secret("index key"), secret("payload nonce")[:24]
    content_epoch = H("keepstep/v1/content-key", content_key)[:16]
    wrapped = sealed_box(BOX_KEY, content_key + index_key)
    payloads = []
    for name, plaintext, padded_len in (("padded to 64 bytes", b"hello", 64), ("an empty one", b"", 64)):
        framed = b"\0" + len(plaintext).to_bytes(4, "big") + plaintext
        aad = pack([USER_KEY, "notes", DEVICE_ID, 5, content_epoch])
        ciphertext = crypto.xchacha_seal(content_key, nonce, aad, framed.ljust(padded_len, b"\0"))
        payloads.append(
            {
                "name": name,
                "stream": "notes",
                "n": 5,
                "plaintext": plaintext,
                "framed": framed,
                "padded_len": padded_len,
                "aad": aad,
                "nonce": nonce,
                "payload": pack([1, content_epoch, nonce, ciphertext]),
            }
        )
    return {
        "user_key": USER_KEY,
        "device_id": DEVICE_ID,
        "box_secret": BOX_SECRET,
        "box_key": BOX_KEY,
        "content_key": content_key,
        "index_key": index_key,
        "content_epoch": content_epoch,
        "sealed_box": wrapped,
        "keys_payload": pack([content_epoch, 1, {DEVICE_ID: wrapped}]),
        "key_name": {"name": "title", "key": crypto.blake3_keyed(index_key, b"notes\0title")[:16]},
        "padded_lengths": [[64, 64], [65, 72], [100, 104], [1000, 1024], [100_000, 100_352]],
        "payloads": payloads,
    }


def control_vectors() -> Any:
    """Payloads of the kinds 1 to 4: their value, field by field, and its bytes; and some that are refused."""
    accepted = [
        ("append", 1, [1, 0, 1, None, None]),
        ("expect, kept for ever", 1, [1, 1, 0, None, None]),
        ("fork, with a longest ttl", 1, [1, 2, 1, 86_400, None]),
        ("latest", 1, [1, 3, 1, None, None]),
        ("append, with a bound of the stream's bytes", 1, [1, 0, 1, None, 1_000_000]),
        ("a snapshot", 2, [1, 7, H("keepstep/v1/chain", b"some chain"), {DEVICE_ID: 5, PHONE_ID: 2}, b"sealed"]),
        ("a confirmation", 3, [1, 8]),
        ("an erasure", 4, [1, {DEVICE_ID: [1, 2, 70_000], PHONE_ID: [3]}]),
    ]
    refused = [
        ("a policy of later", 1, [1, 4, 1, None, None], "unsupported"),
        ("a retention class of later", 1, [1, 0, 2, None, None], "unsupported"),
        ("another version", 1, [2, 0, 1, None, None], "unsupported"),
        ("a longest ttl of nothing", 1, [1, 0, 1, 0, None], "malformed"),
        ("a field too many", 3, [1, 8, 8], "malformed"),
        ("a snapshot of nothing", 2, [1, 0, bytes(32), {DEVICE_ID: 1}, b""], "malformed"),
        ("numbers that do not ascend", 4, [1, {DEVICE_ID: [2, 1]}], "malformed"),
        ("a number twice", 4, [1, {DEVICE_ID: [1, 1]}], "malformed"),
        ("nothing to erase", 4, [1, {}], "malformed"),
    ]
    return {
        "accepted": [{"name": name, "kind": kind, "payload": pack(value)} for name, kind, value in accepted],
        "refused": [
            {"name": name, "kind": kind, "payload": pack(value), "code": code} for name, kind, value, code in refused
        ],
    }


def vector_files() -> dict[str, str]:
    """Every file's name and content; bytes are hexadecimal."""
    from tests.vectors.between_devices import linking_vectors, live_vectors  # they are made of what is here

    values = {
        "handshake.json": handshake_vectors(),
        "records.json": record_vectors(),
        "event.json": event_vectors(),
        "chain.json": chain_vectors(),
        "controls.json": control_vectors(),
        "head.json": head_vectors(),
        "rewind.json": rewind_vectors(),
        "challenge.json": challenge_vectors(),
        "account.json": account_vectors(),
        "payload.json": payload_vectors(),
        "linking.json": linking_vectors(),
        "live.json": live_vectors(),
    }
    return {name: json.dumps(value, indent=2, default=bytes.hex) + "\n" for name, value in values.items()}


if __name__ == "__main__":
    for file_name, content in vector_files().items():
        (FOLDER / file_name).write_text(content, encoding="utf-8")
