"""The WebSocket transport on streams in memory, and peers of it that say exactly what a test wants."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import pytest
import trio
import trio.testing
import trio_websocket

from keepstep.entrance import Entrance
from keepstep.errors import ProtocolError
from keepstep.interfaces import ConnectionClosed
from keepstep.websocket import serve_stream
from keepstep.websocket_connection import Limits
from tests.support.wire import forever

LIMITS = Limits(
    upgrade_timeout_s=10,
    unauthenticated_message_bytes_max=100,
    message_bytes_max=10_000,
    unfinished_bytes_max=1_000_000,
)
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = (
    "GET /v1/connect HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: keepstep.v1\r\n"
)


class Place:
    """Counts who is inside and who authenticated."""

    inside = 0

    def __init__(self, full_for: str = "") -> None:
        self.is_authenticated = False
        self._full_for = full_for
        Place.inside += 1

    def identify(self, address: str) -> None:
        """As ``websocket.Place``."""
        if address == self._full_for:
            raise ProtocolError("too_many_connections")

    def authenticated(self) -> None:
        """As ``websocket.Place``."""
        self.is_authenticated = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        Place.inside -= 1


@dataclass
class Server:
    """Serves streams in memory, one handler for all; collects what the handler met."""

    nursery: trio.Nursery
    limits: Limits = LIMITS
    entrance: Entrance = field(default_factory=Entrance)
    handler: Callable[[Any], Awaitable[None]] | None = None
    refusing: bool = False
    full_for: str = ""
    refusals: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))
    received: list[bytes] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)

    def admit(self, _address: str) -> Place:
        """As ``Admission.enter``."""
        if self.refusing:
            raise ProtocolError("too_many_connections")
        self.places.append(Place(self.full_for))
        return self.places[-1]

    def note_fault(self, error: Exception, address: str) -> None:
        """As ``Gateway.report_fault``."""
        self.faults.append((repr(error), address))

    async def echo(self, connection: Any) -> None:
        """Send every message back until the connection ends; close it as its error says."""
        try:
            while True:
                message = await connection.receive()
                self.received.append(message)
                await connection.send([message])
        except ProtocolError as error:
            self.errors.append(error)
            await connection.close(error.row.close_code, error.code)
        except ConnectionClosed as error:
            self.errors.append(error)

    def connect(self) -> Any:
        """A new peer's end of a stream that is being served."""
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(
            partial(
                serve_stream,
                theirs,
                "192.0.2.1",
                handler=self.handler or self.echo,
                admit=self.admit,
                limits=self.limits,
                entrance=self.entrance,
                refusals=self.refusals,
                on_fault=self.note_fault,
            )
        )
        return ours

    async def open(self, path: str = "/v1/connect", subprotocols: Any = ("keepstep.v1",)) -> Any:
        """A peer that speaks WebSocket."""
        return await trio_websocket.wrap_client_stream(
            self.nursery, self.connect(), "here", path, subprotocols=subprotocols
        )


@asynccontextmanager
async def serving(**arguments: Any) -> AsyncIterator[Server]:
    """A server until the block ends."""
    async with trio.open_nursery() as nursery:
        yield Server(nursery, **arguments)
        nursery.cancel_scope.cancel()
    assert Place.inside == 0


async def close_reason(peer: Any) -> tuple[int, str | None]:
    """Receive until the server closes."""
    with pytest.raises(trio_websocket.ConnectionClosed) as caught:
        await forever(peer.get_message)
    assert caught.value.reason is not None
    return caught.value.reason.code, caught.value.reason.reason


async def read_all(stream: Any) -> bytes:
    """Whatever comes until the end."""
    data = bytearray()
    while chunk := await stream.receive_some():
        data += chunk
    return bytes(data)


def frame(opcode: int, payload: bytes, *, final: bool = True, reserved: int = 0) -> bytes:
    """A masked frame (RFC 6455 section 5.2) with a mask of zeros."""
    head = bytes([(0x80 if final else 0) | reserved << 4 | opcode])
    if len(payload) < 126:
        return head + bytes([0x80 | len(payload)]) + bytes(4) + payload
    return head + b"\xfe" + struct.pack("!H", len(payload)) + bytes(4) + payload


async def upgraded(server: Server) -> Any:
    """A raw stream after its upgrade."""
    stream = server.connect()
    await stream.send_all((UPGRADE + "\r\n").encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += await stream.receive_some()
    assert answer.startswith(b"HTTP/1.1 101 ")
    return stream


class CountedStream(trio.abc.HalfCloseableStream):
    """Counts writes; may be made to wait in the middle of one."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.writes: list[int] = []
        self.gate: trio.Event | None = None

    async def send_all(self, data: Any) -> None:
        """Passes on."""
        self.writes.append(len(data))
        if self.gate is not None:
            await self.gate.wait()
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Passes on."""
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Passes on."""
        return bytes(await self.stream.receive_some(max_bytes))

    async def send_eof(self) -> None:
        """Passes on."""
        await self.stream.send_eof()

    async def aclose(self) -> None:
        """Passes on."""
        await self.stream.aclose()
