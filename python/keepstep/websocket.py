"""Device connections over WebSocket: accepting sockets, admitting them, and what becomes of each.

The upgrade is in ``websocket_upgrade``, the connection after it in ``websocket_connection`` (protocol.md section 2).
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from keepstep.entrance import Entrance, peer_address
from keepstep.errors import ProtocolError
from keepstep.websocket_connection import (
    CHUNK_BYTES_UNAUTHENTICATED,
    OVER,
    Hub,
    Limits,
    Place,
    WebSocketConnection,
)
from keepstep.websocket_upgrade import Client, upgrade

REFUSALS_MAX: Final = 64
"""Refused sockets that are being told so at the same time; more are closed without a word."""
REFUSAL_TIMEOUT_S: Final = 1.0

_REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)

Handler = Callable[[WebSocketConnection], Awaitable[None]]
Admit = Callable[[str], Place]
OnFault = Callable[[Exception, str], None]


if sys.platform == "linux":
    from keepstep.websocket_hub import Hub as _Hub

    def _hub(connections: trio.Nursery) -> Hub | None:
        """What moves many sockets at once, while a connection listens."""
        return _Hub(connections)

else:

    def _hub(connections: trio.Nursery) -> Hub | None:  # noqa: ARG001 - as above
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
    await trio.serve_listeners(
        partial(
            _serve_socket,
            handler=handler,
            admit=admit,
            limits=limits,
            entrance=entrance,
            refusals=refusals,
            on_fault=on_fault,
            hub=_hub(connections),
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
        hub: moves the bytes of plain sockets while they are listened to; ``None``: each does it by itself.
    """
    accepted_at_s = trio.current_time()
    try:
        place = admit(address)
    except ProtocolError:
        await _refuse(stream, entrance, refusals)
        return
    with place:
        connection: WebSocketConnection | None = None
        deadline_s = accepted_at_s + limits.upgrade_timeout_s
        try:
            entered = await entrance.enter(stream, address, place, deadline_s=deadline_s)
            if entered is None:
                return
            client, received = Client(entrance, place, entered[1]), None
            with trio.move_on_at(deadline_s), suppress(*OVER):
                received = await upgrade(entered[0], client)
            if received is not None:
                connection = WebSocketConnection(
                    entered[0],
                    limits,
                    place,
                    received=received,
                    address=client.address,
                    accepted_at_s=accepted_at_s,
                    hub=hub,
                )
                del entered, client  # an idle device's connection does not hold what it came in with
                await handler(connection)
        except Exception as error:  # what a peer makes a library do ends one connection, not the server
            on_fault(error, address)
        finally:
            with trio.CancelScope(shield=True):  # closing a socket by force takes no time
                await trio.aclose_forcefully(stream if connection is None else connection.stream)


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
