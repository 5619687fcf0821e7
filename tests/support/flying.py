"""A server that commits every flight, and what comes over one connection to it."""

from __future__ import annotations

import select
import socket
import threading
from typing import TYPE_CHECKING, Final

import trio

from keepstep._keepstep import Committer, Flight

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepstep._keepstep import Ingested
    from keepstep.eventlog.store import KnownBatch

XID: Final = b"771"


def message(kind: bytes, body: bytes = b"") -> bytes:
    """A message of PostgreSQL's protocol."""
    return kind + (len(body) + 4).to_bytes(4, "big") + body


BOUND: Final = message(b"2")
ROW: Final = message(b"D", b"\0\1" + len(XID).to_bytes(4, "big") + XID)
MOVED: Final = BOUND + ROW + message(b"C", b"SELECT 1\0")
COPIED: Final = BOUND + message(b"G", b"\1\0\0") + message(b"C", b"COPY 3\0")
IDLE: Final = message(b"Z", b"I")


class CommittingServer:
    """The two ends of a connection, with a thread at the far one that answers as PostgreSQL does.

    Attributes:
        client: the near end.
        answer: what it says to a flight with one COPY.
    """

    def __init__(self) -> None:
        self.client, self._server = socket.socketpair()
        self.answer = MOVED + COPIED + IDLE
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """End the connection and the thread."""
        self.client.shutdown(socket.SHUT_WR)
        self._thread.join()
        self.client.close()
        self._server.close()

    def say(self, answer: bytes) -> None:
        """Something that nobody asked for."""
        self._server.sendall(answer)

    def _serve(self) -> None:
        sent = b""
        while received := self._server.recv(65_536):
            sent += received
            while len(sent) > 4 and len(sent) > (length := int.from_bytes(sent[1:5], "big")):
                kind, sent = sent[:1], sent[1 + length :]
                if kind == b"S":
                    self._server.sendall(self.answer)


class Flying:
    """A backend whose batches go to such a server.

    Attributes:
        server: it.
        taken: what was committed.
        flights: those that did not end as they do in general.
        fault: raised instead of taking something, where there is one.
        probe: as for ``Committer.start``.
    """

    def __init__(self, server: CommittingServer) -> None:
        self.server = server
        self.taken: list[Ingested] = []
        self.flights: list[Flight] = []
        self.fault: Exception | None = None
        self.probe: Callable[[str], None] | None = None
        self.committer = Committer()

    def start(self, batch: KnownBatch) -> None:
        """Begin with a batch."""
        self.committer.start(
            batch.submissions,
            batch.heads,
            batch.accounts,
            now_ms=batch.now_ms,
            received_at_ms_max=batch.received_at_ms_max,
            generation=batch.generation,
            connection=self.server.client,
            descriptor=self.server.client.fileno(),
            timeout_s=60.0,
            move_heads="move",
            copies={0: "keep", 1: "standard"},
            probe=self.probe,
        )

    async def append_known(self, batch: KnownBatch) -> Ingested | None:
        """As ``Backend.append_known``."""
        if self.fault is not None:
            raise self.fault
        await trio.lowlevel.checkpoint()
        return self.commit(batch)

    def commit(self, batch: KnownBatch) -> Ingested | None:
        """The same, while all else waits."""
        self.start(batch)
        select.select([self.committer], [], [])
        committed = self.committer.take()
        if committed is None:
            return None
        ingested, flight = committed
        self.taken.append(ingested)
        self.flights += [flight] if flight is not None else []
        return ingested
