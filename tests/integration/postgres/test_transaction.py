"""The corners of one transaction that whole appends do not reach."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
import pytest
import trio

from keepstep._keepstep import StreamHead
from keepstep.errors import Unavailable
from keepstep.eventlog.store import OutcomeUnknown
from keepstep.postgres.log import ignore_probe
from keepstep.postgres.outcome import LostTransaction, pass_barrier
from keepstep.postgres.pool import Limits
from keepstep.postgres.store import PostgresStore
from keepstep.protocol.messages import Result, ResultAccepted, ResultDuplicate, ResultError
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import append, create_account

if TYPE_CHECKING:
    from keepstep.postgres.pool import Lease
    from keepstep.postgres.transaction import PostgresTransaction
    from tests.support.logs import PostgresPlace

T = TypeVar("T")
ADA = UserFixture("ada")
WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'keepstep append'"
    " AND datname = current_database()"
)


async def in_transaction(place: PostgresPlace, work: Callable[[PostgresTransaction], T]) -> T:
    """Run ``work`` in a transaction of its own."""
    database = place.connect()

    def run(lease: Lease) -> T:
        store = PostgresStore(database, lease, probe=ignore_probe, pause=lambda _: None)
        store.generation()
        with store.begin() as transaction:
            return work(transaction)

    return await database.append.run(run)


async def test_only_the_tag_of_a_commit_is_one(place: PostgresPlace) -> None:
    """PostgreSQL answers the COMMIT of a transaction that failed with ROLLBACK, which is no error."""

    def commit_after_a_failure(transaction: PostgresTransaction) -> None:
        with pytest.raises(psycopg.errors.UndefinedTable):
            transaction._connection.execute("SELECT FROM nothing")
        transaction.commit()

    with pytest.raises(Unavailable, match="had failed before"):
        await in_transaction(place, commit_after_a_failure)


def test_a_number_that_was_never_given_out_is_not_in_progress(place: PostgresPlace) -> None:
    """After a crash the transaction's own number may be one of the future."""
    head = StreamHead.create(user_pk=1, user_key=bytes(32), stream_pk=3, name="notes", retention_class=1, auth_epoch=0)
    with psycopg.connect(place.url, autocommit=True) as connection:
        assert LostTransaction(head, "999999999").is_in_progress(connection) is False


async def test_what_cannot_be_rolled_back_is_closed(place: PostgresPlace) -> None:
    """The server's side is gone while the client gives up for a reason of its own; nobody is served by what is left."""
    failing = False

    def fail(point: str) -> None:
        if point == "before_commit" and failing:
            place.cut("keepstep append")
            raise RuntimeError(point)

    log = place.node(probe=fail)
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    event = device.event("notes")
    failing = True
    with pytest.raises(RuntimeError):
        await append(log, principal, event)
    failing = False

    assert isinstance((await append(log, principal, event))[0], ResultAccepted)


async def test_a_partition_that_cannot_be_made_in_time_is_tried_for_later(place: PostgresPlace) -> None:
    """Somebody else is changing the table; nothing is stored meanwhile."""
    log = place.node(database=place.connect(Limits(lock_timeout_ms=10)))
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    event = device.event("notes")

    with psycopg.connect(place.url) as holder:
        holder.execute("LOCK TABLE events_standard IN SHARE UPDATE EXCLUSIVE MODE")
        with pytest.raises(Unavailable, match="lock was not free"):
            await append(log, principal, event)

    assert isinstance((await append(log, principal, event))[0], ResultAccepted)


async def test_a_question_that_fails_for_another_reason_is_not_asked_again(place: PostgresPlace) -> None:
    """The connection is as good as before."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    place.execute("ALTER TABLE sessions RENAME TO elsewhere")

    with pytest.raises(Unavailable, match="answered 42P01"):
        await place.accounts.open_session(principal, bytes(16), now_ms=NOW_MS)

    assert await place.accounts.principal(ADA.user_key, device.device_id) == principal


async def test_a_barrier_that_is_lost_proves_nothing(place: PostgresPlace) -> None:
    """Whether the standby has what was committed stays unknown."""

    def lose_barrier(transaction: PostgresTransaction) -> None:
        transaction._connection.close()
        pass_barrier(transaction._lease)

    with pytest.raises(OutcomeUnknown):
        await in_transaction(place, lose_barrier)


async def test_a_notice_during_commit_is_no_warning(place: PostgresPlace) -> None:
    """Only warnings say that a commit did not wait for its standby."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    place.execute(
        "CREATE FUNCTION remark() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'so'; RETURN new; END $$;"
        " CREATE CONSTRAINT TRIGGER remarking AFTER INSERT ON streams DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION remark()"
    )

    assert isinstance((await append(log, principal, device.event("notes")))[0], ResultAccepted)


async def test_a_node_that_starts_while_the_database_is_away_waits_for_it(place: PostgresPlace) -> None:
    """It has no connection to begin with."""
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, place.node(), device)
    log = place.node()
    event = device.event("notes")

    place.go_away()
    with pytest.raises(Unavailable, match="does not answer"):
        await append(log, principal, event)
    place.come_back()

    assert isinstance((await append(log, principal, event))[0], ResultAccepted)


async def test_two_nodes_create_one_account_at_the_same_time(place: PostgresPlace) -> None:
    """The second one waits for the first one's transaction, and finds the account."""
    reached, go_on = threading.Event(), threading.Event()

    def hold(point: str) -> None:
        if point == "before_commit":
            reached.set()
            assert go_on.wait(60)

    await place.maintenance.make_partitions(now_ms=NOW_MS, ahead=0)
    genesis = DeviceFixture(ADA, "phone").genesis()
    results: list[Result] = []

    async def create(**options: Any) -> None:
        results.append(await place.node(**options).create_account(genesis, now_ms=NOW_MS))

    def wait_for_the_second() -> None:
        assert reached.wait(60)
        while place.execute(WAITING) != [(1,)]:
            assert not results, "nobody waited"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: create(probe=hold))
        await trio.to_thread.run_sync(reached.wait, 60)
        nursery.start_soon(create)
        await trio.to_thread.run_sync(wait_for_the_second)
        go_on.set()

    assert {type(result) for result in results} == {ResultAccepted, ResultDuplicate}


@pytest.mark.parametrize("how", ["disable", "delete"])
async def test_a_stream_that_is_being_created_takes_nothing_once_its_account_is_shut_out(
    place: PostgresPlace, how: str
) -> None:
    """Who shuts an account out waits for whoever creates a stream, and then reaches that stream too."""
    reached, go_on = threading.Event(), threading.Event()
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(place, place.node(), phone)

    def hold(point: str) -> None:
        if point == "before_commit" and not reached.is_set():
            reached.set()
            assert go_on.wait(60)

    async def shut_out() -> None:
        if how == "disable":
            await place.administration.set_disabled(principal.user_pk, disabled=True, now_ms=NOW_MS)
        else:
            await place.administration.delete_user(principal.user_pk, ADA.user_key, now_ms=NOW_MS)
        done.append(how)

    def wait_for_the_second() -> None:
        while place.execute(WAITING) != [(1,)]:
            assert not done, "nobody waited"

    done: list[str] = []
    creating = place.node(probe=hold)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(append, creating, principal, phone.event("notes"))
        await trio.to_thread.run_sync(reached.wait, 60)
        nursery.start_soon(shut_out)
        await trio.to_thread.run_sync(wait_for_the_second)
        go_on.set()

    assert await append(creating, principal, phone.event("notes")) == [ResultError("forbidden", [])]
