"""A connection to PostgreSQL that a test can break at an exact message, on either side."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Final
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

CHUNK_BYTES: Final = 65_536
PORT: Final = 5432


class _Link:
    """One client connection and the server connection behind it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.held = b""

    def forward(self, request: bytes) -> None:
        self.server.sendall(request)

    def let_go(self) -> None:
        """Deliver what was held back and wait for the answer."""
        self.forward(self.held)
        self.server.recv(CHUNK_BYTES)

    def cut_client(self) -> None:
        """The client sees the connection end; the server does not."""
        self.client.shutdown(socket.SHUT_RDWR)

    def cut_server(self) -> None:
        """The server sees the connection end."""
        self.server.shutdown(socket.SHUT_RDWR)


Rule = Callable[[_Link, bytes], None]


def lose_request(link: _Link, request: bytes) -> None:
    """The message never arrives, and both sides see the connection end."""
    del request
    link.cut_client()
    link.cut_server()


def lose_reply(link: _Link, request: bytes) -> None:
    """The server acts on the message; the client never hears of it."""
    link.forward(request)
    link.server.recv(CHUNK_BYTES)
    link.cut_client()
    link.cut_server()


def hold_request(link: _Link, request: bytes) -> None:
    """The client sees the connection end; the server waits for a message that is on its way (``Proxy.held``)."""
    link.held = request
    link.cut_client()


class Proxy:
    """Stands between clients and the server of a URL, on a Unix socket in ``folder``.

    Attributes:
        url: as the given one, through the proxy.
        held: the links whose request was held back.
    """

    def __init__(self, url: str, folder: Path) -> None:
        parts = urlsplit(url)
        arguments = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self._target = (arguments.get("host") or parts.hostname or "", int(arguments.get("port") or parts.port or PORT))
        folder.chmod(0o755)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(folder / f".s.PGSQL.{PORT}"))
        self._listener.listen()
        self._rule: Rule | None = None
        self._threads: list[Thread] = []
        self._links: list[_Link] = []
        self.held: list[_Link] = []
        userinfo = parts.netloc.rpartition("@")[0]
        query = urlencode({**arguments, "host": os.fspath(folder), "port": str(PORT)})
        self.url = urlunsplit(parts._replace(netloc=f"{userinfo}@" if userinfo else "", query=query))
        self._start(self._accept)

    def once(self, rule: Rule) -> None:
        """Do that with the next message of any client, and be plain again."""
        self._rule = rule

    def close(self) -> None:
        """End all connections and wait for the threads."""
        self._listener.shutdown(socket.SHUT_RDWR)
        sides = [side for link in self._links for side in (link.client, link.server)]
        for side in sides:
            _send(side, b"")
        for thread in self._threads:
            thread.join()
        for side in (self._listener, *sides):
            side.close()

    def _start(self, run: Callable[[], None]) -> None:
        thread = Thread(target=run)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            link = _Link(client, self._connect())
            self._links.append(link)
            self._start(lambda link=link: self._pump(link))  # type: ignore[misc]

    def _connect(self) -> socket.socket:
        host, port = self._target
        if host.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{host}/.s.PGSQL.{port}")
            return server
        return socket.create_connection((host, port))

    def _pump(self, link: _Link) -> None:
        """Copy both ways until both sides have ended."""
        sides = {link.client: link.server, link.server: link.client}
        while sides:
            for side in select.select(list(sides), [], [])[0]:
                data = _receive(side)
                other = sides.pop(side) if not data else sides[side]
                if not data or side is link.server or self._rule is None:
                    _send(other, data)
                    continue
                rule, self._rule = self._rule, None
                rule(link, data)
                if link.held:
                    self.held.append(link)
                    return  # the server's side is the test's from here on


def _receive(side: socket.socket) -> bytes:
    try:
        return side.recv(CHUNK_BYTES)
    except OSError:
        return b""


def _send(side: socket.socket, data: bytes) -> None:
    """Pass data on, or the end of it."""
    try:
        if data:
            side.sendall(data)
        else:
            side.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # that side ended first
