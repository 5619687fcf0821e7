"""Handlers of connections that send every message back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep.errors import ProtocolError
from keepstep.interfaces import ConnectionClosed
from tests.support.records import Sealing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.interfaces import Connection, Opened


class Echo:
    """Sends every message back, by callbacks."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.reason: ProtocolError | None = None

    def received(self, opened: Sequence[Opened], record_bytes: int, now_s: float) -> None:
        """As ``interfaces.Receiver``."""
        del record_bytes, now_s
        self._connection.write([each for each in opened if isinstance(each, bytes)])

    def writable(self) -> None:
        """As ``interfaces.Receiver``."""

    def lost(self, reason: ProtocolError | None) -> None:
        """As ``interfaces.Receiver``."""
        self.reason = reason


async def by_callbacks(connection: Connection) -> None:
    """Echo as a session listens."""
    echo = Echo(connection)
    await connection.listen(echo, Sealing().records)
    reason = echo.reason
    await connection.close(*((1000, "") if reason is None else (reason.row.close_code, reason.code)))


async def by_awaiting(connection: Connection) -> None:
    """Echo as the handshake receives and sends."""
    try:
        while True:
            await connection.send([await connection.receive()])
    except ProtocolError as error:
        await connection.close(error.row.close_code, error.code)
    except ConnectionClosed:
        await connection.close(1000, "")
