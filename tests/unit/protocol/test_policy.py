"""Payloads of policy events (protocol.md section 3, Policies). What the server does with them is in tests/contract."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepstep import _keepstep
from keepstep.errors import ProtocolError
from keepstep.model import Kind, Policy, RetentionClass
from keepstep.protocol.event import NO_PREV, TTL_S_MAX
from keepstep.protocol.policy import PolicyPayload, check_change, concurrent_with, decode_policy, encode_policy
from tests.support.events import DeviceFixture, UserFixture, parse

CHAIN = bytes(32)
DEVICE = DeviceFixture(UserFixture("ada"), "phone")


@pytest.mark.parametrize("policy", list(Policy))
@pytest.mark.parametrize("retention_class", list(RetentionClass))
@pytest.mark.parametrize("ttl_max_s", [None, 1, TTL_S_MAX])
@pytest.mark.parametrize("bytes_max", [None, 0, 2**62])
def test_a_policy_goes_through_its_bytes(
    policy: Policy, retention_class: RetentionClass, ttl_max_s: int | None, bytes_max: int | None
) -> None:
    """Five fields in a fixed order."""
    payload = encode_policy(policy, retention_class=retention_class, ttl_max_s=ttl_max_s, stream_bytes_max=bytes_max)
    assert msgspec.msgpack.decode(payload) == [1, policy, retention_class, ttl_max_s, bytes_max]
    assert decode_policy(payload) == PolicyPayload(policy, retention_class, ttl_max_s, bytes_max)


def extension_code(payload: bytes) -> str:
    """What the extension says of a policy event with that payload."""
    try:
        parse(DEVICE.sign("notes", payload, n=1, prev=NO_PREV, kind=Kind.POLICY)).event(0)
    except ProtocolError as error:
        return error.code
    return "accepted"


def code(payload: bytes) -> str:
    """What the protocol's own decoder says."""
    try:
        decode_policy(payload)
    except ProtocolError as error:
        return error.code
    return "accepted"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([1, 0, 1, None, None], "accepted"),
        ([2, 0, 1, None, None], "unsupported"),
        ([1, 4, 1, None, None], "unsupported"),
        ([1, 0, 2, None, None], "unsupported"),
        ([1, 0, 1, None, 1000], "accepted"),
        ([1, 0, 1, None, -1], "malformed"),
        ([1, 0, 1, 0, None], "malformed"),
        ([1, 0, 1, TTL_S_MAX + 1, None], "malformed"),
        ([1, 0, 1, None], "malformed"),
        ([1, 0, 1, None, None, None], "malformed"),
        ([1, b"", 1, None, None], "malformed"),
        ([1, -1, 1, None, None], "malformed"),
        ([], "malformed"),
        ({}, "malformed"),
    ],
)
def test_another_form_is_refused_by_both_decoders(fields: object, expected: str) -> None:
    """Malformed where the bytes are wrong, unsupported where a later version may have it."""
    payload = msgspec.msgpack.encode(fields)
    assert (code(payload), extension_code(payload)) == (expected, expected)


@given(st.binary(max_size=12), st.integers(0, 11))
def test_both_decoders_agree_on_any_bytes(noise: bytes, at: int) -> None:
    """Whatever is put into a good payload's place."""
    damaged = encode_policy(Policy.LATEST, ttl_max_s=300)[:at] + noise
    for payload in (noise, damaged):
        assert (code(payload) == "accepted") == (extension_code(payload) == "accepted")


def test_what_is_longer_than_any_policy_is_refused() -> None:
    """Before it is decoded."""
    with pytest.raises(ProtocolError, match="too_large"):
        decode_policy(b"\x95" + bytes(64))


def test_a_stream_with_events_only_gives_up_append() -> None:
    """And never changes its retention class."""
    for before in Policy:
        for after in Policy:
            payloads = [PolicyPayload(policy, 1, None, None) for policy in (before, after)]
            if before in (Policy.APPEND, after):
                check_change(*payloads)
            else:
                with pytest.raises(ProtocolError, match="unprocessable"):
                    check_change(*payloads)
    with pytest.raises(ProtocolError, match="unprocessable"):
        check_change(PolicyPayload(0, 1, None, None), PolicyPayload(0, 0, None, None))


@pytest.mark.parametrize(
    ("base", "own_seq", "expected"),
    [
        ((4, CHAIN), None, None),
        ((3, CHAIN), None, (4, 4)),
        ((1, CHAIN), None, (2, 4)),
        (None, 4, (1, 4)),
        (7, 4, None),
        (7, 2, (3, 4)),
        (7, None, (1, 4)),
    ],
)
def test_what_an_event_does_not_build_on(
    base: tuple[int, bytes] | int | None, own_seq: int | None, expected: tuple[int, int] | None
) -> None:
    """Of the event at seq 5: everything between its base and itself."""
    assert concurrent_with(Policy.FORK, seq=5, base=base, own_seq=own_seq) == expected
    assert concurrent_with(Policy.APPEND, seq=5, base=base, own_seq=own_seq) is None


def test_the_extension_knows_the_same_policies() -> None:
    """By number."""
    for policy in Policy:
        head = _keepstep.StreamHead.load(
            user_pk=1,
            stream_pk=3,
            name="notes",
            retention_class=1,
            policy=policy,
            ttl_max_s=60,
            seq=0,
            chain=CHAIN,
            received_at_ms=0,
            auth_epoch=0,
            authors_packed=b"",
        )
        assert (head.policy, head.ttl_max_s) == (policy, 60)
    with pytest.raises(ValueError, match="policy"):
        _keepstep.StreamHead.load(
            user_pk=1,
            stream_pk=3,
            name="notes",
            retention_class=1,
            policy=4,
            seq=0,
            chain=CHAIN,
            received_at_ms=0,
            auth_epoch=0,
            authors_packed=b"",
        )
