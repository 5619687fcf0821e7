"""REST on sockets: Hypercorn's HTTP, behind an accept loop of ours that counts connections.

Hypercorn accepts without bound and keeps an idle connection for a while; each costs a file descriptor, and devices and
the database need theirs. A connection above the cap is closed as it comes.
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

from keepstep.listening import BACKLOG

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypercorn.typing import LifespanState

KEEP_ALIVE_S: Final = 15.0
"""How long an idle REST connection, or one whose request's head does not come, is kept."""
READ_TIMEOUT_S: Final = 15 * 60
"""Longest silence of a client whose request is under way, longer than events are sent live to one request."""
GRACE_S: Final = 2.0
"""How long REST requests under way may take when the server goes down."""
SEND_TIMEOUT_MS: Final = 10_000
"""Hypercorn shields its sends without a deadline; the kernel drops a client that takes nothing for this long."""


class RestServer:
    """Serves an ASGI application on sockets.

    Args:
        application: the one to serve.
        connections_max: open at the same time; one more is closed at once.
        on_refused: called for each that is.

    Attributes:
        connections: open now.
    """

    def __init__(
        self, application: Callable[..., object], *, connections_max: int, on_refused: Callable[[], None]
    ) -> None:
        self._connections_max = connections_max
        self._on_refused = on_refused
        self._config = _config()
        self._application = wrap_app(application, self._config.wsgi_max_body_size, "asgi")  # type: ignore[arg-type]
        self.connections = 0

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

    async def _connection(self, context: WorkerContext, state: LifespanState, stream: Any) -> None:
        if self.connections >= self._connections_max:
            self._on_refused()
            await stream.aclose()
            return
        self.connections += 1
        try:
            await TCPServer(self._application, self._config, context, ConnectionState(state.copy()), stream)
        finally:
            self.connections -= 1


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
