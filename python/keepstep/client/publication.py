"""What an application holds of an event it published: a receipt, sooner or later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from keepstep.client.outbox import Entry


@dataclass(frozen=True, slots=True)
class Receipt:
    """The server holds an event, on its disk.

    Attributes:
        stream: the stream.
        n: the author number.
        seq: its place; ``None`` where the server holds it and no longer says where.
        received_at_ms: unix milliseconds, likewise.
    """

    stream: str
    n: int
    seq: int | None
    received_at_ms: int | None


class Publication:
    """An event that is safe in the outbox and on its way. Waiting for it is optional."""

    def __init__(self, entry: Entry) -> None:
        self.stream = entry.stream
        self._done = trio.Event()
        self._receipt: Receipt | None = None
        self._error: Exception | None = None

    @property
    def receipt(self) -> Receipt | None:
        """What the server answered, if it has."""
        return self._receipt

    async def accepted(self) -> Receipt:
        """Wait until the server holds the event on its disk.

        Raises:
            ProtocolError: the server refused it for good; it is no longer in the outbox.
            ClientError: the device was closed first; the event stays in the outbox and goes out next time.
            VerificationError: the device stopped because something lied.

        A cancellation only ends the waiting.
        """
        await self._done.wait()
        if self._error is not None:
            raise self._error
        assert self._receipt is not None
        return self._receipt

    def settle(self, outcome: Receipt | Exception) -> None:
        """The answer is there; the first one counts."""
        if not self._done.is_set():
            if isinstance(outcome, Receipt):
                self._receipt = outcome
            else:
                self._error = outcome
            self._done.set()
