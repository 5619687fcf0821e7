"""New connections lead to another database while the old ones still work, as a load balancer may leave them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest
import trio

from keepstep.errors import ProtocolError, Unavailable
from keepstep.postgres.restores import begin_epoch
from keepstep.protocol.messages import ResultAccepted
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import append, create_account, read_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keepstep.model import Principal
    from keepstep.postgres.pool import Database, Lease
    from tests.support.database import DatabaseServer
    from tests.support.logs import PostgresPlace

STREAMS = b"SELECT name::text FROM streams WHERE name NOT LIKE '$%' ORDER BY name"


def connect(lease: Lease) -> None:
    """As whoever asks something first."""
    assert not lease.connection.closed


class Failover:
    """A node, the database that it uses, and a copy of it that is to take its place."""

    def __init__(self, place: PostgresPlace, device: DeviceFixture, principal: Principal, successor: str) -> None:
        self.place = place
        self.device = device
        self.principal = principal
        self.successor = successor
        self.use(place.connect())

    def use(self, database: Database) -> None:
        """Have the node use it."""
        self.database = database
        self.log = self.place.node(database=database)

    async def fail_over(self) -> None:
        """From now on new connections lead to the copy, and one is made."""
        self.database._conninfo = self.successor
        await self.database.accounts.run(connect)
        assert self.database.generation == 1

    def streams(self) -> list[list[str]]:
        """Of the database that was, and of its successor."""
        found = []
        for url in (self.place.url, self.successor):
            with psycopg.connect(url, autocommit=True) as connection:
                found.append([name for (name,) in connection.execute(STREAMS)])
        return found


@asynccontextmanager
async def prepared(place: PostgresPlace, server: DatabaseServer) -> AsyncIterator[Failover]:
    """An account with one event in "notes", in both databases; the copy is of another epoch."""
    device = DeviceFixture(UserFixture("ada"), "phone")
    log = place.node()
    principal = await create_account(place, log, device)
    await append(log, principal, device.event("notes"))
    place.cut()
    with server.database(place.name) as successor:
        with psycopg.connect(successor, autocommit=True) as connection:
            begin_epoch(connection, at_least=NOW_MS)
        failover = Failover(place, device, principal, successor)
        yield failover
        failover.database.close()


@pytest.mark.usefixtures("way")
async def test_nothing_is_acknowledged_that_only_the_database_that_was_has(
    place: PostgresPlace, database_server: DatabaseServer
) -> None:
    """Connections that are idle when the change shows are not used any more."""
    async with prepared(place, database_server) as failover:
        log, principal = failover.log, failover.principal
        for _ in range(3):
            await append(log, principal, failover.device.event("lost"))
        await failover.fail_over()
        (accepted,) = await append(log, principal, failover.device.event("other"))
        assert isinstance(accepted, ResultAccepted)
        assert failover.streams() == [["lost", "notes"], ["notes", "other"]]


async def test_nothing_is_read_from_the_database_that_was(
    place: PostgresPlace, database_server: DatabaseServer
) -> None:
    """What is only there is not shown to anybody any more."""
    async with prepared(place, database_server) as failover:
        log, principal = failover.log, failover.principal
        await append(log, principal, failover.device.event("lost"))
        assert [each.name for each in await log.streams(principal.user_pk)][2:] == ["lost", "notes"]
        await failover.fail_over()
        assert [each.name for each in await log.streams(principal.user_pk)][2:] == ["notes"]
        with pytest.raises(ProtocolError, match="unknown_stream"):
            await read_all(log, principal, "lost")


async def test_a_connection_that_is_used_while_the_change_shows_is_not_used_again(
    place: PostgresPlace, database_server: DatabaseServer
) -> None:
    """It comes back to the pool as any does."""
    async with prepared(place, database_server) as failover:
        used: list[str] = []

        def fail_over(lease: Lease) -> None:
            used.append(lease.connection.info.dbname)
            trio.from_thread.run(failover.fail_over)

        pool = failover.database.read
        await pool.run(fail_over)
        await pool.run(lambda lease: used.append(lease.connection.info.dbname))
        before, after = used
        assert before == place.name
        assert after != before


@pytest.mark.parametrize("durable", [True, False])
async def test_nothing_is_acknowledged_by_a_successor_that_may_lose_it(
    place: PostgresPlace, database_server: DatabaseServer, durable: bool
) -> None:
    """Whatever the database promised when the server started; ``unsafe`` does not ask. Reading goes on."""
    async with prepared(place, database_server) as failover:
        failover.use(place.connect(durable=durable))
        await append(failover.log, failover.principal, failover.device.event("lost"))
        with psycopg.connect(failover.successor, autocommit=True) as connection:
            (name,) = connection.execute("SELECT quote_ident(current_database())").fetchall()[0]
            connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
        await failover.fail_over()
        if durable:
            with pytest.raises(Unavailable, match="may lose what it acknowledged, for it has synchronous_commit off"):
                await append(failover.log, failover.principal, failover.device.event("other"))
            assert failover.streams() == [["lost", "notes"], ["notes"]]
        else:
            await append(failover.log, failover.principal, failover.device.event("other"))
        assert (await read_all(failover.log, failover.principal, "notes")).rows
