"""Heads as ``streams`` and ``authors`` hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from keepstep import _keepstep
from keepstep._keepstep import StreamHead
from keepstep.eventlog.store import LiveDevices, Loaded, StreamKey, UserStreams
from keepstep.model import inbox_of
from keepstep.postgres.arrays import bigints, texts
from keepstep.postgres.queries import query
from keepstep.protocol.chain import start_of_devices

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from keepstep.postgres.pool import Connection


def load_heads(connection: Connection, keys: Collection[StreamKey]) -> Loaded:
    """Heads as of one snapshot; the users of those that are missing as of a second one."""
    arguments = {"user_pks": bigints([key[0] for key in keys]), "names": texts([key[1] for key in keys])}
    rows = connection.execute(query("load_heads"), arguments, binary=True).fetchall()
    heads = {(head.user_pk, head.name): head for head in map(_head, rows)}
    missing = sorted({user_pk for user_pk, name in keys if (user_pk, name) not in heads})
    users = {}
    if missing:
        rows = connection.execute(query("load_users"), {"user_pks": bigints(missing)}, binary=True).fetchall()
        users = {
            user_pk: UserStreams(
                user_key, auth_epoch, stream_count, last_stream_pk, frozenset(map(inbox_of, device_ids)), streams_max
            )
            for user_pk, user_key, auth_epoch, stream_count, last_stream_pk, device_ids, streams_max in cast(
                "Iterable[Any]", rows
            )
        }
    return Loaded(heads, users)


def load_devices(connection: Connection, user_pks: Collection[int]) -> dict[int, LiveDevices]:
    """The live devices of users, with the epoch that they belong to: one snapshot."""
    arguments = {"user_pks": bigints(sorted(user_pks))}
    rows = connection.execute(query("load_devices"), arguments, binary=True).fetchall()
    return {
        user_pk: LiveDevices(auth_epoch, dict(zip(device_pks, expires_at, strict=True)), bytes_max)
        for user_pk, auth_epoch, device_pks, expires_at, bytes_max in cast("Iterable[Any]", rows)
    }


def load_stored_bytes(connection: Connection, user_pks: Collection[int]) -> dict[int, int]:
    """What users store outside ``$devices`` and ``$keys``, bytes; those that are not there store nothing."""
    arguments = {"user_pks": bigints(sorted(user_pks))}
    rows = connection.execute(query("load_stored_bytes"), arguments, binary=True).fetchall()
    return dict(cast("Iterable[tuple[int, int]]", rows))


def load_device_chains(connection: Connection, places: Collection[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    """The chains of ``$devices`` by (user_pk, seq)."""
    arguments = {
        "user_pks": bigints([user_pk for user_pk, _ in places]),
        "seqs": bigints([seq for _, seq in places]),
    }
    rows = connection.execute(query("load_device_chains"), arguments, binary=True).fetchall()
    return {
        (user_pk, seq): start_of_devices(_keepstep, user_key).chain if seq == 0 else chain
        for user_pk, seq, user_key, chain in cast("Iterable[Any]", rows)
        if seq == 0 or chain is not None
    }


def _head(row: Any) -> StreamHead:
    user_pk, stream_pk, name, retention_class, policy, ttl_max_s, bytes_max, stored_bytes, *rest = row
    seq, chain, received_at_ms, auth_epoch, packed, *authors = rest
    return StreamHead.load(
        user_pk=user_pk,
        stream_pk=stream_pk,
        name=name,
        retention_class=retention_class,
        policy=policy,
        ttl_max_s=ttl_max_s,
        bytes_max=bytes_max,
        stored_bytes=stored_bytes,
        seq=seq,
        chain=chain,
        received_at_ms=received_at_ms,
        auth_epoch=auth_epoch,
        authors_packed=packed,
        authors=list(zip(*authors, strict=True)) if authors[0] is not None else [],
    )
