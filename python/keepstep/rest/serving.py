"""REST on sockets: Hypercorn's HTTP, behind an accept loop of ours that counts connections.

Hypercorn accepts without bound and keeps an idle connection for a while; each costs a file descriptor, and devices and
the database need theirs. A connection above the cap is closed as it comes. TLS and the PROXY protocol are the same as
for devices (``entrance``); a connection is a stranger's until it has come through them, and counts in its network's
share.
"""

from __future__ import annotations

import logging
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app

from keepstep.entrance import peer_address
from keepstep.errors import ProtocolError
from keepstep.listening import BACKLOG

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hypercorn.typing import LifespanState

    from keepstep.admission import Admission
    from keepstep.entrance import Entrance

KEEP_ALIVE_S: Final = 15.0
"""How long an idle REST connection, or one whose request's head does not come, is kept."""
READ_TIMEOUT_S: Final = 15 * 60
"""Longest silence of a client whose request is under way, longer than events are sent live to one request."""
GRACE_S: Final = 2.0
"""How long REST requests under way may take when the server goes down."""
SEND_TIMEOUT_MS: Final = 10_000
"""Hypercorn shields its sends without a deadline; the kernel drops a client that takes nothing for this long."""
_ADDRESS: Final = "keepstep.address"
"""What a connection's address is called in the state that Hypercorn hands to every request on it."""


class RestServer:
    """Serves an ASGI application on sockets.

    Args:
        application: the one to serve; its requests have the client's address, also behind a proxy.
        admission: who may open a socket; one more is closed at once.
        entrance: what comes before HTTP.
        entrance_timeout_s: how long that may take, from the accepted connection on.
    """

    def __init__(
        self,
        application: Callable[..., Awaitable[object]],
        *,
        admission: Admission,
        entrance: Entrance,
        entrance_timeout_s: float,
    ) -> None:
        self._admission = admission
        self._entrance = entrance
        self._entrance_timeout_s = entrance_timeout_s
        self._config = _config()
        behind_proxies = _with_client_address(application, entrance)
        self._application = wrap_app(behind_proxies, self._config.wsgi_max_body_size, "asgi")  # type: ignore[arg-type]

    async def serve(
        self,
        sockets: list[socket.socket],
        stop: trio.Event,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until ``stop``, then let requests under way finish for a moment.

        Args:
            sockets: bound, not listening yet; closed at the end.
            stop: no connections are accepted from then on.
            task_status: started once connections are accepted.
        """
        state: LifespanState = {}
        lifespan = Lifespan(self._application, self._config, state)
        context = WorkerContext(None)
        handler = partial(self._connection, context, state)
        async with trio.open_nursery() as background:
            await background.start(lifespan.handle_lifespan)
            await lifespan.wait_for_startup()
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accepting:
                    await accepting.start(
                        partial(trio.serve_listeners, handler, _listen(sockets), handler_nursery=connections)
                    )
                    task_status.started()
                    await stop.wait()
                    accepting.cancel_scope.cancel()
                await context.terminated.set()  # idle connections close
                connections.cancel_scope.deadline = trio.current_time() + GRACE_S
            await lifespan.wait_for_shutdown()
            background.cancel_scope.cancel()

    async def _connection(self, context: WorkerContext, state: LifespanState, stream: trio.SocketStream) -> None:
        deadline_s = trio.current_time() + self._entrance_timeout_s
        async with stream:
            address = peer_address(stream)
            if address is None:
                return
            try:
                place = self._admission.enter(address)
            except ProtocolError:
                return
            with place:
                entered = await self._entrance.enter(stream, address, place, deadline_s=deadline_s)
                if entered is None:
                    return
                place.authenticated()  # what is asked and by whom is counted call by call from here on
                http: Any = entered[0]
                own_state = ConnectionState({**state, _ADDRESS: entered[1]})
                await TCPServer(self._application, self._config, context, own_state, http)


def _with_client_address(
    application: Callable[..., Awaitable[object]], entrance: Entrance
) -> Callable[..., Awaitable[object]]:
    """The application, told of each request who sent it instead of whose connection it came on."""

    async def call(scope: Any, receive: object, send: object) -> object:
        if scope["type"] in ("http", "websocket"):
            address = entrance.client_address(scope["state"].pop(_ADDRESS), scope["headers"])
            scope["client"] = (address, 0)
        return await application(scope, receive, send)

    return call


def _listen(sockets: list[socket.socket]) -> list[trio.SocketListener]:
    for sock in sockets:
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; accepted sockets inherit it
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SEND_TIMEOUT_MS)
        sock.listen(BACKLOG)
    return [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]


def _config() -> Config:
    """Hypercorn's, with its bounds set."""
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.read_timeout = READ_TIMEOUT_S
    config.graceful_timeout = GRACE_S
    return config
