"""Loose values from outside: what is taken, what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keepstep import _keepstep, validation
from keepstep.client import crypto
from keepstep.errors import ProtocolError
from tests.support.events import seed
from tests.support.vectors import load

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = crypto.ed25519_public(seed("key"))
UUID_4 = "5f2c1a52-6f27-4b0d-9a4e-0d0f6d1c2b3a"
UUID_7 = "0197711f-3a00-7000-8000-000000000001"
P = 2**255 - 19
ARABIC_ZERO = "\N{ARABIC-INDIC DIGIT ZERO}"
"""A digit to Python, and not one to us."""
WIDE_A = "\N{FULLWIDTH LATIN SMALL LETTER A}"


def refused(call: Callable[[], object]) -> str:
    """The code of the error that a call raises."""
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value.code


# -- text forms


def test_hexadecimal_of_the_right_length_is_taken() -> None:
    """In either case."""
    assert validation.parse_hex("00fF", size=2, what="x") == b"\x00\xff"


@pytest.mark.parametrize(
    "text", ["", "00", "00fff", "00fg", "0x00", "00 ff", " 00ff", "00ff\n", ARABIC_ZERO * 2 + "ff"]
)
def test_other_hexadecimal_is_malformed(text: str) -> None:
    """No prefix, no spaces, no other digits that Python would take."""
    assert refused(lambda: validation.parse_hex(text, size=2, what="x")) == "malformed"


@pytest.mark.parametrize("data", [b"", b"a", b"ab", b"abc", bytes(range(256))])
def test_base64url_round_trips(data: bytes) -> None:
    """Without padding."""
    text = validation.format_base64url(data)
    assert "=" not in text
    assert validation.parse_base64url(text, bytes_max=256, what="x") == data


@pytest.mark.parametrize("text", ["A", "AAAAA", "AB", "AA==", "+/+/", "AA A", "AAAA\n", "ÄAAA", ARABIC_ZERO * 4])
def test_other_base64url_is_malformed(text: str) -> None:
    """No padding, no other alphabet, and no second spelling of the same bytes."""
    assert refused(lambda: validation.parse_base64url(text, bytes_max=256, what="x")) == "malformed"


def test_base64url_above_its_limit_is_too_large() -> None:
    """Before it is decoded; the limit itself is taken."""
    text = validation.format_base64url(bytes(7))
    assert validation.parse_base64url(text, bytes_max=7, what="x") == bytes(7)
    assert refused(lambda: validation.parse_base64url(text, bytes_max=6, what="x")) == "too_large"


# -- ids


@pytest.mark.parametrize("parse", [validation.parse_uuid, validation.parse_device_id])
def test_ids_are_uuids(parse: Callable[[str | bytes], bytes]) -> None:
    """As text in either case, or as bytes."""
    data = bytes.fromhex(UUID_4.replace("-", ""))
    assert parse(UUID_4) == parse(UUID_4.upper()) == parse(data) == data


@pytest.mark.parametrize(
    "value",
    [
        "",
        UUID_4.replace("-", ""),
        "{" + UUID_4 + "}",
        "urn:uuid:" + UUID_4,
        UUID_4 + "\n",
        UUID_4[:-1] + "g",
        UUID_4[:-1] + ARABIC_ZERO,
        "0" * 8 + "-0000-0000-0000-" + "0" * 12,
        "f" * 8 + "-ffff-ffff-ffff-" + "f" * 12,
        b"",
        bytes(15),
        bytes(16),
        b"\xff" * 16,
        bytes(17),
    ],
)
def test_other_ids_are_malformed(value: str | bytes) -> None:
    """No other form of a UUID, not the nil and not the max one."""
    assert refused(lambda: validation.parse_uuid(value)) == "malformed"


def test_event_ids_are_of_version_7() -> None:
    """Other versions are refused, and so is another variant."""
    assert validation.parse_event_id(UUID_7).hex() == UUID_7.replace("-", "")
    assert refused(lambda: validation.parse_event_id(UUID_4)) == "malformed"
    assert refused(lambda: validation.parse_event_id(UUID_7.replace("-8000-", "-c000-"))) == "malformed"
    assert not validation.is_uuid7(b"short")


# -- keys


@pytest.mark.parametrize("parse", [validation.parse_public_key, validation.parse_user_id, validation.parse_server_key])
def test_public_keys_are_taken_as_bytes_or_text(parse: Callable[[str | bytes], bytes]) -> None:
    """Every real key, in hexadecimal or base64url."""
    for name in "abcdefgh":
        key = crypto.ed25519_public(seed(name))
        assert parse(key) == parse(key.hex()) == parse(key.hex().upper()) == key
        assert parse(validation.format_base64url(key)) == key


SMALL_ORDER = [
    bytes(32),
    bytes(31) + b"\x80",
    (1).to_bytes(32, "little"),
    (P - 1).to_bytes(32, "little"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"),
]
NOT_CANONICAL = [
    P.to_bytes(32, "little"),
    (P + 1).to_bytes(32, "little"),
    (2**255 - 1).to_bytes(32, "little"),
    b"\xff" * 32,
    ((1 << 255) | 1).to_bytes(32, "little"),
    ((1 << 255) | (P - 1)).to_bytes(32, "little"),
]
NOT_ON_THE_CURVE = [(2).to_bytes(32, "little"), (7).to_bytes(32, "little")]


@pytest.mark.parametrize("key", SMALL_ORDER + NOT_CANONICAL + NOT_ON_THE_CURVE, ids=bytes.hex)
def test_other_keys_are_malformed_here_and_in_the_extension(key: bytes) -> None:
    """All eight points of small order, every second spelling, and what is no point."""
    assert refused(lambda: validation.parse_public_key(key)) == "malformed"
    assert refused(lambda: _keepstep.DeviceKey(key)) == "malformed"


@pytest.mark.parametrize("vector", load("taming_the_many_eddsas.json")["cases"], ids=lambda each: str(each["number"]))
def test_keys_of_the_edge_cases_are_judged_as_by_the_extension(vector: dict[str, Any]) -> None:
    """Including those of mixed order, which are allowed."""

    def taken(parse: Callable[[bytes], object]) -> bool:
        try:
            parse(bytes.fromhex(vector["public"]))
        except ProtocolError:
            return False
        return True

    assert taken(validation.parse_public_key) == taken(_keepstep.DeviceKey)


@pytest.mark.parametrize(
    "value", [b"", KEY[:-1], KEY + b"\0", "", KEY.hex()[:-1], KEY.hex() + "00", "g" * 64, "+" * 43]
)
def test_keys_of_another_length_are_malformed(value: str | bytes) -> None:
    """32 bytes, or 64 digits."""
    assert refused(lambda: validation.parse_public_key(value)) == "malformed"


# -- names and labels


@pytest.mark.parametrize("name", ["a", "A-Za-z0-9._:@/$-", "x" * 128, "$devices", "a/b/c"])
def test_stream_names_are_taken(name: str) -> None:
    """Of the documented characters, reserved ones included."""
    assert validation.parse_stream_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "x" * 129, "a b", "ä", "a\n", "a\0", "a\\b", "a?b", "a#b", "a%20b", WIDE_A],
)
def test_other_stream_names_are_malformed(name: str) -> None:
    """No spaces, no other alphabet, no trailing line feed."""
    assert refused(lambda: validation.parse_stream_name(name)) == "malformed"
    assert refused(lambda: validation.parse_application_stream(name)) == "malformed"


def test_reserved_names_are_not_for_applications() -> None:
    """A dollar sign is, elsewhere in the name."""
    assert validation.parse_application_stream("a$b") == "a$b"
    assert refused(lambda: validation.parse_application_stream("$devices")) == "forbidden"


@pytest.mark.parametrize(
    ("text", "label"), [("Ana's phone", "Ana's phone"), ("  x ", "x"), ("📱", "📱"), ("ä" * 80, "ä" * 80)]
)
def test_labels_are_taken(text: str, label: str) -> None:
    """Any printable text; the space around it goes."""
    assert validation.parse_label(text) == label


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "malformed"),
        ("  ", "malformed"),
        ("a\nb", "malformed"),
        ("a\0b", "malformed"),
        ("\u202eabc", "malformed"),
        ("\ud800", "malformed"),
        ("ä" * 81, "too_large"),
        (" " * 5000 + "x", "too_large"),
    ],
)
def test_other_labels_are_refused(text: str, code: str) -> None:
    """Nothing that moves a cursor or reverses text on somebody's screen."""
    assert refused(lambda: validation.parse_label(text)) == code


# -- sizes


def test_sizes_are_bounded() -> None:
    """From 0 to the limit."""
    assert validation.parse_size(0, bytes_max=5, what="x") == 0
    assert validation.parse_size(5, bytes_max=5, what="x") == 5
    assert refused(lambda: validation.parse_size(6, bytes_max=5, what="x")) == "too_large"
    assert refused(lambda: validation.parse_size(-1, bytes_max=5, what="x")) == "malformed"


# -- addresses


@pytest.mark.parametrize(
    ("text", "url", "host", "port", "secure"),
    [
        ("ws://localhost:8441/v1/connect#", "ws://localhost:8441/v1/connect", "localhost", 8441, False),
        ("ws://localhost/v1/connect#", "ws://localhost:80/v1/connect", "localhost", 80, False),
        ("wss://sync.example.org/v1/connect#", "wss://sync.example.org:443/v1/connect", "sync.example.org", 443, True),
        ("WSS://Example.ORG:1/v1/connect#", "wss://example.org:1/v1/connect", "example.org", 1, True),
        ("ws://[::1]:65535/v1/connect#", "ws://[::1]:65535/v1/connect", "::1", 65535, False),
    ],
)
def test_server_addresses_carry_the_key(text: str, url: str, host: str, port: int, secure: bool) -> None:
    """Host, port and pinned key; and the address can be written again."""
    address = validation.parse_server_url(text + KEY.hex())
    assert (address.url, address.host, address.port, address.secure) == (url, host, port, secure)
    assert address.server_key == KEY
    assert validation.parse_server_url(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ws://localhost:8441/v1/connect",
        "ws://localhost:8441/v1/connect#",
        "ws://localhost:8441/v1/connect#00",
        "ws://localhost:8441/v1/connect#" + "00" * 32,
        f"ws://localhost:8441/v1/connect#{validation.format_base64url(KEY)}",
        f"http://localhost:8441/v1/connect#{KEY.hex()}",
        f"localhost:8441/v1/connect#{KEY.hex()}",
        f"ws://localhost:8441#{KEY.hex()}",
        f"ws://localhost:8441/v1/connect/#{KEY.hex()}",
        f"ws://localhost:8441/v2/connect#{KEY.hex()}",
        f"ws://user@localhost:8441/v1/connect#{KEY.hex()}",
        f"ws://localhost:8441/v1/connect?x=1#{KEY.hex()}",
        f"ws://localhost:8441/v1/connect?#{KEY.hex()}",
        f"ws://:8441/v1/connect#{KEY.hex()}",
        f"ws:///v1/connect#{KEY.hex()}",
        f"ws://localhost:0/v1/connect#{KEY.hex()}",
        f"ws://localhost:65536/v1/connect#{KEY.hex()}",
        f"ws://localhost:x/v1/connect#{KEY.hex()}",
        f"ws://[::1/v1/connect#{KEY.hex()}",
        f" ws://localhost:8441/v1/connect#{KEY.hex()}",
        f"ws://local host:8441/v1/connect#{KEY.hex()}",
        f"ws://localhost:8441/v1/connect#{KEY.hex()}\n",
        f"ws://löcalhost:8441/v1/connect#{KEY.hex()}",
        f"ws://{'x' * 5000}/v1/connect#{KEY.hex()}",
    ],
)
def test_other_addresses_are_malformed(text: str) -> None:
    """Without a key there is no server to trust; and nothing else may hide in the URL."""
    assert refused(lambda: validation.parse_server_url(text)) == "malformed"


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("http://127.0.0.1:8440", "http://127.0.0.1:8440"),
        ("HTTPS://Rest.Example.ORG/", "https://rest.example.org"),
        ("https://h:443", "https://h"),
        ("http://h:443", "http://h:443"),
        ("http://[::1]:80", "http://[::1]"),
    ],
)
def test_rest_addresses_have_one_spelling(text: str, origin: str) -> None:
    """Device and server sign and verify the same bytes."""
    assert validation.parse_origin(text) == origin


@pytest.mark.parametrize(
    "text",
    [
        *("", "h", "ftp://h", "http://", "http://h/path", "http://h?x", "http://h#key", "http://u@h", "http://u:p@h"),
        *("http://h:0", "http://h:65536", "http://[h", "http://two words", f"http://{WIDE_A}", "http://" + "h" * 512),
    ],
)
def test_other_rest_addresses_are_malformed(text: str) -> None:
    """Nothing but scheme, host and port."""
    assert refused(lambda: validation.parse_origin(text)) == "malformed"
