"""Appending where only PostgreSQL can show it: partitions, plans, locks, its own errors."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import psycopg
import pytest
import trio

from keepstep.errors import Unavailable
from keepstep.postgres.pool import Limits
from keepstep.postgres.queries import query
from keepstep.protocol.messages import ResultAccepted, ResultError
from tests.support.events import NOW_MS, DeviceFixture, UserFixture, submission
from tests.support.logs import append, create_account, enrol, read_all

if TYPE_CHECKING:
    from keepstep.eventlog.log import StoredLog
    from keepstep.model import Principal
    from tests.support.logs import PostgresPlace

ADA = UserFixture("ada")
WEEK_MS: Final = 7 * 24 * 3600 * 1000
RAISE: Final = """
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$;
CREATE {kind} TRIGGER failing {when} ON {table} {each} FOR EACH ROW WHEN (new.user_pk > 0) EXECUTE FUNCTION fail()
"""


def let_fail(place: PostgresPlace, state: str, *, table: str = "events_standard") -> None:
    """From now on every row that is stored raises an error of PostgreSQL's."""
    place.execute(RAISE.format(state=state, kind="", when="BEFORE INSERT", table=table, each=""))


def let_commit_fail(place: PostgresPlace, state: str) -> None:
    """From now on every COMMIT that moved a head raises one."""
    deferred = "DEFERRABLE INITIALLY DEFERRED"
    place.execute(RAISE.format(state=state, kind="CONSTRAINT", when="AFTER UPDATE", table="streams", each=deferred))


def heal(place: PostgresPlace, table: str = "events_standard") -> None:
    """End what ``let_fail`` and ``let_commit_fail`` began."""
    place.execute(f"DROP TRIGGER failing ON {table}")


async def test_a_missing_partition_is_made_on_the_way(place: PostgresPlace) -> None:
    """The log works where the job that makes them ahead of time never ran, also weeks later."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    for week in range(3):
        await append(log, principal, device.event("notes"), now_ms=NOW_MS + week * WEEK_MS)

    partitions = place.execute(
        "SELECT count(*) FROM pg_inherits WHERE inhparent = 'events_standard'::regclass"
        " UNION ALL SELECT count(*) FROM pg_inherits WHERE inhparent = 'events_keep'::regclass"
    )
    assert partitions == [(3,), (1,)]
    assert len((await read_all(place.node(), principal, "notes")).rows) == 3


async def test_nodes_that_miss_the_same_partition_make_it_once(place: PostgresPlace) -> None:
    """All of them go on with it."""
    nodes = [place.node() for _ in range(3)]
    devices = [DeviceFixture(UserFixture(f"user {number}"), "phone") for number in range(3)]
    principals = [await create_account(place, nodes[0], device) for device in devices]
    results: list[type] = []

    async def write(index: int) -> None:
        (result,) = await append(nodes[index], principals[index], devices[index].event("notes"))
        results.append(type(result))

    async with trio.open_nursery() as nursery:
        for index in range(3):
            nursery.start_soon(write, index)

    assert results == [ResultAccepted] * 3


async def test_two_pipelines_append_at_the_same_time(place: PostgresPlace) -> None:
    """Batches of different users do not wait for each other: both are before their COMMIT at once."""
    together = threading.Barrier(2, timeout=60)
    meeting = False

    def meet(point: str) -> None:
        if point == "before_commit" and meeting:
            together.wait()

    log = place.node(probe=meet)
    devices = [DeviceFixture(UserFixture(name), "phone") for name in ("ada", "bob")]
    principals = [await create_account(place, log, device) for device in devices]
    meeting = True

    async with trio.open_nursery() as nursery:
        for device, principal in zip(devices, principals, strict=True):
            nursery.start_soon(append, log, principal, *device.events("notes", 5))

    for principal in principals:
        assert (await log.stream(principal.user_pk, "notes")).head.seq == 5


async def test_two_nodes_write_one_stream_flat_out(place: PostgresPlace) -> None:
    """Everything is accepted; the stream has no gap, and its chain holds to the last event."""
    nodes = [place.node(), place.node()]
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    principals = [await create_account(place, nodes[0], phone), await enrol(place, nodes[0], phone, laptop)]
    rounds, size = 25, 8

    async def write(log: StoredLog, device: DeviceFixture, principal: Principal) -> None:
        for _ in range(rounds):
            results = await append(log, principal, *device.events("notes", size))
            assert {type(result) for result in results} == {ResultAccepted}

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, nodes[0], phone, principals[0])
        nursery.start_soon(write, nodes[1], laptop, principals[1])

    for node in nodes:
        reading = await read_all(node, principals[0], "notes")
        assert len(reading.rows) == 2 * rounds * size
        assert reading.chain == (await node.stream(principals[0].user_pk, "notes")).head.chain


async def test_a_row_that_somebody_else_holds_is_waited_for(place: PostgresPlace) -> None:
    """For a bounded time; then the device is told to try later, and nothing was stored."""
    log = place.node(database=place.connect(Limits(lock_timeout_ms=10)))
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, device.event("notes"))
    event = device.event("notes")

    with psycopg.connect(place.url) as holder:
        holder.execute("SELECT FROM streams FOR UPDATE")
        with pytest.raises(Unavailable, match="in the way"):
            await append(log, principal, event)
        assert (await log.stream(principal.user_pk, "notes")).head.seq == 1

    (accepted,) = await append(log, principal, event)
    assert isinstance(accepted, ResultAccepted)
    assert accepted.first_seq == 2


@pytest.mark.parametrize(
    ("state", "detail"), [("53100", "disk is full"), ("58030", "disk reported"), ("42501", "answered 42501")]
)
async def test_a_database_that_cannot_store_answers_nothing_as_stored(
    place: PostgresPlace, state: str, detail: str
) -> None:
    """A full disk, one that fails, a right that was taken away: unavailable, with what the operator needs to know."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    event = device.event("notes")
    await append(log, principal, event)
    let_fail(place, state)

    later = device.event("notes")
    with pytest.raises(Unavailable, match=detail):
        await append(log, principal, later)
    heal(place)

    (accepted,) = await append(log, principal, later)
    assert isinstance(accepted, ResultAccepted)
    assert accepted.first_seq == 2


async def test_a_limit_of_the_database_is_our_own_fault(place: PostgresPlace) -> None:
    """What our limits should have kept away is answered ``internal``: the event stays valid as signed."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    let_fail(place, "54000")

    assert await append(log, principal, device.event("notes")) == [ResultError("internal", [None])]


async def test_a_commit_that_fails_leaves_no_gap(place: PostgresPlace) -> None:
    """PostgreSQL refuses at the last moment; the batches after it number on from what is stored."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, *device.events("notes", 2))
    let_commit_fail(place, "53100")
    events = device.events("notes", 3)
    with pytest.raises(Unavailable):
        await append(log, principal, *events)
    assert log.tail.last_seq((principal.user_pk, "notes")) == 2
    heal(place, "streams")

    (accepted,) = await append(log, principal, *events)

    assert isinstance(accepted, ResultAccepted)
    assert (accepted.first_seq, accepted.count) == (3, 3)
    assert len((await read_all(log, principal, "notes")).rows) == 5


async def test_connections_that_died_in_the_pool_are_replaced(place: PostgresPlace) -> None:
    """Nobody notices that the database was restarted between two requests."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, device.event("notes"))
    place.cut()

    (accepted,) = await append(log, principal, device.event("notes"))
    place.cut()
    assert isinstance(accepted, ResultAccepted)
    assert len((await read_all(place.node(), principal, "notes")).rows) == 2
    assert await place.accounts.principal(ADA.user_key, device.device_id) == principal


async def test_a_connection_that_dies_before_commit_stores_nothing(place: PostgresPlace) -> None:
    """The server's side is ended by an administrator; what follows finds the transaction gone."""
    cutting = False

    def cut(point: str) -> None:
        if point == "before_commit" and cutting:
            place.cut("keepstep append")

    log = place.node(probe=cut)
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    event = device.event("notes")
    cutting = True
    with pytest.raises(Unavailable):
        await append(log, principal, event)
    cutting = False

    (accepted,) = await append(log, principal, event)
    assert isinstance(accepted, ResultAccepted)
    assert accepted.first_seq == 1


async def test_a_cancelled_append_waits_for_its_outcome(place: PostgresPlace) -> None:
    """The thread is never left alone with a transaction; what it stored is announced all the same."""
    reached, go_on = threading.Event(), threading.Event()
    holding = False

    def hold(point: str) -> None:
        if point == "before_commit" and holding:
            reached.set()
            assert go_on.wait(60)

    log = place.node(probe=hold)
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    heard: list[int] = []
    log.subscribe_commits(lambda runs: heard.extend(run.last_seq for _, run in runs))
    holding = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(append, log, principal, device.event("notes"))
        await trio.to_thread.run_sync(reached.wait, 60)
        nursery.cancel_scope.cancel()
        go_on.set()

    assert heard == [1]
    with trio.CancelScope(shield=True):
        assert (await log.stream(principal.user_pk, "notes")).head.seq == 1


async def test_heads_move_in_the_order_of_their_keys(place: PostgresPlace) -> None:
    """The plan is a nested loop with unnest outside, whatever the statistics say: the order of locks hangs on it."""
    database = place.connect()
    await create_account(place, place.node(), DeviceFixture(ADA, "phone"))
    connection = database.append.connect()
    text, names = positional(query("move_heads"))
    try:
        for statistics in ("SELECT 1", "ANALYZE streams", FILL_STREAMS, "ANALYZE streams"):
            place.execute(statistics)
            connection.execute(f"PREPARE moving AS {text}".encode(), prepare=False)
            rows = connection.execute(f"EXPLAIN EXECUTE moving({', '.join(['NULL'] * names)})".encode(), prepare=False)
            plan = [str(row[0]).strip().removeprefix("->").strip() for row in rows]
            connection.execute("DEALLOCATE moving", prepare=False)
            loop = next(index for index, line in enumerate(plan) if line.startswith("Nested Loop"))
            assert [line.partition("  (")[0] for line in plan[loop + 1 : loop + 6]] == [
                "Subquery Scan on m",
                "Limit",
                "Function Scan on u",
                "Index Scan using streams_pkey on streams s",
                "Index Cond: ((user_pk = m.user_pk) AND (stream_pk = m.stream_pk))",
            ], statistics
    finally:
        connection.close()


FILL_STREAMS: Final = """
INSERT INTO streams
SELECT user_pk, number, 's' || number, 1, 0, sha256('x'), 0, 0, '', 0 FROM users, generate_series(3, 3000) AS number
"""


def positional(statement: bytes) -> tuple[str, int]:
    """A statement with $1, $2 … for its named arguments, and how many there are."""
    text, names = statement.decode(), []
    while (start := text.find("%(")) >= 0:
        name = text[start + 2 : text.index(")s", start)]
        names.append(name)
        text = text.replace(f"%({name})s", f"${len(names)}")
    return text, len(names)


async def test_a_batch_of_many_streams_moves_and_creates_them_in_one_transaction(place: PostgresPlace) -> None:
    """Streams that are there and streams that are not, in one commit."""
    commits: list[str] = []
    log = place.node(probe=commits.append)
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, *(device.event(f"s{number}") for number in range(50)))
    commits.clear()

    batch = [submission(principal, *(device.event(f"s{number}") for number in range(100)))]
    appended = await log.append(batch, now_ms=NOW_MS)

    assert {type(result) for result in appended.results[0]} == {ResultAccepted}
    assert commits == ["before_commit", "after_commit"]
    heads = [info.head.seq for info in (await log.streams(principal.user_pk))[2:]]
    assert sorted(heads) == [1] * 50 + [2] * 50
