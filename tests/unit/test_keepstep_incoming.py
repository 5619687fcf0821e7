"""A device's records as the extension gives them to Python: opened, rekeyed, publishes parsed."""

from __future__ import annotations

from typing import Any, Final

import pytest

from keepstep._keepstep import RecordReader, RecordSealer, Submission
from keepstep.errors import ProtocolError
from keepstep.protocol.messages import MESSAGE_BYTES_MAX, PUBLISH_BYTES_MAX, Ping, Rekey, decode_from_device, encode
from tests.support.events import DeviceFixture, UserFixture, wire_events
from tests.support.records import OVERHEAD, SECRET, Sealing, record_reader

REKEY: Final = encode(Rekey())


def publish(rid: bytes, events: bytes, head: bytes = b"\x93\x10", tail: bytes = b"") -> bytes:
    """A publish, in any form."""
    return head + rid + events + tail


def opened(*messages: bytes) -> list[Any]:
    """What the first messages of a session are to the server."""
    sealing = Sealing()
    return sealing.records.reader.read(sealing.seal(*messages))


def faults(found: list[Any]) -> list[str]:
    """The codes of what ends the session."""
    return [each.code for each in found if isinstance(each, ProtocolError)]


def test_a_publish_becomes_a_submission_of_its_device() -> None:
    """With all that the record layer knows of it; what else there is stays as it was sealed."""
    device = DeviceFixture(UserFixture("alice"), "phone")
    sealing = Sealing()
    messages = publish(b"\x07", wire_events(*device.events("notes", 2))), encode(Ping(1))
    (rid, submission), ping = record_reader(device).read(sealing.seal(*messages))  # type: ignore[misc]
    assert isinstance(submission, Submission)
    assert (rid, ping) == (7, encode(Ping(1)))
    assert (submission.user_pk, submission.device_pk, submission.device_id) == (1, 2, device.device_id)
    assert (submission.capabilities, len(submission), submission.events.streams) == (1, 2, ["notes"])
    assert (submission.with_capabilities(3).capabilities, len(submission.as_suspect())) == (3, 2)


@pytest.mark.parametrize(
    ("rid", "head", "tail"),
    [
        (b"\xcc\x07", b"\x93\x10", b""),
        (b"\xcd\x00\x07", b"\xdc\x00\x03\xcc\x10", b""),
        (b"\xce\x00\x00\x00\x07", b"\xdd\x00\x00\x00\x03\xd0\x10", b""),
        (b"\xcf\x00\x00\x00\x00\x00\x00\x00\x07", b"\x94\x10", b"\xc0"),
        (b"\xd1\x00\x07", b"\x93\x10", b""),
        (b"\xd3\x00\x00\x00\x00\x00\x00\x00\x07", b"\x95\x10", b"\x82\x01\x91\xa1x\x02\xc7\x01\x05x\xcb12345678"),
        (b"\x07", b"\x96\x10", b"\xd9\x01x\xda\x00\x01x\xdb\x00\x00\x00\x01x"),
        (b"\x07", b"\x96\x10", b"\xc4\x01x\xc5\x00\x01x\xc6\x00\x00\x00\x01x"),
        (b"\x07", b"\x98\x10", b"\xd4\x05x\xd6\x051234\xc8\x00\x01\x05x\xca1234\xd2\xff\xff\xff\xff"),
        (b"\x07", b"\x97\x10", b"\xde\x00\x00\xdf\x00\x00\x00\x01\xc2\xc3\xe0\xdc\x00\x00"),
    ],
)
def test_messages_need_not_be_minimal_and_may_have_more_fields(rid: bytes, head: bytes, tail: bytes) -> None:
    """Only what is signed has one encoding."""
    device = DeviceFixture(UserFixture("alice"), "phone")
    ((number, submission),) = opened(publish(rid, wire_events(device.event("notes")), head, tail))
    assert number == 7
    assert isinstance(submission, Submission)


@pytest.mark.parametrize(
    ("events", "code"),
    [(b"\x05", "malformed"), (b"\x90", "malformed"), (b"\xdc\x00\x11" + bytes(17), "too_large")],
)
def test_events_that_are_none_are_refused_under_their_number(events: bytes, code: str) -> None:
    """The session goes on."""
    (rid, error), ping = opened(publish(b"\x07", events), encode(Ping(1)))
    assert (rid, error.code, ping) == (7, code, encode(Ping(1)))


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\x92\x10\x07", "malformed"),
        (b"\x93\x10\xff\x90", "malformed"),
        (b"\x93\x10\xd0\x80\x90", "malformed"),
        (b"\x93\x10\xcf\x80\x00\x00\x00\x00\x00\x00\x00\x90", "malformed"),
        (b"\x93\x10\xa1x\x90", "malformed"),
        (b"\x93\x10\x07", "malformed"),
        (b"\x93\x10\x07\x91", "malformed"),
        (b"\x93\x10\x07\xc1", "malformed"),
        (b"\x93\x10\x07\xdd\xff\xff\xff\xff", "malformed"),
        (b"\x93\x10\x07\xc6\xff\xff\xff\xff", "malformed"),
        (b"\x93\x10\x07\x90\x00", "malformed"),
        (b"\x94\x10\x07\x90", "malformed"),
        (REKEY + b"\x00", "malformed"),
        (b"\x92\x1a", "malformed"),
        (b"\x93\x10\x07\xc6" + (PUBLISH_BYTES_MAX - 4).to_bytes(4, "big") + bytes(PUBLISH_BYTES_MAX - 4), "too_large"),
    ],
)
def test_a_publish_or_rekey_in_another_form_ends_the_session(message: bytes, code: str) -> None:
    """What came before it counts, and nothing after it."""
    before, *rest = opened(encode(Ping(1)), message, encode(Ping(2)))
    assert before == encode(Ping(1))
    assert faults(rest) == [code]
    assert len(rest) == 1


@pytest.mark.parametrize("head", [b"\x93\x10\x07", b"\x94\x10\x07\x90", b"\x92\x1a"])
def test_what_is_passed_over_has_so_many_levels(head: bytes) -> None:
    """As many as ``msgpack::NESTED_MAX``; up to there and far beyond, Python decodes as much."""
    assert faults(opened(head + b"\x91" * 64 + b"\xc0")) == []
    decode_from_device(head + b"\x91" * 64 + b"\xc0")
    assert faults(opened(head + b"\x91" * 65 + b"\xc0", encode(Ping(1)))) == ["malformed"]
    assert faults(opened(head + b"\x91" * 500_000 + b"\xc0")) == ["malformed"]
    with pytest.raises(ProtocolError, match="malformed"):
        decode_from_device(head + b"\x91" * 500_000 + b"\xc0")


def test_a_publish_may_be_as_large_as_documented() -> None:
    """To the byte; and of the largest record its size is not the fault."""
    size = PUBLISH_BYTES_MAX - 5
    ((rid, error),) = opened(publish(b"\x07", b"\xc6" + size.to_bytes(4, "big") + bytes(size)))
    assert (rid, error.code) == (7, "malformed")
    assert faults(record_reader().read([bytes(MESSAGE_BYTES_MAX + OVERHEAD)])) == ["bad_record"]
    assert faults(record_reader().read([bytes(MESSAGE_BYTES_MAX + OVERHEAD + 1)])) == ["too_large"]


def test_after_a_rekey_records_are_under_the_next_secret() -> None:
    """Within one call too; the rekey is shown, for it is a message."""
    sealer = RecordSealer(2, SECRET, b"")
    first = sealer.seal_many([encode(Ping(1)), REKEY])
    sealer.rekey()
    assert record_reader().read([*first, sealer.seal(encode(Ping(2)))]) == [encode(Ping(1)), REKEY, encode(Ping(2))]


@pytest.mark.parametrize(("messages", "ends"), [([REKEY], []), ([encode(Ping(1))], ["unexpected"])])
def test_the_last_record_under_a_secret_has_to_be_its_rekey(messages: list[bytes], ends: list[str]) -> None:
    """The receiver holds the sender to the limit."""
    reader: RecordReader = record_reader(records_max=2)
    found = reader.read(Sealing().seal(encode(Ping(0)), *messages))
    assert found[0] == encode(Ping(0))
    assert faults(found) == ends


@pytest.mark.parametrize("spoil", ["replayed", "lost", "changed", "cut", "empty"])
def test_a_record_out_of_its_place_is_the_last(spoil: str) -> None:
    """A lost, replayed or forged record does not open; nothing that follows is looked at, in this call or later."""
    sealing = Sealing()
    first, second, third = sealing.seal(encode(Ping(1)), encode(Ping(2)), encode(Ping(3)))
    bad = {
        "replayed": first,
        "lost": third,
        "changed": second[:-1] + bytes([second[-1] ^ 1]),
        "cut": second[:15],
        "empty": b"",
    }[spoil]
    reader = sealing.records.reader
    found = reader.read([first, bad, second])
    assert (found[0], faults(found), len(found)) == (encode(Ping(1)), ["bad_record"], 2)
    assert reader.read([second]) == []
