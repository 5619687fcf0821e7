"""Statements that are asked without a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
import pytest
import trio
import trio.testing

from keepstep.errors import Unavailable
from keepstep.postgres.arrays import bigints, byteas, texts
from keepstep.postgres.breaker import FAILURES_MAX, BreakerState
from keepstep.postgres.pool import Database, Limits
from keepstep.postgres.queries import query
from keepstep.runtime import WorkerThreads
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import PostgresPlace, create_account

if TYPE_CHECKING:
    from keepstep.model import Principal
    from keepstep.postgres.pool import Lease

T = TypeVar("T")
ADA = UserFixture("ada")
CLONES = {"since_ms": 0, "rows_max": 10}


class CountedThreads(WorkerThreads):
    """Trio's, and how often they were needed."""

    def __init__(self) -> None:
        self.runs = 0

    async def run(self, function: Callable[[], T], *, limiter: trio.CapacityLimiter) -> T:
        """As ``WorkerThreads.run``."""
        self.runs += 1
        return await super().run(function, limiter=limiter)


class Node:
    """A node's connections, and the threads that they took."""

    def __init__(self, place: PostgresPlace, limits: Limits | None = None) -> None:
        self.threads = CountedThreads()
        self.database = Database(place.url, threads=self.threads, clock=place.clock, limits=limits)
        self.pool = self.database.accounts

    async def on_each(self, statement: bytes) -> None:
        """Execute it on the idle connection, in a thread."""

        def execute(lease: Lease) -> None:
            lease.connection.execute(statement)

        await self.pool.run(execute)

    async def clones(self) -> list[Any]:
        """Something to ask."""
        return await self.pool.ask("read_cloned", CLONES)


@pytest.fixture
def node(place: PostgresPlace) -> Iterator[Node]:
    """One."""
    node = Node(place)
    yield node
    node.database.close()


@contextmanager
def locked(place: PostgresPlace, principal: Principal) -> Iterator[psycopg.Connection]:
    """A device's row is, until the block ends."""
    with psycopg.connect(place.url) as connection:
        row = [int(principal.user_pk), int(principal.device_pk)]
        connection.execute("SELECT FROM devices WHERE user_pk = %s AND device_pk = %s FOR UPDATE", row)
        yield connection


def cloned(principal: Principal) -> dict[str, int]:
    """What records that a device is in two places."""
    return {"user_pk": int(principal.user_pk), "device_pk": int(principal.device_pk), "now_ms": NOW_MS}


async def test_only_the_first_takes_a_thread(place: PostgresPlace, node: Node) -> None:
    """It opens the connection; the others use it, and are answered the same."""
    principal = await create_account(place, place.node(), DeviceFixture(ADA, "phone"))

    assert await node.pool.ask("record_clone", cloned(principal)) == [(NOW_MS,)]
    assert node.threads.runs == 1
    assert await node.pool.ask("record_clone", cloned(principal)) == [(NOW_MS,)]
    for _ in range(2):
        assert await node.clones() == [(int(principal.user_pk), principal.device_id, NOW_MS)]
    assert node.threads.runs == 1


async def test_a_statement_without_rows_answers_none(place: PostgresPlace, node: Node) -> None:
    """In a thread and without one."""
    principal = await create_account(place, place.node(), DeviceFixture(ADA, "phone"))
    arguments = {"user_pks": bigints([int(principal.user_pk)]), "device_pks": bigints([int(principal.device_pk)])}

    for runs in (1, 1):
        assert await node.pool.ask("see_devices", arguments | {"now_ms": NOW_MS}) == []
        assert node.threads.runs == runs


async def test_a_question_may_be_larger_than_a_socket_takes_at_once(place: PostgresPlace, node: Node) -> None:
    """It goes piece by piece."""
    principal = await create_account(place, place.node(), DeviceFixture(ADA, "phone"))
    count = 100_000
    arguments = {
        "user_pk": int(principal.user_pk),
        "device_pk": int(principal.device_pk),
        "names": texts([f"{number:0100}" for number in range(count)]),
        "seqs": bigints([1] * count),
        "chains": byteas([bytes(16)] * count),
    }
    await node.clones()

    assert await node.pool.ask("save_acks", arguments) == []
    assert node.threads.runs == 1


async def test_a_connection_that_died_is_replaced(place: PostgresPlace, node: Node) -> None:
    """Nobody notices; it is asked again, in a thread that connects."""
    await node.clones()
    place.cut()

    assert await node.clones() == []
    assert node.threads.runs == 2
    assert await node.clones() == []
    assert node.threads.runs == 2
    assert node.database.breaker.state is BreakerState.CLOSED


async def test_a_session_that_forgot_its_statements_is_replaced(node: Node) -> None:
    """As psycopg has it forget them after some statements."""
    await node.clones()
    await node.clones()
    await node.on_each(b"DEALLOCATE ALL")

    assert await node.clones() == []
    assert node.threads.runs == 3
    assert await node.clones() == []
    assert node.threads.runs == 3


async def test_a_session_whose_plans_are_of_no_use_is_replaced(place: PostgresPlace, node: Node) -> None:
    """As after a change of a table that another version made."""
    principal = await create_account(place, place.node(), DeviceFixture(ADA, "phone"))
    await node.pool.ask("record_clone", cloned(principal))
    await node.clones()
    place.execute("ALTER TABLE devices ALTER COLUMN cloned_at TYPE numeric")

    assert await node.clones() == [(int(principal.user_pk), principal.device_id, NOW_MS)]
    assert node.threads.runs == 2


async def test_an_error_is_told_as_from_a_thread(place: PostgresPlace) -> None:
    """And the connection is as good as before."""
    principal = await create_account(place, place.node(), DeviceFixture(ADA, "phone"))
    node = Node(place, Limits(lock_timeout_ms=50))

    with locked(place, principal):
        for runs in (1, 1):
            with pytest.raises(Unavailable, match="lock was not free"):
                await node.pool.ask("record_clone", cloned(principal))
            assert node.threads.runs == runs
    assert await node.pool.ask("record_clone", cloned(principal)) == [(NOW_MS,)]
    assert node.threads.runs == 1
    node.database.close()


async def test_a_cancellation_waits_for_the_end(place: PostgresPlace, node: Node) -> None:
    """What was asked is done, and the connection is there for the next."""
    principal = await create_account(place, place.node(), DeviceFixture(ADA, "phone"))
    await node.clones()
    answers: list[object] = []

    async def ask(*, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            task_status.started(scope)
            answers.append(await node.pool.ask("record_clone", cloned(principal)))

    async with trio.open_nursery() as nursery:
        with locked(place, principal) as other:
            scope = await nursery.start(ask)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert answers == []
            other.rollback()

    assert answers == [[(NOW_MS,)]]
    assert await node.clones() == [(int(principal.user_pk), principal.device_id, NOW_MS)]
    assert node.threads.runs == 1


async def test_who_finds_no_connection_idle_takes_a_thread(place: PostgresPlace, node: Node) -> None:
    """The connections under way are left alone."""
    principal = await create_account(place, place.node(), DeviceFixture(ADA, "phone"))
    await node.clones()

    async with trio.open_nursery() as nursery:
        with locked(place, principal) as other:
            nursery.start_soon(node.pool.ask, "record_clone", cloned(principal))
            await trio.testing.wait_all_tasks_blocked()
            assert await node.clones() == []
            assert node.threads.runs == 2
            other.rollback()

    assert await node.clones() == [(int(principal.user_pk), principal.device_id, NOW_MS)]
    assert node.threads.runs == 2


async def test_while_the_database_is_away_the_breaker_opens(place: PostgresPlace, node: Node) -> None:
    """As for what is asked in threads."""
    await node.clones()
    place.go_away()
    for _ in range(FAILURES_MAX):
        with pytest.raises(Unavailable):
            await node.clones()
    assert node.database.breaker.state is BreakerState.OPEN
    runs = node.threads.runs
    with pytest.raises(Unavailable, match="does not answer"):
        await node.clones()
    assert node.threads.runs == runs
    place.come_back()

    assert await node.clones() == []


async def test_what_psycopg_prepared_is_another_statement(node: Node) -> None:
    """Both ways may ask the same on one connection."""
    await node.clones()
    await node.clones()
    await node.pool.run(lambda lease: lease.connection.execute(query("read_cloned"), CLONES))

    assert await node.clones() == []
    assert node.threads.runs == 2
