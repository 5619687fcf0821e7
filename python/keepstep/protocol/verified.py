"""Events in their verified places, and why some come without their payload (protocol.md section 3)."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keepstep.protocol.event import Header


class Problem(enum.Enum):
    """Why an event comes without its payload."""

    BAD_SIGNATURE = "bad_signature"
    """The author's signature is refused: only the key's own holder, or a server that forges, can cause that."""
    NOT_ALLOWED = "not_allowed"
    """The author was no live device with that capability at the ``devices_seen`` it named."""
    AFTER_REVOCATION = "after_revocation"
    """The author has been revoked, and this is not among the events of it that stay."""
    INVALID = "invalid"
    """The event breaks a rule that its author should have kept."""
    UNSUPPORTED = "unsupported"
    """A kind or an operation of a later version."""
    EXPIRED = "expired"
    """Its ttl is over, by the time of a signed head."""
    ERASED = "erased"
    """A signed erasure names it."""
    SUPERSEDED = "superseded"
    """Another event has won its key."""
    ACKNOWLEDGED = "acknowledged"
    """In this device's own inbox: the server says that this device had it. Else the server withholds it."""
    MISSING = "missing"
    """It is gone and this device cannot see why yet."""
    WITHHELD = "withheld"
    """It is gone without a reason: the server withholds it."""


@dataclass(frozen=True, slots=True)
class VerifiedEvent:
    """An event in its verified place.

    Attributes:
        seq: its place in the stream.
        chain: the chain there, for the device's store.
        device_id: its author.
        received_at_ms: unix milliseconds, when the server took it.
        header: decoded.
        header_bytes: as signed.
        sig: the author's signature.
        hash: identifies the event.
        payload: as the author signed for it; ``None`` where there is a ``problem``.
        problem: why there is no payload.
        concurrent_with: in a stream of the policy ``fork`` the seqs (first, last) that the event does not build on.
    """

    seq: int
    chain: bytes
    device_id: bytes
    received_at_ms: int
    header: Header
    header_bytes: bytes
    sig: bytes
    hash: bytes
    payload: bytes | None
    problem: Problem | None
    concurrent_with: tuple[int, int] | None = None
