"""The second wall between users: what reading connections are shown, whatever a statement asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest

from keepstep.errors import StartupError
from keepstep.postgres import migrate
from keepstep.postgres.isolation import READER_ROLE, check_isolation
from tests.support.events import DeviceFixture, UserFixture
from tests.support.logs import acks_of, append, create_account

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepstep.model import Principal
    from keepstep.postgres.pool import Connection
    from tests.support.database import DatabaseServer
    from tests.support.logs import PostgresPlace

READ_TABLES: Final = (
    "users",
    "devices",
    "streams",
    "authors",
    "events_keep",
    "events_standard",
    "positions",
    "latest",
    "snapshots",
)
"""What the reader may read at all."""
TABLES_OF_USERS: Final = """
SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'user_pk'
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
"""


async def two_users(place: PostgresPlace) -> tuple[Principal, Principal]:
    """Ada and Bob, each with a device and two events in "notes"."""
    log = place.node()
    principals = []
    for name in ("ada", "bob"):
        device = DeviceFixture(UserFixture(name), "phone")
        principal = await create_account(place, log, device)
        await append(log, principal, device.event("notes", b"1"), device.event("notes", b"2"))
        await place.accounts.save_acks(principal, {"notes": (2, bytes(16))})
        principals.append(principal)
    ada, bob = principals
    return ada, bob


def asking(statement: str) -> Callable[[Connection], list[Any]]:
    """Ask that, without a filter by user."""
    return lambda connection: connection.execute(statement.encode()).fetchall()


@pytest.mark.parametrize("table", READ_TABLES)
async def test_a_query_without_its_user_filter_returns_nothing(place: PostgresPlace, table: str) -> None:
    """Where the reading connection named nobody; the rows are there."""
    await two_users(place)

    rows = await place.connect().read.run(
        lambda lease: lease.ask(asking(f"SELECT user_pk FROM {table}"))  # noqa: S608  # names of ours
    )

    assert rows == []
    if table not in ("authors", "latest", "snapshots"):
        assert place.execute(f"SELECT count(DISTINCT user_pk) FROM {table}") == [(2,)]  # noqa: S608


@pytest.mark.parametrize("table", READ_TABLES)
async def test_a_query_without_its_user_filter_returns_the_named_users_rows_only(
    place: PostgresPlace, table: str
) -> None:
    """Also on a connection that named another user before."""
    ada, bob = await two_users(place)
    database = place.connect()

    for principal in (ada, bob, ada):
        rows = await database.read_as(
            principal.user_pk,
            asking(f"SELECT DISTINCT user_pk FROM {table}"),  # noqa: S608  # names of ours
        )
        assert rows in ([], [(principal.user_pk,)])


async def test_the_statement_of_another_user_is_shown_nothing(place: PostgresPlace) -> None:
    """With the filter of one user and the name of another, no row passes both."""
    ada, bob = await two_users(place)

    rows = await place.connect().read_as(
        bob.user_pk,
        asking(f"SELECT seq FROM events_standard WHERE user_pk = {ada.user_pk}"),  # noqa: S608  # a number
    )

    assert rows == []


async def test_what_is_read_by_user_goes_through_the_wall(place: PostgresPlace) -> None:
    """The log, the list of devices and the ack positions: with the policies shut they find nothing."""
    ada, _ = await two_users(place)
    log = place.node()
    assert len(await log.streams(ada.user_pk)) == 3
    assert len(await place.accounts.devices(ada.user_pk)) == 1
    assert await acks_of(place.node(), ada) == {"notes": 2}

    for table in ("streams", "devices", "positions"):
        place.execute(f"ALTER POLICY own_rows ON {table} USING (false)")

    assert await log.streams(ada.user_pk) == []
    assert await place.accounts.devices(ada.user_pk) == []
    assert await acks_of(place.node(), ada) == {}


@pytest.mark.parametrize("table", ["sessions", "refresh_tokens", "revoked_tokens", "invites", "challenges", "audit"])
async def test_the_reader_has_no_right_to_what_it_has_no_use_for(place: PostgresPlace, table: str) -> None:
    """Nor to a partition by itself."""
    await two_users(place)
    partition = place.execute("SELECT inhrelid::regclass::text FROM pg_inherits LIMIT 1")[0][0]

    def refused(statement: str) -> Callable[[Connection], None]:
        def ask(connection: Connection) -> None:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())

        return ask

    database = place.connect()
    await database.read_as(1, refused(f"SELECT FROM {table}"))
    await database.read_as(1, refused(f"SELECT FROM {partition}"))


def test_every_table_of_users_has_the_wall(place: PostgresPlace) -> None:
    """A later table cannot be forgotten: everything with a user_pk has the policy, and it is on."""
    walled = place.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_policy p ON p.polrelid = c.oid AND p.polname = 'own_rows'"
        " WHERE c.relrowsecurity AND c.relnamespace = 'public'::regnamespace"
    )

    assert sorted(walled) == sorted(place.execute(TABLES_OF_USERS))


def test_the_way_down_takes_the_wall_down(empty_database_url: str) -> None:
    """And nothing else: the role belongs to the whole cluster."""
    migrate.up(empty_database_url)
    migrate.down(empty_database_url, to=5)

    with psycopg.connect(empty_database_url) as connection:
        left = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " AND (relrowsecurity OR relacl::text LIKE %s)"
            " UNION ALL SELECT polname FROM pg_policy",
            [f"%{READER_ROLE}%"],
        ).fetchall()
        assert left == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ALTER TABLE streams DISABLE ROW LEVEL SECURITY", "would be shown the rows of all users in streams"),
        ("REVOKE SELECT ON streams FROM keepstep_reader", "may not read the tables"),
        ("SET SESSION AUTHORIZATION pg_monitor", f"may not become {READER_ROLE}"),
    ],
)
def test_a_database_without_the_wall_is_refused(
    database_server: DatabaseServer, place: PostgresPlace, change: str, message: str
) -> None:
    """At the start, with what to do about it."""
    with psycopg.connect(database_server.admin_url, dbname=place.name) as connection:
        check_isolation(connection)
        connection.execute("RESET ROLE")
        connection.execute(change.encode())
        with pytest.raises(StartupError, match=message):
            check_isolation(connection)
        connection.rollback()
