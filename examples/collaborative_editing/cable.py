"""A network cable that can be pulled out: forwards TCP connections to a server, until it is cut."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

import trio

READ_BYTES: Final = 64 * 1024


class Cable:
    """Run ``plug`` in a nursery; devices connect to ``url`` instead of the server."""

    def __init__(self, device_url: str) -> None:
        self._target = urlsplit(device_url)
        self.url = ""
        self._connections: set[trio.CancelScope] = set()
        self._is_cut = False

    async def plug(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Forward until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        self.url = self._target._replace(netloc=f"127.0.0.1:{port}", fragment="").geturl()
        task_status.started()
        await trio.serve_listeners(self._forward, listeners)

    def cut(self) -> None:
        """Every connection breaks in the middle of whatever it carries, and no new one is made."""
        self._is_cut = True
        for scope in self._connections:
            scope.cancel()

    def mend(self) -> None:
        """Connections are made again."""
        self._is_cut = False

    async def _forward(self, device: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._connections.add(scope)
            try:
                if not self._is_cut:
                    await self._join(device)
            finally:
                self._connections.discard(scope)
                await trio.aclose_forcefully(device)

    async def _join(self, device: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream(self._target.hostname or "", self._target.port or 80)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_copy, device, server, nursery.cancel_scope)
                nursery.start_soon(_copy, server, device, nursery.cancel_scope)
        finally:
            await trio.aclose_forcefully(server)


async def _copy(source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope) -> None:
    try:
        while data := await source.receive_some(READ_BYTES):
            await sink.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    both.cancel()
