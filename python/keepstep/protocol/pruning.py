"""What a device takes in place of the beginning of a stream that is gone, sans-I/O (protocol.md section 3, Pruning)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from keepstep.errors import VerificationError
from keepstep.model import PREV_BYTES, Kind, RetentionClass
from keepstep.protocol.missing import RULES_AT_START, Rules
from keepstep.protocol.policy import decode_policy
from keepstep.protocol.streamstate import Author

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.protocol.event import Header
    from keepstep.protocol.messages import EventRow, Pruned
    from keepstep.protocol.policy import PolicyPayload
    from keepstep.protocol.streamstate import StreamState

KEPT_KINDS: Final = (Kind.POLICY, Kind.SNAPSHOT, Kind.CONFIRM)
"""What stays of a beginning that is gone."""


def state_after(state: StreamState, message: Pruned, kept: Sequence[tuple[EventRow, Header]]) -> StreamState:
    """A reader's state after the beginning of its stream, which it has not read, or not all of it.

    Args:
        state: before; its position is the one that the message goes on from.
        message: whose head was verified.
        kept: the rows of the message whose authors signed them and were allowed to.

    Raises:
        VerificationError: the message contradicts what this device has verified, or itself.
    """
    if (message.after, message.to_seq > message.after) != (state.seq, True):
        raise VerificationError("the server names another gap than there is", stream=message.stream, seq=message.to_seq)
    _check_authors(state, message, kept)
    policy = _policy_after(state, message, kept)
    authors = {
        device_id: _author_after(state, device_id, n, prev, message.to_seq)
        for device_id, (n, prev) in message.authors.items()
    }
    received_at_ms = max([state.received_at_ms, *(row[2] for row, _ in kept)])
    return msgspec.structs.replace(
        state,
        seq=message.to_seq,
        chain=message.chain,
        whole=True,
        received_at_ms=received_at_ms,
        authors=authors,
        missing={},
        rules=Rules(policy, state.rules.winners),
        claimed=None if state.claimed is not None and state.claimed[0] <= message.to_seq else state.claimed,
    )


def _author_after(state: StreamState, device_id: bytes, n: int, prev: bytes, to_seq: int) -> Author:
    """Where its last event is, is known only where it wrote nothing since; else it counts as the last of all."""
    known = state.authors.get(device_id)
    if known is not None and known.n == n:
        return known
    if known is None:
        return Author(n, prev, 0, to_seq)
    return Author(n, prev, known.devices_seen_seq, to_seq, known.knew_ms, known.knew_devices_ms)


def _check_authors(state: StreamState, message: Pruned, kept: Sequence[tuple[EventRow, Header]]) -> None:
    def lie(reason: str) -> VerificationError:
        return VerificationError(reason, stream=message.stream, seq=message.to_seq)

    if sum(n for n, _ in message.authors.values()) != message.to_seq:
        raise lie("the authors of what is gone did not write as many events as there were")
    for device_id, known in state.authors.items():
        n, prev = message.authors.get(device_id, (0, b""))
        if n < known.n or (n == known.n and prev != known.prev[:PREV_BYTES]):
            raise lie("the server takes back what an author wrote")
    for row, header in kept:
        if header.n > message.authors.get(row[1], (0, b""))[0] or row[0] > message.to_seq:
            raise lie("what is kept of the beginning was not in it")


def _policy_after(state: StreamState, message: Pruned, kept: Sequence[tuple[EventRow, Header]]) -> PolicyPayload | None:
    """The policy in force at the end of what is gone; ``None`` where it is there and nobody may say it any more."""
    said = [row for row, header in kept if header.kind == Kind.POLICY]
    known = state.rules.policy
    if said:
        payload = max(said)[5]
        policy = None if payload is None else decode_policy(payload)
    else:
        policy = RULES_AT_START.policy if known is None else known
        if policy != RULES_AT_START.policy:
            raise VerificationError(
                "the server hides the policy of a stream", stream=message.stream, seq=message.to_seq
            )
    for each in (known, policy):
        if each is not None and each.retention_class == RetentionClass.KEEP:
            raise VerificationError(
                "events are gone from a stream that is kept for ever", stream=message.stream, seq=message.to_seq
            )
    return policy
