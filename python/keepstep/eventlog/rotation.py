"""Storing a rotation: its author is the device that it enrols, in the same transaction (protocol.md section 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep._keepstep import ingest
from keepstep.errors import Unavailable
from keepstep.eventlog.answers import Answers
from keepstep.eventlog.genesis import first_submission
from keepstep.eventlog.part import ATTEMPTS_MAX, RETRY_AFTER_MS
from keepstep.eventlog.store import Contended, DataFault, StreamKey, TryAgain
from keepstep.model import DEVICES_STREAM
from keepstep.protocol.messages import Result, ResultError

if TYPE_CHECKING:
    from keepstep._keepstep import Run
    from keepstep.eventlog.store import Store
    from keepstep.model import AccountChange, Rotation


def append_rotation(
    store: Store, rotation: Rotation, change: AccountChange, *, now_ms: int
) -> tuple[Result, list[tuple[StreamKey, Run]]]:
    """The answer to a rotation that was checked against ``change.checked_seq``, and what it added to ``$devices``.

    Raises:
        Unavailable: as ``EventLog.rotate``.
    """
    for _ in range(ATTEMPTS_MAX):
        try:
            return _append(store, rotation, change, now_ms)
        except (TryAgain, Contended):
            continue
        except DataFault as fault:
            return ResultError(fault.code, []), []
    raise Unavailable("other transactions kept getting in the way", retry_after_ms=RETRY_AFTER_MS)


def _append(
    store: Store, rotation: Rotation, change: AccountChange, now_ms: int
) -> tuple[Result, list[tuple[StreamKey, Run]]]:
    key = (int(rotation.user_pk), DEVICES_STREAM)
    with store.begin() as transaction:
        head = transaction.lock([key]).heads[key]
        if not change.fits(head.seq, head.chain):
            raise Unavailable("$devices has moved since the rotation was checked", retry_after_ms=0)
        submission = first_submission(rotation.user_pk, transaction.next_device_pk(key[0]), rotation)
        ingested = ingest([submission], {key: head}, now_ms=now_ms, essential=True)
        answers = Answers([submission])
        answers.give((0, 0), ingested.results[0][0])
        if ingested.moved:
            unmoved = transaction.write(ingested, created=())
            assert not unmoved, "a locked stream did not move"
            new = ingested.moved[0][1]
            transaction.apply_account_change(key[0], change, seq=new.seq, received_at_ms=new.received_at_ms)
            transaction.commit()
        return answers.results()[0][0], [(key, run) for run in ingested.runs]
