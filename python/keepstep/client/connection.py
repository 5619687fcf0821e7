"""One session with the server: the handshake, then messages in and out (protocol.md sections 2 and 4)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import trio

from keepstep.client import crypto
from keepstep.client.transport import CLOSE_TIMEOUT_S, Disconnected, Transport
from keepstep.errors import ProtocolError
from keepstep.protocol.handshake import ClientHandshake
from keepstep.protocol.messages import Bye, FromServer, Ready, ServerRekey
from keepstep.protocol.primitives import SUITE_CHACHA20_POLY1305

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from msgspec import Struct

    from keepstep.client.environment import Environment
    from keepstep.client.store import Identity
    from keepstep.protocol.session import ClientSession

HANDSHAKE_TIMEOUT_S: Final = 15
"""From ClientHello to Ready, seconds; the server gives up after 10."""
SEND_TIMEOUT_S: Final = 30
"""One message to the socket, seconds: a peer that takes nothing for that long is gone."""
SILENCE_MAX_S: Final = 75
"""Nothing received for this long, although pings were sent, means that the connection is dead, seconds."""


class Connection:
    """An authenticated session.

    Attributes:
        ready: limits and features of the server.
        epoch: of the server's log.
    """

    def __init__(self, transport: Transport, session: ClientSession, ready: Ready, epoch: int) -> None:
        self.ready = ready
        self.epoch = epoch
        self._transport = transport
        self._session = session
        self._sending = trio.Lock()

    def limit(self, name: str, default: int) -> int:
        """A limit as the server named it, never above what this library is built for."""
        return max(1, min(self.ready.limits.get(name, default), default))

    async def send(self, *messages: Struct) -> None:
        """Send messages, in order and undivided.

        Raises:
            Disconnected: the connection is gone.

        A cancellation in the middle ends the session: the records after a half-sent one would not open.
        """
        async with self._sending:
            # Records open in the order they were sealed in, so sealing and sending are one step.
            for record in self._session.send(messages, now_s=trio.current_time()):
                with trio.move_on_after(SEND_TIMEOUT_S) as scope:
                    await self._transport.send(record)
                if scope.cancelled_caught:
                    raise Disconnected(f"the server took nothing for {SEND_TIMEOUT_S} s")

    async def receive(self) -> FromServer:
        """The next message that means something; unknown ones are passed over.

        Raises:
            Disconnected: the connection is gone, or silent for ``SILENCE_MAX_S``.
            ProtocolError: the server broke the protocol.

        A cancellation loses no message.
        """
        while True:
            with trio.move_on_after(SILENCE_MAX_S) as scope:
                record = await self._transport.receive()
            if scope.cancelled_caught:
                raise Disconnected(f"the server was silent for {SILENCE_MAX_S} s")
            try:
                message = self._session.receive(record)
            except ProtocolError as error:
                if error.code == "unsupported":  # a message of a later version
                    continue
                raise
            if not isinstance(message, ServerRekey):
                return message

    async def say_bye(self) -> None:
        """Tell the server that this side closes, if the connection is still there."""
        with contextlib.suppress(Disconnected, ProtocolError):
            await self.send(Bye())


@contextlib.asynccontextmanager
async def connect(
    identity: Identity, environment: Environment, *, device_url: str, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Connection]:
    """Connect a device and prove who both sides are; closed when the block ends.

    Raises:
        Disconnected: the server cannot be reached, or the connection ended.
        ProtocolError: the server is another one than the pinned one, or broke the protocol.
    """
    async with environment.open_transport(device_url, tls) as transport:
        with trio.move_on_after(HANDSHAKE_TIMEOUT_S) as scope:
            connection = await _shake_hands(transport, identity, environment)
        if scope.cancelled_caught:
            raise Disconnected(f"the server did not finish the handshake within {HANDSHAKE_TIMEOUT_S} s")
        try:
            yield connection
        finally:
            with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await connection.say_bye()


async def _shake_hands(transport: Transport, identity: Identity, environment: Environment) -> Connection:
    handshake = ClientHandshake(
        crypto,
        server_key=identity.server_key,
        user_key=identity.user_key,
        device_id=identity.device_id,
        device_secret=identity.device_secret,
        ephemeral_secret=environment.random_bytes(32),
        nonce=environment.random_bytes(32),
        suites=(SUITE_CHACHA20_POLY1305,),
        resume="none",
        options={},
    )
    await transport.send(handshake.hello())
    await transport.send(handshake.receive_server_hello(await transport.receive()))
    ready, session = handshake.receive_ready(await transport.receive(), now_s=trio.current_time())
    return Connection(transport, session, ready, handshake.server.epoch)
