"""A device as the server sees it: messages over some connection, byte for byte as a test wants them.

It has no outbox, no store and no opinion: ``keepstep.client`` is the library for devices, this is for tests of the
server. The connection is either in memory or a real WebSocket.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec
import pytest
import trio
import trio_websocket

from keepstep.client import crypto
from keepstep.errors import ERRORS, KeepstepError
from keepstep.interfaces import ConnectionClosed
from keepstep.protocol.handshake import ClientHandshake
from keepstep.protocol.messages import Accepted, Ack, Events, Publish, Ready, Subscribe
from keepstep.protocol.session import seal
from keepstep.websocket_connection import hand_in
from tests.support.events import DeviceFixture, SignedEvent, seed, wire_events

if TYPE_CHECKING:
    from keepstep.interfaces import Receiver, Records, RestingReceiver
    from keepstep.protocol.handshake import Resume
    from keepstep.protocol.messages import FromServer
    from keepstep.protocol.primitives import Sealer
    from keepstep.protocol.session import ClientSession

M = TypeVar("M")

SUBPROTOCOL: Final = "keepstep.v1"
MESSAGES_MAX: Final = 1_000
"""Messages that wait in a connection in memory."""


class Closed(KeepstepError):
    """The server closed the connection.

    Attributes:
        code: the WebSocket close code; 1006 where there was none.
        reason: its text.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


async def forever(step: Callable[[], Awaitable[object]]) -> None:
    """Until it raises."""
    while True:
        await step()


async def closing_reason(receive: Callable[[], Awaitable[object]]) -> str:
    """Receive until the server closes; the reason it gives, whose code must be the table's."""
    with pytest.raises(Closed) as caught:
        await forever(receive)
    if caught.value.reason:
        assert caught.value.code == ERRORS[caught.value.reason].close_code
    return caught.value.reason


class DeviceEnd(Protocol):
    """The device's end of a connection."""

    async def send_message(self, message: bytes) -> None:
        """Send one binary message."""

    async def receive_message(self) -> bytes:
        """The next message. Raises Closed."""


class MemoryConnection:
    """Both ends of a connection in memory: ``interfaces.Connection`` for the server, ``DeviceEnd`` for the device.

    Args:
        address: the device's.
        nursery: where it rests; ``None``: it cannot.

    Attributes:
        stuck: while set, what the server sends stays where it is, as to a device that takes nothing.
        backlog_bytes: of what stays.
        closed: (code, reason) once the server closed it.
    """

    def __init__(self, address: str = "192.0.2.1", *, nursery: trio.Nursery | None = None) -> None:
        self.address = address
        self._nursery = nursery
        self.accepted_at_s = trio.current_time()
        self.stuck = False
        self.closed: tuple[int, str] | None = None
        self.is_authenticated = False
        self.writes: list[int] = []
        self._to_server, self._from_device = trio.open_memory_channel[bytes](MESSAGES_MAX)
        self._to_device, self._from_server = trio.open_memory_channel[bytes](MESSAGES_MAX)
        self.backlog_bytes = 0
        self._listens = False
        self._resumed: trio.Event | None = None
        self._sealer: Sealer | None = None
        self._rests: RestingReceiver | None = None
        self._pump = trio.CancelScope()
        self._over = trio.Event()
        self._fault: Exception | None = None

    def authenticated(self) -> None:
        """As ``Connection.authenticated``."""
        self.is_authenticated = True

    async def receive(self) -> bytes:
        """As ``Connection.receive``."""
        try:
            return await self._from_device.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError) as exc:
            raise ConnectionClosed from exc

    async def send(self, messages: Sequence[bytes]) -> None:
        """As ``Connection.send``."""
        if self.stuck:
            await trio.sleep_forever()
        self.writes.append(len(messages))
        try:
            for message in messages:
                await self._to_device.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConnectionClosed from exc

    @property
    def blocked(self) -> bool:
        """As ``Connection.blocked``."""
        return self.backlog_bytes > 0

    def write(self, messages: Sequence[bytes | None]) -> None:
        """As ``Connection.write``: at once, unless the device takes nothing."""
        if not self._listens:
            return
        assert self._sealer is not None
        records = seal(self._sealer, messages)
        if self.stuck:
            self.backlog_bytes += sum(map(len, records))
            return
        self.writes.append(len(records))
        with suppress(trio.BrokenResourceError):  # ``listen`` notices
            for record in records:
                self._to_device.send_nowait(record)

    async def listen(self, receiver: Receiver, records: Records) -> None:
        """As ``Connection.listen``."""
        self._sealer = records.sealer
        self._listens = True
        try:
            while True:
                while self._resumed is not None:
                    await self._resumed.wait()
                try:
                    messages = [await self._from_device.receive()]
                except (trio.EndOfChannel, trio.ClosedResourceError):
                    receiver.lost(None)
                    return
                hand_in(messages, receiver, records)
        finally:
            self._listens = False

    @property
    def resting(self) -> MemoryConnection | None:
        """As ``Connection.resting``."""
        return None if self._nursery is None else self

    def rest(self, receiver: RestingReceiver, records: Records) -> None:
        """As ``Resting.rest``; a task of the test's is what moves the bytes."""
        assert self._nursery is not None
        self._rests, self._sealer, self._listens = receiver, records.sealer, True
        self._nursery.start_soon(self._listen_at_rest, receiver, records)

    async def _listen_at_rest(self, receiver: Receiver, records: Records) -> None:
        try:
            with self._pump:
                await self.listen(receiver, records)
        except Exception as fault:
            self._fault = fault
        finally:
            self._over.set()
            self.rouse()

    def rouse(self) -> None:
        """As ``Resting.rouse``."""
        receiver, self._rests = self._rests, None
        if receiver is not None:
            assert self._nursery is not None
            self._nursery.start_soon(receiver.resume)

    def stop(self) -> None:
        """As ``Resting.stop``."""
        self._over.set()
        self._listens = False
        self._pump.cancel()

    @property
    def is_over(self) -> bool:
        """As ``Resting.is_over``."""
        return self._over.is_set()

    async def over(self) -> None:
        """As ``Resting.over``."""
        try:
            await self._over.wait()
        finally:
            self._listens = False
            self._pump.cancel()
        if self._fault is not None:
            raise self._fault

    def part(self, code: int, reason: str, parted: Callable[[], None]) -> None:
        """As ``Resting.part``."""
        self._close(code, reason)
        parted()

    def pause(self) -> None:
        """As ``Connection.pause``."""
        self._resumed = self._resumed or trio.Event()

    def resume(self) -> None:
        """As ``Connection.resume``."""
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None

    async def close(self, code: int, reason: str) -> None:
        """As ``Connection.close``."""
        self._close(code, reason)
        await trio.lowlevel.checkpoint_if_cancelled()

    def _close(self, code: int, reason: str) -> None:
        if self.closed is None:
            self.closed = (code, reason)
        self._to_device.close()
        self._from_device.close()

    async def send_message(self, message: bytes) -> None:
        """As ``DeviceEnd.send_message``."""
        try:
            await self._to_server.send(message)
        except trio.BrokenResourceError:
            raise Closed(*(self.closed or (1006, ""))) from None

    async def receive_message(self) -> bytes:
        """As ``DeviceEnd.receive_message``."""
        try:
            return await self._from_server.receive()
        except trio.EndOfChannel:
            raise Closed(*(self.closed or (1006, ""))) from None

    def arrived(self) -> bytes | None:
        """The next message for the device, ``None`` where none has arrived. Raises Closed."""
        try:
            return self._from_server.receive_nowait()
        except trio.WouldBlock:
            return None
        except trio.EndOfChannel:
            raise Closed(*(self.closed or (1006, ""))) from None

    def vanish(self) -> None:
        """The device is gone without a word."""
        self._to_server.close()
        self._from_server.close()


class SocketConnection:
    """The device's end of a real WebSocket."""

    def __init__(self, websocket: trio_websocket.WebSocketConnection) -> None:
        self.websocket = websocket

    async def send_message(self, message: bytes) -> None:
        """As ``DeviceEnd.send_message``."""
        try:
            await self.websocket.send_message(message)
        except trio_websocket.ConnectionClosed as exc:
            raise _closed(exc) from None

    async def receive_message(self) -> bytes:
        """As ``DeviceEnd.receive_message``."""
        try:
            message = await self.websocket.get_message()
        except trio_websocket.ConnectionClosed as exc:
            raise _closed(exc) from None
        assert isinstance(message, bytes)
        return message


def _closed(error: trio_websocket.ConnectionClosed) -> Closed:
    return Closed(error.reason.code, error.reason.reason or "") if error.reason else Closed(1006, "")


@asynccontextmanager
async def open_socket(url: str) -> AsyncIterator[SocketConnection]:
    """A WebSocket to a server's device URL, with or without the key."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    # trio-websocket leaves its socket open where the peer closed it without a word; this one is ours to close.
    async with await trio.open_tcp_stream(parts.hostname, parts.port) as stream, trio.open_nursery() as nursery:
        websocket = await trio_websocket.wrap_client_stream(
            nursery, stream, parts.netloc, parts.path, subprotocols=[SUBPROTOCOL]
        )
        yield SocketConnection(websocket)
        nursery.cancel_scope.cancel()


class WireDevice:
    """A device's session with a server, after ``connect``.

    Attributes:
        ready: what the server said.
        end: the connection.
        session: its records.
    """

    def __init__(self, device: DeviceFixture, end: DeviceEnd, ready: Ready, session: ClientSession) -> None:
        self.device = device
        self.end = end
        self.ready = ready
        self.session = session
        self._pending: list[FromServer] = []
        self._rid = 0

    @classmethod
    async def connect(
        cls,
        device: DeviceFixture,
        end: DeviceEnd,
        server_key: bytes,
        *,
        resume: Resume = "none",
        nonce: str = "nonce",
        **changes: Any,
    ) -> WireDevice:
        """Shake hands. ``changes`` replace arguments of ``ClientHandshake``. Raises Closed where the server refuses."""
        arguments: dict[str, Any] = {
            "server_key": server_key,
            "user_key": device.user.user_key,
            "device_id": device.device_id,
            "device_secret": device.device_secret,
            "ephemeral_secret": seed(f"ephemeral {nonce}"),
            "nonce": seed(nonce),
            "suites": [2],
            "resume": resume,
            "options": {},
        }
        handshake = ClientHandshake(crypto, **(arguments | changes))
        await end.send_message(handshake.hello())
        await end.send_message(handshake.receive_server_hello(await end.receive_message()))
        ready, session = handshake.receive_ready(await end.receive_message(), now_s=0)
        return cls(device, end, ready, session)

    async def send(self, *messages: Any) -> None:
        """Send messages, each a record."""
        for record in self.session.send(messages, now_s=0):
            await self.end.send_message(record)

    async def receive(self) -> FromServer:
        """The next message. Raises Closed."""
        if self._pending:
            return self._pending.pop(0)
        return self.session.receive(await self.end.receive_message())

    async def expect(self, kind: type[M]) -> M:
        """The next message of a type; others that come before it stay for later calls, in order."""
        passed: list[FromServer] = []
        while True:
            message = await self.receive()
            if isinstance(message, kind):
                self._pending = passed + self._pending
                return message
            passed.append(message)

    async def start_publish(self, *events: SignedEvent) -> int:
        """Send a publish; its rid."""
        self._rid += 1
        await self.send(Publish(self._rid, msgspec.Raw(wire_events(*events))))
        return self._rid

    async def publish(self, *events: SignedEvent) -> list[Any]:
        """Publish and wait for the answers; those of earlier publishes are passed over."""
        rid = await self.start_publish(*events)
        while (accepted := await self.expect(Accepted)).rid != rid:
            assert accepted.rid < rid
        return accepted.results

    async def subscribe(self, *streams: str) -> None:
        """Follow streams from their start."""
        await self.send(Subscribe(dict.fromkeys(streams, "start")))

    async def receive_events(self, stream: str, count: int) -> list[Any]:
        """The next ``count`` rows of a stream, acknowledged; other messages that come before them stay for later."""
        rows: list[Any] = []
        while len(rows) < count:
            page = await self.expect(Events)
            assert page.stream == stream
            rows += page.rows
            await self.send(Ack({stream: (rows[-1][0], page.chain[:16])}))
        return rows
