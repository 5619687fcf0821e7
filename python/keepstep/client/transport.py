"""The WebSocket under a session: binary messages over ``trio_websocket``, which only this module knows."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, cast
from urllib.parse import SplitResult, urlsplit

import trio
import trio_websocket

from keepstep.client.secure import SecureStream, open_secure
from keepstep.client.worker import open_nursery
from keepstep.errors import ERRORS, ProtocolError
from keepstep.protocol.messages import MESSAGE_BYTES_MAX
from keepstep.protocol.primitives import RECORD_TAG_BYTES

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

_Stream: TypeAlias = "trio.SocketStream | SecureStream"

SUBPROTOCOL: Final = "keepstep.v1"
CONNECT_TIMEOUT_S: Final = 20
"""From the name's look-up to the upgraded connection, seconds."""
CLOSE_TIMEOUT_S: Final = 2
"""How long the closing handshake may take before the socket is dropped, seconds."""
RECEIVE_BYTES: Final = 64 * 1024
"""One read from the socket, bytes."""
_CODES: Final = {row.close_code: row.code for row in ERRORS.values()}


class Disconnected(ConnectionError):
    """The connection is gone.

    Attributes:
        close_code: the server's WebSocket close code; ``None`` where there was none (cut, unreachable, refused).
    """

    def __init__(self, reason: str, close_code: int | None = None) -> None:
        super().__init__(reason)
        self.close_code = close_code


class Transport(Protocol):
    """Binary messages to and from a server. One task receives, one sends; ``Disconnected`` ends both."""

    async def receive(self) -> bytes:
        """The next binary message.

        Raises:
            Disconnected: the connection is closed or cut.
            ProtocolError: ``malformed``: a text message.

        A cancellation loses no message.
        """

    async def send(self, message: bytes) -> None:
        """Send a binary message.

        Raises:
            Disconnected: the connection is closed or cut.

        A cancellation may leave half a message on the wire: nothing can be sent after it.
        """


class WebSocketTransport:
    """An open WebSocket, as a ``Transport``."""

    def __init__(self, connection: trio_websocket.WebSocketConnection) -> None:
        self._connection = connection

    async def receive(self) -> bytes:
        """As ``Transport.receive``."""
        try:
            message = await self._connection.get_message()
        except trio_websocket.ConnectionClosed as exc:
            raise _disconnected(exc) from None
        if not isinstance(message, bytes):
            raise ProtocolError("malformed", "the server sent a text message")
        return message

    async def send(self, message: bytes) -> None:
        """As ``Transport.send``."""
        try:
            await self._connection.send_message(message)
        except trio_websocket.ConnectionClosed as exc:
            raise _disconnected(exc) from None


@contextlib.asynccontextmanager
async def open_transport(url: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[Transport]:
    """Connect and upgrade; the connection is closed when the block ends, within ``CLOSE_TIMEOUT_S``.

    Args:
        url: ``ws://`` or ``wss://``; a fragment is not sent.
        tls: for ``wss``; the system's trusted certificates by default.

    Raises:
        Disconnected: the server cannot be reached, refuses the upgrade or does not answer in time.
        ProtocolError: ``unsupported``: what answers does not speak the subprotocol.
    """
    async with open_nursery() as nursery:
        stream, connection = await _connect(nursery, urlsplit(url), tls)
        try:
            if connection.subprotocol != SUBPROTOCOL:
                raise ProtocolError("unsupported", f"what answers does not speak {SUBPROTOCOL}")
            yield WebSocketTransport(connection)
        finally:
            # A cancellation has ended the reader too, without which the closing handshake cannot be finished.
            if trio.current_effective_deadline() != -math.inf:
                with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                    await connection.aclose()
            # trio_websocket leaves the socket open where the connection was cut.
            await trio.aclose_forcefully(stream)
            nursery.cancel_scope.cancel()


async def _connect(
    nursery: trio.Nursery, parts: SplitResult, tls: ssl.SSLContext | None
) -> tuple[_Stream, trio_websocket.WebSocketConnection]:
    """An upgraded connection and its stream, which the caller closes. Raises Disconnected."""
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            stream = await _open_stream(parts, tls)
            try:
                return stream, await _upgrade(nursery, stream, parts)
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
    except trio.TooSlowError:
        raise Disconnected(f"{parts.netloc} did not answer within {CONNECT_TIMEOUT_S} s") from None
    except Disconnected:
        raise
    except OSError as exc:
        raise Disconnected(f"{parts.netloc} cannot be reached: {_reason(exc)}") from exc


async def _upgrade(nursery: trio.Nursery, stream: _Stream, parts: SplitResult) -> trio_websocket.WebSocketConnection:
    """The WebSocket on a stream. Raises Disconnected."""
    reader = _ReaderNursery(nursery)
    with reader.opening:
        return await trio_websocket.wrap_client_stream(
            cast("trio.Nursery", reader),
            stream,
            parts.netloc,
            parts.path or "/",
            subprotocols=[SUBPROTOCOL],
            max_message_size=MESSAGE_BYTES_MAX + RECORD_TAG_BYTES,
            receive_buffer_size=RECEIVE_BYTES,
        )
    match reader.fault:
        case None:
            raise Disconnected(f"{parts.netloc} closed the connection before it answered")
        case trio_websocket.ConnectionRejected(status_code=status):
            raise Disconnected(f"{parts.netloc} refused the connection with status {status}")
        case fault:
            raise Disconnected(f"{parts.netloc} does not answer as a WebSocket server") from fault


class _ReaderNursery:
    """As much of a nursery as trio_websocket starts its reader in: what an answer makes that raise ends it alone.

    Attributes:
        opening: cancelled when the reader ends; nobody else would notice that the upgrade does not come about.
        fault: why it ended, where it failed.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.opening = trio.CancelScope()
        self.fault: Exception | None = None
        self._nursery = nursery

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        """Start the reader."""
        self._nursery.start_soon(self._read, reader)

    async def _read(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            await reader()
        except Exception as exc:  # whatever: anybody can be at the other end
            self.fault = exc
        finally:
            self.opening.cancel()


async def _open_stream(parts: SplitResult, tls: ssl.SSLContext | None) -> _Stream:
    host = parts.hostname or ""
    if parts.scheme == "wss":
        return await open_secure(host, parts.port or 443, tls)
    return await trio.open_tcp_stream(host, parts.port or 80)


def _disconnected(closed: trio_websocket.ConnectionClosed) -> Disconnected:
    if closed.reason is None:
        return Disconnected("the connection was cut")
    # The frame's own text is anybody's on the way, and would be shown on a terminal.
    code = closed.reason.code
    return Disconnected(f"the server closed the connection: {_CODES.get(code, f'code {code}')}", code)


def _reason(error: BaseException) -> str:
    """In words, where the error has any, else its kind."""
    return str(error) or (str(error.__cause__) if error.__cause__ is not None else "") or type(error).__name__
