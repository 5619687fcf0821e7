"""The payload of a keys event (protocol.md section 5)."""

from __future__ import annotations

import msgspec
import pytest

from keepstep.errors import ProtocolError
from keepstep.protocol.keys import (
    KEYS_PAYLOAD_BYTES_MAX,
    WRAPPED_BYTES,
    WRAPS_MAX,
    KeysPayload,
    decode_keys,
    encode_keys,
)
from tests.support.events import seed

EPOCH = seed("epoch")[:16]
WRAP = bytes(WRAPPED_BYTES)


def device_id(number: int) -> bytes:
    """Some device's id."""
    return number.to_bytes(16, "big")


def test_a_keys_payload_round_trips() -> None:
    """Also with as many devices as one event may wrap for, which stays below the size limit."""
    for count in (1, WRAPS_MAX):
        payload = KeysPayload(EPOCH, 5, {device_id(number): WRAP for number in range(count)})
        assert len(encode_keys(payload)) <= KEYS_PAYLOAD_BYTES_MAX
        assert decode_keys(encode_keys(payload)) == payload


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ([EPOCH, 5, {}], "malformed"),
        ([EPOCH, 5], "malformed"),
        ([EPOCH, 5, {device_id(1): WRAP}, None], "malformed"),
        ([EPOCH[1:], 5, {device_id(1): WRAP}], "malformed"),
        ([EPOCH, -1, {device_id(1): WRAP}], "malformed"),
        ([EPOCH, 5, {device_id(1): WRAP + b"\0"}], "malformed"),
        ([EPOCH, 5, {device_id(1)[1:]: WRAP}], "malformed"),
        ([EPOCH, 5, {device_id(number): WRAP for number in range(WRAPS_MAX + 1)}], "malformed"),
        ([EPOCH, 5, {device_id(1): bytes(KEYS_PAYLOAD_BYTES_MAX)}], "too_large"),
    ],
)
def test_another_form_is_refused(value: object, code: str) -> None:
    """The server reads the shape although it can read nothing inside."""
    with pytest.raises(ProtocolError) as caught:
        decode_keys(msgspec.msgpack.encode(value))
    assert caught.value.code == code
