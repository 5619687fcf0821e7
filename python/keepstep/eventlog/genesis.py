"""Creating an account: user, first device, ``$devices`` with its genesis event, ``$keys``, in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep import _keepstep
from keepstep._keepstep import DeviceKey, Events, StreamHead, Submission, ingest
from keepstep.errors import ProtocolError, Unavailable
from keepstep.eventlog.answers import Answers
from keepstep.eventlog.part import ATTEMPTS_MAX, RETRY_AFTER_MS
from keepstep.eventlog.store import DEVICES_STREAM_PK, KEYS_STREAM_PK, Contended, Lookup, StreamKey, TryAgain
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, DevicePk, RetentionClass
from keepstep.protocol.chain import event_hash
from keepstep.protocol.event import encode_events
from keepstep.protocol.messages import Result, ResultDuplicate, ResultError

if TYPE_CHECKING:
    from keepstep._keepstep import Run
    from keepstep.eventlog.store import Store
    from keepstep.interfaces import Genesis
    from keepstep.model import Rotation, UserPk

FIRST_DEVICE_PK = DevicePk(1)
"""The device that genesis lists."""


def create_account(
    store: Store, genesis: Genesis, *, now_ms: int, invite_hash: bytes | None = None
) -> tuple[Result, list[tuple[StreamKey, Run]]]:
    """The answer to a genesis event, and what it added to ``$devices``.

    Raises:
        Unavailable: as ``EventLog.create_account``.
    """
    for _ in range(ATTEMPTS_MAX):
        try:
            if store.is_deleted(genesis.user_key):
                return ResultError("account_deleted", []), []
            user_pk = store.user_pk(genesis.user_key)
            if user_pk is not None:
                return _answer_existing(store, user_pk, genesis), []
            created = _create(store, genesis, now_ms, invite_hash)
            if created is not None:
                return created
        except (TryAgain, Contended):
            continue
    raise Unavailable("other transactions kept getting in the way", retry_after_ms=RETRY_AFTER_MS)


def _create(
    store: Store, genesis: Genesis, now_ms: int, invite_hash: bytes | None
) -> tuple[Result, list[tuple[StreamKey, Run]]] | None:
    """Create the account; ``None`` where another node just did."""
    with store.begin() as transaction:
        user_pk = transaction.create_user(genesis, now_ms=now_ms)
        if user_pk is None:
            return None
        if invite_hash is not None and not transaction.use_invite(invite_hash, genesis.user_key, now_ms=now_ms):
            return ResultError("invite_invalid", []), []
        try:
            submission = first_submission(user_pk, FIRST_DEVICE_PK, genesis)
        except ProtocolError as error:
            return ResultError(error.code, []), []
        devices, keys = (
            StreamHead.create(
                user_pk=user_pk,
                user_key=genesis.user_key,
                stream_pk=stream_pk,
                name=name,
                retention_class=RetentionClass.KEEP,
                auth_epoch=0,
            )
            for stream_pk, name in ((DEVICES_STREAM_PK, DEVICES_STREAM), (KEYS_STREAM_PK, KEYS_STREAM))
        )
        ingested = ingest([submission], {(user_pk, DEVICES_STREAM): devices}, now_ms=now_ms)
        answers = Answers([submission])
        answers.give((0, 0), ingested.results[0][0])
        if ingested.moved:
            transaction.open_account(ingested, keys, genesis.device, now_ms=now_ms)
            transaction.commit()
        runs = [((int(user_pk), DEVICES_STREAM), run) for run in ingested.runs]
        return answers.results()[0][0], runs


def first_submission(user_pk: UserPk, device_pk: DevicePk, event: Genesis | Rotation) -> Submission:
    """The event by which a device enters the account log itself. Raises ``ProtocolError`` where it is malformed."""
    raw = encode_events([(event.header, event.sig, event.payload)])
    return Submission(
        user_pk=user_pk,
        user_key=event.user_key,
        device_pk=device_pk,
        device_id=event.device.device_id,
        device_key=DeviceKey(event.device.device_key),
        capabilities=event.device.capabilities,
        events=Events.parse(raw, events_max=1, payload_bytes_max=len(event.payload)),
    )


def _answer_existing(store: Store, user_pk: UserPk, genesis: Genesis) -> Result:
    """Whether the genesis that is stored is this one."""
    lookup = Lookup(user_pk, DEVICES_STREAM_PK, RetentionClass.KEEP, from_seq=1, n=1)
    stored = store.find([lookup])[lookup]
    stored_hash = event_hash(_keepstep, stored.header, stored.sig)
    if stored_hash != event_hash(_keepstep, genesis.header, genesis.sig):
        return ResultError("id_reused", [stored.seq, stored_hash])
    store.confirm()
    return ResultDuplicate(stored.seq, stored.chain, stored.received_at_ms)
