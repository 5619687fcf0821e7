"""A small server in memory for tests of the device library: it keeps a log, and it lies where a test tells it to.

It speaks the real protocol through ``protocol``'s server side and shares no code with the product's server. Nothing
blocks and no clock is read, so tests run under Trio's mock clock.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import trio

from keepstep.client import crypto
from keepstep.client.accounts import make_user, take_registration
from keepstep.client.environment import Environment
from keepstep.client.recovery import Cost
from keepstep.client.server import Server
from keepstep.client.transport import Disconnected
from keepstep.errors import ERRORS, ProtocolError
from keepstep.model import DEVICES_STREAM
from keepstep.protocol.chain import Head as StreamHead
from keepstep.protocol.chain import event_hash, sign_head
from keepstep.protocol.event import decode_header
from keepstep.protocol.handshake import ServerHandshake
from keepstep.protocol.messages import (
    Accepted,
    Ack,
    Bye,
    CaughtUp,
    Error,
    Events,
    Ping,
    Pong,
    Presence,
    PresenceFrom,
    Publish,
    Read,
    ReadResult,
    Ready,
    Rekey,
    ResultAccepted,
    ResultDuplicate,
    ResultError,
    Resumed,
    Signal,
    SignalFrom,
    Signalled,
    Subscribe,
    Unsubscribe,
)
from tests.support.stream_log import StreamLog

if TYPE_CHECKING:
    from pathlib import Path
    from ssl import SSLContext

    from msgspec import Struct

    from keepstep.client.store import Store
    from keepstep.protocol.messages import FromDevice, Result, SignedHead
    from keepstep.protocol.session import ServerSession

T = TypeVar("T")

START_MS: Final = 1_760_000_000_000
DEVICE_URL: Final = "ws://server.test/v1/connect"
MESSAGES_MAX: Final = 10_000
PASSPHRASE: Final = "correct horse battery"
CHEAP: Final = Cost(passes=1, memory_bytes=8192)
CLEANUP_S: Final = 1.0
_GONE: Final = (trio.EndOfChannel, trio.ClosedResourceError, trio.BrokenResourceError)
NO_AUTHOR: Final = (0, bytes(32))


class DeviceServer:
    """One user's log, and the sessions of that user's devices.

    Attributes:
        streams: by name; tests may change them.
        received: every message devices sent in a session, in order.
        sessions: those that are open.
        answer: given a session and a message, says what to send instead of what an honest server would; ``None``:
            be honest.
        rewrite: given a message that is about to be sent, says what to send instead.
        page_events: events in a page.
        epoch: shown in the handshake and signed into heads.
        unreachable: connections fail.
        limits: as Ready names them.
    """

    def __init__(self) -> None:
        self.server_secret, self.server_key = crypto.ed25519_generate(bytes(range(32)))
        self.user_key = b""
        self.streams: dict[str, StreamLog] = {}
        self.received: list[FromDevice] = []
        self.sessions: list[ServerEnd] = []
        self.answer: Callable[[ServerEnd, FromDevice], list[Struct] | None] = lambda _end, _message: None
        self.rewrite: Callable[[Struct], Sequence[Struct]] = lambda message: [message]
        self.page_events = 100
        self.epoch = 0
        self.safe_at_ms: int | None = None
        self.now_ms = START_MS
        self.unreachable = False
        self.limits: dict[str, int] = {}
        self.news = trio.Event()
        self._random = Random(1)
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[DeviceServer]:
        """Take connections until the block ends."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            yield self
            nursery.cancel_scope.cancel()

    @property
    def address(self) -> Server:
        """As devices know it."""
        return Server(DEVICE_URL, "http://server.test", self.server_key)

    @property
    def environment(self) -> Environment:
        """A device's environment in which this is the network, and time and randomness are the test's."""
        return Environment(
            now_ms=lambda: self.now_ms,
            random_bytes=self._random.randbytes,
            jitter=lambda limit: limit,
            open_transport=self.open_transport,
            make_worker=InlineWorker,
        )

    # -- the log --------------------------------------------------------------------------------------------------

    def stream(self, name: str) -> StreamLog:
        """A stream; made where it is not there."""
        if name not in self.streams:
            self.streams[name] = StreamLog(self.user_key, name)
        return self.streams[name]

    def head(self, name: str, seq: int | None = None, *, chain: bytes | None = None) -> SignedHead:
        """A signed head; of another seq or chain than the true one where a test says so."""
        stream = self.stream(name)
        seq = len(stream.rows) if seq is None else seq
        chain = stream.chains[seq] if chain is None else chain
        head = StreamHead(
            user_key=self.user_key, stream=name, epoch=self.epoch, seq=seq, chain=chain, time_ms=self.now_ms
        )
        return sign_head(crypto.SigningKey(self.server_secret), head)

    def register(self, store: Store) -> None:
        """Take the genesis that a store holds, and give the store the answer."""
        body = store.genesis()
        assert body is not None
        self.user_key = store.identity.user_key
        header, sig, payload = msgspec.msgpack.decode(body)
        stream = self.stream(DEVICES_STREAM)
        if not stream.rows:
            stream.take(store.identity.device_id, header, sig, payload, received_at_ms=self.now_ms)
        answer = (1, stream.rows[0][2], stream.chains[1], self.head(DEVICES_STREAM, 1))
        take_registration(store, self.environment, body, answer)

    def new_user(self, directory: Path, name: str = "laptop") -> Path:
        """A registered user with a first device; the device's file."""
        path = directory / f"{name}.sqlite3"
        made = make_user(self.address, path, name, directory / "recovery.txt", PASSPHRASE, self.environment, CHEAP)
        self.register(made.store)
        made.store.close()
        return path

    # -- connections ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open_transport(self, url: str, tls: SSLContext | None) -> AsyncIterator[MemoryTransport]:
        """As ``Environment.open_transport``."""
        await trio.lowlevel.checkpoint()
        assert url.startswith("ws://")
        assert tls is None
        if self.unreachable:
            raise Disconnected("the test's network is down")
        assert self._nursery is not None
        transport = MemoryTransport()
        end = ServerEnd(self, transport)
        self._nursery.start_soon(end.run)
        try:
            yield transport
        finally:
            transport.close(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that devices' messages bring about."""
        while not condition():
            await self.news.wait()

    def tell(self) -> None:
        """Something has changed."""
        self.news.set()
        self.news = trio.Event()

    def messages(self, kind: type[T]) -> list[T]:
        """What devices sent, of one type."""
        return [message for message in self.received if isinstance(message, kind)]

    def close_all(self, code: int | None) -> None:
        """Close every session: with a WebSocket close code, or as if the cable was cut."""
        for session in list(self.sessions):
            session.transport.close(code)

    # -- an honest server -----------------------------------------------------------------------------------------

    async def handle(self, end: ServerEnd, message: FromDevice) -> None:
        """Answer one message."""
        self.received.append(message)
        self.tell()
        answer = self.answer(end, message)
        if answer is not None:
            await end.send(*answer)
        elif isinstance(message, Subscribe):
            assert isinstance(message.streams, dict)
            for name, start in message.streams.items():
                await end.subscribe(name, start)
        elif isinstance(message, Unsubscribe):
            for name in message.streams:
                end.positions.pop(name, None)
        elif isinstance(message, Publish):
            await end.send(Accepted(message.rid, self.publish(end.device_id, msgspec.msgpack.decode(message.events))))
            await self.push()
        elif isinstance(message, Read):
            stream = self.stream(message.stream)
            rows = stream.rows[message.after : message.after + message.limit]
            chain = stream.chains[message.after + len(rows)]
            await end.send(ReadResult(message.rid, message.stream, rows, chain, len(stream.rows)))
        elif isinstance(message, Ping):
            await end.send(Pong(message.rid))
        elif isinstance(message, Presence):
            end.sealed = message.sealed
            await self._tell_presence(end)
        elif isinstance(message, Signal):
            await self._hand_on(end, message)
        else:
            assert isinstance(message, Ack | Bye | Rekey)

    async def _tell_presence(self, end: ServerEnd) -> None:
        """Tell every other session a device's state, or that it is away."""
        state = PresenceFrom([(end.device_id, end.sealed, self.now_ms)])
        for session in list(self.sessions):
            if session is not end:
                await session.send(state)

    async def _hand_on(self, end: ServerEnd, message: Signal) -> None:
        """Give a signal to the device it is for."""
        for session in list(self.sessions):
            if session.device_id == message.to:
                await session.send(SignalFrom(end.device_id, message.sealed))
                await end.send(Signalled(message.rid))
                return
        await end.send(Error(message.rid, "device_away", None))

    def publish(self, device_id: bytes, events: Sequence[Any]) -> list[Result]:
        """Take events by the rules of author numbers; runs joined."""
        results: list[Result] = []
        for header, sig, payload, _ in events:
            result = self._take(device_id, header, sig, payload)
            last = results[-1] if results else None
            if (
                isinstance(last, ResultAccepted)
                and isinstance(result, ResultAccepted)
                and result.first_seq == last.first_seq + last.count
                and decode_header(header).stream == self._last_stream
            ):
                joined = ResultAccepted(last.count + 1, last.first_seq, result.received_at_ms, result.chain)
                results[-1] = joined
            else:
                results.append(result)
            self._last_stream = decode_header(header).stream
        return results

    _last_stream = ""

    def _take(self, device_id: bytes, header: bytes, sig: bytes, payload: bytes) -> Result:
        decoded = decode_header(header)
        stream = self.stream(decoded.stream)
        last_n, last_hash = stream.authors.get(device_id, NO_AUTHOR)
        if decoded.n <= last_n:
            return self._known(stream, device_id, decoded.n, event_hash(crypto, header, sig))
        if decoded.n > last_n + 1 or decoded.prev != last_hash[:16]:
            return ResultError("out_of_order", [last_n, last_hash])
        row = stream.take(device_id, header, sig, payload, received_at_ms=self.now_ms)
        return ResultAccepted(1, row[0], row[2], stream.chains[-1])

    def _known(self, stream: StreamLog, device_id: bytes, n: int, hash_: bytes) -> Result:
        for row in stream.rows:
            if row[1] == device_id and decode_header(row[3]).n == n:
                stored = event_hash(crypto, row[3], row[4])
                if stored == hash_:
                    return ResultDuplicate(row[0], stream.chains[row[0]], row[2])
                return ResultError("id_reused", [row[0], stored])
        return ResultDuplicate(None, None, None)

    async def push(self) -> None:
        """Send every session what it does not have."""
        for session in list(self.sessions):
            for name in list(session.positions):
                await session.catch_up(name, tell=False)


class ServerEnd:
    """The server's end of one session.

    Attributes:
        transport: between the two ends.
        device_id: who it is, once it has proven that.
        positions: up to where it was sent each stream it follows.
        sealed: its state.
    """

    def __init__(self, server: DeviceServer, transport: MemoryTransport) -> None:
        self.transport = transport
        self.device_id = b""
        self.positions: dict[str, int] = {}
        self.sealed: bytes | None = None
        self._server = server
        self._session: ServerSession | None = None
        self._sending = trio.Lock()

    async def run(self) -> None:
        """Shake hands, then answer until the connection ends."""
        try:
            await self._shake_hands()
            others = [(each.device_id, each.sealed, self._server.now_ms) for each in self._server.sessions]
            self._server.sessions.append(self)
            self._server.tell()
            if any(sealed is not None for _, sealed, _ in others):
                await self.send(PresenceFrom([other for other in others if other[1] is not None]))
            assert self._session is not None
            while True:
                await self._server.handle(self, self._session.receive(await self.transport.from_device.receive()))
        except _GONE:
            pass
        except ProtocolError as error:
            self.transport.close(ERRORS[error.code].close_code)
        finally:
            if self in self._server.sessions:
                self._server.sessions.remove(self)
                self.sealed = None
                with trio.move_on_after(CLEANUP_S, shield=True), contextlib.suppress(*_GONE):
                    await self._server._tell_presence(self)
            self._server.tell()

    async def _shake_hands(self) -> None:
        server = self._server
        handshake = ServerHandshake(
            crypto,
            identity=crypto.SigningKey(server.server_secret),
            ephemeral_secret=server.environment.random_bytes(32),
            nonce=server.environment.random_bytes(32),
            server_time_ms=server.now_ms,
            epoch=server.epoch,
            suites=(2,),
        )
        receive, send = self.transport.from_device.receive, self.transport.to_device.send
        await send(handshake.receive_hello(await receive()))
        self.device_id = handshake.receive_auth(await receive()).device_id
        ready = Ready(bytes(16), 1, server.limits, [], [])
        data, self._session = handshake.ready(ready, now_s=trio.current_time())
        await send(data)

    async def send(self, *messages: Struct) -> None:
        """Send, after the test has had its say."""
        assert self._session is not None
        async with self._sending:
            for message in messages:
                for rewritten in self._server.rewrite(message):
                    for record in self._session.send([rewritten], now_s=trio.current_time()):
                        await self.transport.to_device.send(record)

    async def subscribe(self, name: str, start: tuple[int, bytes] | str) -> None:
        """Answer a subscription, and send what is missing."""
        stream = self._server.streams.get(name)
        head = None if stream is None or not stream.rows else self._server.head(name)
        author = NO_AUTHOR if stream is None else stream.authors.get(self.device_id, NO_AUTHOR)
        after = self._after(stream, start)
        if after is None:
            await self.send(Resumed(name, "unknown_position", head, author))
            return
        self.positions[name] = after
        await self.send(Resumed(name, "contiguous", head, author))
        await self.catch_up(name, tell=True)

    def _after(self, stream: StreamLog | None, start: tuple[int, bytes] | str) -> int | None:
        if isinstance(start, str):
            return len(stream.rows) if stream is not None and start == "end" else 0
        seq, chain = start
        chains = [] if stream is None else stream.chains
        return None if seq and (seq >= len(chains) or chains[seq] != chain) else seq

    async def catch_up(self, name: str, *, tell: bool) -> None:
        """Send pages up to the head, and say so."""
        stream = self._server.streams.get(name)
        if stream is None or not stream.rows:
            return
        moved = False
        while self.positions[name] < len(stream.rows):
            after = self.positions[name]
            rows = stream.rows[after : after + self._server.page_events]
            self.positions[name] = rows[-1][0]
            moved = True
            await self.send(Events(name, rows, stream.chains[rows[-1][0]]))
        if tell or moved:
            await self.send(CaughtUp(name, self._server.head(name), self._server.safe_at_ms))


class MemoryTransport:
    """A connection in memory; the device's end is a ``Transport``."""

    def __init__(self) -> None:
        self._to_server, self.from_device = trio.open_memory_channel[bytes](MESSAGES_MAX)
        self.to_device, self._from_server = trio.open_memory_channel[bytes](MESSAGES_MAX)
        self._close_code: int | None = None
        self._closed = False

    async def receive(self) -> bytes:
        """As ``Transport.receive``."""
        try:
            return await self._from_server.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise Disconnected("the connection was closed", self._close_code) from None

    async def send(self, message: bytes) -> None:
        """As ``Transport.send``."""
        try:
            await self._to_server.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Disconnected("the connection was closed", self._close_code) from None

    def close(self, code: int | None) -> None:
        """End the connection from either side; what was sent before still arrives at the device."""
        if not self._closed:
            self._closed, self._close_code = True, code
            self._to_server.close()
            self.to_device.close()
            self.from_device.close()


class InlineWorker:
    """Runs blocking calls where it is called, so that Trio's mock clock does not run ahead of a thread."""

    async def run(self, function: Callable[[], T]) -> T:
        """As ``Worker.run``."""
        await trio.lowlevel.checkpoint()
        return function()
