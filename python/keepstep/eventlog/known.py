"""The short way of a batch: all that deciding it takes is remembered, so it is a few calls, whatever is in it.

Nearly every batch goes this way. What takes more (a stream that is new or has a bound, a device with an end, an event
sent again, a head that another node moved) is left to ``append``, as is the whole batch then: nothing of it was stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep._keepstep import ingest_remembered
from keepstep.eventlog.answers import Outcome
from keepstep.eventlog.store import Contended
from keepstep.protocol.messages import ResultAccepted, ResultError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep._keepstep import Submission
    from keepstep.eventlog.devices import DeviceCache
    from keepstep.eventlog.heads import HeadCache
    from keepstep.eventlog.rooms import ByteRooms
    from keepstep.eventlog.store import Store
    from keepstep.protocol.messages import Result


def append_known(
    *,
    store: Store,
    heads: HeadCache,
    devices: DeviceCache,
    rooms: ByteRooms,
    batch: Sequence[Submission],
    now_ms: int,
    received_at_ms_max: int,
    generation: int,
) -> Outcome | None:
    """Decide and store a batch of known streams and devices; ``None`` where it does not go this way.

    Args:
        store: where it goes, of ``generation``.
        heads: the heads that this node remembers.
        devices: the live devices that it remembers.
        rooms: counts what is stored for accounts that have had a quota.
        batch: the events, in order.
        now_ms: unix milliseconds.
        received_at_ms_max: heads that were received later are not believed.
        generation: of what is remembered.

    Raises:
        Contended: nothing was stored: a head had moved, or there is no shorter way any more.
        TryAgain, DataFault: nothing was stored; as ``Store.append``.
        Unavailable, OutcomeUnknown: as ``Store.append``.
    """
    if not store.has_short_way():
        return None
    ingested = ingest_remembered(
        batch,
        heads.memory,
        devices.memory,
        now_ms=now_ms,
        received_at_ms_max=received_at_ms_max,
        generation=generation,
    )
    if ingested is None:
        return None
    if not store.append(ingested):
        raise Contended
    heads.memory.keep(ingested, generation=generation)
    if rooms.has_grants:
        rooms.take_moved(ingested.moved)
    results: list[list[Result]] = ingested.answers(accepted=ResultAccepted, refused=ResultError)
    return Outcome(results, frozenset(ingested.suspects), ingested.runs_by_stream, frozenset())
