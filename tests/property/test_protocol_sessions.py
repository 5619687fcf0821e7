"""A whole handshake and session between the two state machines, without a socket, under every kind of interference."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from keepstep.errors import ProtocolError
from keepstep.protocol import session as session_module
from keepstep.protocol.messages import (
    Ack,
    Bye,
    Draining,
    Head,
    Ping,
    Pong,
    Publish,
    Rekey,
    ServerRekey,
    decode_from_device,
    encode,
)
from keepstep.protocol.session import REKEY_INTERVAL_S
from keepstep.protocol.states import State
from tests.support.handshakes import (
    CLIENT,
    EXTENSION,
    READY,
    make_client,
    make_server,
    open_sessions,
    record_handshake,
)
from tests.support.records import record_reader

if TYPE_CHECKING:
    from keepstep.protocol.handshake import ClientHandshake, ServerHandshake
    from keepstep.protocol.primitives import Primitives

SIDES: Final = [
    pytest.param(EXTENSION, CLIENT, 2, id="server on the extension, device on libsodium, suite 2"),
    pytest.param(EXTENSION, EXTENSION, 1, id="both on the extension, suite 1"),
    pytest.param(CLIENT, EXTENSION, 2, id="server on libsodium, device on the extension, suite 2"),
]
GOOD: Final = record_handshake(make_server(), make_client())
WIRE: Final = [GOOD.hello, GOOD.server_hello, GOOD.client_auth, GOOD.ready]

interference = st.one_of(
    st.binary(max_size=400),
    st.sampled_from(WIRE),
    st.builds(lambda data, cut: data[:cut], st.sampled_from(WIRE), st.integers(0, 400)),
    st.builds(lambda data, tail: data + tail, st.sampled_from(WIRE), st.binary(min_size=1, max_size=3)),
)


def step(side: ServerHandshake | ClientHandshake, call: str, data: bytes) -> None:
    """One call on one side; only a protocol error may come out."""
    arguments: dict[str, Any] = {"now_s": 0} if call == "receive_ready" else {}
    with contextlib.suppress(ProtocolError):
        getattr(side, call)(data, **arguments)


@given(calls=st.lists(st.tuples(st.sampled_from(["receive_hello", "receive_auth"]), interference), max_size=6))
def test_a_server_survives_any_sequence_of_messages(calls: list[tuple[str, bytes]]) -> None:
    """Whatever is sent in whatever order: an answer or a protocol error, and active only after a real proof."""
    server = make_server()
    for call, data in calls:
        step(server, call, data)
    assert server.state is not State.ACTIVE
    if server.state is State.AWAIT_READY:
        assert GOOD.client_auth in [data for _, data in calls]


@given(calls=st.lists(st.tuples(st.sampled_from(["receive_server_hello", "receive_ready"]), interference), max_size=6))
def test_a_device_survives_any_sequence_of_messages(calls: list[tuple[str, bytes]]) -> None:
    """The same for the other side: active only with the real server's Ready."""
    client = make_client()
    for call, data in calls:
        step(client, call, data)
    if client.state is State.ACTIVE:
        assert ("receive_ready", GOOD.ready) in calls
    if client.state is not State.AWAIT_HELLO and client.state is not State.CLOSED:
        assert ("receive_server_hello", GOOD.server_hello) in calls


@pytest.mark.parametrize(("server", "client", "suite"), SIDES)
@given(
    nonces=st.tuples(*[st.binary(min_size=32, max_size=32).filter(any)] * 2),
    ephemerals=st.tuples(*[st.binary(min_size=32, max_size=32)] * 2),
    resume=st.sampled_from(["all", "none"]) | st.tuples(st.tuples(st.integers(0, 2**40), st.just(bytes(32)))),
    options=st.dictionaries(st.text(max_size=8), st.integers(-5, 5) | st.text(max_size=8), max_size=3),
)
def test_handshakes_succeed_with_any_nonces_and_ephemerals(
    server: Primitives, client: Primitives, suite: int, nonces: Any, ephemerals: Any, resume: Any, options: Any
) -> None:
    """There are no unlucky random bytes, and the device's core arrives as it was."""
    server_side = make_server(server, nonce=nonces[0], ephemeral_secret=ephemerals[0], suites=(suite,))
    client_side = make_client(
        client, nonce=nonces[1], ephemeral_secret=ephemerals[1], suites=(suite,), resume=resume, options=options
    )
    auth = client_side.receive_server_hello(server_side.receive_hello(client_side.hello()))
    core = server_side.receive_auth(auth)
    assert (core.resume, core.options) == (resume, options)
    sealed, _ = server_side.ready(READY, now_s=0)
    assert client_side.receive_ready(sealed, now_s=0)[0] == READY


@given(record=st.binary(max_size=200), before=st.integers(0, 3))
def test_a_record_that_nobody_sealed_never_opens(record: bytes, before: int) -> None:
    """At any point of a session, on either side."""
    server, client = open_sessions()
    for number in range(before):
        server.receive(client.send([Ping(number)], now_s=0)[0])
        client.receive(server.send([Pong(number)], now_s=0)[0])
    for session in (server, client):
        with pytest.raises(ProtocolError) as caught:
            session.receive(record)
        assert caught.value.code == "bad_record"
        assert session.state is State.CLOSED


@pytest.mark.parametrize("by_device", [True, False], ids=["device", "server"])
@given(plaintext=st.binary(max_size=100))
def test_a_sealed_message_of_any_bytes_gives_a_message_or_a_protocol_error(by_device: bool, plaintext: bytes) -> None:
    """An authenticated peer may send anything inside its records; all but unknown types close."""
    server, client = open_sessions()
    receiver = server if by_device else client
    (record,) = (client if by_device else server).send([plaintext], now_s=0)
    code = None
    try:
        receiver.receive(record)
    except ProtocolError as error:
        code = error.code
    assert (receiver.state is State.CLOSED) == (code not in (None, "unsupported"))


publishes = st.builds(
    lambda rid, events, tail: encode(Publish(rid, msgspec.Raw(msgspec.msgpack.encode(events)))) + tail,
    st.integers(0, 2**63 - 1),
    st.recursive(st.none() | st.integers(-5, 5) | st.binary(max_size=5), st.lists, max_leaves=5),
    st.just(b"") | st.binary(max_size=2),
)
headed = st.builds(
    lambda head, rest: bytes([0x90 | head[0], head[1]]) + rest,
    st.tuples(st.integers(0, 5), st.sampled_from([16, 25, 26, 27, 99])),
    st.binary(max_size=40),
)
nested = st.builds(
    lambda head, opening, depth: head + opening * depth + b"\xc0",
    st.sampled_from([b"\x93\x10\x07", b"\x94\x10\x07\x90", b"\x92\x1a"]),
    st.sampled_from([b"\x91", b"\x81\x05"]),
    st.integers(0, 64) | st.just(500_000),
)
"""What is passed over, with as many levels as the extension takes, or more than any interpreter does."""


@given(plaintext=st.one_of(publishes, headed, nested, st.binary(max_size=40)))
def test_the_extension_reads_a_record_as_the_state_machine_does(plaintext: bytes) -> None:
    """What ends the session ends it by both, with the same code, and a message is the same message."""
    server, client = open_sessions()
    (record,) = client.send([plaintext], now_s=0)
    opened: Any = record_reader(opener=server.opener).read([record])[0]
    try:
        if isinstance(opened, ProtocolError):
            raise opened
        found: Any = opened if isinstance(opened, tuple) else decode_from_device(opened)
    except ProtocolError as error:
        found = error.code
    other, client = open_sessions()
    (record,) = client.send([plaintext], now_s=0)
    try:
        expected: Any = other.receive(record)
    except ProtocolError as error:
        expected = error.code
    if isinstance(expected, Publish):
        assert isinstance(found, tuple)
        assert found[0] == expected.rid
    else:
        assert found == expected


device_messages = st.one_of(
    st.builds(Ping, st.integers(0, 2**63 - 1)),
    st.builds(Ack, st.dictionaries(st.sampled_from(["a", "b"]), st.tuples(st.integers(0, 9), st.just(bytes(16))))),
)
server_messages = st.one_of(
    st.builds(Pong, st.integers(0, 2**63 - 1)),
    st.builds(Head, st.just("a"), st.tuples(st.binary(max_size=9), st.just(bytes(64)))),
)


class Conversation(RuleBasedStateMachine):
    """Both sides send and receive in any order, with records in flight both ways, over rekeys, until one leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(session_module, "REKEY_RECORDS", 7)
        self.now_s = 0.0
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        self.sent_up: list[Any] = []
        self.sent_down: list[Any] = []
        self.got_up: list[Any] = []
        self.got_down: list[Any] = []

    @initialize(sides=st.sampled_from([(EXTENSION, CLIENT, 2), (EXTENSION, EXTENSION, 1), (CLIENT, EXTENSION, 2)]))
    def open(self, sides: tuple[Primitives, Primitives, int]) -> None:
        """A fresh session."""
        self.server, self.client = open_sessions(server=sides[0], client=sides[1], suites=(sides[2],))

    @rule(messages=st.lists(device_messages, max_size=10), encoded=st.booleans())
    def device_sends(self, messages: list[Any], encoded: bool) -> None:
        """A batch, as structs or encoded beforehand."""
        self.up += self.client.send([encode(each) for each in messages] if encoded else messages, now_s=self.now_s)
        self.sent_up += messages

    @rule(messages=st.lists(server_messages, max_size=10), encoded=st.booleans())
    def server_sends(self, messages: list[Any], encoded: bool) -> None:
        """The other way."""
        self.down += self.server.send([encode(each) for each in messages] if encoded else messages, now_s=self.now_s)
        self.sent_down += messages

    @rule(count=st.integers(1, 5))
    def server_receives(self, count: int) -> None:
        """Some of the records in flight, in order."""
        for record in self.up[:count]:
            message = self.server.receive(record)
            if not isinstance(message, Rekey):
                self.got_up.append(message)
        del self.up[:count]

    @rule(count=st.integers(1, 5))
    def device_receives(self, count: int) -> None:
        """The other way."""
        for record in self.down[:count]:
            message = self.client.receive(record)
            if not isinstance(message, ServerRekey):
                self.got_down.append(message)
        del self.down[:count]

    @rule(seconds=st.sampled_from([1.0, REKEY_INTERVAL_S]))
    def time_passes(self, seconds: float) -> None:
        """Enough for a rekey, or not."""
        self.now_s += seconds

    @rule()
    def server_drains(self) -> None:
        """It says so, and goes on."""
        self.down += self.server.send([Draining(1)], now_s=self.now_s)
        self.sent_down.append(Draining(1))

    @rule()
    def device_leaves(self) -> None:
        """It says so; what is in flight still arrives."""
        self.up += self.client.send([Bye()], now_s=self.now_s)
        self.sent_up.append(Bye())

    @invariant()
    def everything_arrives_once_and_in_order(self) -> None:
        """What was received is the beginning of what was sent, and all of it once nothing is in flight."""
        assert self.got_up == self.sent_up[: len(self.got_up)]
        assert self.got_down == self.sent_down[: len(self.got_down)]
        if not self.up:
            assert len(self.got_up) == len(self.sent_up)
        if not self.down:
            assert len(self.got_down) == len(self.sent_down)

    def teardown(self) -> None:
        """Put the limit back."""
        self.patch.undo()


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=30, stateful_step_count=30)
