"""Heads as ``streams`` and ``authors`` hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from keepstep._keepstep import StreamHead
from keepstep.eventlog.store import Loaded, StreamKey, UserStreams
from keepstep.postgres.arrays import bigints, texts
from keepstep.postgres.queries import query

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
        users = {user_pk: UserStreams(*values) for user_pk, *values in cast("Iterable[Any]", rows)}
    return Loaded(heads, users)


def _head(row: Any) -> StreamHead:
    user_pk, stream_pk, name, retention_class, seq, chain, received_at_ms, auth_epoch, packed, *authors = row
    return StreamHead.load(
        user_pk=user_pk,
        stream_pk=stream_pk,
        name=name,
        retention_class=retention_class,
        seq=seq,
        chain=chain,
        received_at_ms=received_at_ms,
        auth_epoch=auth_epoch,
        authors_packed=packed,
        authors=list(zip(*authors, strict=True)) if authors[0] is not None else [],
    )
