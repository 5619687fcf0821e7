"""The handshake, both sides (protocol.md section 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from keepstep.client import crypto
from keepstep.errors import DeviceRevoked, ProtocolError
from keepstep.protocol import transcript
from keepstep.protocol.messages import (
    HANDSHAKE_MESSAGE_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    Ping,
    Pong,
    Revoked,
    ServerHello,
    ServerHelloCore,
    encode,
)
from keepstep.protocol.primitives import RECORD_TAG_BYTES
from keepstep.protocol.states import State
from tests.support.events import seed
from tests.support.handshakes import (
    CLIENT,
    DEVICE_ID,
    DEVICE_KEY,
    EXTENSION,
    READY,
    SERVER_KEY,
    SERVER_SECRET,
    USER_KEY,
    make_client,
    make_server,
    open_sessions,
    record_handshake,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepstep.protocol.primitives import Primitives

unpack = msgspec.msgpack.decode
pack = msgspec.msgpack.encode


def refused(call: Callable[[], object]) -> str:
    """The code of the error that a call raises."""
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value.code


# -- what succeeds


@pytest.mark.parametrize(
    ("server", "client", "suites"),
    [
        (EXTENSION, CLIENT, (2,)),
        (CLIENT, EXTENSION, (2,)),
        (EXTENSION, EXTENSION, (1,)),
        (EXTENSION, EXTENSION, (2,)),
        (CLIENT, CLIENT, (2,)),
    ],
)
def test_both_sides_share_a_session(server: Primitives, client: Primitives, suites: tuple[int, ...]) -> None:
    """Whichever library computes either side, they end with the same exporter and read each other's records."""
    server_side, client_side = make_server(server, suites=suites), make_client(client, suites=suites)
    messages = record_handshake(server_side, client_side)
    assert len({messages.hello, messages.server_hello, messages.client_auth, messages.ready}) == 4
    assert server_side.state is client_side.state is State.ACTIVE
    assert client_side.server.suite == suites[0]


def test_the_server_learns_who_the_device_claims_to_be() -> None:
    """The core of ClientAuth comes out as the device put it in."""
    server, client = make_server(), make_client(resume=((3, seed("chain")),), options={"x": [1, None]})
    core = server.receive_auth(client.receive_server_hello(server.receive_hello(client.hello())))
    assert (core.user_key, core.device_id, core.device_key) == (USER_KEY, DEVICE_ID, DEVICE_KEY)
    assert core.resume == ((3, seed("chain")),)
    assert core.options == {"x": [1, None]}


def test_the_device_learns_the_servers_clock_and_epoch() -> None:
    """They are signed, so a device with a wrong clock can connect and knows it."""
    server, client = make_server(server_time_ms=99, epoch=7), make_client()
    client.receive_server_hello(server.receive_hello(client.hello()))
    assert (client.server.server_time_ms, client.server.epoch) == (99, 7)


@pytest.mark.parametrize(
    ("preferred", "offered", "chosen"), [((1, 2), (2, 1), 1), ((2, 1), (1, 2), 2), ((1, 2), (9, 2), 2), ((1,), (1,), 1)]
)
def test_the_server_prefers_among_the_offered_suites(
    preferred: tuple[int, ...], offered: tuple[int, ...], chosen: int
) -> None:
    """The first of the server's suites that the device offers is used; unknown offers are passed over."""
    server, client = make_server(suites=preferred), make_client(EXTENSION, suites=offered)
    record_handshake(server, client)
    assert client.server.suite == chosen


def test_the_hello_is_the_same_each_time_it_is_asked_for() -> None:
    """Asking twice neither changes the transcript nor the state."""
    client = make_client()
    assert client.hello() == client.hello()
    assert client.state is State.AWAIT_HELLO


def test_fields_of_a_later_version_may_follow_in_the_hello() -> None:
    """A hello with more fields is understood; they are part of the transcript, so both sides must hash them."""
    server, client = make_server(), make_client()
    extended = pack([*unpack(client.hello()), b"a key share of suite 3"])
    server.receive_hello(extended)
    assert server.state is State.AWAIT_AUTH


def test_ready_is_the_first_record_of_the_servers_direction() -> None:
    """The next record of the server has counter 1: under counter 0 it would not open."""
    server_session, client_session = open_sessions()
    (record,) = server_session.send([b"\x92\x48\x01"], now_s=0)
    assert client_session.receive(record) == Pong(1)
    (record,) = client_session.send([Ping(1)], now_s=0)
    assert server_session.receive(record) == Ping(1)


# -- what the server refuses


def changed_hello(index: int, value: object) -> bytes:
    """A ClientHello with another value in one field."""
    hello = unpack(make_client().hello())
    hello[index] = value
    return pack(hello)


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        (changed_hello(4, bytes(32)), "malformed"),
        (changed_hello(4, bytes(31)), "malformed"),
        (changed_hello(3, bytes(32)), "malformed"),
        (changed_hello(3, (1).to_bytes(32, "little")), "malformed"),
        (changed_hello(1, []), "malformed"),
        (changed_hello(2, []), "malformed"),
        (changed_hello(1, list(range(2, 11))), "malformed"),
        (changed_hello(1, [2]), "unsupported"),
        (changed_hello(2, [3]), "unsupported"),
        (changed_hello(2, [0]), "unsupported"),
        (changed_hello(0, 2), "unexpected"),
        (changed_hello(0, 99), "unsupported"),
        (b"", "malformed"),
        (make_client().hello() + b"\0", "malformed"),
        (bytes(HANDSHAKE_MESSAGE_BYTES_MAX + 1), "too_large"),
    ],
)
@pytest.mark.parametrize("primitives", [EXTENSION, CLIENT], ids=["extension", "client"])
def test_a_wrong_hello_closes(primitives: Primitives, hello: bytes, code: str) -> None:
    """All-zero nonces, keys of small order, unknown versions and suites, other messages: refused, and nothing after."""
    server = make_server(primitives, suites=(2,))
    assert refused(lambda: server.receive_hello(hello)) == code
    assert server.state is State.CLOSED
    assert refused(lambda: server.receive_hello(make_client().hello())) == "unexpected"


def server_awaiting_auth() -> tuple[Any, bytes]:
    """A server that has answered the hello, and the ClientAuth it should get."""
    server, client = make_server(), make_client()
    return server, client.receive_server_hello(server.receive_hello(client.hello()))


def test_a_forged_proof_closes() -> None:
    """A record that does not open under the handshake's key is bad_record."""
    server, _ = server_awaiting_auth()
    assert refused(lambda: server.receive_auth(bytes(300))) == "bad_record"
    assert server.state is State.CLOSED


def test_an_oversized_proof_closes() -> None:
    """The limit holds before anything is opened."""
    server, _ = server_awaiting_auth()
    assert refused(lambda: server.receive_auth(bytes(HANDSHAKE_MESSAGE_BYTES_MAX + 1))) == "too_large"


def test_a_replayed_handshake_does_not_open() -> None:
    """A recorded ClientAuth is worthless to a server with a fresh nonce and ephemeral."""
    recorded = record_handshake(make_server(), make_client())
    server = make_server(nonce=seed("another nonce"), ephemeral_secret=seed("another ephemeral"))
    server.receive_hello(recorded.hello)
    assert refused(lambda: server.receive_auth(recorded.client_auth)) == "bad_record"


def test_a_fresh_nonce_alone_defeats_a_replay() -> None:
    """Even with the server's ephemeral repeated, the transcript differs."""
    recorded = record_handshake(make_server(), make_client())
    server = make_server(nonce=seed("another nonce"))
    server.receive_hello(recorded.hello)
    assert refused(lambda: server.receive_auth(recorded.client_auth)) == "bad_record"


def test_auth_before_hello_is_unexpected() -> None:
    """There is no key yet to open it with."""
    assert refused(lambda: make_server().receive_auth(b"x")) == "unexpected"


def test_a_second_auth_is_unexpected() -> None:
    """While the device is being looked up nothing is taken."""
    server, auth = server_awaiting_auth()
    server.receive_auth(auth)
    assert server.state.value == "await_ready"
    assert refused(lambda: server.receive_auth(auth)) == "unexpected"
    assert server.state is State.CLOSED


def test_ready_before_auth_is_unexpected() -> None:
    """No session without a device that has proven its key."""
    server, _ = server_awaiting_auth()
    assert refused(lambda: server.ready(READY, now_s=0)) == "unexpected"


def auth_by(plaintext: Callable[[bytes, bytes, bytes], bytes]) -> str:
    """The code a server answers to a ClientAuth that a faulty device made.

    ``plaintext`` gets th1, s_sig and a good core and gives what is sealed.
    """
    server, client = make_server(), make_client()
    hello = client.hello()
    server_hello = unpack(server.receive_hello(hello))
    first = transcript.th1(crypto, hello, server_hello[1])
    core = ServerHelloCore(*unpack(server_hello[1]))
    shared = crypto.x25519(seed("device ephemeral"), core.ephemeral)
    good_core = pack([USER_KEY, DEVICE_ID, DEVICE_KEY, "none", {}])
    sealed = EXTENSION.RecordSealer(core.suite, transcript.handshake_key(crypto, first, shared), first).seal(
        plaintext(first, server_hello[2], good_core)
    )
    return refused(lambda: server.receive_auth(sealed))


def proof(first: bytes, server_signature: bytes, core: bytes, secret: bytes) -> bytes:
    """c_sig over a core."""
    second = transcript.th2(crypto, first, server_signature, core)
    return crypto.ed25519_sign(secret, transcript.DEVICE_AUTH_PREFIX + second)


def test_a_signature_of_another_key_is_auth_failed() -> None:
    """The device must hold the key it names; the answer is the one an unknown device gets."""
    other = seed("another device")
    assert auth_by(lambda first, sig, core: pack([3, core, proof(first, sig, core, other)])) == "auth_failed"


def test_a_device_key_that_is_no_key_is_auth_failed() -> None:
    """Not distinguishable from a bad signature."""

    def plaintext(first: bytes, sig: bytes, _: bytes) -> bytes:
        core = pack([USER_KEY, DEVICE_ID, bytes(32), "none", {}])
        return pack([3, core, proof(first, sig, core, seed("device"))])

    assert auth_by(plaintext) == "auth_failed"


@pytest.mark.parametrize(
    "core",
    [
        pack([USER_KEY, DEVICE_ID, DEVICE_KEY, "none", {}, None]),
        pack([USER_KEY, DEVICE_ID, DEVICE_KEY, "none"]),
        pack([USER_KEY, DEVICE_ID, DEVICE_KEY, "some", {}]),
        pack([USER_KEY, DEVICE_ID, DEVICE_KEY, "none", {}]) + b"\0",
        pack([USER_KEY, DEVICE_ID, DEVICE_KEY, "none", {}]).replace(b"\xc4\x10", b"\xc5\x00\x10", 1),
        pack([USER_KEY, DEVICE_ID, DEVICE_KEY, "none", {"x" * 33: 1}]),
    ],
)
def test_a_core_in_another_form_is_malformed(core: bytes) -> None:
    """What is signed is read strictly, even where the signature is right."""
    code = auth_by(lambda first, sig, _: pack([3, core, proof(first, sig, core, seed("device"))]))
    assert code == "malformed"


def test_another_message_in_place_of_auth_is_unexpected() -> None:
    """A known message in the wrong state closes."""
    assert auth_by(lambda *_: encode(Ping(1))) == "unexpected"


# -- what the device refuses


def test_another_server_key_is_auth_failed() -> None:
    """A server that is not the pinned one is refused before it learns anything of the device."""
    server = make_server(identity=crypto.SigningKey(seed("another server")))
    client = make_client()
    server_hello = server.receive_hello(client.hello())
    assert refused(lambda: client.receive_server_hello(server_hello)) == "auth_failed"
    assert client.state is State.CLOSED


def test_the_pinned_key_without_its_signature_is_bad_signature() -> None:
    """Showing the key is not holding it."""
    client = make_client()
    core = pack([1, 2, crypto.x25519_public(seed("e")), seed("n"), SERVER_KEY, 1, 1])
    forged = encode(ServerHello(core=core, signature=bytes(64)))
    assert refused(lambda: client.receive_server_hello(forged)) == "bad_signature"


def server_hello_with(**changes: Any) -> tuple[Any, bytes]:
    """A client, and a ServerHello that the pinned server really signed, with other values than it should have."""
    client = make_client()
    fields = {
        "version": 1,
        "suite": 2,
        "ephemeral": crypto.x25519_public(seed("server ephemeral")),
        "nonce": seed("server nonce"),
        "server_key": SERVER_KEY,
        "server_time_ms": 1,
        "epoch": 1,
    }
    core = encode(ServerHelloCore(**(fields | changes)))  # type: ignore[arg-type]
    first = transcript.th1(crypto, client.hello(), core)
    signature = crypto.ed25519_sign(SERVER_SECRET, transcript.SERVER_AUTH_PREFIX + first)
    return client, encode(ServerHello(core=core, signature=signature))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": 2}, "unsupported"),
        ({"suite": 1}, "unsupported"),
        ({"nonce": bytes(32)}, "malformed"),
        ({"ephemeral": bytes(32)}, "malformed"),
    ],
)
def test_a_signed_hello_with_impossible_values_is_refused(changes: dict[str, Any], code: str) -> None:
    """Also the real server may not choose what was not offered, nor weaken the exchange."""
    client, server_hello = server_hello_with(**changes)
    assert refused(lambda: client.receive_server_hello(server_hello)) == code


def test_a_good_signed_hello_is_taken() -> None:
    """The counterpart of the refusals above: without a change the same hello is good."""
    client, server_hello = server_hello_with()
    assert client.receive_server_hello(server_hello)


def test_options_that_no_server_would_read_are_not_sent() -> None:
    """The limit is known beforehand."""
    assert refused(lambda: make_client(options={"x": "y" * 2048})) == "too_large"


def test_an_oversized_server_hello_is_refused() -> None:
    """The limit holds on both sides."""
    client = make_client()
    assert refused(lambda: client.receive_server_hello(bytes(HANDSHAKE_MESSAGE_BYTES_MAX + 1))) == "too_large"


def client_awaiting_ready() -> tuple[Any, bytes]:
    """A device that has sent its proof, and the Ready it should get."""
    server, client = make_server(), make_client()
    server.receive_auth(client.receive_server_hello(server.receive_hello(client.hello())))
    ready, _ = server.ready(READY, now_s=0)
    return client, ready


def test_a_forged_ready_is_refused() -> None:
    """Only the server that saw the device's proof can seal it."""
    client, ready = client_awaiting_ready()
    assert refused(lambda: client.receive_ready(ready[:-1] + bytes([ready[-1] ^ 1]), now_s=0)) == "bad_record"
    assert client.state is State.CLOSED
    assert refused(lambda: client.receive_ready(ready, now_s=0)) == "unexpected"


def test_an_oversized_ready_is_refused() -> None:
    """It takes the place of a revocation, which may be as large as any message."""
    client, _ = client_awaiting_ready()
    too_large = bytes(MESSAGE_BYTES_MAX + RECORD_TAG_BYTES + 1)
    assert refused(lambda: client.receive_ready(too_large, now_s=0)) == "too_large"


def test_a_device_that_has_ended_is_shown_by_what() -> None:
    """Sealed as Ready would be, for the device that proved its key alone; both sides are closed after it."""
    client, server = make_client(), make_server()
    server.receive_auth(client.receive_server_hello(server.receive_hello(client.hello())))
    row = (3, bytes(16), 9, b"header", bytes(64), b"payload", None)
    sealed = server.refuse(encode(Revoked(row)), now_s=0)
    with pytest.raises(DeviceRevoked) as caught:
        client.receive_ready(sealed, now_s=0)
    assert (caught.value.code, caught.value.event) == ("revoked", row)
    assert (client.state, server.state) == (State.CLOSED, State.CLOSED)


def test_only_a_device_that_proved_its_key_is_shown_how_it_ended() -> None:
    """Before, there is no key to seal it with."""
    server = make_server()
    assert refused(lambda: server.refuse(b"notice", now_s=0)) == "unexpected"


def test_ready_before_the_server_hello_is_unexpected() -> None:
    """There is no session to be ready for."""
    assert refused(lambda: make_client().receive_ready(b"x", now_s=0)) == "unexpected"


def test_a_second_server_hello_is_unexpected() -> None:
    """A proof is given once."""
    client, server_hello = server_hello_with()
    client.receive_server_hello(server_hello)
    assert refused(lambda: client.receive_server_hello(server_hello)) == "unexpected"


@pytest.mark.parametrize("make", [make_server, make_client])
def test_a_closed_handshake_takes_nothing(make: Callable[[], Any]) -> None:
    """Closing by the caller, for example at its deadline, ends it."""
    side = make()
    side.close()
    side.close()
    assert side.state is State.CLOSED
    receive = getattr(side, "receive_hello", None) or side.receive_server_hello
    assert refused(lambda: receive(b"x")) == "unexpected"


# -- no byte can be changed


def _rejected(stage: str, data: bytes) -> bool:
    """Whether a handshake in which one message was replaced fails on the side that gets it, or on the other one."""
    server, client = make_server(suites=(2,)), make_client()
    try:
        server_hello = server.receive_hello(data if stage == "hello" else client.hello())
        auth = client.receive_server_hello(data if stage == "server_hello" else server_hello)
        server.receive_auth(data if stage == "client_auth" else auth)
        ready, _ = server.ready(READY, now_s=0)
        client.receive_ready(data if stage == "ready" else ready, now_s=0)
    except ProtocolError:
        return True
    return False


@pytest.mark.parametrize("stage", ["hello", "server_hello", "client_auth", "ready"])
@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_changing_any_byte_of_any_message_fails(stage: str, bit: int) -> None:
    """Every single byte of all four messages is covered by a signature, a seal or the transcript."""
    messages = record_handshake(make_server(suites=(2,)), make_client())
    good: bytes = getattr(messages, stage)
    assert not _rejected(stage, good)
    for index in range(len(good)):
        changed = good[:index] + bytes([good[index] ^ bit]) + good[index + 1 :]
        assert _rejected(stage, changed), index
