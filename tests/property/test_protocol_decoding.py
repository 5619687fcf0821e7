"""Whatever bytes arrive, decoding gives a value or a ``ProtocolError``; and values survive their encoding."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from keepstep.client import crypto
from keepstep.errors import ProtocolError, VerificationError
from keepstep.model import Capability, DeviceEntry
from keepstep.protocol.account_payloads import (
    FULL_CAPABILITIES,
    EnrolPayload,
    GenesisPayload,
    decode_account,
    encode_enrol,
    encode_genesis,
)
from keepstep.protocol.account_state import decode_account_state
from keepstep.protocol.chain import Head, decode_head, encode_head, verify_head
from keepstep.protocol.event import TTL_S_MAX, Header, decode_header
from keepstep.protocol.keys import WRAPPED_BYTES, KeysPayload, decode_keys, encode_keys
from keepstep.protocol.messages import (
    INTEGER_MAX,
    SUBSCRIBE_STREAMS_MAX,
    Ack,
    CaughtUp,
    Error,
    Events,
    Ping,
    Read,
    Ready,
    Resumed,
    Subscribe,
    decode_client_auth,
    decode_client_auth_core,
    decode_client_hello,
    decode_from_device,
    decode_from_server,
    decode_ready,
    decode_server_hello,
    decode_server_hello_core,
    encode,
)
from keepstep.protocol.streamstate import decode_state, state_at_start
from tests.support.scripted_log import ScriptedUser, follow

if TYPE_CHECKING:
    from collections.abc import Callable

integers = st.integers(0, INTEGER_MAX)
chains = st.binary(min_size=32, max_size=32)
ids = st.binary(min_size=16, max_size=16)
sigs = st.binary(min_size=64, max_size=64)
names = st.from_regex(r"\A[A-Za-z0-9._:@/$-]{1,128}\Z")
positions = st.tuples(integers, chains)
heads = st.tuples(st.binary(max_size=512), sigs)
event_ids = ids.map(lambda data: data[:6] + bytes([data[6] & 0x0F | 0x70, data[7], data[8] & 0x3F | 0x80]) + data[9:])

headers = st.builds(
    Header,
    kind=st.one_of(st.sampled_from([0, 5, 6]), integers),
    id=event_ids,
    stream=names,
    n=st.integers(1, INTEGER_MAX),
    prev=ids,
    base=st.one_of(st.none(), integers, positions),
    seen=positions,
    devices_seen=positions,
    key=st.none() | ids,
    hlc=integers,
    ttl_s=st.none() | st.integers(1, TTL_S_MAX),
    payload_len=st.just(0) | integers,
    payload_hash=st.just(crypto.blake3(b"")) | chains,
)
rows = st.tuples(integers, ids, integers, st.binary(max_size=50), sigs, st.none() | st.binary(max_size=50), st.none())
entries = st.builds(
    DeviceEntry,
    device_id=ids,
    device_key=chains,
    box_key=chains,
    capabilities=st.integers(0, 7).map(Capability),
    issued_at_ms=integers,
    expires_at_ms=st.none() | integers,
    sealed_label=st.binary(max_size=256),
)

# MessagePack values of any shape, with words and sizes that the protocol knows, so that they get past the first checks
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["all", "none", "start", "end", "notes", "$devices", "contiguous", 0, 1, 2, 3, 4, 16, 18, 64, 65]),
    st.binary(max_size=70),
    ids,
    chains,
    sigs,
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=15) | st.dictionaries(st.text(max_size=4) | ids, inner, max_size=3),
    max_leaves=25,
)
types = st.one_of(st.integers(0, 30), st.integers(60, 80), st.integers(-1, 300))
messages = st.builds(lambda kind, fields: [kind, *fields], types, st.lists(values, max_size=14))


def mutated(data: bytes, cuts: list[tuple[int, int, bytes]]) -> bytes:
    """Some bytes with pieces replaced: (where, how many, by what)."""
    for where, count, piece in cuts:
        at = where % (len(data) + 1)
        data = data[:at] + piece + data[at + count :]
    return data


cuts = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 4), st.binary(max_size=4)), min_size=1, max_size=4)
any_bytes = st.one_of(
    st.binary(max_size=600),
    messages.map(msgspec.msgpack.encode),
    values.map(msgspec.msgpack.encode),
    st.builds(mutated, messages.map(msgspec.msgpack.encode), cuts),
    st.builds(mutated, headers.map(encode), cuts),
    st.builds(mutated, entries.map(encode_enrol), cuts),
    st.builds(lambda count, end: b"\x91" * count + end, st.integers(1, 3000), st.binary(max_size=3)),
)

DECODERS: Final[list[Callable[[bytes], Any]]] = [
    decode_from_device,
    decode_from_server,
    decode_client_hello,
    decode_server_hello,
    decode_server_hello_core,
    decode_client_auth,
    decode_client_auth_core,
    decode_ready,
    decode_header,
    decode_head,
    decode_account,
    decode_account_state,
    decode_keys,
    decode_state,
]


@settings(max_examples=60)
@pytest.mark.parametrize("decode", DECODERS, ids=lambda each: each.__name__)
@given(data=any_bytes)
def test_no_bytes_raise_anything_but_a_protocol_error(decode: Callable[[bytes], Any], data: bytes) -> None:
    """Random bytes, random MessagePack, and damaged messages: a value comes out, or the one error."""
    with contextlib.suppress(ProtocolError):
        decode(data)


STRICT: Final[list[Callable[[bytes], Any]]] = [
    decode_server_hello_core,
    decode_client_auth_core,
    decode_header,
    decode_head,
    decode_keys,
    decode_state,
]


@settings(max_examples=60)
@pytest.mark.parametrize("decode", STRICT, ids=lambda each: each.__name__)
@given(data=any_bytes)
def test_what_is_hashed_has_one_encoding(decode: Callable[[bytes], Any], data: bytes) -> None:
    """Whatever bytes a strict decoder takes, encoding its value gives exactly those bytes."""
    try:
        value = decode(data)
    except ProtocolError:
        return
    assert encode(value) == data


@given(header=headers)
def test_headers_round_trip(header: Header) -> None:
    """Every header that can be made is read as it was."""
    assert decode_header(header.encode()) == header


@given(user_key=chains, stream=names, epoch=integers, seq=integers, chain=chains, time_ms=integers)
def test_heads_round_trip(user_key: bytes, stream: str, epoch: int, seq: int, chain: bytes, time_ms: int) -> None:
    """Every head that can be made is read as it was."""
    head = Head(user_key, stream, epoch, seq, chain, time_ms)
    assert decode_head(encode_head(head)) == head


@given(signed=heads)
def test_heads_that_nobody_signed_are_refused(signed: tuple[bytes, bytes]) -> None:
    """By one error, whatever the bytes."""
    with pytest.raises(ProtocolError):
        verify_head(crypto, crypto.ed25519_public(bytes(32)), signed)


@given(entry=entries)
def test_account_payloads_round_trip(entry: DeviceEntry) -> None:
    """Every device entry goes through enrolment and genesis unchanged."""
    assert decode_account(encode_enrol(entry)) == EnrolPayload(entry)
    genesis = encode_genesis(crypto, root_secret=bytes(32), next_root_key=bytes(32), device=entry)
    decoded = decode_account(genesis)
    assert isinstance(decoded, GenesisPayload)
    assert decoded.device == entry
    assert entry.capabilities | FULL_CAPABILITIES == FULL_CAPABILITIES


@given(epoch=ids, after=integers, devices=st.sets(ids, min_size=1, max_size=5))
def test_keys_payloads_round_trip(epoch: bytes, after: int, devices: set[bytes]) -> None:
    """Every set of wraps."""
    payload = KeysPayload(epoch, after, {device: bytes(WRAPPED_BYTES) for device in devices})
    assert decode_keys(encode_keys(payload)) == payload


device_messages = st.one_of(
    st.builds(Ping, integers),
    st.builds(Ack, st.dictionaries(names, st.tuples(integers, ids), max_size=4)),
    st.builds(
        Subscribe,
        st.just("all") | st.dictionaries(names, positions | st.sampled_from(["start", "end"]), max_size=4),
    ),
    st.builds(Read, integers, names, integers, st.integers(1, 1000)),
)
server_messages = st.one_of(
    st.builds(Events, names, st.lists(rows, max_size=3), chains),
    st.builds(CaughtUp, names, heads),
    st.builds(Resumed, names, st.just("contiguous"), st.none() | heads, positions),
    st.builds(Error, st.none() | integers, st.text(max_size=32), st.none() | integers),
)


@given(message=device_messages)
def test_messages_of_devices_round_trip(message: Any) -> None:
    """Every message with every value."""
    assert decode_from_device(encode(message)) == message


@given(message=server_messages)
def test_messages_of_the_server_round_trip(message: Any) -> None:
    """Every message with every value."""
    assert decode_from_server(encode(message)) == message


@given(limits=st.dictionaries(st.text(max_size=8), integers, max_size=4), session=ids, number=integers)
def test_ready_round_trips(limits: dict[str, int], session: bytes, number: int) -> None:
    """With any limits."""
    ready = Ready(session, number, limits, [], [])
    assert decode_ready(encode(ready)) == ready


@given(count=st.integers(SUBSCRIBE_STREAMS_MAX + 1, SUBSCRIBE_STREAMS_MAX + 50))
def test_too_many_streams_in_one_message_are_malformed(count: int) -> None:
    """The bound holds wherever it is passed."""
    data = msgspec.msgpack.encode([19, [f"s{number}" for number in range(count)]])
    with pytest.raises(ProtocolError, match="malformed"):
        decode_from_device(data)


USER: Final = ScriptedUser()
STREAM: Final = USER.stream()
for _ in range(4):
    STREAM.append(USER.laptop)
ACCOUNT: Final = USER.account()


@settings(max_examples=50)
@given(
    index=st.integers(0, 3),
    field=st.integers(0, 5),
    value=st.one_of(values, st.builds(mutated, st.sampled_from([row[3] for row in STREAM.rows]), cuts)),
)
def test_a_reader_never_takes_a_page_with_another_row(index: int, field: int, value: Any) -> None:
    """One field of one row replaced by any value of its type: the same row, withheld payload, or the reader stops."""
    row = STREAM.rows[index]
    assume(type(value) is type(row[field]) and value != row[field])
    assume(field not in (0, 2) or 0 <= value <= INTEGER_MAX)
    assume(field not in (1, 4) or len(value) == {1: 16, 4: 64}[field])
    changed = (*row[:field], value, *row[field + 1 :])
    page = [*STREAM.rows[:index], changed, *STREAM.rows[index + 1 :]]
    reader = follow(STREAM, account=ACCOUNT)
    with pytest.raises(VerificationError):
        reader.feed(page, STREAM.chains[4])
    assert reader.state == state_at_start(crypto, USER.user_key, STREAM.name)
