"""Removing accounts from memory: the part of ``administration.Administration`` that takes away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep import _keepstep
from keepstep.memory.store import raise_auth_epoch

if TYPE_CHECKING:
    from keepstep.memory.database import MemoryDatabase
    from keepstep.model import UserPk


def delete_user(database: MemoryDatabase, user_pk: UserPk, user_key: bytes, *, now_ms: int) -> None:
    """As ``Administration.delete_user``."""
    user = database.users.get(user_pk)
    if user is None or user.deleted_at_ms is not None:
        return
    raise_auth_epoch(user)
    if user.disabled_at_ms is None:
        user.disabled_at_ms = now_ms
    user.deleted_at_ms = now_ms
    database.cuts[user_pk, 0, 0] = now_ms
    database.deleted_users[_keepstep.blake3(user_key)] = now_ms


def remove_deleted(database: MemoryDatabase, *, before_ms: int, rows_max: int) -> int:
    """As ``Administration.remove_deleted``: whole accounts, at most ``rows_max`` of them."""
    due = [
        user_pk
        for user_pk, user in database.users.items()
        if user.deleted_at_ms is not None and user.deleted_at_ms <= before_ms
    ][:rows_max]
    for user_pk in due:
        user = database.users.pop(user_pk)
        for table in (database.events, database.latest, database.removals, database.snapshots, database.tails):
            for place in [place for place in table if place[0] == user_pk]:
                del table[place]
        for session_id in [key for key, row in database.sessions.items() if row.user_pk == user_pk]:
            del database.sessions[session_id]
        for code in [code for code, row in database.invites.items() if row.used and row.used[1] == user.user_key]:
            del database.invites[code]
    return len(due)


def forget_deleted(database: MemoryDatabase, user_key: bytes) -> bool:
    """As ``Administration.forget_deleted``."""
    if database.user_pk(user_key) is not None:
        return False
    return database.deleted_users.pop(_keepstep.blake3(user_key), None) is not None
