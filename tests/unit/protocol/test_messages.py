"""Messages: what is decoded, what is refused and with which code (protocol.md section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import msgspec
import pytest

from keepstep.errors import ERRORS, ProtocolError
from keepstep.protocol.messages import (
    MESSAGE_BYTES_MAX,
    PUBLISH_BYTES_MAX,
    Ack,
    FromDevice,
    FromServer,
    Ping,
    Publish,
    Resumed,
    Subscribe,
    decode_from_device,
    decode_from_server,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pack = msgspec.msgpack.encode
CHAIN = bytes(32)
HEAD = [b"head", bytes(64)]
ROW = [1, bytes(16), 2, b"header", bytes(64), b"payload", None]

FROM_DEVICE: list[list[Any]] = [
    [16, 1, [[b"header", bytes(64), b"payload", None]]],
    [17, {"notes": [5, bytes(16)]}],
    [18, "all"],
    [18, {"a": [3, CHAIN], "b": "start", "c": "end"}],
    [19, ["notes"]],
    [20, 1, "notes", 0, 1000],
    [21, 1, "notes", [1, 2]],
    [22, 1, "notes", [3, CHAIN], [ROW], [bytes(40), HEAD], 0],
    [22, 1, "notes", None, [ROW], None, 0],
    [22, 1, "$devices", None, [], None, 3],
    [23, 1, bytes(16), b"sealed"],
    [24, b"sealed"],
    [25, 1],
    [26],
    [27],
]
FROM_SERVER: list[list[Any]] = [
    [64, 1, [[0, 2, 5, 9, CHAIN], [1, 5, CHAIN, 9], [1, None, None, None], [2, "out_of_order", [3, CHAIN]]]],
    [65, "notes", [ROW, [2, *ROW[1:5], None, b"trace"]], CHAIN],
    [66, "notes", HEAD, None],
    [67, bytes(16), b"sealed"],
    [68, [[bytes(16), b"sealed", 9], [bytes(16), None, 9]]],
    [69, 3],
    [70, 1, "notes", [ROW], CHAIN, 1],
    [71, None, "malformed", None],
    [71, 1, "unavailable", 1000],
    [72, 1],
    [73, 1000],
    [74, "notes", "contiguous", HEAD, [0, CHAIN], []],
    [74, "notes", "unknown_stream", None, [0, CHAIN], [[b"rewind", bytes(64)]]],
    [75],
    [76, "notes", HEAD, 1_767_225_600_000],
    [77, ROW],
    [78, bytes(16), 9],
    [79, b"announcement"],
    [80, 1],
    [81, "notes", 2, 5, CHAIN, {bytes(16): [5, bytes(16)]}, [], HEAD],
    [82, "notes", [[b"rewind", bytes(64)]], HEAD, [0, CHAIN]],
    [83, 1, "notes", [CHAIN, None], 3],
    [84, 1, "notes", "placed", 3, [2], None],
    [84, 1, "notes", "later", 3, [], 1000],
]
EVERY = [(decode_from_device, each) for each in FROM_DEVICE] + [(decode_from_server, each) for each in FROM_SERVER]
Decode = "Callable[[bytes], Any]"
OPTIONAL_END = {66, 74, 76}
"""Types whose last field may be left out."""


def code_of(decode: Callable[[bytes], Any], data: bytes) -> str:
    """The code of the error that some bytes cause."""
    with pytest.raises(ProtocolError) as caught:
        decode(data)
    return caught.value.code


@pytest.mark.parametrize(("decode", "message"), EVERY)
def test_every_message_round_trips(decode: Callable[[bytes], Any], message: list[Any]) -> None:
    """The documented form of every type is read and written byte for byte."""
    data = pack(message)
    assert encode(decode(data)) == data


def test_every_type_is_among_the_examples() -> None:
    """No message of either direction is left out above."""
    for examples, union in ((FROM_DEVICE, FromDevice), (FROM_SERVER, FromServer)):
        assert {each[0] for each in examples} == {struct.__struct_config__.tag for struct in get_args(union)}


@pytest.mark.parametrize(("decode", "message"), EVERY)
def test_trailing_fields_are_ignored(decode: Callable[[bytes], Any], message: list[Any]) -> None:
    """A message of a later version may have more fields."""
    assert encode(decode(pack([*message, {"later": [1, 2]}]))) == pack(message)


@pytest.mark.parametrize(("decode", "message"), EVERY)
def test_missing_fields_and_trailing_bytes_are_malformed(decode: Callable[[bytes], Any], message: list[Any]) -> None:
    """A message is whole, and alone."""
    data = pack(message)
    assert code_of(decode, data + b"\xc0") == "malformed"
    assert code_of(decode, data[:-1]) == "malformed"
    if len(message) > 1 and message[0] not in OPTIONAL_END:
        assert code_of(decode, pack(message[:-1])) == "malformed"


@pytest.mark.parametrize("decode", [decode_from_device, decode_from_server])
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (pack([5]), "unsupported"),
        (pack([255, "anything"]), "unsupported"),
        (pack([-1]), "unsupported"),
        (pack([2**64 - 1]), "unsupported"),
        (pack([1, [1], [2], CHAIN, CHAIN]), "unexpected"),
        (pack([4]), "unexpected"),
        (b"", "malformed"),
        (pack(25), "malformed"),
        (pack({}), "malformed"),
        (pack([]), "malformed"),
        (pack(["25", 1]), "malformed"),
        (pack([None]), "malformed"),
        (b"\xc1", "malformed"),
        (b"\x91" * 100_000, "malformed"),
        (b"\x92\x19" + b"\x91" * 100_000 + b"\x01", "malformed"),
        (bytes(MESSAGE_BYTES_MAX + 1), "too_large"),
    ],
)
def test_what_is_no_message_has_its_code(decode: Callable[[bytes], Any], data: bytes, code: str) -> None:
    """Unknown types are unsupported, known ones of another state unexpected, all else malformed."""
    assert code_of(decode, data) == code


@pytest.mark.parametrize("message", FROM_SERVER)
def test_a_device_may_not_speak_as_a_server(message: list[Any]) -> None:
    """Types of the other direction are known, but unexpected."""
    assert code_of(decode_from_device, pack(message)) == "unexpected"


@pytest.mark.parametrize("message", FROM_DEVICE)
def test_a_server_may_not_speak_as_a_device(message: list[Any]) -> None:
    """The same the other way round."""
    assert code_of(decode_from_server, pack(message)) == "unexpected"


@pytest.mark.parametrize(
    "message",
    [
        [17, {"no spaces": [1, bytes(16)]}],
        [17, {"": [1, bytes(16)]}],
        [17, {"x" * 129: [1, bytes(16)]}],
        [17, {"notes\n": [1, bytes(16)]}],
        [17, {"nötes": [1, bytes(16)]}],
        [17, {"notes": [1, bytes(15)]}],
        [17, {"notes": [2**63, bytes(16)]}],
        [17, {f"s{number}": [1, bytes(16)] for number in range(1025)}],
        [18, "some"],
        [18, {"notes": "middle"}],
        [18, {"notes": [-1, CHAIN]}],
        [19, ["x"] * 1025],
        [20, 1, "notes", 0, 0],
        [20, 1, "notes", 0, 1001],
        [23, bytes(15), b""],
        [24, bytes(4 * 1024 + 1)],
        [25, 2**63],
        [25, -1],
    ],
)
def test_values_outside_their_bounds_are_malformed(message: list[Any]) -> None:
    """Names, numbers, lengths and counts have bounds, checked before anybody uses them."""
    assert code_of(decode_from_device, pack(message)) == "malformed"


def test_a_publish_above_its_limit_is_too_large() -> None:
    """1 MiB of events is the most; that much still is taken."""
    framing = 1 + 1 + 5  # headers of the array of events, of the event, and of a long byte string
    fits = bytes(PUBLISH_BYTES_MAX - framing)
    body = pack([[fits]])
    assert len(body) == PUBLISH_BYTES_MAX
    assert isinstance(decode_from_device(b"\x93\x10\x01" + body), Publish)
    assert code_of(decode_from_device, b"\x93\x10\x01" + pack([[fits + b"\0"]])) == "too_large"


def test_the_events_of_a_publish_stay_as_they_were_sent() -> None:
    """Signed bytes are never encoded again: also an odd encoding comes out as it went in."""
    odd = b"\xdc\x00\x01\x91\xc0"
    message = decode_from_device(b"\x93\x10\x01" + odd)
    assert isinstance(message, Publish)
    assert bytes(message.events) == odd


def test_decoded_values_have_the_documented_types() -> None:
    """Positions are (seq, chain) tuples, names are text."""
    assert decode_from_device(pack([18, {"a": [3, CHAIN]}])) == Subscribe({"a": (3, CHAIN)})
    assert decode_from_device(pack([17, {"a": [3, bytes(16)]}])) == Ack({"a": (3, bytes(16))})
    resumed = decode_from_server(pack(FROM_SERVER[11]))
    assert resumed == Resumed("notes", "contiguous", (b"head", bytes(64)), (0, CHAIN))


def test_messages_are_values() -> None:
    """They can be compared, and not changed."""
    assert Ping(1) == Ping(1)
    with pytest.raises(AttributeError):
        Ping(1).rid = 2  # type: ignore[misc]


def test_every_error_code_fits_its_message() -> None:
    """Codes of the table are at most 32 ASCII characters, as ``messages.Error`` carries them."""
    assert all(code.isascii() and len(code) <= 32 for code in ERRORS)
