"""Device connections over WebSocket: accepting sockets, admitting them, and what becomes of each.

Where HTTP begins at once and the system is Linux, sockets are the hub's (``websocket_hub``) and wait in the lobby for a
first message (``websocket_lobby``). Else each has a task: the upgrade is in ``websocket_upgrade``, the connection after
it in ``websocket_connection`` (protocol.md section 2).
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from keepstep.entrance import Entrance, Stream, peer_address
from keepstep.errors import ProtocolError
from keepstep.interfaces import Connection
from keepstep.websocket_connection import (
    CHUNK_BYTES_UNAUTHENTICATED,
    OVER,
    Limits,
    Place,
    WebSocketConnection,
)
from keepstep.websocket_lobby import Lobby
from keepstep.websocket_upgrade import Client, upgrade

if TYPE_CHECKING:
    from keepstep.websocket_hub import Hub, HubConnection

REFUSALS_MAX: Final = 64
"""Refused sockets that are being told so at the same time; more are closed without a word."""
REFUSAL_TIMEOUT_S: Final = 1.0
NOTSENT_BYTES: Final = 16 * 1024
"""Bytes of a socket's that wait for the network until it counts as full, as in Trio's streams."""
_TCP_NOTSENT_LOWAT: Final = 25
"""tcp(7); the standard library has no name for it before Python 3.13."""

_REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)

Handler = Callable[[Connection], Awaitable[None]]
Admit = Callable[[str], Place]
OnFault = Callable[[Exception, str], None]


if sys.platform == "linux":
    from keepstep.websocket_hub import Hub as _Hub

    def _hub(connections: trio.Nursery, on_fault: OnFault, limits: Limits) -> Hub | None:
        """What moves many sockets at once, while a connection listens."""
        return _Hub(connections, on_fault, unfinished_bytes_max=limits.unfinished_bytes_max)

else:

    def _hub(connections: trio.Nursery, on_fault: OnFault, limits: Limits) -> Hub | None:  # noqa: ARG001 - as above
        """There is none."""
        return None


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
    hub = _hub(connections, on_fault, limits)
    if hub is None or not entrance.is_plain:
        serve_socket = partial(
            _serve_socket,
            handler=handler,
            admit=admit,
            limits=limits,
            entrance=entrance,
            refusals=refusals,
            on_fault=on_fault,
            hub=hub,
        )
        await trio.serve_listeners(serve_socket, list(listeners), handler_nursery=connections, task_status=task_status)
    lobby = Lobby(
        hub,
        connections,
        handler,
        admit=admit,
        refuse=lambda descriptor: _refuse(_stream(descriptor), entrance, refusals),
        request=partial(_serve_request, handler=handler, limits=limits, on_fault=on_fault, hub=hub),
        limits=limits,
        entrance=entrance,
        on_fault=on_fault,
    )
    try:
        async with trio.open_nursery() as accepting:
            for listener in listeners:
                _prepare(listener.socket)
                accepting.start_soon(lobby.accept, listener.socket)
            task_status.started(list(listeners))
    finally:
        lobby.close()
        for listener in listeners:
            listener.socket.close()


def _prepare(listener: trio.socket.SocketType) -> None:
    """What ``trio.SocketStream`` sets for a socket; those that are accepted have it from the one that listens."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, NOTSENT_BYTES)


def _stream(descriptor: int) -> trio.SocketStream:
    """Of a descriptor that is given away."""
    return trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=descriptor)))


async def _serve_socket(
    stream: trio.SocketStream,
    *,
    handler: Handler,
    admit: Admit,
    limits: Limits,
    entrance: Entrance,
    refusals: trio.CapacityLimiter,
    on_fault: OnFault,
    hub: Hub | None,
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
        hub=hub,
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
    hub: Hub | None = None,
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
        hub: gets plain sockets after their upgrade; ``None``: each stays a stream.
    """
    accepted_at_s = trio.current_time()
    try:
        place = admit(address)
    except ProtocolError:
        await _refuse(stream, entrance, refusals)
        return
    connection: WebSocketConnection | HubConnection | None = None
    try:
        deadline_s = accepted_at_s + limits.upgrade_timeout_s
        entered = await entrance.enter(stream, address, place, deadline_s=deadline_s)
        if entered is None:
            return
        client = Client(entrance, place, entered[1])
        connection = await _upgrade(entered[0], client, place, limits, hub, accepted_at_s=accepted_at_s)
        del entered, client  # an idle device's connection does not hold what it came in with
        if connection is not None:
            await handler(connection)
    except Exception as error:  # what a peer makes a library do ends one connection, not the server
        on_fault(error, address)
    finally:
        _leave(place, connection)  # at once: a connection that rests may resume at the next checkpoint
        with trio.CancelScope(shield=True):  # closing a socket by force takes no time
            await trio.aclose_forcefully(stream)


async def _serve_request(
    descriptor: int,
    came: bytes,
    client: Client,
    place: Place,
    accepted_at_s: float,
    *,
    handler: Handler,
    limits: Limits,
    on_fault: OnFault,
    hub: Hub,
) -> None:
    """A socket that has sent a request that the lobby leaves alone, to its end; its place is left."""
    stream = _stream(descriptor)
    connection: WebSocketConnection | HubConnection | None = None
    try:
        connection = await _upgrade(stream, client, place, limits, hub, accepted_at_s=accepted_at_s, came=came)
        if connection is not None:
            await handler(connection)
    except Exception as error:  # as above
        on_fault(error, client.address)
    finally:
        _leave(place, connection)
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)


def _leave(place: Place, connection: WebSocketConnection | HubConnection | None) -> None:
    """Leave the place; it is the connection's, where there is one, which may do so later."""
    if connection is not None:
        connection.leave()
        return
    with place:
        pass


async def _upgrade(
    stream: Stream,
    client: Client,
    place: Place,
    limits: Limits,
    hub: Hub | None,
    *,
    accepted_at_s: float,
    came: bytes = b"",
) -> WebSocketConnection | HubConnection | None:
    """The connection after its upgrade; ``None`` where there was none."""
    received = None
    with trio.move_on_at(accepted_at_s + limits.upgrade_timeout_s), suppress(*OVER):
        received = await upgrade(stream, client, came)
    if received is None:
        return None
    address = client.address
    if hub is None or not isinstance(stream, trio.SocketStream):
        return WebSocketConnection(
            stream, limits, place, received=received, address=address, accepted_at_s=accepted_at_s
        )
    descriptor = stream.socket.detach()
    connection = hub.welcome(descriptor, limits, place, address=address, accepted_at_s=accepted_at_s)
    connection.upgraded(b"", received)
    return connection


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
    except OVER:
        pass
    finally:
        refusals.release()
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)
