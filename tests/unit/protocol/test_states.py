"""The transition table of a connection."""

from __future__ import annotations

import pytest

from keepstep.errors import ProtocolError
from keepstep.protocol.states import State, Step, advance


@pytest.mark.parametrize(
    "steps",
    [
        [Step.SERVER_TAKES_HELLO, Step.SERVER_TAKES_AUTH, Step.READY],
        [Step.DEVICE_TAKES_HELLO, Step.READY],
    ],
    ids=["server", "device"],
)
def test_both_sides_reach_every_state_in_order(steps: list[Step]) -> None:
    """From the hello to active, through messages to draining, and to closed."""
    state = State.AWAIT_HELLO
    for step in steps:
        state = advance(state, step)
    assert state is State.ACTIVE
    assert advance(state, Step.MESSAGE) is State.ACTIVE
    state = advance(state, Step.DRAIN)
    assert state is State.DRAINING
    assert advance(state, Step.MESSAGE) is State.DRAINING
    assert advance(state, Step.DRAIN) is State.DRAINING
    assert advance(state, Step.CLOSE) is State.CLOSED


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_closed(state: State) -> None:
    """Closing is always possible, also twice."""
    assert advance(state, Step.CLOSE) is State.CLOSED


@pytest.mark.parametrize(
    ("state", "step"),
    [
        (State.AWAIT_HELLO, Step.SERVER_TAKES_AUTH),
        (State.AWAIT_HELLO, Step.READY),
        (State.AWAIT_HELLO, Step.MESSAGE),
        (State.AWAIT_AUTH, Step.SERVER_TAKES_HELLO),
        (State.AWAIT_AUTH, Step.READY),
        (State.AWAIT_AUTH, Step.MESSAGE),
        (State.AWAIT_READY, Step.SERVER_TAKES_AUTH),
        (State.AWAIT_READY, Step.DEVICE_TAKES_HELLO),
        (State.AWAIT_READY, Step.MESSAGE),
        (State.ACTIVE, Step.SERVER_TAKES_HELLO),
        (State.ACTIVE, Step.READY),
        (State.DRAINING, Step.READY),
        *((State.CLOSED, step) for step in Step if step is not Step.CLOSE),
    ],
)
def test_anything_else_is_unexpected(state: State, step: Step) -> None:
    """A step the table does not have is refused, whatever the peer sent to cause it."""
    with pytest.raises(ProtocolError) as caught:
        advance(state, step)
    assert caught.value.code == "unexpected"
