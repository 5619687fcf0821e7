"""Payloads that are gone because their event lost its key to one that this device cannot read (protocol.md section 3).

In a stream of the policy ``latest`` the winner of a key may have gone with the stream's beginning, or have been before
the position that this device began from. Its headers are not there to say so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from keepstep.model import Kind, Policy
from keepstep.protocol.rewind import HLC_COUNTER_BITS
from keepstep.protocol.verified import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.client.locallog import LocalLog
    from keepstep.protocol.streamstate import StreamState
    from keepstep.protocol.verified import VerifiedEvent

HLC_AHEAD_MS_MAX: Final = 10 * 60 * 1000
"""How far the time of an event may be ahead of when it was received, at most (protocol.md section 2)."""


def excused(log: LocalLog, stream: str, state: StreamState, events: Sequence[VerifiedEvent]) -> Sequence[VerifiedEvent]:
    """The events, with ``SUPERSEDED`` for ``WITHHELD`` where one that this device never had may have won their key.

    Such a winner was received before the first event that this device has read after it, and its time was at most
    ``HLC_AHEAD_MS_MAX`` ahead then. What says of itself that it is later than that cannot have lost to it.

    Args:
        log: what this device keeps.
        stream: whose events they are.
        state: what is known of it.
        events: outcome of a second reading of payloads that were missing.
    """
    policy = state.rules.policy
    if policy is None or policy.policy != Policy.LATEST:
        return events
    return [
        replace(each, problem=Problem.SUPERSEDED) if _may_have_lost(log, stream, state, each) else each
        for each in events
    ]


def _may_have_lost(log: LocalLog, stream: str, state: StreamState, event: VerifiedEvent) -> bool:
    header = event.header
    if event.problem is not Problem.WITHHELD or header.kind != Kind.APPLICATION or header.key is None:
        return False
    unread_to = log.unread_to(stream, before=event.seq, whole=state.whole)
    if unread_to is None:
        return False
    first = log.exact_rows(stream, after=unread_to, events_max=1)
    received_at_ms = min([event.received_at_ms, *(row[2] for row in first)])
    return header.hlc >> HLC_COUNTER_BITS <= received_at_ms + HLC_AHEAD_MS_MAX
