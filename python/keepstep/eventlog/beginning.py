"""A stream that begins after events which are gone: how an account that was pruned comes to another server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep._keepstep import AUTHORS_PACKED_MAX, StreamHead
from keepstep.errors import ProtocolError, Unavailable
from keepstep.eventlog.part import ATTEMPTS_MAX
from keepstep.eventlog.store import Contended, TryAgain
from keepstep.model import Kind, Policy, RetentionClass
from keepstep.protocol.event import decode_header
from keepstep.protocol.policy import PolicyPayload, decode_policy

if TYPE_CHECKING:
    from keepstep.eventlog.store import Store
    from keepstep.model import PrunedPrefix, UserPk

BEFORE_ALL_MS = 1
"""When the last event that is gone was received is not known: before everything that follows."""
_APPENDS = PolicyPayload(Policy.APPEND, RetentionClass.STANDARD, None, None)


def begin_after(store: Store, user_pk: UserPk, name: str, prefix: PrunedPrefix, *, now_ms: int) -> bool:
    """Create a stream whose first events are gone; whether it was not there.

    Args:
        store: where to.
        user_pk: whose it is.
        name: the stream's.
        prefix: checked: what it says was signed by the server that pruned, and by the authors of what it keeps.
        now_ms: unix milliseconds.

    Raises:
        ProtocolError: ``unprocessable``: it names authors that are no devices of the user.
        Unavailable: not created.
    """
    for _ in range(ATTEMPTS_MAX):
        try:
            return _begin(store, user_pk, name, prefix, now_ms)
        except (TryAgain, Contended):
            continue
    raise Unavailable("other transactions kept getting in the way")


def _begin(store: Store, user_pk: UserPk, name: str, prefix: PrunedPrefix, now_ms: int) -> bool:
    with store.begin() as transaction:
        loaded = transaction.lock([(user_pk, name)])
        if (user_pk, name) in loaded.heads:
            return False
        user = loaded.users[user_pk]
        empty = StreamHead.create(
            user_pk=user_pk,
            user_key=user.user_key,
            stream_pk=user.last_stream_pk + 1,
            name=name,
            retention_class=RetentionClass.STANDARD,
            auth_epoch=user.auth_epoch,
        )
        device_pks = transaction.stored(empty).device_pks(prefix.authors)
        if device_pks.keys() != prefix.authors.keys():
            raise ProtocolError("unprocessable", "an author of what is gone is no device of the user")
        # Which was the last event of each is not known any more; that it is not above the tail is all that counts.
        authors = sorted(
            (device_pks[device_id], n, prefix.to.seq, hash_) for device_id, (n, hash_) in prefix.authors.items()
        )
        policy = _policy(prefix)
        head = StreamHead.load(
            user_pk=user_pk,
            stream_pk=empty.stream_pk,
            name=name,
            retention_class=RetentionClass.STANDARD,
            policy=policy.policy,
            ttl_max_s=policy.ttl_max_s,
            bytes_max=policy.stream_bytes_max,
            stored_bytes=0,
            seq=prefix.to.seq,
            chain=prefix.to.chain,
            received_at_ms=BEFORE_ALL_MS,
            auth_epoch=user.auth_epoch,
            authors_packed=_pack(authors) if len(authors) <= AUTHORS_PACKED_MAX else b"",
            authors=authors if len(authors) > AUTHORS_PACKED_MAX else [],
        )
        transaction.begin_after(head, prefix, device_pks, authors, now_ms=now_ms)
        transaction.commit()
    return True


def _pack(authors: list[tuple[int, int, int, bytes]]) -> bytes:
    return b"".join(b"".join(number.to_bytes(8, "big") for number in numbers) + hash_ for *numbers, hash_ in authors)


def _policy(prefix: PrunedPrefix) -> PolicyPayload:
    said = [row[5] for row in prefix.kept if decode_header(row[3]).kind == Kind.POLICY]
    return decode_policy(said[-1]) if said and said[-1] is not None else _APPENDS
