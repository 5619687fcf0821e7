"""What is left in PostgreSQL of an account that was deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import psycopg

from tests.contract.test_deletion import a_full_account, remove
from tests.support.events import NOW_MS, DeviceFixture, UserFixture

if TYPE_CHECKING:
    from keepstep.model import Principal
    from tests.support.logs import PostgresPlace

ADA: Final = UserFixture("ada")
LATER_MS: Final = NOW_MS + 1_000
KEPT: Final = {"cuts"}
"""For an hour: nodes end the sessions by it."""


def fill(connection: psycopg.Connection, principal: Principal) -> None:
    """A row in each table that takes much to be filled otherwise."""
    place = {"user_pk": principal.user_pk, "key": b"k" * 16, "chain": b"c" * 32, "at": NOW_MS}
    for statement in (
        "INSERT INTO latest VALUES (%(user_pk)s, 3, %(key)s, 1, 1, %(key)s, %(at)s)",
        "INSERT INTO removals VALUES (%(user_pk)s, 3, 1, %(at)s, 1, %(at)s)",
        "INSERT INTO snapshots VALUES (%(user_pk)s, 3, 3, 2, %(chain)s, 1, %(at)s)",
        "INSERT INTO authors VALUES (%(user_pk)s, 3, 1, 1, 1, %(chain)s)",
        "INSERT INTO refresh_families VALUES (%(user_pk)s, %(key)s, 1, %(at)s, %(at)s)",
        "INSERT INTO refresh_tokens VALUES (%(user_pk)s, %(chain)s, %(key)s, %(at)s)",
        "INSERT INTO revoked_tokens VALUES (%(user_pk)s, %(key)s, %(at)s)",
        "INSERT INTO links VALUES (%(chain)s, %(user_pk)s, %(at)s)",
        "INSERT INTO kept_events VALUES (%(user_pk)s, 3, 1, 1, %(at)s, 1, 1, '', '')",
        "INSERT INTO prunings VALUES (%(user_pk)s, 3, 0, 1, %(at)s, %(at)s)",
        "INSERT INTO rewinds VALUES (%(user_pk)s, 3, %(at)s, 1, %(chain)s)",
        "INSERT INTO heal_windows VALUES (%(user_pk)s, %(at)s, %(at)s)",
        "INSERT INTO heal_reports VALUES (%(user_pk)s, 1, %(at)s, 1)",
    ):
        connection.execute(statement, place)


def tables_of_users(connection: psycopg.Connection) -> set[str]:
    """Tables of users' rows."""
    rows = connection.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'user_pk'"
        " WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
    ).fetchall()
    return {name for (name,) in rows}


def tables_with_rows(connection: psycopg.Connection, principal: Principal) -> set[str]:
    """Those of them that have one of this user."""
    return {
        name
        for name in tables_of_users(connection)
        if connection.execute(f'SELECT 1 FROM "{name}" WHERE user_pk = %s', [principal.user_pk]).fetchone()  # noqa: S608
    }


async def test_no_table_keeps_a_row_of_a_deleted_account(place: PostgresPlace) -> None:
    """Every table with rows of users had one, and none has: a table that is added later shows here."""
    log = place.node()
    principal = await a_full_account(place, log, DeviceFixture(ADA, "phone"))
    place.invite(b"i" * 32, expires_at_ms=LATER_MS)
    with psycopg.connect(place.url, autocommit=True) as connection:
        fill(connection, principal)
        connection.execute("UPDATE invites SET used_at = %s, user_id = %s", [NOW_MS, ADA.user_key])
        await place.administration.delete_user(principal.user_pk, ADA.user_key, now_ms=LATER_MS)
        before = tables_with_rows(connection, principal)

        await remove(place)

        assert tables_with_rows(connection, principal) == KEPT
        assert connection.execute("SELECT count(*) FROM invites").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM deleted_users").fetchone() == (1,)
        # Rows of the others go with what is in the archive (test_archive_leaving.py).
        archive = {"archive_users", "archive_segments", "archive_erasures"}
        assert tables_of_users(connection) - archive == before, "fill every table of users' rows here"
