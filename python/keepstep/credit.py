"""What a session was sent and has not acknowledged, and how far its device says it is (protocol.md section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keepstep.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keepstep.model import Position
    from keepstep.subscription import Subscription

CHAIN_PREFIX_BYTES: Final = 16
UNACKED_PAGES_MAX: Final = 256
"""Boundaries of unacknowledged pages remembered per stream; beyond it the newest ones are joined."""


class Credit:
    """Of one session, over all streams it follows; live.

    Args:
        bytes_max: of events that may be unacknowledged.

    Attributes:
        left_bytes: of events that may be sent before something is acknowledged; nothing more where that is none, and
            below 0 after a page that was larger. An attribute, for it is asked with every page.
    """

    __slots__ = ("_sent_before", "_unsaved", "left_bytes")

    def __init__(self, bytes_max: int) -> None:
        self.left_bytes = bytes_max
        self._sent_before: dict[str, int] = {}
        self._unsaved: dict[str, tuple[int, bytes]] = {}

    def send(self, subscription: Subscription, to: Position, size: int) -> None:
        """A page of so many bytes goes, which moves the stream's position there."""
        subscription.at = to
        subscription.moved = True
        self.left_bytes -= size
        unacked = subscription.unacked
        if len(unacked) >= UNACKED_PAGES_MAX:
            size += unacked.pop()[2]
        unacked.append((to.seq, to.chain, size))

    def forget(self, subscription: Subscription) -> None:
        """A stream is not followed any more: what it was sent stays known, what it owes is not waited for."""
        name = subscription.name
        if subscription.at.seq > self._sent_before.get(name, 0):
            self._sent_before[name] = subscription.at.seq
        self.left_bytes += sum(size for _, _, size in subscription.unacked)

    def acknowledge(self, name: str, subscription: Subscription | None, seq: int, chain16: bytes) -> None:
        """The device holds everything of a stream up to here.

        Args:
            name: the stream.
            subscription: to it, ``None`` where there is none any more.
            seq: of the last event it holds.
            chain16: the first bytes of the chain there, as the device has it.

        Raises:
            ProtocolError: ``malformed``: above what was sent; ``unknown_position``: another chain than was sent.
        """
        # protocol.md section 4: "`ack` only moves up, never above what this session was sent"
        sent_seq = 0 if subscription is None else subscription.at.seq
        if seq > max(sent_seq, self._sent_before.get(name, 0)):
            raise ProtocolError("malformed", "an ack above what this session was sent")
        if subscription is None or not subscription.acked_seq < seq <= sent_seq:
            return
        unacked = subscription.unacked
        while unacked and unacked[0][0] <= seq:
            page_seq, chain, size = unacked.pop(0)
            self.left_bytes += size
            if page_seq == seq and chain[:CHAIN_PREFIX_BYTES] != chain16:
                raise ProtocolError("unknown_position", "the device acknowledged another chain than it was sent")
        subscription.acked_seq = seq
        self._unsaved[name] = (seq, chain16)

    @property
    def unsaved(self) -> dict[str, tuple[int, bytes]]:
        """Acknowledged positions that are not saved yet: a copy."""
        return self._unsaved.copy()

    def saved(self, positions: Mapping[str, tuple[int, bytes]]) -> None:
        """These are saved now."""
        for name, position in positions.items():
            if self._unsaved.get(name) == position:
                del self._unsaved[name]
