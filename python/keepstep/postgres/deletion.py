"""Removing accounts from PostgreSQL: the part of ``administration.Administration`` that takes away."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, cast

from keepstep import _keepstep
from keepstep.model import RetentionClass
from keepstep.postgres.arrays import bigints
from keepstep.postgres.queries import query

if TYPE_CHECKING:
    from keepstep.model import UserPk
    from keepstep.postgres.pool import Connection, Database, Lease

_STEPS: Final = (
    *(("remove_events", retention_class) for retention_class in RetentionClass),
    *(
        (name, None)
        for name in (
            *("remove_kept_events", "remove_prunings"),
            *("remove_latest", "remove_removals", "remove_snapshots", "remove_authors", "remove_positions"),
            *("remove_sessions", "remove_tokens", "remove_revoked_tokens", "remove_invites", "remove_streams"),
            *("remove_devices", "remove_users"),
        )
    ),
)
"""What refers to other rows goes before them."""
USERS_MAX: Final = 16
"""Deleted accounts that one step looks through for something to remove."""


async def delete_user(database: Database, user_pk: UserPk, user_key: bytes, *, now_ms: int) -> None:
    """As ``Administration.delete_user``. On the connections whose commits a standby has to confirm."""

    def delete(connection: Connection) -> None:
        with connection.transaction():
            # First the streams, in the order of every transaction: whoever stores an event of the user is waited for,
            # and whoever comes later sees that its devices have ended.
            # $devices by a statement of its own: the next one then sees also a stream that was just being created.
            connection.execute(query("lock_devices_streams"), {"user_pks": bigints([user_pk])})
            connection.execute(query("raise_auth_epoch"), {"user_pk": int(user_pk)})
            user_hash = _keepstep.blake3(user_key)
            arguments = {"user_pk": int(user_pk), "user_hash": user_hash, "now_ms": now_ms}
            connection.execute(query("delete_user"), arguments)

    await database.append.run(lambda lease: lease.ask(delete))


async def remove_deleted(database: Database, *, before_ms: int, rows_max: int) -> int:
    """As ``Administration.remove_deleted``."""
    for user_pk in await database.accounts.run(partial(_find_deleted, before_ms)):
        arguments = {"user_pk": user_pk, "rows_max": rows_max}
        for name, retention_class in _STEPS:
            statement = query(name, retention_class)
            removed = await database.accounts.run(partial(_execute, statement, arguments))
            if removed:
                return removed
    return 0


def _find_deleted(before_ms: int, lease: Lease) -> list[int]:
    """Deleted accounts of which something is left."""
    arguments = {"before_ms": before_ms, "users_max": USERS_MAX}
    rows = lease.ask(lambda connection: connection.execute(query("find_deleted_users"), arguments).fetchall())
    return [cast("int", user_pk) for (user_pk,) in rows]


def _execute(statement: bytes, arguments: dict[str, int], lease: Lease) -> int:
    """Run a statement; how many rows it took away."""
    return lease.ask(lambda connection: connection.execute(statement, arguments).rowcount)
