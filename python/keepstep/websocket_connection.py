"""One device's connection after its upgrade: frames over a Trio stream (RFC 6455).

``websocket_hub`` has those on plain sockets.

What a peer may make it hold is bounded by the frame reader: one message of at most the limit in force, control frames
and fragments by number. One chunk of a socket's bytes comes on top.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

import trio

from keepstep._keepstep import FrameReader, frame_close, frame_many
from keepstep.errors import ProtocolError
from keepstep.interfaces import ConnectionClosed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.entrance import Stream
    from keepstep.interfaces import Receiver, Records

CHUNK_BYTES: Final = 64 * 1024
"""Most bytes taken from a stream at once, after authentication."""
CHUNK_BYTES_UNAUTHENTICATED: Final = 4 * 1024
"""The same before it: a stranger's socket costs no more than this at a time."""
CLOSE_TIMEOUT_S: Final = 2.0
"""How long a peer has to answer a close frame."""

OVER: Final = (trio.BrokenResourceError, trio.ClosedResourceError)
"""What a stream raises when the peer is gone or it is closed."""

End = Literal["closed", "broken", "too_large", "malformed", "gone", "timeout"]
"""As ``FrameReader.feed`` or ``SocketHub.receive`` gives it; ``gone``: the stream ended."""

_REASONS: Final = {
    "too_large": "a message above the limit in force, or frames that become none",
    "malformed": "a text message",
    "timeout": "a message was not whole while others had no room",
}
"""What the protocol has a code for; WebSocket has its own for the rest."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may cost.

    Attributes:
        upgrade_timeout_s: from accept to the end of the HTTP upgrade, with what comes before it (TLS).
        unauthenticated_message_bytes_max: largest message until ``authenticated()``.
        message_bytes_max: largest message after it.
        unfinished_bytes_max: of the messages that are not whole yet, of all connections together; where they are of the
            hub's (``websocket_hub``).
    """

    upgrade_timeout_s: float
    unauthenticated_message_bytes_max: int
    message_bytes_max: int
    unfinished_bytes_max: int


class Place(Protocol):
    """A socket's place among those allowed, as ``admission.Ticket`` is one."""

    def identify(self, address: str) -> None:
        """The socket of a proxy is that client's. Raises ProtocolError ``too_many_connections``."""

    def authenticated(self) -> None:
        """The socket is no stranger's any more."""

    def __enter__(self) -> object: ...
    def __exit__(self, *exc: object) -> None: ...


def reason_of(end: End) -> ProtocolError | None:
    """What the peer is told by our own codes; ``None`` where WebSocket's say all."""
    return ProtocolError(end, _REASONS[end]) if end in _REASONS else None


class WebSocketConnection:
    """``interfaces.Connection`` over a stream, of any kind.

    Args:
        stream: after the upgrade.
        received: what came after the upgrade request.
        limits: see ``Limits``.
        place: told when the device is authenticated.
        address: the client's IP address.
        accepted_at_s: Trio time.

    Attributes:
        stream: the bytes.
        reader: the peer's frames.
        channel: how what is written goes, while it listens.
        blocked: see ``interfaces.Connection``; an attribute, for it is asked with every message.
        end: why no more messages come.
        torn: a send was cut off; nothing may follow it.
    """

    __slots__ = (
        "_limits",
        "_messages",
        "_place",
        "_send_lock",
        "accepted_at_s",
        "address",
        "blocked",
        "channel",
        "chunk_bytes",
        "end",
        "reader",
        "stream",
        "torn",
    )

    def __init__(
        self,
        stream: Stream,
        limits: Limits,
        place: Place,
        *,
        received: bytes,
        address: str,
        accepted_at_s: float,
    ) -> None:
        self.address = address
        self.accepted_at_s = accepted_at_s
        self.stream = stream
        self.reader = FrameReader(limits.unauthenticated_message_bytes_max)
        self.channel: _StreamChannel | None = None
        self.blocked = False
        self.end: End | None = None
        self.torn = False
        self.chunk_bytes = CHUNK_BYTES_UNAUTHENTICATED
        self._limits = limits
        self._place = place
        self._send_lock: trio.Lock | None = None
        self._messages: list[bytes] = []  # the next one last
        if received:
            self._messages, _, self.end = self.reader.feed(received)  # an answer to what came too early is not owed
            self._messages.reverse()

    def authenticated(self) -> None:
        """From now on the limits of an authenticated device apply."""
        self._place.authenticated()
        self.reader.limit(self._limits.message_bytes_max)
        self.chunk_bytes = CHUNK_BYTES

    @property
    def resting(self) -> None:
        """A stream is waited for in a task."""

    # -- awaited ------------------------------------------------------------------------------------------------

    async def receive(self) -> bytes:
        """The next binary message; see ``interfaces.Connection``."""
        while not self._messages:
            if self.end is not None:
                raise reason_of(self.end) or ConnectionClosed
            self._messages = await self.take()
            self._messages.reverse()
        return self._messages.pop()

    async def take(self) -> list[bytes]:
        """The messages that the next chunk completes, after which ``end`` may be set.

        Cancel-safe but for the answer to a ping: cancelled within that, the messages are kept and the stream is torn.
        """
        try:
            data = await self.stream.receive_some(self.chunk_bytes)
        except OVER:
            data = b""
        if not data:
            self.end = "gone"
            return []
        messages, replies, self.end = self.reader.feed(data)
        if replies:
            self._messages = messages[::-1]
            with suppress(*OVER):
                await self.send_frames(replies)
            self._messages = []
        return messages

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send messages in order, in one write; see ``interfaces.Connection``."""
        if self.end is not None:
            raise ConnectionClosed
        try:
            await self.send_frames(frame_many(messages))
        except OVER as exc:
            raise ConnectionClosed from exc

    async def send_frames(self, frames: bytes) -> None:
        """Send whole frames, after those that are being sent.

        Raises:
            trio.BrokenResourceError: the peer is gone.
            trio.ClosedResourceError: the stream is closed.
        """
        lock = self._send_lock = self._send_lock or trio.Lock()
        try:
            lock.acquire_nowait()  # the send itself is the checkpoint
        except trio.WouldBlock:
            await lock.acquire()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()  # nothing is torn yet
            self.torn = True
            await self.stream.send_all(frames)
            self.torn = False
        finally:
            lock.release()

    async def close(self, code: int, reason: str) -> None:
        """Tell the peer why and close; see ``interfaces.Connection``."""
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True), suppress(*OVER):
            if not self.torn and self.end != "gone":
                if self.end not in ("closed", "broken"):  # it has been told
                    await self.send_frames(frame_close(code, reason))
                await self._drain()
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self.stream)

    def leave(self) -> None:
        """Whoever served it is done: leave the place. The stream is whose it was."""
        with self._place:
            self.torn = True

    async def _drain(self) -> None:
        """Take what still comes, up to the answer: closing with data unread would destroy what was sent last."""
        if self.end is not None:  # there is no answer any more that could be read: the peer's end stands for it
            if not isinstance(self.stream, trio.abc.HalfCloseableStream):
                return
            await self.stream.send_eof()
        while data := await self.stream.receive_some(CHUNK_BYTES):
            if self.end is None:
                _, _, self.end = self.reader.feed(data)
                if self.end == "closed":
                    return

    # -- called back --------------------------------------------------------------------------------------------

    @property
    def backlog_bytes(self) -> int:
        """See ``interfaces.Connection``."""
        return 0 if self.channel is None else self.channel.backlog_bytes

    def write(self, messages: Sequence[bytes | None]) -> None:
        """See ``interfaces.Connection``."""
        if self.channel is not None:
            self.channel.write(messages)

    def pause(self) -> None:
        """See ``interfaces.Connection``."""
        if self.channel is not None:
            self.channel.pause()

    def resume(self) -> None:
        """See ``interfaces.Connection``."""
        if self.channel is not None:
            self.channel.resume()

    async def listen(self, receiver: Receiver, records: Records) -> None:
        """Hand all that comes over; see ``interfaces.Connection``."""
        await _StreamChannel(self, receiver, records).run()

    def hand_over(self, receiver: Receiver, records: Records) -> None:
        """Give the receiver what came before it listened."""
        messages, self._messages = self._messages[::-1], []
        if messages:
            hand_in(messages, receiver, records)
        if self.end is not None:
            receiver.lost(reason_of(self.end))


def hand_in(messages: Sequence[bytes], receiver: Receiver, records: Records) -> None:
    """Open messages that came together, and give the receiver what they were."""
    receiver.received(records.reader.read(messages), sum(map(len, messages)), trio.current_time())


class _StreamChannel:
    """A listening connection over a Trio stream: one task more, which sends."""

    def __init__(self, connection: WebSocketConnection, receiver: Receiver, records: Records) -> None:
        self._connection = connection
        self._receiver = receiver
        self._records = records
        self._sealer = records.sealer
        self._outgoing: list[bytes | None] = []
        self._news = trio.Event()
        self._resumed: trio.Event | None = None
        self.backlog_bytes = 0

    async def run(self) -> None:
        """Until the connection is over."""
        connection = self._connection
        connection.channel = self
        try:
            connection.hand_over(self._receiver, self._records)
            if connection.end is not None:
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send)
                await self._receive()
                nursery.cancel_scope.cancel()
        finally:
            connection.channel = None
            connection.blocked = False

    async def _receive(self) -> None:
        connection = self._connection
        while connection.end is None:
            await self._while_paused()
            messages = await connection.take()
            await self._while_paused()  # it may have been called for while this waited for the peer
            if messages:
                hand_in(messages, self._receiver, self._records)
        self._receiver.lost(reason_of(connection.end))

    async def _while_paused(self) -> None:
        while self._resumed is not None:
            await self._resumed.wait()

    async def _send(self) -> None:
        while True:
            await self._news.wait()
            self._news = trio.Event()
            frames = frame_many(self._outgoing, self._sealer)
            self._outgoing.clear()
            self.backlog_bytes = len(frames)
            self._connection.blocked = True
            try:
                await self._connection.send_frames(frames)
            except OVER:
                return  # the receiving side meets the same, and says so
            self.backlog_bytes -= len(frames)
            if not self._outgoing:
                self._connection.blocked = False
                self._receiver.writable()

    def write(self, messages: Sequence[bytes | None]) -> None:
        """See ``interfaces.Connection``."""
        self._outgoing.extend(messages)
        self.backlog_bytes += sum(map(len, filter(None, messages)))
        self._news.set()

    def pause(self) -> None:
        """See ``interfaces.Connection``."""
        if self._resumed is None:
            self._resumed = trio.Event()

    def resume(self) -> None:
        """See ``interfaces.Connection``."""
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None
