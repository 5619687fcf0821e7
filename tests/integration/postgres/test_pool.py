"""Connections, their sessions, and the breaker in front of them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from keepstep.errors import Unavailable
from keepstep.postgres.breaker import FAILURES_MAX, BreakerState
from keepstep.postgres.pool import Database, Limits
from keepstep.runtime import WorkerThreads
from tests.support.logs import FixedClock

if TYPE_CHECKING:
    from keepstep.postgres.pool import Connection, Lease, Pool
    from tests.support.logs import PostgresPlace


async def show(pool: Pool, *names: str) -> list[str]:
    """Settings of a session of the pool."""

    def ask(lease: Lease) -> list[str]:
        return [str(row[0]) for name in names for row in lease.connection.execute(f"SHOW {name}".encode())]

    return await pool.run(ask)


async def execute(pool: Pool, statement: bytes) -> None:
    """Run something on a connection of the pool."""

    def run(lease: Lease) -> None:
        lease.connection.execute(statement)

    await pool.run(run)


async def backend(pool: Pool) -> object:
    """Which server process answers."""

    def ask(lease: Lease) -> object:
        row = lease.connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        return row[0]

    return await pool.run(ask)


async def test_sessions_are_set_up_for_their_purpose(place: PostgresPlace) -> None:
    """Bounded in time, on keys only, and where nothing is to be written, unable to write."""
    database = place.connect(Limits(statement_timeout_ms=1234, lock_timeout_ms=567))

    for pool in (database.append, database.read, database.accounts):
        assert await show(pool, "statement_timeout", "lock_timeout", "default_transaction_isolation") == [
            "1234ms",
            "567ms",
            "read committed",
        ]
        assert await show(pool, "enable_seqscan", "enable_hashjoin", "enable_mergejoin", "plan_cache_mode") == [
            "off",
            "off",
            "off",
            "force_generic_plan",
        ]
        assert await show(pool, "idle_in_transaction_session_timeout") == ["10s"]
    assert await show(database.read, "default_transaction_read_only") == ["on"]
    assert await show(database.accounts, "synchronous_commit") == ["local"]
    assert await show(database.append, "default_transaction_read_only", "application_name") == [
        "off",
        "keepstep append",
    ]


async def test_a_database_that_fell_silent_is_noticed(place: PostgresPlace) -> None:
    """Also while nothing is being sent to it: without keepalives an answer would be waited for for hours."""
    parameters: dict[str, str] = {}
    await place.connect().read.run(lambda lease: parameters.update(lease.connection.info.get_parameters()))

    assert {name: value for name, value in parameters.items() if "keepalives" in name or "user_timeout" in name} == {
        "keepalives_idle": "10",
        "keepalives_interval": "5",
        "keepalives_count": "2",
        "tcp_user_timeout": "10000",
    }


async def test_a_connection_is_used_again(place: PostgresPlace) -> None:
    """Unless it was left inside a transaction, or had died."""
    pool = place.connect().accounts
    first = await backend(pool)
    assert await backend(pool) == first

    await execute(pool, b"BEGIN")
    second = await backend(pool)
    assert second != first
    place.cut()
    with pytest.raises(Unavailable, match="shutting down"):
        await backend(pool)
    assert await backend(pool) not in (first, second)


async def test_after_closing_nothing_is_kept(place: PostgresPlace) -> None:
    """Work under way finishes; its connection is closed when it comes back."""
    database = place.connect()
    held: list[object] = []

    def close_meanwhile(lease: Lease) -> None:
        held.append(lease.connection)
        database.close()

    await database.read.run(close_meanwhile)

    (connection,) = held
    assert connection.closed  # type: ignore[attr-defined]


async def test_a_statement_that_takes_too_long_is_ended(place: PostgresPlace) -> None:
    """A thread that waits for the database cannot be cancelled otherwise."""
    pool = place.connect(Limits(statement_timeout_ms=50)).accounts

    with pytest.raises(Unavailable, match="longer than its timeout"):
        await execute(pool, b"SELECT pg_sleep(10)")


async def test_the_breaker_opens_while_the_database_is_away(place: PostgresPlace) -> None:
    """From then on nobody waits for a connection; after a while one call tries, and closes it again."""
    database = place.connect()
    pool = database.accounts
    await backend(pool)
    place.go_away()

    for _ in range(FAILURES_MAX):
        assert database.breaker.state is BreakerState.CLOSED
        with pytest.raises(Unavailable):
            await backend(pool)
    assert state_of(database) is BreakerState.OPEN
    asked: list[object] = []
    with pytest.raises(Unavailable):
        await pool.run(asked.append)
    assert asked == []

    place.come_back()
    await backend(pool)
    assert state_of(database) is BreakerState.CLOSED


def state_of(database: Database) -> BreakerState:
    """What the breaker does with the next call."""
    return database.breaker.state


async def test_errors_of_other_kinds_do_not_open_the_breaker(place: PostgresPlace) -> None:
    """A database that answers is there, whatever it answers."""
    database = place.connect()

    for _ in range(FAILURES_MAX + 1):
        with pytest.raises(Unavailable, match="answered 42P01"):
            await execute(database.accounts, b"SELECT FROM nothing")

    assert database.breaker.state is BreakerState.CLOSED


async def test_whoever_is_cancelled_while_waiting_for_a_thread_asks_nothing(place: PostgresPlace) -> None:
    """The limiter lets as many in as there are connections; the others wait, and may go."""
    database = Database(
        place.url, threads=WorkerThreads(), clock=FixedClock(), limits=Limits(pipelines=0, read_connections=1)
    )
    inside, go_on = threading.Event(), threading.Event()
    asked: list[object] = []

    def hold(lease: Lease) -> None:
        del lease
        inside.set()
        assert go_on.wait(60)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.read.run, hold)
        await trio.to_thread.run_sync(inside.wait, 60)
        with trio.CancelScope() as scope:
            scope.cancel()
            await database.read.run(asked.append)
        go_on.set()

    assert asked == []
    assert database.breaker.state is BreakerState.CLOSED
    database.close()


async def test_a_users_reads_wait_for_one_of_anothers(place: PostgresPlace) -> None:
    """However many those are: who has many devices read gets no more of the connections than who has one."""
    database = Database(
        place.url, threads=WorkerThreads(), clock=FixedClock(), limits=Limits(pipelines=0, read_connections=1)
    )
    inside, go_on = threading.Event(), threading.Event()
    asked: list[str] = []

    def hold(connection: Connection) -> None:
        del connection
        inside.set()
        assert go_on.wait(60)

    async def read(user_pk: int, name: str) -> None:
        await database.read_as(user_pk, lambda _: asked.append(name))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.read_as, 1, hold)
        await trio.to_thread.run_sync(inside.wait, 60)
        for user_pk, name in ((1, "a1"), (1, "a2"), (1, "a3"), (2, "b1"), (2, "b2"), (3, "c1")):
            nursery.start_soon(read, user_pk, name)
            await trio.testing.wait_all_tasks_blocked()
        go_on.set()

    assert asked == ["a1", "b1", "c1", "a2", "b2", "a3"]
    database.close()


async def test_a_database_without_the_log_is_refused(empty_database_url: str) -> None:
    """Its connections are closed at once: there is nothing to recognise it by."""
    database = Database(empty_database_url, threads=WorkerThreads(), clock=FixedClock())

    with pytest.raises(Unavailable, match="answered 42P01"):
        await backend(database.read)

    assert database.generation == 0
    database.close()
