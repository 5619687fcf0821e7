"""Plain sockets up to a device's first message, without a task for each: Linux (protocol.md section 2).

Who connects and says nothing costs a socket and a few objects. The extension collects the upgrade request; here it is
answered. Any other request than the usual one is left to ``websocket_upgrade``, in a task of its own.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import trio

from keepstep.errors import ProtocolError
from keepstep.websocket_request import read_plain_request
from keepstep.websocket_upgrade import SUBPROTOCOL, Client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from keepstep.entrance import Entrance
    from keepstep.interfaces import Opened
    from keepstep.websocket_connection import End, Limits, Place
    from keepstep.websocket_hub import Hub, HubConnection

ACCEPT_PAUSE_S: Final = 0.1
"""Until accepting is tried again where the process, or the system, has no descriptor or memory left for it."""
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


class Lobby:
    """The connections that have not said anything yet. Live; its task runs while there are any.

    Args:
        hub: has their sockets.
        nursery: where connections are served.
        handler: as for ``websocket.serve``.
        admit: as for ``websocket.serve``.
        refuse: tells a socket that there is no room, and closes it.
        request: serves the socket of a client that has sent these bytes, an upgrade request that is not the usual one,
            and leaves its place.
        limits: see ``Limits``.
        entrance: who is believed about the client's address.
        on_fault: as for ``websocket.serve``.
    """

    def __init__(
        self,
        hub: Hub,
        nursery: trio.Nursery,
        handler: Callable[[HubConnection], Awaitable[None]],
        *,
        admit: Callable[[str], Place],
        refuse: Callable[[int], Awaitable[None]],
        request: Callable[[int, bytes, Client, Place, float], Awaitable[None]],
        limits: Limits,
        entrance: Entrance,
        on_fault: Callable[[Exception, str], None],
    ) -> None:
        self._hub = hub
        self._nursery = nursery
        self._handler = handler
        self._admit = admit
        self._refuse = refuse
        self._request = request
        self._limits = limits
        self._entrance = entrance
        self._on_fault = on_fault
        self._strangers: dict[HubConnection, Stranger] = {}
        self._watches = False
        self._watching = trio.CancelScope()
        self._is_closed = False

    async def accept(self, listener: trio.socket.SocketType) -> None:
        """Let connections in until cancelled. Raises OSError."""
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                accepted = self._hub.sockets.accept(listener.fileno())
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                await trio.sleep(ACCEPT_PAUSE_S)
                continue
            now_s = trio.current_time()
            for descriptor, address in accepted:
                self._let_in(descriptor, address, now_s)

    def close(self) -> None:
        """Nobody is to come any more: whoever is here is served, and told so."""
        self._is_closed = True
        for connection, stranger in tuple(self._strangers.items()):
            if stranger.is_upgraded:
                self._serve(connection)
        if not self._strangers:
            self._watching.cancel()

    def _let_in(self, descriptor: int, address: str, now_s: float) -> None:
        try:
            place = self._admit(address)
        except ProtocolError:
            self._nursery.start_soon(self._refuse, descriptor)
            return
        try:
            connection = self._hub.welcome(
                descriptor, self._limits, place, address=address, accepted_at_s=now_s, host=self
            )
        except OSError as error:  # the system watches no more sockets; this one is closed
            with place:
                self._on_fault(error, address)
            return
        self._strangers[connection] = Stranger(place)
        if not self._watches:
            self._watches = True
            self._nursery.start_soon(self._watch)

    async def _watch(self) -> None:
        """See to it that nobody stays longer than an upgrade may take."""
        timeout_s = self._limits.upgrade_timeout_s
        try:
            with trio.CancelScope() as self._watching:
                while self._strangers:
                    first = next(iter(self._strangers))
                    await trio.sleep_until(first.accepted_at_s + timeout_s)
                    self._expire(trio.current_time() - timeout_s)
        finally:
            self._watches = False
            for connection in tuple(self._strangers):  # the server's end is theirs
                self._send_away(connection)

    def _expire(self, accepted_until_s: float) -> None:
        for connection, stranger in tuple(self._strangers.items()):
            if connection.accepted_at_s > accepted_until_s:
                break
            if stranger.is_upgraded:
                self._serve(connection)  # with a deadline of its own, which tells the peer
            else:
                self._send_away(connection)

    def _leave(self, connection: HubConnection) -> Place:
        """It is a stranger no more."""
        place = self._strangers.pop(connection).place
        if self._is_closed and not self._strangers:
            self._watching.cancel()
        return place

    def _send_away(self, connection: HubConnection) -> None:
        with self._leave(connection):
            connection.drop()

    def _serve(self, connection: HubConnection) -> None:
        connection.host = None
        self._leave(connection)
        self._nursery.start_soon(self._handle, connection)

    async def _handle(self, connection: HubConnection) -> None:
        """A connection that has said something, or is over: until it rests, or to its end."""
        try:
            await self._handler(connection)
        except Exception as error:  # it ends one connection, not the server
            self._on_fault(error, connection.address)
        finally:
            connection.leave()

    # -- called back --------------------------------------------------------------------------------------------

    def turn(self, connection: HubConnection, said: Sequence[Opened], end: End | None) -> None:
        """A stranger said something, or is over."""
        stranger = self._strangers[connection]
        if stranger.is_upgraded:
            self._serve(connection)
            connection.hear(said, end)
        elif end is not None:
            self._send_away(connection)
        else:
            try:
                self._answer(connection, stranger, said)
            except Exception as error:  # what a peer makes a library do ends one connection, not the server
                self._on_fault(error, connection.address)
                self._send_away(connection)

    def _answer(self, connection: HubConnection, stranger: Stranger, said: Sequence[Opened]) -> None:
        """Accept the usual upgrade request; leave any other to a task."""
        head, rest = said
        assert isinstance(head, bytes)
        assert isinstance(rest, bytes)
        plain = read_plain_request(head, SUBPROTOCOL.encode())
        client = Client(self._entrance, stranger.place, connection.address)
        if plain is None or not client.identify(plain.headers):
            place, accepted_at_s = self._leave(connection), connection.accepted_at_s
            self._nursery.start_soon(self._request, connection.take_away(), head + rest, client, place, accepted_at_s)
            return
        connection.address = client.address
        stranger.is_upgraded = True
        connection.upgraded(plain.acceptance, rest)
        if self._is_closed and connection in self._strangers:
            self._serve(connection)


class Stranger:
    """What the lobby knows of a connection."""

    __slots__ = ("is_upgraded", "place")

    def __init__(self, place: Place) -> None:
        self.place = place
        self.is_upgraded = False
