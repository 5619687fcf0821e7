"""What the sessions of a server share, and what each of them may cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keepstep.errors import ProtocolError
    from keepstep.heads import HeadSigner
    from keepstep.healing import Healing
    from keepstep.interfaces import Clock, EventLog
    from keepstep.presence import Presences
    from keepstep.publish import Publisher
    from keepstep.session import Session
    from keepstep.telemetry import Metrics
    from keepstep.turns import Turns


FAREWELL_TIMEOUT_S: Final = 1.0
"""How long an ending session may take to send what is already answered."""
HURRIED_FAREWELL_TIMEOUT_S: Final = 0.25
"""The same for a device that has ended or is cut off: all of it is over within a second."""
_HURRIED: Final = frozenset({"revoked", "account_disabled", "session_cut"})


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What a session may cost.

    Attributes:
        inflight_publishes_max: publishes without an answer; above it the session is not read.
        publish_events_max: events in one publish.
        payload_bytes_max: bytes of one payload.
        read_events_max: events in the answer to one ``read``.
        read_bytes_max: bytes in it; one event above it still goes.
        send_timeout_s: for one write to the device.
        idle_timeout_s: without a message from the device.
    """

    inflight_publishes_max: int
    publish_events_max: int
    payload_bytes_max: int
    read_events_max: int
    read_bytes_max: int
    send_timeout_s: float
    idle_timeout_s: float


@dataclass(frozen=True, slots=True)
class SessionServices:
    """What the sessions of a server share.

    Attributes:
        log: the log, for ``read`` and what a session follows.
        signer: of heads.
        publisher: where publishes go.
        healing: what answers after a restore.
        presences: who else of a user is here.
        clock: the one ``received_at`` follows.
        metrics: counted into.
        probe: called with ``after_ack`` when acknowledgements have been handed to the socket.
        turns: gives sessions their turns.
        resume: runs a session that rested to its end.
    """

    log: EventLog
    signer: HeadSigner
    publisher: Publisher
    healing: Healing
    presences: Presences
    clock: Clock
    metrics: Metrics
    probe: Callable[[str], None]
    turns: Turns
    resume: Callable[[Session], Awaitable[None]]


def farewell_timeout_s(reason: ProtocolError | None) -> float:
    """How long a session that ends for this may take to send what is already answered."""
    hurries = reason is not None and reason.code in _HURRIED
    return HURRIED_FAREWELL_TIMEOUT_S if hurries else FAREWELL_TIMEOUT_S
