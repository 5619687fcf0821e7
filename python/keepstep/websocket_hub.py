"""Many connections over one epoll descriptor: Linux, plain sockets.

One task waits for the descriptor; one call of the extension then takes what all ready sockets have, unframes it, opens
its records and parses what is published, without the GIL; one sends what all connections wrote in a turn. A socket is
the extension's from its upgrade to its end, and a connection has neither Trio stream nor buffer of its own. Its task is
parked while it waits for the peer; before it has said anything it has none (``websocket_lobby``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from keepstep._keepstep import SocketHub, frame_close
from keepstep.interfaces import ConnectionClosed
from keepstep.websocket_connection import CLOSE_TIMEOUT_S, hand_in, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from keepstep.interfaces import Opened, Receiver, Records, RestingReceiver
    from keepstep.websocket_connection import End, Limits, Place

    class Host(Protocol):
        """Who looks after a connection that has no task yet."""

        def turn(self, connection: HubConnection, said: Sequence[Opened], end: End | None) -> None:
            """It said something, or is over."""


class Hub:
    """The sockets of one server's connections. Live; its tasks run while there are any.

    Args:
        nursery: where they run; that of the connections.
        on_fault: told of an exception that should not have been, which has ended one connection, and of its IP address.
        unfinished_bytes_max: see ``Limits``.

    Attributes:
        sockets: the extension's, by the tokens of the connections.
        outgoing: what connections wrote since the last sending, by token; who adds the first of it calls ``written``.
    """

    def __init__(
        self, nursery: trio.Nursery, on_fault: Callable[[Exception, str], None], *, unfinished_bytes_max: int
    ) -> None:
        self._nursery = nursery
        self._on_fault = on_fault
        self.sockets = SocketHub(unfinished_bytes_max)
        self._connections: dict[int, HubConnection] = {}
        self.outgoing: dict[int, Sequence[bytes | None]] = {}
        self._while_used = trio.CancelScope()
        self._runs = False
        self._in_turn = False
        self._sender: trio.lowlevel.Task | None = None
        self._parting: dict[HubConnection, float] = {}  # until when, the next one first
        self._parts = trio.Event()

    def welcome(
        self,
        descriptor: int,
        limits: Limits,
        place: Place,
        *,
        address: str,
        accepted_at_s: float,
        host: Host | None = None,
    ) -> HubConnection:
        """A connection on a socket that is the hub's from now on; ``upgraded`` begins its frames. Raises OSError.

        Args:
            descriptor: of a connected socket that does not block.
            limits: see ``Limits``.
            place: told when the device is authenticated.
            address: the client's IP address.
            accepted_at_s: Trio time.
            host: is told what it says instead of its task, until ``host`` is taken away.
        """
        token = self.sockets.welcome(descriptor)
        connection = HubConnection(self, token, limits, place, address=address, accepted_at_s=accepted_at_s, host=host)
        self._connections[token] = connection
        if not self._runs:
            self._runs = True
            self._nursery.start_soon(self._run)
        return connection

    def forget(self, token: int) -> None:
        """A connection is over, and its socket closed or somebody else's."""
        if self._connections.pop(token, None) is not None and not self._connections:
            self._while_used.cancel()

    async def _run(self) -> None:
        """Move bytes until there is nobody any more."""
        try:
            while self._connections:  # somebody may have come while the last one left
                self._while_used = trio.CancelScope()
                with self._while_used:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._send_when_written)
                        nursery.start_soon(self._see_off)
                        await self._receive()
        finally:
            self._runs = False
            for connection in tuple(self._connections.values()):  # cancelled: so are they, each in a task of its own
                connection.rouse()

    def resume(self, connection: HubConnection, receiver: RestingReceiver) -> None:
        """Have a connection that rested seen to its end."""
        self._nursery.start_soon(self._resume, connection, receiver)

    async def _resume(self, connection: HubConnection, receiver: RestingReceiver) -> None:
        connection.is_kept = False
        try:
            await receiver.resume()
        except Exception as error:  # it ends one connection, not the server
            self._on_fault(error, connection.address)
        finally:
            connection.leave()

    def see_off(self, connection: HubConnection) -> None:
        """Close a connection when its peer has, but not later than ``CLOSE_TIMEOUT_S``."""
        self._parting[connection] = trio.current_time() + CLOSE_TIMEOUT_S
        self._parts.set()

    def seen_off(self, connection: HubConnection) -> None:
        """It needs not to be seen off any more."""
        self._parting.pop(connection, None)

    async def _see_off(self) -> None:
        while True:
            while self._parting:
                connection, until_s = next(iter(self._parting.items()))
                if until_s <= trio.current_time():
                    self.seen_off(connection)
                    connection.rouse()
                else:  # it is most often off by then, and many after it
                    await trio.sleep_until(until_s)
            self._parts = trio.Event()
            await self._parts.wait()

    async def _receive(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self.sockets)
            self._in_turn = True
            ready = self.sockets.receive()
            now_s = trio.current_time()
            for token, opened, record_bytes, end, writable in ready:
                connection = self._connections.get(token)
                if connection is not None:
                    try:
                        connection.turn(opened, record_bytes, now_s, end, writable=writable)
                    except Exception as error:  # it ends one connection, not the server
                        self._on_fault(error, connection.address)
                        connection.give_up()
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
        return sum(map(len, filter(None, self.outgoing.get(token, ()))))

    def written(self) -> None:
        """Connections wrote; it goes in this turn of the hub, or in the next pass of the scheduler."""
        if self._sender is not None and not self._in_turn:
            sender, self._sender = self._sender, None
            trio.lowlevel.reschedule(sender)

    def _send(self) -> None:
        """Send what was written, as much as the sockets take."""
        if not self.outgoing:
            return
        outgoing, self.outgoing = self.outgoing, {}
        for token, unsent, gone in self.sockets.send(list(outgoing.items())):
            connection = self._connections[token]
            connection.unsent_bytes = unsent
            connection.blocked = True
            if gone:
                connection.turn([], 0, trio.current_time(), "gone", writable=False)


class HubConnection:
    """``interfaces.Connection`` on a socket of the hub's.

    Args:
        hub: whose.
        token: names the socket.
        limits: see ``Limits``.
        place: told when the device is authenticated.
        address: the client's IP address.
        accepted_at_s: Trio time.
        host: see ``Hub.welcome``.

    Attributes:
        host: who looks after it until it has a task.
        is_kept: it rests, or is about to be seen to its end: who it was given to leaves it open.
        end: why no more messages come.
        torn: a send was cut off; nothing may follow it.
        unsent_bytes: what was sent and the socket has not taken.
        blocked: see ``interfaces.Connection``; an attribute, for it is asked with every message.
    """

    __slots__ = (
        "_fault",
        "_has_begun",
        "_hub",
        "_limits",
        "_messages",
        "_parted",
        "_place",
        "_receiver",
        "_rests",
        "_task",
        "_token",
        "accepted_at_s",
        "address",
        "blocked",
        "end",
        "host",
        "is_kept",
        "torn",
        "unsent_bytes",
    )

    def __init__(
        self,
        hub: Hub,
        token: int,
        limits: Limits,
        place: Place,
        *,
        address: str,
        accepted_at_s: float,
        host: Host | None,
    ) -> None:
        self.address = address
        self.accepted_at_s = accepted_at_s
        self.host = host
        self.end: End | None = None
        self.torn = False
        self.unsent_bytes = 0
        self.blocked = False
        self._hub = hub
        self._token = token
        self._limits = limits
        self._place = place
        self._messages: list[bytes] = []  # the next one last
        self._receiver: Receiver | None = None
        self._rests: RestingReceiver | None = None
        self._has_begun = False
        self._parted: Callable[[], None] | None = None
        self.is_kept = False
        self._task: trio.lowlevel.Task | None = None
        self._fault: Exception | None = None

    def upgraded(self, answer: bytes, rest: bytes) -> None:
        """Accept the upgrade in the answer's bytes; ``rest`` came behind the request, frames already."""
        said, end = self._hub.sockets.upgraded(
            self._token, answer, rest, self._limits.unauthenticated_message_bytes_max
        )
        if said or end is not None:
            self.hear(said, end)

    def authenticated(self) -> None:
        """From now on the limits of an authenticated device apply: once it listens, nothing is taken before."""
        self._place.authenticated()

    # -- awaited ------------------------------------------------------------------------------------------------

    async def _parked(self) -> None:
        """Wait for a turn: for what was asked for, or the end."""

        def abort(_raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._task = self._receiver = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _wake(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    async def receive(self) -> bytes:
        """The next binary message; see ``interfaces.Connection``."""
        while not self._messages:
            if self.end is not None:
                raise reason_of(self.end) or ConnectionClosed
            self._hub.sockets.listen(self._token)
            await self._parked()
        return self._messages.pop()

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send messages in order, in one write; see ``interfaces.Connection``."""
        await trio.lowlevel.checkpoint_if_cancelled()  # nothing is torn yet
        if self.end is not None:
            raise ConnectionClosed
        for _, unsent_bytes, gone in self._hub.sockets.send([(self._token, messages)]):
            if gone:
                self.end = "gone"
            else:
                self.unsent_bytes, self.blocked = unsent_bytes, True
        self.torn = self.blocked
        while self.blocked and self.end is None:
            await self._parked()
        if self.end is not None:
            raise ConnectionClosed
        self.torn = False

    async def listen(self, receiver: Receiver, records: Records) -> None:
        """Hand all that comes over; see ``interfaces.Connection``."""
        self._begin(receiver, records)
        await self.over()

    async def over(self) -> None:
        """See ``interfaces.Resting``."""
        try:
            if self._receiver is not None:
                await self._parked()
            if self._fault is not None:
                raise self._fault
        finally:
            if self._has_begun:
                self._stop()

    def _begin(self, receiver: Receiver, records: Records) -> None:
        """From now on all that comes is handed over. What is raised meanwhile, ``over`` raises."""
        try:
            self._hand_over(receiver, records)
        except Exception as fault:
            self._fault, self._receiver = fault, None

    def _hand_over(self, receiver: Receiver, records: Records) -> None:
        messages, self._messages = self._messages[::-1], []
        self._receiver = receiver  # who may pause it with what came before
        if messages:
            hand_in(messages, receiver, records)
        if self.end is not None:
            self._receiver = None
            receiver.lost(reason_of(self.end))
            return
        self._has_begun = True
        self._hub.sockets.begin(self._token, records.reader, records.sealer, self._limits.message_bytes_max)

    def _stop(self) -> None:
        """What comes from now on stays where it is; what has not gone is lost."""
        sockets, token = self._hub.sockets, self._token
        self._receiver = None
        sockets.pause(token, paused=True)
        waiting = self._hub.outgoing.pop(token, None)
        self.torn = waiting is not None or sockets.unsent(token) > 0
        self.unsent_bytes, self.blocked = 0, False

    async def close(self, code: int, reason: str) -> None:
        """Tell the peer why and close; see ``interfaces.Connection``."""
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            if self._says_farewell(code, reason):
                while self.end is None:
                    await self._parked()
        self.drop()

    def _says_farewell(self, code: int, reason: str) -> bool:
        """Tell the peer why, where it can be told; whether its end of the connection is to come."""
        if self.torn or self.end == "gone":
            return False
        frame = b"" if self.end in ("closed", "broken") else frame_close(code, reason)  # it may have been told
        ended, self.end = self.end is not None, None
        return self._hub.sockets.farewell(self._token, frame, ended)

    def drop(self) -> None:
        """Close the socket at once, without a word; nothing where it is closed."""
        self.end, self.torn = "gone", True
        self._hub.sockets.discard(self._token)
        self._hub.forget(self._token)

    def leave(self) -> None:
        """Whoever served it is done: close the socket and leave the place, unless it is kept."""
        if not self.is_kept:
            with self._place:
                self.drop()

    def take_away(self) -> int:
        """The socket's descriptor, which is the caller's: the connection is none any more."""
        descriptor, _ = self._hub.sockets.remove(self._token)
        self._hub.forget(self._token)
        return descriptor

    # -- at rest ------------------------------------------------------------------------------------------------

    @property
    def resting(self) -> HubConnection:
        """See ``interfaces.Connection``."""
        return self

    def rest(self, receiver: RestingReceiver, records: Records) -> None:
        """See ``interfaces.Resting``."""
        self._rests, self.is_kept = receiver, True
        self._begin(receiver, records)
        if self._receiver is None:
            self.rouse()

    def stop(self) -> None:
        """See ``interfaces.Resting``."""
        self._receiver = None
        self._wake()

    @property
    def is_over(self) -> bool:
        """See ``interfaces.Resting``."""
        return self._receiver is None

    def part(self, code: int, reason: str, parted: Callable[[], None]) -> None:
        """See ``interfaces.Resting``."""
        if self._says_farewell(code, reason):
            self._parted, self.is_kept = parted, True
            self._hub.see_off(self)
        else:
            self.drop()
            parted()

    def _part(self, parted: Callable[[], None]) -> None:
        """It is closed now, whether or not the peer has said so."""
        self._parted, self.is_kept = None, False
        self._hub.seen_off(self)
        self.leave()
        parted()

    def rouse(self) -> None:
        """See ``interfaces.Resting``; where it parts, that is over."""
        if self._parted is not None:
            self._part(self._parted)
        receiver, self._rests = self._rests, None
        if receiver is not None:
            self._hub.resume(self, receiver)

    # -- called back --------------------------------------------------------------------------------------------

    def turn(self, opened: list[Opened], record_bytes: int, now_s: float, end: End | None, *, writable: bool) -> None:
        """Hand over what a turn found; its end, or a fault of the receiver's, ends the listening."""
        receiver = self._receiver
        if writable:
            self.unsent_bytes, self.blocked = 0, False
        if receiver is None:
            self.hear([] if self._has_begun else opened, end)  # what comes after the listening is nobody's
            return
        try:
            if opened:
                receiver.received(opened, record_bytes, now_s)
            if writable:
                receiver.writable()
            if end is None:
                return
            self.end = end
            receiver.lost(reason_of(end))
        except Exception as fault:  # of one connection: it ends that one, from ``listen``
            self._fault = fault
        self._receiver = None
        self._wake()
        self.rouse()

    def hear(self, said: Sequence[Opened], end: End | None) -> None:
        """What came for whoever awaits it."""
        if self.host is not None:
            self.host.turn(self, said, end)
            return
        for message in said:
            assert isinstance(message, bytes), "in clear"
            self._messages.insert(0, message)
        self.end = end or self.end
        if self._parted is not None and end is not None:
            self._part(self._parted)
        self._wake()

    def give_up(self) -> None:
        """A fault of ours: whoever serves it finds it gone; one in the lobby stays there until its time is over."""
        self.end, self._receiver = "gone", None
        self._hub.sockets.pause(self._token, paused=True)
        self._wake()
        self.rouse()

    @property
    def backlog_bytes(self) -> int:
        """See ``interfaces.Connection``."""
        return 0 if self._receiver is None else self.unsent_bytes + self._hub.backlog_bytes(self._token)

    def write(self, messages: Sequence[bytes | None]) -> None:
        """See ``interfaces.Connection``."""
        if self._receiver is None:
            return
        outgoing, token = self._hub.outgoing, self._token
        if token in outgoing:
            outgoing[token] = [*outgoing[token], *messages]
            return
        outgoing[token] = messages
        if len(outgoing) == 1:
            self._hub.written()

    def pause(self) -> None:
        """See ``interfaces.Connection``."""
        if self._receiver is not None:
            self._hub.sockets.pause(self._token, paused=True)

    def resume(self) -> None:
        """See ``interfaces.Connection``."""
        if self._receiver is not None:
            self._hub.sockets.pause(self._token, paused=False)
