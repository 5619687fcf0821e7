"""The protocol's test vectors, held against the protocol code over both sides' cryptography."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from keepstep import _keepstep
from keepstep.client import crypto
from keepstep.client.payload import ContentKey, Place, content_epoch_of, key_name, open_payload, padded_length
from keepstep.errors import ProtocolError
from keepstep.protocol import chain, event, rewind, transcript
from keepstep.protocol.account import AccountEvent, AccountLog
from keepstep.protocol.account_payloads import decode_account, next_root_hash
from keepstep.protocol.codec import encode
from keepstep.protocol.handshake import ClientHandshake, ServerHandshake
from keepstep.protocol.keys import decode_keys, encode_keys
from keepstep.protocol.messages import Ping, Pong, Ready
from keepstep.protocol.policy import decode_policy
from keepstep.protocol.snapshot import decode_confirm, decode_erase, decode_snapshot
from tests.support.vectors import FOLDER, load, unhex
from tests.vectors.generate import vector_files

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepstep.protocol.primitives import Primitives

EXTENSION: Final[Primitives] = _keepstep
CLIENT: Final[Primitives] = crypto
BOTH: Final = pytest.mark.parametrize("primitives", [EXTENSION, CLIENT], ids=["extension", "client"])


def cases(name: str) -> pytest.MarkDecorator:
    """Every vector of a file as a case of its own."""
    vectors = load(name)
    return pytest.mark.parametrize("vector", vectors, ids=[str(index) for index in range(len(vectors))])


@pytest.mark.parametrize("name", sorted(vector_files()))
def test_generating_gives_the_kept_file(name: str) -> None:
    """The files are what their script makes of them, byte for byte."""
    assert vector_files()[name] == (FOLDER / name).read_text(encoding="utf-8")


def from_json(resume: Any) -> Any:
    """``resume`` as the handshake takes it."""
    if isinstance(resume, str):
        return resume
    return ((resume[0][0], bytes.fromhex(resume[0][1])),)


def server_of(vector: dict[str, Any]) -> ServerHandshake:
    """The server's side of a vector, over the extension."""
    secret, ephemeral, nonce = unhex(vector, "server_secret", "server_ephemeral_secret", "server_nonce")
    return ServerHandshake(
        EXTENSION,
        identity=EXTENSION.SigningKey(secret),
        ephemeral_secret=ephemeral,
        nonce=nonce,
        server_time_ms=vector["server_time_ms"],
        epoch=vector["epoch"],
        suites=(1, 2),
    )


def client_of(vector: dict[str, Any], primitives: Primitives) -> ClientHandshake:
    """The device's side of a vector."""
    names = ("server_key", "user_key", "device_id", "device_secret", "device_ephemeral_secret", "device_nonce")
    server_key, user_key, device_id, device_secret, ephemeral, nonce = unhex(vector, *names)
    return ClientHandshake(
        primitives,
        server_key=server_key,
        user_key=user_key,
        device_id=device_id,
        device_secret=device_secret,
        ephemeral_secret=ephemeral,
        nonce=nonce,
        suites=vector["suites_offered"],
        resume=from_json(vector["resume"]),
        options=vector["options"],
    )


@cases("handshake.json")
def test_handshake_of_both_sides_is_the_vector(vector: dict[str, Any]) -> None:
    """Both state machines send exactly the vector's bytes, and the first records after Ready follow."""
    names = ("client_hello", "server_hello", "client_auth", "ready", "exporter", "session_id")
    hello, server_hello, client_auth, sealed_ready, exporter, session_id = unhex(vector, *names)
    server = server_of(vector)
    client = client_of(vector, CLIENT if vector["suite"] == 2 else EXTENSION)
    assert client.hello() == hello
    assert server.receive_hello(hello) == server_hello
    assert client.receive_server_hello(server_hello) == client_auth
    core = server.receive_auth(client_auth)
    assert (core.device_id.hex(), core.options) == (vector["device_id"], vector["options"])
    limits = {"message_bytes": 2_097_152, "publish_events": 256}
    ready = Ready(session_id, vector["session_no"], limits, ["example"], [])
    sealed, server_session = server.ready(ready, now_s=0)
    assert sealed == sealed_ready
    received, client_session = client.receive_ready(sealed, now_s=0)
    assert received == ready
    assert client.server.suite == vector["suite"]
    assert server_session.exporter == client_session.exporter == exporter
    assert client_session.send([Ping(1)], now_s=0) == unhex(vector, "first_record_of_device")
    assert server_session.send([Pong(1)], now_s=0) == unhex(vector, "first_record_of_server")


@BOTH
@cases("handshake.json")
def test_key_schedule_is_the_vectors(vector: dict[str, Any], primitives: Primitives) -> None:
    """Every intermediate value of the transcript is the vector's."""
    hello, core, sig, client_core, c_sig = unhex(vector, "client_hello", "server_core", "s_sig", "client_core", "c_sig")
    device_ephemeral, server_ephemeral = unhex(vector, "device_ephemeral_secret", "server_ephemeral_secret")
    first = transcript.th1(primitives, hello, core)
    second = transcript.th2(primitives, first, sig, client_core)
    third = transcript.th3(primitives, second, c_sig)
    shared = primitives.x25519(server_ephemeral, primitives.x25519_public(device_ephemeral))
    assert [first, second, third, shared] == unhex(vector, "th1", "th2", "th3", "dh")
    assert [transcript.handshake_key(primitives, first, shared)] == unhex(vector, "hs_c")
    keys = transcript.session_keys(primitives, third, shared)
    assert [keys.device, keys.server, keys.exporter] == unhex(vector, "ap_c", "ap_s", "exporter")


@BOTH
@cases("records.json")
def test_records_are_the_vectors(vector: dict[str, Any], primitives: Primitives) -> None:
    """Sealing and opening agree with the vector before and after a rekey; the client has suite 2 only."""
    secret, aad = unhex(vector, "secret", "aad")
    if primitives is CLIENT and vector["suite"] == 1:
        with pytest.raises(ProtocolError, match="unsupported"):
            primitives.RecordSealer(1, secret, aad)
        return
    sealer = primitives.RecordSealer(vector["suite"], secret, aad)
    opener = primitives.RecordOpener(vector["suite"], secret, aad)
    for record in vector["records"]:
        plaintext, sealed = unhex(record, "plaintext", "record")
        assert sealer.records == opener.records == record["counter"]
        assert sealer.seal(plaintext) == sealed
        assert opener.open(sealed) == plaintext
    sealer.rekey()
    opener.rekey()
    plaintext, sealed = unhex(vector["first_after_rekey"], "plaintext", "record")
    assert sealer.seal_many([plaintext]) == [sealed]
    assert opener.open_many([sealed]) == [plaintext]


EVENTS: Final = load("event.json")


@BOTH
@pytest.mark.parametrize("vector", EVENTS["accepted"], ids=lambda each: each["name"])
def test_events_are_the_vectors(vector: dict[str, Any], primitives: Primitives) -> None:
    """A header decodes to the vector's fields and back; signature and hash are the vector's."""
    encoded, sig, payload = unhex(vector, "header", "sig", "payload")
    secret, user_key, device_id = unhex(vector, "device_secret", "user_key", "device_id")
    header = event.decode_header(encoded)
    assert header.encode() == encoded
    fields = vector["fields"]
    for name in EVENTS["fields"][1:]:
        value = getattr(header, name)
        assert _as_json(value) == fields[name], name
    assert event.signing_input(user_key, device_id, encoded) == unhex(vector, "signing_input")[0]
    signed = event.sign_event(primitives, secret=secret, user_key=user_key, device_id=device_id, header=encoded)
    assert signed == sig
    assert chain.event_hash(primitives, encoded, sig) == unhex(vector, "hash")[0]
    assert primitives.blake3(payload) == header.payload_hash
    assert event.encode_events([(encoded, sig, payload)]) == b"\x91" + unhex(vector, "in_publish")[0]


def _as_json(value: Any) -> Any:
    """A header's field as the vector file writes it."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_as_json(each) for each in value]
    return value


@pytest.mark.parametrize("vector", EVENTS["accepted"], ids=lambda each: each["name"])
def test_the_extension_parses_the_vectors_events(vector: dict[str, Any]) -> None:
    """The server's parser, which shares no code with the client's, reads the same fields."""
    (in_publish,) = unhex(vector, "in_publish")
    parsed = _keepstep.Events.parse(b"\x91" + in_publish, events_max=1, payload_bytes_max=1024).event(0)
    fields = vector["fields"]
    for name in ("kind", "id", "stream", "n", "prev", "seen", "devices_seen", "hlc", "ttl_s"):
        assert _as_json(getattr(parsed, name)) == fields[name], name
    assert parsed.hash.hex() == vector["hash"]


@pytest.mark.parametrize("vector", EVENTS["refused"], ids=lambda each: each["name"])
def test_refused_headers_are_refused_by_both(vector: dict[str, Any]) -> None:
    """Client and server refuse the same bytes with the same code."""
    (encoded,) = unhex(vector, "header")
    with pytest.raises(ProtocolError) as caught:
        event.decode_header(encoded)
    assert caught.value.code == vector["code"]
    publish = event.encode_events([(encoded, bytes(64), b"sealed")])
    with pytest.raises(ProtocolError) as refused:
        _keepstep.Events.parse(publish, events_max=1, payload_bytes_max=1024).event(0)
    assert refused.value.code == vector["code"]


@BOTH
@cases("chain.json")
def test_chains_are_the_vectors(vector: dict[str, Any], primitives: Primitives) -> None:
    """Every step of the chain is the vector's."""
    user_key, current = unhex(vector, "user_key", "chain_0")
    assert chain.chain_0(primitives, user_key, vector["stream"]) == current
    for step in vector["steps"]:
        hash_, after = unhex(step, "hash", "chain")
        current = chain.chain_next(primitives, current, step["seq"], step["received_at_ms"], hash_)
        assert current == after


@BOTH
@cases("head.json")
def test_heads_are_the_vectors(vector: dict[str, Any], primitives: Primitives) -> None:
    """A head is encoded, signed and verified as in the vector."""
    user_key, at, secret, server_key, data, sig = unhex(
        vector, "user_key", "chain", "server_secret", "server_key", "head", "sig"
    )
    head = chain.Head(user_key, vector["stream"], vector["epoch"], vector["seq"], at, vector["time_ms"])
    assert chain.encode_head(head) == data
    assert chain.sign_head(primitives.SigningKey(secret), head) == (data, sig)
    assert chain.verify_head(primitives, server_key, (data, sig)) == head


@BOTH
@cases("rewind.json")
def test_rewinds_are_the_vectors(vector: dict[str, Any], primitives: Primitives) -> None:
    """A rewind is encoded, signed and verified as in the vector, and is nothing under another signature."""
    user_key, at, secret, server_key, data, sig = unhex(
        vector, "user_key", "chain", "server_secret", "server_key", "rewind", "sig"
    )
    signed = rewind.Rewind(user_key, vector["stream"], vector["epoch"], vector["seq"], at)
    assert rewind.sign_rewind(primitives, secret, signed) == (data, sig)
    assert rewind.verify_rewind(primitives, server_key, (data, sig)) == signed
    with pytest.raises(ProtocolError, match="bad_signature"):
        rewind.verify_rewind(primitives, server_key, (data[:-1] + bytes([data[-1] ^ 1]), sig))


CONTROLS: Final = load("controls.json")
DECODERS: Final[dict[int, Callable[[bytes], Any]]] = {
    1: decode_policy,
    2: decode_snapshot,
    3: decode_confirm,
    4: decode_erase,
}


@pytest.mark.parametrize("vector", CONTROLS["accepted"], ids=lambda each: each["name"])
def test_control_payloads_are_the_vectors(vector: dict[str, Any]) -> None:
    """Decoded, and encoded again, each is the same bytes."""
    (payload,) = unhex(vector, "payload")
    assert encode(DECODERS[vector["kind"]](payload)) == payload


@pytest.mark.parametrize("vector", CONTROLS["refused"], ids=lambda each: each["name"])
def test_refused_control_payloads_are_refused(vector: dict[str, Any]) -> None:
    """Each with the vector's code."""
    with pytest.raises(ProtocolError) as caught:
        DECODERS[vector["kind"]](unhex(vector, "payload")[0])
    assert caught.value.code == vector["code"]


ACCOUNT: Final = load("account.json")


@BOTH
def test_the_account_log_follows_the_vectors(primitives: Primitives) -> None:
    """Every operation is accepted; the live devices and the chain after each are the vector's."""
    (user_key, next_root_key) = unhex(ACCOUNT, "user_key", "next_root_key")
    log = AccountLog(primitives, user_key)
    for vector in ACCOUNT["events"]:
        device_id, header, sig, payload = unhex(vector, "device_id", "header", "sig", "payload")
        log.apply(AccountEvent(device_id, header, sig, payload, vector["received_at_ms"]))
        live = [each.entry.device_id.hex() for each in log.devices.values() if each.ended is None]
        assert live == vector["live"]
        assert (log.position.seq, log.position.chain.hex()) == (vector["seq"], vector["chain"])
    assert next_root_hash(primitives, next_root_key).hex() == ACCOUNT["genesis"]["next_root_hash"]
    listed = [log.devices[each].entry.device_key.hex() for each in log.devices]
    assert listed == [ACCOUNT[each]["device_entry"][1] for each in ("genesis", "enrol", "rotate")]
    assert log.next_root_hash is not None
    assert log.next_root_hash.hex() == ACCOUNT["rotate"]["next_root_hash"]


@pytest.mark.parametrize("vector", ACCOUNT["refused_payloads"], ids=lambda each: each["name"])
def test_refused_account_payloads_are_refused(vector: dict[str, Any]) -> None:
    """Each is refused with the vector's code."""
    with pytest.raises(ProtocolError) as caught:
        decode_account(unhex(vector, "payload")[0])
    assert caught.value.code == vector["code"]


def test_end_to_end_encryption_is_the_vectors() -> None:
    """The client library opens the vector's payloads and sealed box, and derives its names."""
    vector = load("payload.json")
    user_key, device_id, box_secret, content_key, index_key, content_epoch, box, keys = unhex(
        vector,
        *("user_key", "device_id", "box_secret", "content_key", "index_key", "content_epoch", "sealed_box"),
        "keys_payload",
    )
    assert content_epoch_of(content_key) == content_epoch
    assert crypto.sealed_box_open(box_secret, box) == content_key + index_key
    wraps = decode_keys(keys)
    assert (wraps.content_epoch, wraps.after, wraps.wraps) == (content_epoch, 1, {device_id: box})
    assert encode_keys(wraps) == keys
    assert key_name(index_key, "notes", vector["key_name"]["name"]).hex() == vector["key_name"]["key"]
    for length, padded in vector["padded_lengths"]:
        assert padded_length(length) == padded
    key = ContentKey(content_epoch, 1, content_key, index_key)
    for each in vector["payloads"]:
        plaintext, payload = unhex(each, "plaintext", "payload")
        assert open_payload(key, Place(user_key, each["stream"], device_id, each["n"]), payload) == plaintext
