"""The extension's events: what is parsed, what is refused, and with which code."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from keepstep import _keepstep
from keepstep.errors import ProtocolError
from keepstep.model import Kind
from keepstep.protocol.event import NO_PREV, TTL_S_MAX
from tests.support.events import NOW_MS, DeviceFixture, SignedEvent, UserFixture, parse, submission, wire_events
from tests.support.ingesting import copied_rows, ingest, new_head, principal
from tests.support.vectors import load, unhex

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def user() -> UserFixture:
    """A user."""
    return UserFixture("ada")


@pytest.fixture
def device(user: UserFixture) -> DeviceFixture:
    """A device of the user."""
    return DeviceFixture(user, "laptop")


def raised_code(call: Callable[..., object], *arguments: Any, **named: Any) -> str:
    """The code of the protocol error that a call raises."""
    with pytest.raises(ProtocolError) as raised:
        call(*arguments, **named)
    return raised.value.code


def event_code(event: SignedEvent) -> str:
    """The code of an event's own error."""
    return raised_code(parse(event).event, 0)


# -- events -------------------------------------------------------------------------------------------------------


def test_a_parsed_event_has_every_field_of_its_header(user: UserFixture, device: DeviceFixture) -> None:
    """As it was written, and its hash."""
    device.seen = {"notes": (5, b"s" * 32), "$devices": (2, b"d" * 32)}
    event = device.sign("notes", b"sealed", n=9, prev=b"p" * 16, ttl_s=60, trace=b"00-trace")
    parsed = parse(event).event(0)
    assert (parsed.kind, parsed.stream, parsed.n, parsed.prev) == (0, "notes", 9, b"p" * 16)
    assert parsed.id[:6] == NOW_MS.to_bytes(6, "big")
    assert (parsed.seen, parsed.devices_seen) == ((5, b"s" * 32), (2, b"d" * 32))
    assert (parsed.hlc, parsed.ttl_s) == (NOW_MS << 16, 60)
    assert (parsed.header, parsed.sig, parsed.payload) == (event.header, event.sig, b"sealed")
    assert (parsed.trace, parsed.hash) == (b"00-trace", event.hash)
    plain = parse(device.event("notes")).event(0)
    assert (plain.ttl_s, plain.trace, plain.payload) == (None, None, b"")
    assert plain.seen == (5, b"s" * 32)
    assert user.chain_0("notes") != plain.hash


def test_the_vectors_of_the_protocol_are_parsed() -> None:
    """tests/vectors/event.json: every accepted event, and every refused header."""
    vectors = load("event.json")
    for case in vectors["accepted"]:
        header, sig, hashed, wire = unhex(case, "header", "sig", "hash", "in_publish")
        events = _keepstep.Events.parse(b"\x91" + wire, events_max=1, payload_bytes_max=1 << 20)
        parsed = events.event(0)
        assert (parsed.header, parsed.sig, parsed.hash) == (header, sig, hashed)
        assert (parsed.n, parsed.stream) == (case["fields"]["n"], case["fields"]["stream"])
    for case in vectors["refused"]:
        (header,) = unhex(case, "header")
        raw = msgspec.msgpack.encode([[header, bytes(64), b"", None]])
        events = _keepstep.Events.parse(raw, events_max=1, payload_bytes_max=1 << 20)
        assert raised_code(events.event, 0) == case["code"], case["name"]
    assert vectors["accepted"]
    assert vectors["refused"]


def test_a_message_that_is_not_a_list_of_events_is_refused_whole(device: DeviceFixture) -> None:
    """Malformed or too large, before any event is looked at."""
    raw = wire_events(*device.events("notes", 2))

    def code(data: bytes, events_max: int = 2) -> str:
        return raised_code(_keepstep.Events.parse, data, events_max=events_max, payload_bytes_max=100)

    assert code(raw, 1) == "too_large"
    not_minimal = b"\xdc\x00" + bytes([raw[0] & 0x0F]) + raw[1:]
    for data in (b"", b"\x90", raw + b"\xc0", raw[:-1], not_minimal, msgspec.msgpack.encode([[b"", b"", b""]])):
        assert code(data) == "malformed"


def test_any_buffer_may_hold_the_message(device: DeviceFixture) -> None:
    """The decoder of the messages hands out its own kind."""
    raw = wire_events(*device.events("notes", 2))
    for buffer in (raw, bytearray(raw), memoryview(raw), msgspec.Raw(raw)):
        assert len(_keepstep.Events.parse(buffer, events_max=2, payload_bytes_max=100)) == 2


def test_a_badly_formed_event_keeps_its_own_error(device: DeviceFixture) -> None:
    """The others of the message are parsed."""
    good = device.event("notes", b"good")
    other_kind = device.sign("notes", n=1, prev=NO_PREV, kind=9)
    events = parse(good, other_kind)
    assert events.event(0).payload == b"good"
    assert raised_code(events.event, 1) == "unsupported"
    assert (len(events), events.streams, events.kinds, events.payload_bytes) == (2, ["notes"], [0], 4)


@pytest.mark.parametrize(
    ("kind", "stream", "code"),
    [
        (0, "$devices", "malformed"),
        (0, "$inbox/x", "unknown_stream"),
        (0, f"$inbox/{'a' * 31}", "unknown_stream"),
        (0, f"$inbox/{'A' * 32}", "unknown_stream"),
        (0, f"$inbox/{'g' * 32}", "unknown_stream"),
        (6, f"$inbox/{'a' * 32}", "malformed"),
        (1, "$devices", "malformed"),
        (1, f"$inbox/{'a' * 32}", "malformed"),
        (4, "$keys", "malformed"),
        (5, "$keys", "malformed"),
        (5, "notes", "malformed"),
        (6, "$devices", "malformed"),
        (6, "notes", "malformed"),
        (7, "$keys", "unsupported"),
    ],
)
def test_a_kind_in_another_stream_than_its_own_is_refused(
    device: DeviceFixture, kind: int, stream: str, code: str
) -> None:
    """protocol.md section 3: 5 in $devices, 6 in $keys, 0 elsewhere."""
    assert event_code(device.sign(stream, n=1, prev=NO_PREV, kind=kind)) == code


@pytest.mark.parametrize(
    ("stream", "named"),
    [
        ("notes", {"n": 0}),
        ("notes", {"ttl_s": 0}),
        ("notes", {"ttl_s": TTL_S_MAX + 1}),
        ("notes", {"payload": None}),
        ("a stream", {}),
        ("x" * 129, {}),
        ("", {}),
        ("$devices", {"kind": 5, "ttl_s": 60}),
        ("notes", {"prev": b"short"}),
        ("notes", {"n": 2**63}),
    ],
)
def test_an_event_outside_the_documented_form_is_malformed(
    device: DeviceFixture, stream: str, named: dict[str, Any]
) -> None:
    """Its own error, whatever the signature."""
    arguments: dict[str, Any] = {"payload": b"x", "n": 1, "prev": NO_PREV, **named}
    assert event_code(device.sign(stream, arguments.pop("payload"), **arguments)) == "malformed"


def test_an_event_whose_payload_is_not_the_one_it_names_is_malformed(device: DeviceFixture) -> None:
    """By length and by hash."""
    event = device.event("notes", b"payload")
    for payload in (b"payloax", b"longer payload"):
        raw = msgspec.msgpack.encode([[event.header, event.sig, payload, None]])
        assert raised_code(_keepstep.Events.parse(raw, events_max=1, payload_bytes_max=100).event, 0) == "malformed"


def test_a_payload_or_trace_above_its_limit_is_too_large(device: DeviceFixture) -> None:
    """The largest allowed ones pass."""
    raw = wire_events(device.event("notes", b"x" * 100, trace=b"t" * 256))
    assert _keepstep.Events.parse(raw, events_max=1, payload_bytes_max=100).event(0).n == 1
    assert raised_code(_keepstep.Events.parse(raw, events_max=1, payload_bytes_max=99).event, 0) == "too_large"
    assert event_code(device.event("notes", trace=b"t" * 257)) == "too_large"


def test_a_signature_of_another_length_is_malformed(device: DeviceFixture) -> None:
    """64 bytes, or the rows of the log could not hold it."""
    event = device.event("notes")
    raw = msgspec.msgpack.encode([[event.header, event.sig[:63], b"", None]])
    assert raised_code(_keepstep.Events.parse(raw, events_max=1, payload_bytes_max=9).event, 0) == "malformed"


@pytest.mark.parametrize("index", [1, 5, 10**6])
def test_an_index_outside_the_message_is_an_index_error(device: DeviceFixture, index: int) -> None:
    """The caller's mistake."""
    with pytest.raises(IndexError):
        parse(device.event("notes")).event(index)


def test_splitting_gives_one_message_per_event(device: DeviceFixture) -> None:
    """In order, each with its own stream; a badly formed one keeps its error."""
    a, b = device.event("a", b"1"), device.event("b", b"22")
    split = parse(a, b, device.sign("c", n=1, prev=NO_PREV, kind=9)).split()
    assert [events.streams for events in split] == [["a"], ["b"], []]
    assert [events.payload_bytes for events in split] == [1, 2, 0]
    assert split[1].event(0).hash == b.hash
    assert raised_code(split[2].event, 0) == "unsupported"


def test_a_stored_event_may_have_lost_its_payload(device: DeviceFixture) -> None:
    """As an account's export has it: parsed, and stored again without; published it would be malformed."""
    gone = replace(device.event("notes", b"gone", ttl_s=60), payload=None)
    raw = wire_events(gone, device.event("notes", b"there"))
    assert raised_code(parse(gone).event, 0) == "malformed"

    events = _keepstep.Events.parse(raw, events_max=2, payload_bytes_max=100, payloads_may_be_missing=True)

    assert [events.event(index).payload_dropped for index in (0, 1)] == [True, False]
    assert [events.event(index).payload for index in (0, 1)] == [b"", b"there"]
    ingested = ingest(
        submission(principal(device), device.event("other")).with_events(events), heads=[new_head(device.user, "notes")]
    )
    assert [row[7::3] for row in copied_rows(ingested.copy_bytes(1))] == [[None, None], [None, b"there"]]


# -- submissions --------------------------------------------------------------------------------------------------


def test_a_submission_remembers_who_sent_what(device: DeviceFixture) -> None:
    """And gives the same device other events."""
    first = submission(principal(device), device.event("notes"))
    other = parse(device.event("notes"))
    second = first.with_events(other)
    assert (first.user_pk, first.device_pk, len(first.events)) == (7, 1, 1)
    assert (second.user_pk, second.device_pk) == (7, 1)
    assert second.events.event(0).hash == other.event(0).hash
    assert first.events is not other


@pytest.mark.parametrize(("name", "size"), [("user_key", 31), ("device_id", 17)])
def test_a_submission_with_an_id_of_another_length_is_the_callers_mistake(
    device: DeviceFixture, name: str, size: int
) -> None:
    """The server took both from its own tables."""
    named: dict[str, Any] = {
        "user_pk": 7,
        "user_key": device.user.user_key,
        "device_pk": 1,
        "device_id": device.device_id,
        "device_key": _keepstep.DeviceKey(device.device_key),
        "capabilities": 1,
        "events": parse(device.event("notes")),
    }
    assert _keepstep.Submission(**named).device_pk == 1
    with pytest.raises(ValueError, match="bytes, not"):
        _keepstep.Submission(**{**named, name: bytes(size)})


def test_a_submission_knows_its_weight(device: DeviceFixture) -> None:
    """Bytes that it holds, events, and whether one of them lives in a reserved stream: what a queue asks of each."""
    events = [device.event("notes", bytes(70)), device.event("notes", bytes(30))]
    plain = submission(principal(device), *events)
    keys = submission(principal(device), device.event("$keys", bytes(5), kind=Kind.KEYS))
    assert (plain.weight[1:], keys.weight[1:]) == ((2, False), (1, True))
    beside = plain.weight[0] - len(wire_events(*events))
    assert (beside % 2, 256 < beside // 2 < 1_024) == (0, True)


def test_what_is_no_event_has_its_weight(device: DeviceFixture) -> None:
    """Headers that are none weigh as payloads do, and many events of a few bytes what is made of each."""
    large = replace(device.event("notes"), header=bytes(1_000_000))
    small = replace(device.event("notes"), header=b"", sig=b"", payload=None)
    assert submission(principal(device), large).weight[0] > 1_000_000
    assert submission(principal(device), *[small] * 256).weight[0] > 256 * 256
