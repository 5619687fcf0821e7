"""Device connections over WebSocket: the only place that speaks trio-websocket.

trio-websocket has no deadline for a half-sent upgrade, no cap on connections, one write for each message and a size
limit that cannot change when a device is authenticated; what is here adds those (protocol.md section 2).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, cast

import trio
import trio_websocket
from wsproto.frame_protocol import FrameProtocol
from wsproto.utilities import LocalProtocolError

from keepstep.entrance import Entrance, peer_address
from keepstep.errors import ProtocolError
from keepstep.interfaces import ConnectionClosed
from keepstep.validation import URL_PATH

SUBPROTOCOL: Final = "keepstep.v1"

UPGRADE_BYTES_MAX: Final = 16 * 1024
"""Largest HTTP upgrade request, bytes."""
CHUNK_BYTES: Final = 64 * 1024
"""Most bytes taken from a socket at once, after authentication."""
CHUNK_BYTES_UNAUTHENTICATED: Final = 4 * 1024
"""The same before it: a stranger's socket costs no more than this at a time."""
QUEUED_MESSAGES: Final = 1
"""Messages that trio-websocket parses ahead of the reader."""
CLOSE_TIMEOUT_S: Final = 2.0
"""How long a peer has to answer a close frame."""
REFUSALS_MAX: Final = 64
"""Refused sockets that are being told so at the same time; more are closed without a word."""
REFUSAL_TIMEOUT_S: Final = 1.0

_FINAL_BINARY: Final = 0x82
_REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)

_OVER: Final = (
    trio_websocket.ConnectionClosed,
    LocalProtocolError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)
"""What trio-websocket and the socket raise when the peer is gone or closing."""


class Place(Protocol):
    """A socket's place among those allowed, as ``admission.Ticket`` is one."""

    def identify(self, address: str) -> None:
        """The socket of a proxy is that client's. Raises ProtocolError ``too_many_connections``."""

    def authenticated(self) -> None:
        """The socket is no stranger's any more."""

    def __enter__(self) -> object: ...
    def __exit__(self, *exc: object) -> None: ...


Handler = Callable[["WebSocketConnection"], Awaitable[None]]
Admit = Callable[[str], Place]
OnFault = Callable[[Exception, str], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may cost.

    Attributes:
        upgrade_timeout_s: from accept to the end of the HTTP upgrade, with what comes before it (TLS).
        unauthenticated_message_bytes_max: largest message until ``authenticated()``.
        message_bytes_max: largest message after it.
    """

    upgrade_timeout_s: float
    unauthenticated_message_bytes_max: int
    message_bytes_max: int


class _GuardedStream(trio.abc.Stream):
    """A byte stream that whole frames are sent on, and that bounds what a peer can make trio-websocket hold.

    Bytes that were received but have not become a message the reader took are ``unclaimed``. A message that is too
    large, fragments without end and a flood of control frames all show as too many unclaimed bytes. Then the stream
    ends for trio-websocket, whose own limit could not tell these cases, nor change when a device is authenticated.

    Attributes:
        unclaimed_bytes_max: the bound.
        chunk_bytes: taken from the socket at once.
        flooded: the bound was passed.
        torn: a send was cut off; nothing may follow it.
        deserted: trio-websocket's reader has ended; nobody would notice the peer's answer to a close frame.
        on_end: called when no more bytes come.
        on_deserted: called when the reader ends.
    """

    def __init__(self, stream: trio.abc.Stream, *, unclaimed_bytes_max: int) -> None:
        self._stream = stream
        self._send_lock = trio.Lock()
        self._unclaimed_bytes = 0
        self.unclaimed_bytes_max = unclaimed_bytes_max
        self.chunk_bytes = CHUNK_BYTES_UNAUTHENTICATED
        self.flooded = False
        self.torn = False
        self.deserted = False
        self.on_deserted: Callable[[], None] = _nothing
        self.on_end: Callable[[], None] = _nothing

    def claim(self) -> None:
        """The reader took a message."""
        self._unclaimed_bytes = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002 - the size is this stream's own
        """Bytes from the peer, ``b""`` at the end."""
        data = bytes(await self._stream.receive_some(self.chunk_bytes))
        self._unclaimed_bytes += len(data)
        if self._unclaimed_bytes > self.unclaimed_bytes_max:
            self.flooded = True
            data = b""
        if not data:
            self.on_end()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send whole frames, after those that are being sent."""
        try:
            self._send_lock.acquire_nowait()  # the send itself is the checkpoint
        except trio.WouldBlock:
            await self._send_lock.acquire()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()  # nothing is torn yet
            self.torn = True
            await self._stream.send_all(data)
            self.torn = False
        finally:
            self._send_lock.release()

    async def drain(self) -> None:
        """Throw away what still comes: closing a socket with unread data destroys what was sent on it last."""
        while await self._stream.receive_some(CHUNK_BYTES):
            pass

    async def wait_send_all_might_not_block(self) -> None:
        """As the stream below."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the stream below."""
        self.on_end()
        await self._stream.aclose()


class _WatchingNursery:
    """As much of a nursery as trio-websocket starts its reader in; tells the stream when the reader has ended."""

    def __init__(self, nursery: trio.Nursery, stream: _GuardedStream) -> None:
        self._nursery = nursery
        self._stream = stream

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        """Start the reader."""
        self._nursery.start_soon(self._watch, reader)

    async def _watch(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            with suppress(*_OVER):  # it met a dead peer, or answered on a connection that is closing
                await reader()
        finally:
            self._stream.deserted = True
            self._stream.on_deserted()


@dataclass
class _Client:
    """Whose a connection is, as far as that is known.

    Attributes:
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


def _nothing() -> None:
    """The default of a hook."""


class WebSocketConnection:
    """``interfaces.Connection`` over trio-websocket."""

    def __init__(
        self,
        websocket: trio_websocket.WebSocketConnection,
        stream: _GuardedStream,
        limits: Limits,
        place: Place,
        *,
        address: str,
        accepted_at_s: float,
    ) -> None:
        self.address = address
        self.accepted_at_s = accepted_at_s
        self._websocket = websocket
        self._stream = stream
        self._limits = limits
        self._place = place
        self._message_bytes_max = limits.unauthenticated_message_bytes_max
        stream.unclaimed_bytes_max = _unclaimed_bytes_max(self._message_bytes_max, CHUNK_BYTES_UNAUTHENTICATED)

    def authenticated(self) -> None:
        """From now on the limits of an authenticated device apply."""
        self._place.authenticated()
        self._message_bytes_max = self._limits.message_bytes_max
        self._stream.chunk_bytes = CHUNK_BYTES
        self._stream.unclaimed_bytes_max = _unclaimed_bytes_max(self._message_bytes_max, CHUNK_BYTES)

    async def receive(self) -> bytes:
        """The next binary message; see ``interfaces.Connection``."""
        try:
            message = await self._websocket.get_message()
        except trio_websocket.ConnectionClosed as exc:
            if self._stream.flooded:
                raise ProtocolError("too_large", "too many bytes without a message") from exc
            raise ConnectionClosed from exc
        self._stream.claim()
        if isinstance(message, str):
            raise ProtocolError("malformed", "a text message")
        if len(message) > self._message_bytes_max:
            raise ProtocolError("too_large", "a message above the limit in force")
        return message

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send messages in order, in one write; see ``interfaces.Connection``.

        The frames are made here: trio-websocket would copy each message four times and write it by itself.
        """
        if self._websocket.closed is not None:
            raise ConnectionClosed
        pieces = [piece for message in messages for piece in (_frame_header(len(message)), message)]
        try:
            await self._stream.send_all(b"".join(pieces))
        except _OVER as exc:
            raise ConnectionClosed from exc

    async def close(self, code: int, reason: str) -> None:
        """Tell the peer why and close; see ``interfaces.Connection``."""
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True) as scope, suppress(*_OVER):
            if self._stream.flooded and not self._stream.torn:
                # trio-websocket thinks that the peer has gone
                await self._stream.send_all(bytes(FrameProtocol(client=False, extensions=[]).close(code, reason)))
                await self._stream.drain()
            elif not self._stream.deserted and not self._stream.torn:
                self._stream.on_deserted = scope.cancel
                await self._websocket.aclose(code, reason)
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stream)


def _frame_header(size: int) -> bytes:
    """The header of an unmasked binary frame that is a whole message (RFC 6455 section 5.2)."""
    if size < 126:
        return bytes((_FINAL_BINARY, size))
    if size <= 0xFFFF:
        return struct.pack("!BBH", _FINAL_BINARY, 126, size)
    return struct.pack("!BBQ", _FINAL_BINARY, 127, size)


def _unclaimed_bytes_max(message_bytes_max: int, chunk_bytes: int) -> int:
    """What may lie between socket and reader: the queued messages, one waiting, one half received, and a chunk."""
    return (QUEUED_MESSAGES + 2) * message_bytes_max + 2 * chunk_bytes


async def serve(
    listeners: Sequence[trio.SocketListener],
    handler: Handler,
    *,
    admit: Admit,
    limits: Limits,
    entrance: Entrance,
    connections: trio.Nursery,
    on_fault: OnFault,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept sockets until cancelled, upgrade them and run ``handler`` for each in ``connections``.

    Cancelling ends accepting alone; the caller owns ``connections`` and what runs in it.

    Args:
        listeners: open listening sockets; closed at the end.
        handler: gets the upgraded connection, which is closed when it returns.
        admit: enters a socket of that IP address; raises ``ProtocolError`` to refuse it.
        limits: see ``Limits``.
        entrance: what comes before HTTP.
        connections: where handlers run.
        on_fault: told of an exception that should not have been, which has ended one connection, and of its IP address.
        task_status: started once accepting.
    """
    refusals = trio.CapacityLimiter(REFUSALS_MAX)
    await trio.serve_listeners(
        partial(
            _serve_socket,
            handler=handler,
            admit=admit,
            limits=limits,
            entrance=entrance,
            refusals=refusals,
            on_fault=on_fault,
        ),
        list(listeners),
        handler_nursery=connections,
        task_status=task_status,
    )


async def _serve_socket(
    stream: trio.SocketStream,
    *,
    handler: Handler,
    admit: Admit,
    limits: Limits,
    entrance: Entrance,
    refusals: trio.CapacityLimiter,
    on_fault: OnFault,
) -> None:
    """One accepted socket."""
    address = peer_address(stream)
    if address is None:
        await trio.aclose_forcefully(stream)
        return
    await serve_stream(
        stream,
        address,
        handler=handler,
        admit=admit,
        limits=limits,
        entrance=entrance,
        refusals=refusals,
        on_fault=on_fault,
    )


async def serve_stream(
    stream: trio.abc.HalfCloseableStream,
    address: str,
    *,
    handler: Handler,
    admit: Admit,
    limits: Limits,
    entrance: Entrance,
    refusals: trio.CapacityLimiter,
    on_fault: OnFault,
) -> None:
    """One peer's byte stream, from admission to its end; it is closed afterwards.

    Args:
        stream: just accepted.
        address: the peer's IP address.
        handler: as for ``serve``.
        admit: as for ``serve``.
        limits: as for ``serve``.
        entrance: as for ``serve``.
        refusals: one token for each refusal that is being told.
        on_fault: as for ``serve``.
    """
    accepted_at_s = trio.current_time()
    try:
        place = admit(address)
    except ProtocolError:
        await _refuse(stream, entrance, refusals)
        return
    with place:
        deadline_s = accepted_at_s + limits.upgrade_timeout_s
        try:
            entered = await entrance.enter(stream, address, place, deadline_s=deadline_s)
            if entered is None:
                return
            guarded = _GuardedStream(entered[0], unclaimed_bytes_max=UPGRADE_BYTES_MAX)
            async with trio.open_nursery() as nursery:
                client = _Client(entrance, place, entered[1])
                websocket = await _upgrade(nursery, guarded, client, deadline_s=deadline_s)
                if websocket is not None:
                    connection = WebSocketConnection(
                        websocket, guarded, limits, place, address=client.address, accepted_at_s=accepted_at_s
                    )
                    await handler(connection)
                # A reader that met a fault closes the handler's channel on its way out: cancelled there, it would
                # lose the fault. It ends in this pass of the scheduler; one that waits for the peer is cancelled.
                await trio.lowlevel.cancel_shielded_checkpoint()
                nursery.cancel_scope.cancel()
        except Exception as error:  # what a peer makes a library do ends one connection, not the server
            on_fault(error, address)
        finally:
            with trio.CancelScope(shield=True):  # closing a socket by force takes no time
                await trio.aclose_forcefully(stream)


async def _refuse(stream: trio.abc.HalfCloseableStream, entrance: Entrance, refusals: trio.CapacityLimiter) -> None:
    """Tell a socket that there is no room, unless too many are being told, or a TLS handshake would come first."""
    if entrance.speaks_tls:
        await trio.aclose_forcefully(stream)
        return
    try:
        refusals.acquire_nowait()
    except trio.WouldBlock:
        await trio.aclose_forcefully(stream)
        return
    try:
        with trio.move_on_after(REFUSAL_TIMEOUT_S):
            await stream.send_all(_REFUSAL)
            await stream.send_eof()
            while await stream.receive_some(CHUNK_BYTES_UNAUTHENTICATED):
                pass  # unread bytes would turn the close into a reset that destroys the answer
    except _OVER:
        pass
    finally:
        refusals.release()
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)


async def _upgrade(
    nursery: trio.Nursery, stream: _GuardedStream, client: _Client, *, deadline_s: float
) -> trio_websocket.WebSocketConnection | None:
    """The HTTP upgrade; ``None`` where it did not come about in time or was refused."""
    with trio.move_on_at(deadline_s) as scope, suppress(*_OVER):
        stream.on_end = scope.cancel
        request = await trio_websocket.wrap_server_stream(
            cast("trio.Nursery", _WatchingNursery(nursery, stream)),
            stream,
            message_queue_size=QUEUED_MESSAGES,
            max_message_size=sys.maxsize,  # the guarded stream bounds it: with our close code, and lower for strangers
        )
        if request.path.partition("?")[0] != URL_PATH:
            await request.reject(404, body=f"devices connect at {URL_PATH}\n".encode())
        elif SUBPROTOCOL not in request.proposed_subprotocols:
            await request.reject(400, body=f"the WebSocket subprotocol must be {SUBPROTOCOL}\n".encode())
        elif not client.identify(request.headers):
            await request.reject(503, extra_headers=[(b"Retry-After", b"5")], body=b"too many connections\n")
        else:
            stream.on_end = _nothing
            return await request.accept(subprotocol=SUBPROTOCOL)
    return None
