"""Exact heal: events that a restore lost, stored again in the same place at the same time (protocol.md section 4).

Each passes the checks of its own content that it passed then, at the time at which it was received then. Where a head
proves it, whether its author may still write is not asked: the server has answered that before, and its signed head
says so. What nothing proves is held to what holds for new events: live authors, and the account's bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keepstep._keepstep import StreamHead, Submission, ingest
from keepstep.errors import ProtocolError, Unavailable
from keepstep.eventlog.apart import Apart
from keepstep.eventlog.part import ATTEMPTS_MAX, RETRY_AFTER_MS
from keepstep.eventlog.store import Contended, DataFault, TryAgain
from keepstep.model import Position, RetentionClass

if TYPE_CHECKING:
    from keepstep._keepstep import Run
    from keepstep.eventlog.store import Loaded, Store, StreamKey, Transaction


@dataclass(frozen=True, slots=True)
class LostEvents:
    """Consecutive events of one author that were received at one moment; alone where ``checked_apart``.

    Attributes:
        submission: the events.
        received_at_ms: of all of them.
        end: the last one's place, and the chain there.
    """

    submission: Submission
    received_at_ms: int
    end: Position


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an account may hold, for events that nothing proves.

    Attributes:
        streams_max: streams, ``$devices`` and ``$keys`` among them.
        bytes_max: outside those two, where the account has no quota of its own; ``None`` for all.
    """

    streams_max: int
    bytes_max: int | None


@dataclass(frozen=True, slots=True)
class Healed:
    """What was stored again: the runs that were added, and whether payloads were erased by it."""

    runs: list[tuple[StreamKey, Run]]
    erased: bool


def heal(store: Store, key: StreamKey, before: Position, lost: Sequence[LostEvents], bounds: Bounds | None) -> Healed:
    """Store lost events behind a stream's head, all of them or none, in one transaction.

    Args:
        store: where to.
        key: the stream; made where it is not there.
        before: its head, which the first of them follows.
        lost: in order.
        bounds: of the account; ``None`` for events that a signed head proves.

    Raises:
        ProtocolError: ``conflict``: the head is another one; ``unprocessable``: what is stored would not come to the
            same place and chain, or is beyond the bounds, or its author has ended; ``limit_exceeded``: it may have no
            more streams.
        Unavailable: nothing was stored.
    """
    for _ in range(ATTEMPTS_MAX):
        try:
            return _heal(store, key, before, lost, bounds)
        except (TryAgain, Contended):
            continue
        except DataFault as fault:
            raise ProtocolError("unprocessable", f"an event that was lost is refused as {fault.code}") from fault
    raise Unavailable("other transactions kept getting in the way", retry_after_ms=RETRY_AFTER_MS)


def _heal(store: Store, key: StreamKey, before: Position, lost: Sequence[LostEvents], bounds: Bounds | None) -> Healed:
    runs: list[tuple[StreamKey, Run]] = []
    erased = False
    with store.begin() as transaction:
        loaded = transaction.lock([key])
        head = loaded.heads.get(key)
        is_new = head is None
        if head is None:
            head = _fresh(key, loaded, bounds)
        if Position(head.seq, head.chain) != before:
            raise ProtocolError("conflict", "the stream has moved")
        for each in lost:
            rooms = {} if bounds is None else _rooms(transaction, each, bounds)
            ingested = ingest(
                [each.submission], {key: head}, now_ms=each.received_at_ms, rooms=rooms, essential=bounds is None
            )
            if not ingested.moved:
                raise ProtocolError("unprocessable", "an event that was lost is not the author's next one")
            old, head = ingested.moved[0]
            if (head.seq, head.chain) != (each.end.seq, each.end.chain):
                raise ProtocolError("unprocessable", "an event that was lost does not come to its place")
            unmoved = transaction.write(ingested, created={key} if is_new else ())
            if unmoved:
                raise Contended
            is_new = False
            erased = _apart(transaction, each, old, head) or erased
            runs.extend((key, run) for run in ingested.runs)
        transaction.commit()
    return Healed(runs, erased)


def _apart(transaction: Transaction, lost: LostEvents, old: StreamHead, new: StreamHead) -> bool:
    """Do what a snapshot, a confirmation or an erasure says; whether payloads went."""
    if not lost.submission.events.checked_apart:
        return False
    return Apart(transaction, lost.submission, old, new, now_ms=lost.received_at_ms).apply()


def _rooms(transaction: Transaction, lost: LostEvents, bounds: Bounds) -> dict[int, int]:
    """What the account may still store, where that is bounded. Raises ``unprocessable``: the author has ended."""
    user_pk = lost.submission.user_pk
    live = transaction.devices([user_pk])[user_pk]
    if not live.lets_write(lost.submission.device_pk, lost.received_at_ms):
        raise ProtocolError("unprocessable", "the author of an event that was lost has ended")
    bytes_max = bounds.bytes_max if live.bytes_max is None else live.bytes_max
    return {} if bytes_max is None else {user_pk: bytes_max - transaction.stored_bytes([user_pk]).get(user_pk, 0)}


def _fresh(key: StreamKey, loaded: Loaded, bounds: Bounds | None) -> StreamHead:
    """The head of a stream that the restore took away whole. Raises ``unknown_stream``, ``limit_exceeded``."""
    user = loaded.users.get(key[0])
    if user is None or (key[1].startswith("$") and key[1] not in user.inboxes):
        raise ProtocolError("unknown_stream")
    limits = [] if bounds is None else [bounds.streams_max, user.streams_max]
    if any(limit is not None and user.stream_count >= limit for limit in limits):
        raise ProtocolError("limit_exceeded", "the account has as many streams as it may have")
    return StreamHead.create(
        user_pk=key[0],
        user_key=user.user_key,
        stream_pk=user.last_stream_pk + 1,
        name=key[1],
        retention_class=RetentionClass.STANDARD,
        auth_epoch=user.auth_epoch,
    )
