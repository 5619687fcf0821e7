"""Devices that come and go over real sockets, in threads of their own: what the server does is the server's alone."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from keepstep import websocket
from keepstep.admission import Admission
from keepstep.client import crypto
from keepstep.entrance import Entrance
from keepstep.protocol.handshake import ClientHandshake
from keepstep.protocol.messages import HANDSHAKE_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX, Bye
from keepstep.protocol.primitives import RECORD_TAG_BYTES
from keepstep.websocket_connection import Limits
from tests.support.events import DeviceFixture, seed
from tests.support.parts import SERVER_KEY, Parts
from tests.support.websocket import UPGRADE, frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMITS: Final = Limits(10, HANDSHAKE_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX + RECORD_TAG_BYTES, 8 * MESSAGE_BYTES_MAX)


@asynccontextmanager
async def serving_sockets(parts: Parts) -> AsyncIterator[int]:
    """The parts run and serve devices at a port of this machine: which."""
    admission = Admission(
        connections_max=2, unauthenticated_max=2, unauthenticated_per_address_max=2, on_refused=lambda: None
    )
    async with parts.running() as nursery:
        (listener,) = await nursery.start(
            partial(
                websocket.serve,
                await trio.open_tcp_listeners(0, host="127.0.0.1"),
                parts.gateway.handle,
                admit=admission.enter,
                limits=LIMITS,
                entrance=Entrance(),
                connections=nursery,
                on_fault=parts.gateway.report_fault,
            )
        )
        yield listener.socket.getsockname()[1]


class BlockingDevice:
    """A device in a thread of its own, whose calls are not the server's."""

    def __init__(self, device: DeviceFixture, port: int) -> None:
        self._device = device
        self._port = port

    def come_and_go(self, number: int) -> None:
        """Connect, say hello and bye, and see the server close."""
        device = self._device
        handshake = ClientHandshake(
            crypto,
            server_key=SERVER_KEY,
            user_key=device.user.user_key,
            device_id=device.device_id,
            device_secret=device.device_secret,
            ephemeral_secret=seed(f"ephemeral {number}"),
            nonce=seed(f"nonce {number}"),
            suites=[2],
            resume="none",
            options={},
        )
        with socket.create_connection(("127.0.0.1", self._port)) as sock, sock.makefile("rb") as received:

            def message() -> bytes:
                length = received.read(2)[1]
                if length == 126:
                    (length,) = struct.unpack("!H", received.read(2))
                return received.read(length)

            sock.sendall((UPGRADE + "\r\n").encode())
            while received.readline() != b"\r\n":
                pass
            sock.sendall(frame(2, handshake.hello()))
            sock.sendall(frame(2, handshake.receive_server_hello(message())))
            _, session = handshake.receive_ready(message(), now_s=0)
            sock.sendall(b"".join(frame(2, record) for record in session.send([Bye()], now_s=0)))
            sock.sendall(frame(8, message()))
            assert received.read() == b""
