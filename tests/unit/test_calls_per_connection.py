"""How many Python functions it takes to connect and leave: counted, not timed.

From the accepted socket over upgrade, handshake and session to the closed socket, over the log in memory. A change that
makes it more has to say why here; one that makes it less lowers the bound, so that what was won stays.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final

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
from tests.unit.test_calls_per_event import is_counted

if TYPE_CHECKING:
    from types import FrameType

CONNECTIONS: Final = 20
CALLS_MAX: Final = 265
"""Calls of one connection, with those of tasks that go on.

Seen with Python 3.11 on Linux; later ones call no function for a comprehension.
"""
LIMITS: Final = Limits(10, HANDSHAKE_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX + RECORD_TAG_BYTES)


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


async def test_a_connection_takes_few_calls() -> None:
    """Each of them is a step of one handshake, one session, or one turn of a task for all."""
    parts = Parts()
    (device,) = await parts.register("alice")
    admission = Admission(
        connections_max=2, unauthenticated_max=2, unauthenticated_per_address_max=2, on_refused=lambda: None
    )
    counts: Counter[str] = Counter()

    def count(called: FrameType, event: str, _argument: Any) -> None:
        if event == "call" and is_counted(called):
            counts[f"{called.f_globals['__name__']}.{called.f_code.co_qualname}"] += 1

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
        blocking = BlockingDevice(device, listener.socket.getsockname()[1])
        await trio.to_thread.run_sync(blocking.come_and_go, 0)
        sys.setprofile(count)
        try:
            for number in range(1, CONNECTIONS + 1):
                await trio.to_thread.run_sync(blocking.come_and_go, number)
        finally:
            sys.setprofile(None)
        assert parts.metrics.registry.get_sample_value("keepstep_session_ends_total", {"reason": "bye"})
    calls = counts.total() / CONNECTIONS
    most = ", ".join(f"{name} {number / CONNECTIONS:g}" for name, number in counts.most_common(150))
    assert calls <= CALLS_MAX, f"{calls:g} calls a connection: {most}"
