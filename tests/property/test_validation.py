"""Whatever text or bytes come in: the value, always with one spelling, or a ``ProtocolError``."""

from __future__ import annotations

import contextlib
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepstep import _keepstep, validation
from keepstep.client import crypto
from keepstep.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

KEY: Final = crypto.ed25519_public(bytes(32)).hex()

TEXT_PARSERS: Final[list[Callable[[str], Any]]] = [
    partial(validation.parse_hex, size=4, what="x"),
    partial(validation.parse_base64url, bytes_max=64, what="x"),
    validation.parse_uuid,
    validation.parse_device_id,
    validation.parse_event_id,
    validation.parse_public_key,
    validation.parse_user_id,
    validation.parse_server_key,
    validation.parse_stream_name,
    validation.parse_application_stream,
    validation.parse_label,
    validation.parse_server_url,
    validation.parse_origin,
]
BYTES_PARSERS: Final[list[Callable[[bytes], Any]]] = [
    validation.parse_uuid,
    validation.parse_event_id,
    validation.parse_public_key,
]
texts = st.one_of(
    st.text(),
    st.text("0123456789abcdefABCDEF-", max_size=70),
    st.from_regex(r"wss?://[a-z0-9\[\]:.@%]{0,12}(/v1/connect)?#?"),
    st.builds(
        "{}://{}:{}/v1/connect#{}".format,
        st.sampled_from(["ws", "wss", "http"]),
        st.text(max_size=6),
        st.integers(-1, 70_000),
        st.sampled_from([KEY, "", KEY[1:]]),
    ),
)


def name_of(parse: Any) -> str:
    """What a parser is called."""
    return str(getattr(parse, "func", parse).__name__)


@pytest.mark.parametrize("parse", TEXT_PARSERS, ids=name_of)
@given(text=texts)
def test_no_text_raises_anything_but_a_protocol_error(parse: Callable[[str], Any], text: str) -> None:
    """Random text, digits of all scripts, half a URL."""
    with contextlib.suppress(ProtocolError):
        parse(text)


@pytest.mark.parametrize("parse", BYTES_PARSERS, ids=name_of)
@given(data=st.binary(max_size=70))
def test_no_bytes_raise_anything_but_a_protocol_error(parse: Callable[[bytes], Any], data: bytes) -> None:
    """Bytes come back as they are, or not at all."""
    with contextlib.suppress(ProtocolError):
        assert parse(data) == data


@given(data=st.binary(max_size=100))
def test_text_forms_of_bytes_round_trip(data: bytes) -> None:
    """Hexadecimal and base64url."""
    assert validation.parse_hex(data.hex(), size=len(data), what="x") == data
    assert validation.parse_base64url(validation.format_base64url(data), bytes_max=100, what="x") == data


@given(text=st.text("ABCDwxyz0189-_", max_size=12))
def test_base64url_has_one_spelling(text: str) -> None:
    """Whatever is taken would be written the same way."""
    with contextlib.suppress(ProtocolError):
        assert validation.format_base64url(validation.parse_base64url(text, bytes_max=100, what="x")) == text


@given(value=st.uuids(allow_nil=False))
def test_uuids_round_trip(value: uuid.UUID) -> None:
    """In their usual form, whatever their version."""
    assert validation.parse_uuid(str(value)) == value.bytes


@given(name=st.from_regex(r"\A[A-Za-z0-9._:@/$-]{1,128}\Z"))
def test_stream_names_are_taken(name: str) -> None:
    """Every name of the documented characters."""
    assert validation.parse_stream_name(name) == name


@given(seed=st.binary(min_size=32, max_size=32))
def test_every_real_key_is_taken(seed: bytes) -> None:
    """No key that a device can generate is refused."""
    key = crypto.ed25519_public(seed)
    assert validation.parse_public_key(key) == key


@given(key=st.binary(min_size=32, max_size=32))
def test_keys_are_judged_as_by_the_extension(key: bytes) -> None:
    """Two implementations of the rule of protocol.md section 1 agree on every 32 bytes."""

    def taken(parse: Callable[[bytes], Any]) -> bool:
        try:
            parse(key)
        except ProtocolError:
            return False
        return True

    assert taken(validation.parse_public_key) == taken(_keepstep.DeviceKey)


@given(
    host=st.one_of(st.from_regex(r"\A[a-z][a-z0-9-]{0,20}(\.[a-z]{2,5})?\Z"), st.ip_addresses(v=4).map(str)),
    port=st.integers(1, 65_535),
    secure=st.booleans(),
)
def test_server_addresses_round_trip(host: str, port: int, secure: bool) -> None:
    """Every host and port."""
    text = f"{'wss' if secure else 'ws'}://{host}:{port}/v1/connect#{KEY}"
    address = validation.parse_server_url(text)
    assert (str(address), address.host, address.port, address.secure) == (text, host, port, secure)
