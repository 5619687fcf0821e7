"""Payloads of snapshots, confirmations and erasures (protocol.md section 3)."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from keepstep.errors import ProtocolError
from keepstep.model import Position
from keepstep.protocol.snapshot import (
    CONFIRM_PAYLOAD_BYTES_MAX,
    ERASE_EVENTS_MAX,
    ERASE_PAYLOAD_BYTES_MAX,
    SNAPSHOT_PAYLOAD_BYTES_MAX,
    ConfirmPayload,
    ErasePayload,
    SnapshotPayload,
    decode_confirm,
    decode_erase,
    decode_snapshot,
    encode_confirm,
    encode_erase,
    encode_snapshot,
)
from tests.support.events import seed

CHAIN = seed("chain")
PHONE, LAPTOP = seed("phone")[:16], seed("laptop")[:16]


def test_each_payload_goes_through_its_bytes() -> None:
    """In the documented forms; an erasure's numbers are put in order."""
    snapshot = encode_snapshot(Position(7, CHAIN), {PHONE: 3, LAPTOP: 4}, b"sealed")
    assert msgspec.msgpack.decode(snapshot, strict=False) == [1, 7, CHAIN, {PHONE: 3, LAPTOP: 4}, b"sealed"]
    assert decode_snapshot(snapshot) == SnapshotPayload(7, CHAIN, {PHONE: 3, LAPTOP: 4}, b"sealed")
    assert decode_confirm(encode_confirm(9)) == ConfirmPayload(9)
    assert msgspec.msgpack.decode(encode_confirm(9)) == [1, 9]
    assert decode_erase(encode_erase({PHONE: [5, 2], LAPTOP: (1,)})) == ErasePayload({PHONE: [2, 5], LAPTOP: [1]})


@pytest.mark.parametrize(
    ("decode", "fields", "code"),
    [
        (decode_snapshot, [2, 7, CHAIN, {PHONE: 3}, b""], "unsupported"),
        (decode_snapshot, [1, 0, CHAIN, {PHONE: 3}, b""], "malformed"),
        (decode_snapshot, [1, 7, CHAIN[1:], {PHONE: 3}, b""], "malformed"),
        (decode_snapshot, [1, 7, CHAIN, {}, b""], "malformed"),
        (decode_snapshot, [1, 7, CHAIN, {PHONE: 0}, b""], "malformed"),
        (decode_snapshot, [1, 7, CHAIN, {PHONE: 3}], "malformed"),
        (decode_confirm, [2, 7], "unsupported"),
        (decode_confirm, [1, 0], "malformed"),
        (decode_confirm, [1, 7, 7], "malformed"),
        (decode_erase, [2, {PHONE: [1]}], "unsupported"),
        (decode_erase, [1, {}], "malformed"),
        (decode_erase, [1, {PHONE: []}], "malformed"),
        (decode_erase, [1, {PHONE: [0]}], "malformed"),
        (decode_erase, [1, {PHONE: [2, 1]}], "malformed"),
        (decode_erase, [1, {PHONE: [1, 1]}], "malformed"),
        (decode_erase, [1, {PHONE[1:]: [1]}], "malformed"),
        (decode_erase, [1, {PHONE: list(range(1, 1001)), LAPTOP: list(range(1, 1001))}], "malformed"),
    ],
)
def test_another_form_is_refused(decode: Callable[[bytes], object], fields: list[object], code: str) -> None:
    """Versions of later are unsupported, everything else is malformed."""
    with pytest.raises(ProtocolError) as caught:
        decode(msgspec.msgpack.encode(fields))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("decode", "bytes_max"),
    [
        (decode_snapshot, SNAPSHOT_PAYLOAD_BYTES_MAX),
        (decode_confirm, CONFIRM_PAYLOAD_BYTES_MAX),
        (decode_erase, ERASE_PAYLOAD_BYTES_MAX),
    ],
)
def test_what_is_too_large_is_not_decoded(decode: Callable[[bytes], object], bytes_max: int) -> None:
    """Each kind has its bound."""
    with pytest.raises(ProtocolError, match="too_large"):
        decode(b"\x92\x01" + bytes(bytes_max))


def test_the_largest_erasure_fits() -> None:
    """As many events as one may name, of one device and of many."""
    numbers = range(2**62, 2**62 + ERASE_EVENTS_MAX)
    assert len(decode_erase(encode_erase({PHONE: numbers})).events[PHONE]) == ERASE_EVENTS_MAX
