"""The HTTP/1.1 upgrade of a device's connection, as far as RFC 6455 section 4.2 asks a server (protocol.md section 2).

The usual request is read by ``websocket_request``; any other is wsproto's, over h11. The frames after it are neither's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, Event, RejectConnection, RejectData, Request
from wsproto.handshake import H11Handshake
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from keepstep.errors import ProtocolError
from keepstep.validation import URL_PATH
from keepstep.websocket_request import read_plain_request

if TYPE_CHECKING:
    from collections.abc import Iterable

    import trio

    from keepstep.entrance import Entrance, Place


SUBPROTOCOL: Final = "keepstep.v1"

UPGRADE_BYTES_MAX: Final = 16 * 1024
"""Largest HTTP upgrade request, bytes."""
CHUNK_BYTES: Final = 4 * 1024
"""Most bytes taken from a stranger's socket at once."""

RETRY_AFTER_S: Final = b"5"
"""When a client may come again that has too many connections."""

_TOO_MANY: Final = "too many connections\n"
_FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\nRetry-After: %s\r\n\r\n%s" % (
    len(_TOO_MANY),
    RETRY_AFTER_S,
    _TOO_MANY.encode(),
)
_HEAD_END: Final = re.compile(rb"\n\r?\n")
"""Where h11 takes a request's head to end."""
_CONTROL_MAX: Final = 0x20
"""What no method begins with, but TLS does: on the plain port it would be waited for without end."""


@dataclass
class Client:
    """Whose a connection is, as far as that is known.

    Attributes:
        entrance: knows which proxies are believed.
        place: its place among the connections.
        address: IP address of the peer; after ``identify`` of the client, which may be behind a proxy.
    """

    entrance: Entrance
    place: Place
    address: str

    def identify(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Take the address from an upgrade's headers; whether that client may have one more connection."""
        self.address = self.entrance.client_address(self.address, headers)
        try:
            self.place.identify(self.address)
        except ProtocolError:
            return False
        return True


async def upgrade(stream: trio.abc.Stream, client: Client, came: bytes = b"") -> bytes | None:
    """Receive one upgrade request and answer it. The caller sets the deadline and closes the stream.

    Args:
        stream: from which the request comes.
        client: whose it is.
        came: a whole request, or nothing, with what came behind it.

    Returns:
        What came after the request, frames already; ``None`` where it was no upgrade to our protocol, which the peer
        has been told, or where it ended.

    Raises:
        trio.BrokenResourceError: the peer is gone.
        trio.ClosedResourceError: the stream was closed meanwhile.
    """
    received = await _receive_head(stream, came)
    if received is None:
        return None
    head, rest = received
    plain = read_plain_request(head, SUBPROTOCOL.encode())
    if plain is not None:
        is_welcome = client.identify(plain.headers)
        await stream.send_all(plain.acceptance if is_welcome else _FULL)
        return rest if is_welcome else None
    handshake = H11Handshake(ConnectionType.SERVER)
    answers: tuple[Event, ...]
    try:
        handshake.receive_data(head)
        (request,) = handshake.events()
    except RemoteProtocolError as error:
        answers = (error.event_hint or RejectConnection(),)
    except UnicodeError:  # wsproto decodes host, target and tokens
        answers = (RejectConnection(),)
    else:
        assert isinstance(request, Request)
        answers = _answers(request, client)
    try:
        answer = b"".join(map(handshake.send, answers))
    except LocalProtocolError:  # h11 takes what came for something that cannot be answered
        return None
    await stream.send_all(answer)
    return rest if isinstance(answers[0], AcceptConnection) else None


async def _receive_head(stream: trio.abc.ReceiveStream, came: bytes) -> tuple[bytes, bytes] | None:
    """A request's head and what came after it; ``None`` where it ends within, or is too long."""
    received = bytearray()
    while len(received) <= UPGRADE_BYTES_MAX:
        data, came = came or await stream.receive_some(CHUNK_BYTES), b""
        if not data:
            return None
        start = max(0, len(received) - 3)
        received += data
        if received[0] <= _CONTROL_MAX:
            return None
        end = _HEAD_END.search(received, start)
        if end is not None:
            return bytes(received[: end.end()]), bytes(received[end.end() :])
    return None


def _answers(request: Request, client: Client) -> tuple[Event, ...]:
    """Acceptance, or why not in a sentence."""
    if request.target.partition("?")[0] != URL_PATH:
        return _refusal(404, f"devices connect at {URL_PATH}\n")
    if SUBPROTOCOL not in request.subprotocols:
        return _refusal(400, f"the WebSocket subprotocol must be {SUBPROTOCOL}\n")
    if not client.identify(request.extra_headers):
        return _refusal(503, _TOO_MANY, (b"Retry-After", RETRY_AFTER_S))
    return (AcceptConnection(subprotocol=SUBPROTOCOL),)


def _refusal(status: int, text: str, *headers: tuple[bytes, bytes]) -> tuple[Event, ...]:
    body = text.encode()
    length = (b"Content-Length", str(len(body)).encode())
    return (
        RejectConnection(status_code=status, headers=[length, *headers], has_body=True),
        RejectData(data=body, body_finished=True),
    )
