"""The states of a connection and every transition between them, in one table (protocol.md section 2)."""

from __future__ import annotations

import enum
from typing import Final

from keepstep.errors import ProtocolError


class State(enum.Enum):
    """Where a connection is, on either side."""

    AWAIT_HELLO = "await_hello"
    """The peer's hello has not arrived."""
    AWAIT_AUTH = "await_auth"
    """Server: the hello is answered, the device has not proven who it is."""
    AWAIT_READY = "await_ready"
    """Server: the device has proven its key and is being looked up. Device: its proof is on the way."""
    ACTIVE = "active"
    DRAINING = "draining"
    """One side has said that it will close; what is under way is still answered."""
    CLOSED = "closed"


class Step(enum.Enum):
    """What moves a connection on."""

    SERVER_TAKES_HELLO = "server takes hello"
    SERVER_TAKES_AUTH = "server takes auth"
    DEVICE_TAKES_HELLO = "device takes hello"
    READY = "ready"
    MESSAGE = "message"
    DRAIN = "drain"
    CLOSE = "close"


_TRANSITIONS: Final[dict[tuple[State, Step], State]] = {
    # server's handshake
    (State.AWAIT_HELLO, Step.SERVER_TAKES_HELLO): State.AWAIT_AUTH,
    (State.AWAIT_AUTH, Step.SERVER_TAKES_AUTH): State.AWAIT_READY,
    # device's handshake
    (State.AWAIT_HELLO, Step.DEVICE_TAKES_HELLO): State.AWAIT_READY,
    # both
    (State.AWAIT_READY, Step.READY): State.ACTIVE,
    (State.ACTIVE, Step.MESSAGE): State.ACTIVE,
    (State.ACTIVE, Step.DRAIN): State.DRAINING,
    (State.DRAINING, Step.MESSAGE): State.DRAINING,
    (State.DRAINING, Step.DRAIN): State.DRAINING,
    **{(state, Step.CLOSE): State.CLOSED for state in State},
}


def advance(state: State, step: Step) -> State:
    """The state after ``step``.

    Raises:
        ProtocolError: ``unexpected``: the table has no such transition; the connection must be closed.
    """
    after = _TRANSITIONS.get((state, step))
    if after is None:
        raise ProtocolError("unexpected", f"{step.value} is not allowed in state {state.value}")
    return after
