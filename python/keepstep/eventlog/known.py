"""The short way of a batch: all that deciding it takes is remembered, so it is a few calls, whatever is in it.

Nearly every batch goes this way. What takes more (a stream that is new or has a bound, a device with an end, an event
sent again, a head that another node moved) is left to ``append``, as is the whole batch then: nothing of it was stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep.errors import Unavailable
from keepstep.eventlog.answers import Outcome
from keepstep.eventlog.part import Part
from keepstep.eventlog.store import DataFault, KnownBatch, TryAgain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep._keepstep import Submission
    from keepstep.eventlog.devices import DeviceCache
    from keepstep.eventlog.heads import HeadCache
    from keepstep.eventlog.rooms import ByteRooms
    from keepstep.eventlog.store import Backend


async def append_known(
    backend: Backend,
    submissions: Sequence[Submission],
    *,
    heads: HeadCache,
    devices: DeviceCache,
    rooms: ByteRooms,
    now_ms: int,
    received_at_ms_max: int,
    generation: int,
) -> Outcome | None:
    """Decide and store a batch of known streams and devices; ``None`` where it does not go this way.

    A cancellation waits for the outcome.

    Args:
        backend: where it goes, of ``generation``.
        submissions: the events, in order.
        heads: the heads that this node remembers.
        devices: the live devices that it remembers.
        rooms: counts what is stored for accounts that have had a quota.
        now_ms: unix milliseconds.
        received_at_ms_max: heads that were received later are not believed.
        generation: of what is remembered.

    Raises:
        Contended: nothing was stored: a head had moved.
        Unavailable, OutcomeUnknown: as ``Store.append``; what was remembered of its streams is forgotten.
    """
    batch = KnownBatch(submissions, heads.memory, devices.memory, now_ms, received_at_ms_max, generation)
    try:
        ingested = await backend.append_known(batch)
    except (TryAgain, DataFault):
        return None  # in parts it shows what is at fault
    except Unavailable:
        in_doubt = Part(submissions, ())
        heads.drop(in_doubt.keys)
        rooms.drop(in_doubt.users)
        raise
    if ingested is None:
        return None
    if rooms.has_grants:
        rooms.take_moved(ingested.moved)
    answers, suspects = ingested.encoded_answers(), frozenset(ingested.suspects)
    return Outcome(answers, ingested.counts(), suspects, ingested.runs_by_stream, frozenset())
