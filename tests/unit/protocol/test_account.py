"""The account log: every rule of genesis and enrolment (protocol.md section 1); the others are tested beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from keepstep import _keepstep
from keepstep.client import crypto
from keepstep.errors import ProtocolError
from keepstep.model import Capability
from keepstep.protocol.account import AccountEvent, AccountLog
from keepstep.protocol.account_payloads import (
    ACCOUNT_PAYLOAD_BYTES_MAX,
    EnrolPayload,
    GenesisPayload,
    decode_account,
    encode_enrol,
    encode_genesis,
)
from keepstep.protocol.account_state import decode_account_state
from keepstep.protocol.chain import chain_0
from keepstep.protocol.event import sign_event
from keepstep.protocol.messages import INTEGER_MAX
from tests.support.events import NOW_MS, seed
from tests.support.scripted_log import ScriptedUser, account_event, make_device, replay

if TYPE_CHECKING:
    from keepstep.protocol.messages import EventRow

PUBLISH, SUBSCRIBE, MANAGE = Capability.PUBLISH, Capability.SUBSCRIBE, Capability.MANAGE
SMALL_ORDER = bytes(32)


def refusal(log: AccountLog, row: EventRow) -> str:
    """The code with which the log refuses an event; it must not have moved then."""
    position, devices = log.position, dict(log.devices)
    with pytest.raises(ProtocolError) as caught:
        log.apply(account_event(row))
    assert (log.position, dict(log.devices)) == (position, devices)
    return caught.value.code


def genesis_refusal(**changes: Any) -> str:
    """The refusal of a genesis whose parts were changed.

    ``payload``: another payload. ``device``: another first device. ``sign_with``: the device that signs.
    All others are fields of the header.
    """
    user = ScriptedUser()
    stream = user.devices_stream
    stream.rows.clear()
    stream.chains = stream.chains[:1]
    stream.authors.clear()
    device = changes.pop("device", user.laptop)
    payload = changes.pop("payload", None)
    author = changes.pop("sign_with", device)
    if payload is None:
        payload = encode_genesis(
            crypto, root_secret=user.root_secret, next_root_key=user.next_root_key, device=device.entry
        )
    return refusal(AccountLog(crypto, user.user_key), stream.append(author, payload, **changes))


def changed_genesis(index: int, value: object) -> bytes:
    """The laptop's genesis payload with another value in one field."""
    user = ScriptedUser()
    (row,) = user.devices_stream.rows
    fields = msgspec.msgpack.decode(account_event(row).payload)
    fields[index] = value
    return msgspec.msgpack.encode(fields)


# -- payloads


def test_payloads_round_trip() -> None:
    """What is encoded is decoded, at the largest values too."""
    largest = make_device("x", expires_at_ms=INTEGER_MAX, issued_at_ms=INTEGER_MAX, sealed_label=bytes(256))
    enrol = encode_enrol(largest.entry)
    assert decode_account(enrol) == EnrolPayload(largest.entry)
    genesis = encode_genesis(crypto, root_secret=seed("root"), next_root_key=seed("next"), device=largest.entry)
    assert len(genesis) <= ACCOUNT_PAYLOAD_BYTES_MAX
    decoded = decode_account(genesis)
    assert isinstance(decoded, GenesisPayload)
    assert (decoded.device, decoded.user_key) == (largest.entry, crypto.ed25519_public(seed("root")))


@pytest.mark.parametrize("operation", [6, 7, -1])
def test_operations_of_later_versions_are_unsupported(operation: int) -> None:
    """Whatever comes after those of this version."""
    with pytest.raises(ProtocolError, match="unsupported"):
        decode_account(msgspec.msgpack.encode([operation, 1, 2]))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "malformed"),
        (b"\x80", "malformed"),
        (encode_enrol(make_device("x").entry) + b"\0", "malformed"),
        (bytes(ACCOUNT_PAYLOAD_BYTES_MAX + 1), "too_large"),
        (b"\x91\x02" + bytes(ACCOUNT_PAYLOAD_BYTES_MAX), "too_large"),
    ],
)
def test_other_payloads_are_refused(data: bytes, code: str) -> None:
    """The payload of an account event is read strictly."""
    with pytest.raises(ProtocolError) as caught:
        decode_account(data)
    assert caught.value.code == code


# -- genesis


def test_genesis_makes_its_device_live() -> None:
    """The first device can do everything from seq 1 on."""
    user = ScriptedUser()
    log = user.account()
    assert log.position.seq == 1
    assert log.devices[user.laptop.device_id].entry == user.laptop.entry
    assert log.devices[user.laptop.device_id].seq == 1
    assert log.position.chain == user.devices_stream.chains[1] == log.chain_at(1)


def test_an_account_has_one_genesis() -> None:
    """Posting another one changes nothing."""
    user = ScriptedUser()
    tablet = make_device("tablet")
    payload = encode_genesis(
        crypto, root_secret=user.root_secret, next_root_key=user.next_root_key, device=tablet.entry
    )
    log = user.account()
    assert refusal(log, user.devices_stream.append(tablet, payload)) == "unprocessable"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"n": 2}, "malformed"),
        ({"prev": seed("prev")[:16]}, "malformed"),
        ({"seen": (0, seed("another chain"))}, "malformed"),
        ({"devices_seen": (0, seed("another chain"))}, "malformed"),
        ({"seen": (1, seed("chain"))}, "malformed"),
        ({"kind": 0}, "malformed"),
        ({"kind": 6}, "malformed"),
        ({"stream": "notes", "kind": 0}, "malformed"),
        ({"stream": "$keys", "kind": 6}, "malformed"),
        ({"ttl_s": 60}, "malformed"),
        ({"payload_len": 5}, "malformed"),
        ({"payload_hash": seed("another payload")}, "malformed"),
        ({"sig": bytes(64)}, "bad_signature"),
        ({"sign_with": make_device("another")}, "malformed"),
        ({"payload": changed_genesis(4, bytes(64))}, "bad_signature"),
        ({"payload": changed_genesis(2, seed("another next root"))}, "bad_signature"),
        ({"payload": changed_genesis(1, crypto.ed25519_public(seed("another user")))}, "malformed"),
        ({"payload": encode_enrol(make_device("phone").entry)}, "forbidden"),
        ({"payload": b""}, "malformed"),
        ({"device": make_device("x", PUBLISH | SUBSCRIBE)}, "malformed"),
        ({"device": make_device("x", PUBLISH | SUBSCRIBE | MANAGE, expires_at_ms=NOW_MS)}, "malformed"),
        (
            {"device": make_device("x", expires_at_ms=NOW_MS + 1), "received_at_ms": NOW_MS + 1},
            "unprocessable",
        ),
        ({"device": make_device("x", box_key=SMALL_ORDER)}, "malformed"),
    ],
)
def test_a_wrong_genesis_is_refused(changes: dict[str, Any], code: str) -> None:
    """Every part of it is checked."""
    assert genesis_refusal(**changes) == code


def test_the_device_that_signs_the_genesis_is_the_one_it_lists() -> None:
    """The same header and signature under another device's id are refused."""
    user = ScriptedUser()
    event = account_event(user.devices_stream.rows[0])
    moved = AccountEvent(
        make_device("stranger").device_id, event.header, event.sig, event.payload, event.received_at_ms
    )
    with pytest.raises(ProtocolError, match="malformed"):
        AccountLog(crypto, user.user_key).check(moved)


def test_root_and_user_belong_together() -> None:
    """A genesis does not verify for another user id."""
    user = ScriptedUser()
    log = AccountLog(crypto, crypto.ed25519_public(seed("another user")))
    assert refusal(log, user.devices_stream.rows[0]) == "malformed"


def test_a_user_id_is_a_real_key() -> None:
    """Under a key of small order anybody could make a root signature that verifies somewhere."""
    laptop = make_device("laptop")
    user_key = (1).to_bytes(32, "little")
    start = (0, chain_0(crypto, user_key, "$devices"))
    fields = msgspec.msgpack.decode(
        encode_genesis(crypto, root_secret=seed("root"), next_root_key=seed("next"), device=laptop.entry)
    )
    payload = msgspec.msgpack.encode([0, user_key, *fields[2:]])
    header = ScriptedUser().devices_stream.header(laptop, payload, n=1, seen=start, devices_seen=start).encode()
    sig = sign_event(crypto, secret=laptop.device_secret, user_key=user_key, device_id=laptop.device_id, header=header)
    for primitives in (crypto, _keepstep):
        with pytest.raises(ProtocolError) as caught:
            AccountLog(primitives, user_key).check(AccountEvent(laptop.device_id, header, sig, payload, NOW_MS))
        assert (caught.value.code, caught.value.detail) == ("malformed", "a user id is of small order")


# -- enrolment


def test_enrolled_devices_are_live_from_their_seq_on() -> None:
    """Both libraries follow the same log to the same state."""
    user = ScriptedUser()
    phone, watch = make_device("phone"), make_device("watch", PUBLISH)
    user.enrol(phone)
    user.enrol(watch, by=phone)
    events = [account_event(row) for row in user.devices_stream.rows]
    for primitives in (crypto, _keepstep):
        log = replay(primitives, user.user_key, events)
        assert [each.seq for each in log.devices.values()] == [1, 2, 3]
        assert log.devices[watch.device_id].entry == watch.entry
        assert [log.chain_at(seq) for seq in range(5)] == [*user.devices_stream.chains, None]
        assert log.user_key == user.user_key


def test_checking_changes_nothing() -> None:
    """The server checks first and follows after the commit."""
    user = ScriptedUser()
    log = user.account()
    row = user.enrol(make_device("phone"))
    assert log.check(account_event(row)) == log.check(account_event(row))
    assert log.position.seq == 1


def test_a_skipped_event_keeps_its_place_without_effect() -> None:
    """What is refused may be in the chain all the same: what follows still fits."""
    user = ScriptedUser()
    stranger, phone = make_device("stranger"), make_device("phone")
    refused = user.enrol(make_device("spy"), by=stranger)
    accepted = user.enrol(phone)
    log = user.account(upto=1)
    assert refusal(log, refused) == "forbidden"
    log.skip(account_event(refused))
    log.apply(account_event(accepted))
    assert set(log.devices) == {user.laptop.device_id, phone.device_id}
    assert log.position.chain == user.devices_stream.chains[3]


@pytest.mark.parametrize(
    ("device", "code"),
    [
        (make_device("x", Capability(0)), "malformed"),
        (make_device("x", expires_at_ms=NOW_MS), "malformed"),
        (make_device("x", expires_at_ms=NOW_MS + 1), "unprocessable"),
        (make_device("x", device_id=ScriptedUser().laptop.device_id), "unprocessable"),
        (make_device("x", device_key=ScriptedUser().laptop.entry.device_key), "unprocessable"),
        (make_device("x", box_key=ScriptedUser().laptop.entry.box_key), "unprocessable"),
        (make_device("x", device_key=ScriptedUser().user_key), "unprocessable"),
        (make_device("x", device_id=bytes(16)), "malformed"),
        (make_device("x", device_key=SMALL_ORDER), "malformed"),
        (make_device("x", device_key=b"\xff" * 32), "malformed"),
        (make_device("x", box_key=SMALL_ORDER), "malformed"),
        (make_device("x", box_key=(1).to_bytes(32, "little")), "malformed"),
    ],
)
@pytest.mark.parametrize("primitives", [crypto, _keepstep], ids=["client", "extension"])
def test_a_wrong_device_entry_is_refused(primitives: Any, device: Any, code: str) -> None:
    """Ids and keys must be new and real keys, and the device must be able to do something, still."""
    user = ScriptedUser()
    log = replay(primitives, user.user_key, [account_event(user.devices_stream.rows[0])])
    assert refusal(log, user.enrol(device)) == code


def test_a_capability_of_a_later_version_is_unsupported() -> None:
    """Unknown bits are not dropped silently."""
    user = ScriptedUser()
    log = user.account()
    wire = msgspec.msgpack.decode(encode_enrol(make_device("x").entry))
    wire[1][3] = 8 | 1
    row = user.devices_stream.append(user.laptop, msgspec.msgpack.encode(wire))
    assert refusal(log, row) == "unsupported"


@pytest.mark.parametrize(
    ("author", "changes", "code"),
    [
        ("stranger", {}, "forbidden"),
        ("reader", {}, "forbidden"),
        ("expired", {}, "forbidden"),
        ("laptop", {"sig": bytes(64)}, "bad_signature"),
        ("laptop", {"devices_seen": (3, seed("another chain"))}, "unknown_position"),
        ("laptop", {"devices_seen": (4, seed("chain"))}, "unknown_position"),
        ("laptop", {"seen": (3, seed("another chain"))}, "unknown_position"),
        ("laptop", {"seen": (4, seed("chain"))}, "unknown_position"),
    ],
)
def test_an_enrolment_by_the_wrong_author_is_refused(author: str, changes: dict[str, Any], code: str) -> None:
    """Only a live managing device that knows this very log enrols."""
    user = ScriptedUser()
    devices = {
        "laptop": user.laptop,
        "stranger": make_device("stranger"),
        "reader": make_device("reader", SUBSCRIBE),
        "expired": make_device("expired", MANAGE, expires_at_ms=NOW_MS + 4),
    }
    user.enrol(devices["reader"])
    user.enrol(devices["expired"])
    log = user.account()
    assert refusal(log, user.enrol(make_device("phone"), by=devices[author], **changes)) == code


def test_a_device_cannot_act_before_its_own_enrolment() -> None:
    """``devices_seen`` must hold the author's own enrolment."""
    user = ScriptedUser()
    before = user.devices_stream.head_position
    phone = make_device("phone")
    user.enrol(phone)
    log = user.account()
    assert refusal(log, user.enrol(make_device("watch", PUBLISH), by=phone, devices_seen=before)) == "forbidden"


def test_what_an_author_has_seen_never_goes_back() -> None:
    """An enrolment that names an older position than its author's last one is refused."""
    user = ScriptedUser()
    before = user.devices_stream.head_position
    user.enrol(make_device("phone", PUBLISH))
    user.enrol(make_device("watch", PUBLISH))
    log = user.account()
    row = user.enrol(make_device("tablet", PUBLISH), devices_seen=before)
    assert refusal(log, row) == "unprocessable"
    assert refusal(AccountLog(crypto, user.user_key, log.state), row) == "unprocessable"


# -- the author of an event of any stream


def test_the_author_of_an_event_is_judged_at_what_it_had_seen() -> None:
    """Live there, with the capability, unexpired when the event came."""
    user = ScriptedUser()
    start = user.devices_stream.head_position
    phone = make_device("phone", PUBLISH, expires_at_ms=NOW_MS + 100)
    user.enrol(phone)
    log, seen = user.account(), user.devices_stream.head_position

    def author(**changes: Any) -> str:
        arguments: dict[str, Any] = {"capability": PUBLISH, "devices_seen": seen, "received_at_ms": NOW_MS + 99}
        arguments |= {"stream": "notes", "n": 1}
        try:
            log.author(changes.pop("device_id", phone.device_id), **(arguments | changes))
        except ProtocolError as error:
            return error.code
        return "allowed"

    assert author() == "allowed"
    assert author(received_at_ms=NOW_MS + 100) == "forbidden"
    assert author(capability=MANAGE) == "forbidden"
    assert author(devices_seen=start) == "forbidden"
    assert author(device_id=seed("nobody")[:16]) == "forbidden"
    assert author(device_id=user.laptop.device_id, devices_seen=start, capability=MANAGE) == "allowed"
    assert author(devices_seen=(2, seed("another chain"))) == "unknown_position"
    assert author(devices_seen=(9, seen[1])) == "unknown_position"
    assert author(devices_seen=(-1, seen[1])) == "unknown_position"


# -- state


def test_the_state_goes_through_a_store() -> None:
    """A log restored from its state goes on as if it had never stopped."""
    user = ScriptedUser()
    phone = make_device("phone")
    user.enrol(phone)
    log = user.account()
    restored = AccountLog(crypto, user.user_key, decode_account_state(log.state.encode()))
    assert (restored.position, dict(restored.devices)) == (log.position, dict(log.devices))
    assert refusal(restored, user.enrol(make_device("x", box_key=phone.entry.box_key))) == "unprocessable"


@pytest.mark.parametrize(
    "data", [b"", b"\x93\x90\x90\x80", b"\x90", msgspec.msgpack.encode([[seed("chain")], [], {}, 0])]
)
def test_a_damaged_state_is_refused(data: bytes) -> None:
    """A store that was damaged is noticed."""
    with pytest.raises(ProtocolError, match="malformed"):
        decode_account_state(data)


def test_a_copy_goes_its_own_way() -> None:
    """What is tried on a copy does not touch the original, until it is adopted."""
    user = ScriptedUser()
    log = user.account()
    copy = log.copy()
    copy.apply(account_event(user.enrol(make_device("phone"))))
    assert (log.position.seq, len(log.devices)) == (1, 1)
    log.adopt(copy)
    assert (log.position, dict(log.devices)) == (copy.position, dict(copy.devices))
    copy.skip(account_event(user.enrol(make_device("x"))))
    assert log.position.seq == 2
