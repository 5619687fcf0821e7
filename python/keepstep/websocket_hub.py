"""Many listening connections over one epoll descriptor: Linux, plain sockets.

One task waits for the descriptor; one call of the extension then takes what all ready sockets have, unframes it, opens
its records and parses what is published, without the GIL; one sends what all connections wrote in a turn. A connection
that listens has neither task nor buffer nor Trio stream of its own: its own task is parked, and its socket is the
extension's until it stops listening.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio

from keepstep._keepstep import SocketHub
from keepstep.websocket_connection import reason_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.interfaces import Opened, Receiver, Records
    from keepstep.websocket_connection import End, WebSocketConnection


class Hub:
    """The sockets of one server's connections. Live; its tasks run while anybody listens.

    Args:
        nursery: where they run; that of the connections.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._sockets = SocketHub()
        self._channels: dict[int, HubChannel] = {}
        self._outgoing: dict[int, Sequence[bytes | None]] = {}
        self._while_used = trio.CancelScope()
        self._runs = False
        self._in_turn = False
        self._sender: trio.lowlevel.Task | None = None

    async def listen(
        self, connection: WebSocketConnection, stream: trio.SocketStream, receiver: Receiver, records: Records
    ) -> None:
        """As ``interfaces.Connection.listen``. Keeps ``connection.stream``, ``channel``, ``end`` and ``torn`` right."""
        connection.hand_over(receiver, records)
        if connection.end is not None:
            return
        token = self._sockets.add(stream.socket.detach(), connection.reader, records.reader, records.sealer)
        channel = HubChannel(self, token, receiver)
        self._channels[token] = connection.channel = channel
        if not self._runs:
            self._runs = True
            self._nursery.start_soon(self._run)
        try:
            await channel.over()
            if channel.fault is not None:
                raise channel.fault
        finally:
            connection.channel = None
            connection.end = channel.end
            del self._channels[token]
            waiting = self._outgoing.pop(token, None)
            descriptor, unsent = self._sockets.remove(token)
            connection.torn = unsent > 0 or waiting is not None
            ours = trio.socket.from_stdlib_socket(socket.socket(fileno=descriptor))
            connection.stream = trio.SocketStream(ours)
            if not self._channels:
                self._while_used.cancel()

    async def _run(self) -> None:
        """Move bytes until nobody listens any more."""
        try:
            while self._channels:  # somebody may have come while the last one left
                self._while_used = trio.CancelScope()
                with self._while_used:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._send_when_written)
                        await self._receive()
        finally:
            self._runs = False

    async def _receive(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._sockets)
            self._in_turn = True
            ready = self._sockets.receive()
            now_s = trio.current_time()
            for token, opened, record_bytes, end, writable in ready:
                channel = self._channels.get(token)
                if channel is not None:
                    channel.turn(opened, record_bytes, now_s, end, writable=writable)
            self._in_turn = False
            self._send()

    async def _send_when_written(self) -> None:
        def abort(_raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._sender = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            self._send()
            self._sender = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)

    def backlog_bytes(self, token: int) -> int:
        """Of what a connection wrote and was not sent yet."""
        return sum(map(len, filter(None, self._outgoing.get(token, ()))))

    def written(self, token: int, messages: Sequence[bytes | None]) -> None:
        """A connection wrote; it goes in this turn of the hub, or in the next pass of the scheduler."""
        outgoing = self._outgoing
        if token in outgoing:
            outgoing[token] = [*outgoing[token], *messages]
            return
        outgoing[token] = messages
        if self._sender is not None and not self._in_turn:
            sender, self._sender = self._sender, None
            trio.lowlevel.reschedule(sender)

    def _send(self) -> None:
        """Send what was written, as much as the sockets take."""
        if not self._outgoing:
            return
        outgoing, self._outgoing = self._outgoing, {}
        for token, unsent, gone in self._sockets.send(list(outgoing.items())):
            channel = self._channels[token]
            channel.unsent_bytes = unsent
            channel.blocked = True
            if gone:
                channel.turn([], 0, trio.current_time(), "gone", writable=False)

    def pause(self, token: int, *, paused: bool) -> None:
        """Whether to take nothing from a connection's socket."""
        self._sockets.pause(token, paused)


class HubChannel:
    """One listening connection of the hub's."""

    __slots__ = ("_hub", "_receiver", "_task", "_token", "blocked", "end", "fault", "unsent_bytes")

    def __init__(self, hub: Hub, token: int, receiver: Receiver) -> None:
        self._hub = hub
        self._token = token
        self._receiver = receiver
        self._task: trio.lowlevel.Task | None = None
        self.unsent_bytes = 0
        self.blocked = False
        self.end: End | None = None
        self.fault: Exception | None = None

    @property
    def backlog_bytes(self) -> int:
        """See ``interfaces.Connection``."""
        return self.unsent_bytes + self._hub.backlog_bytes(self._token)

    async def over(self) -> None:
        """Wait until it is, or until the receiver has raised ``fault``."""

        def abort(_raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def turn(self, opened: list[Opened], record_bytes: int, now_s: float, end: End | None, *, writable: bool) -> None:
        """Hand over what a turn found; its end, or a fault of the receiver's, ends the listening."""
        if self._task is None:
            return
        try:
            if opened:
                self._receiver.received(opened, record_bytes, now_s)
            if writable:
                self.unsent_bytes, self.blocked = 0, False
                self._receiver.writable()
            if end is None:
                return
            self.end = end
            self._receiver.lost(reason_of(end))
        except Exception as fault:  # of one connection: it ends that one, from ``listen``
            self.fault = fault
        task, self._task = self._task, None
        trio.lowlevel.reschedule(task)

    def write(self, messages: Sequence[bytes | None]) -> None:
        """See ``interfaces.Connection``."""
        self._hub.written(self._token, messages)

    def pause(self) -> None:
        """See ``interfaces.Connection``."""
        self._hub.pause(self._token, paused=True)

    def resume(self) -> None:
        """See ``interfaces.Connection``."""
        self._hub.pause(self._token, paused=False)
