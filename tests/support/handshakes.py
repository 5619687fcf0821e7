"""Two ends of a handshake with fixed keys, for tests of handshake and session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keepstep import _keepstep
from keepstep.client import crypto
from keepstep.protocol.handshake import ClientHandshake, ServerHandshake
from keepstep.protocol.messages import Ready
from tests.support.events import seed

if TYPE_CHECKING:
    from keepstep.protocol.primitives import Primitives
    from keepstep.protocol.session import ClientSession, ServerSession

EXTENSION: Final[Primitives] = _keepstep
CLIENT: Final[Primitives] = crypto

SERVER_SECRET, SERVER_KEY = crypto.ed25519_generate(seed("server identity"))
DEVICE_SECRET, DEVICE_KEY = crypto.ed25519_generate(seed("device"))
USER_KEY: Final = crypto.ed25519_public(seed("user"))
DEVICE_ID: Final = seed("device id")[:16]
READY: Final = Ready(seed("session id")[:16], 1, {"message_bytes": 1024}, [], [])


def make_server(primitives: Primitives = EXTENSION, **changes: Any) -> ServerHandshake:
    """The server's side; ``changes`` replace arguments."""
    arguments: dict[str, Any] = {
        "identity": crypto.SigningKey(SERVER_SECRET),
        "ephemeral_secret": seed("server ephemeral"),
        "nonce": seed("server nonce"),
        "server_time_ms": 1_750_000_000_000,
        "epoch": 1,
        "suites": (1, 2),
    }
    return ServerHandshake(primitives, **(arguments | changes))


def make_client(primitives: Primitives = CLIENT, **changes: Any) -> ClientHandshake:
    """The device's side; ``changes`` replace arguments."""
    arguments: dict[str, Any] = {
        "server_key": SERVER_KEY,
        "user_key": USER_KEY,
        "device_id": DEVICE_ID,
        "device_secret": DEVICE_SECRET,
        "ephemeral_secret": seed("device ephemeral"),
        "nonce": seed("device nonce"),
        "suites": (2,),
        "resume": "none",
        "options": {},
    }
    return ClientHandshake(primitives, **(arguments | changes))


@dataclass
class Messages:
    """What goes over the wire in a whole handshake."""

    hello: bytes
    server_hello: bytes
    client_auth: bytes
    ready: bytes


def record_handshake(server: ServerHandshake, client: ClientHandshake) -> Messages:
    """Run a handshake and keep its messages; both sides are left active."""
    hello = client.hello()
    server_hello = server.receive_hello(hello)
    client_auth = client.receive_server_hello(server_hello)
    server.receive_auth(client_auth)
    ready, _ = server.ready(READY, now_s=0)
    client.receive_ready(ready, now_s=0)
    return Messages(hello, server_hello, client_auth, ready)


def open_sessions(
    *, server: Primitives = EXTENSION, client: Primitives = CLIENT, suites: tuple[int, ...] = (2,)
) -> tuple[ServerSession, ClientSession]:
    """Both ends of a session, opened at 0 s."""
    server_side, client_side = make_server(server), make_client(client, suites=suites)
    server_side.receive_auth(client_side.receive_server_hello(server_side.receive_hello(client_side.hello())))
    ready, server_session = server_side.ready(READY, now_s=0)
    _, client_session = client_side.receive_ready(ready, now_s=0)
    return server_session, client_session
