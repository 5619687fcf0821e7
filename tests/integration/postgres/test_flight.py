"""Commits in one flight, where only PostgreSQL can show what becomes of them."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

import psycopg
import pytest
import trio

from keepstep.errors import Unavailable
from keepstep.postgres.commits import Commits
from keepstep.postgres.flight import Flights, Flown, flights_on
from keepstep.postgres.pool import Limits
from keepstep.protocol.messages import Result, ResultAccepted, ResultError
from tests.support.events import DeviceFixture, UserFixture
from tests.support.logs import append, create_account, enrol, read_all, without_flights

if TYPE_CHECKING:
    from keepstep._keepstep import Ingested
    from keepstep.eventlog.store import KnownBatch
    from keepstep.model import Principal
    from keepstep.postgres.log import PostgresLog
    from tests.support.logs import PostgresPlace

ADA: Final = UserFixture("ada")
PARTITION: Final = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'events_standard'::regclass"
RAISE: Final = """
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'ZZ999'; END $$;
CREATE TRIGGER failing BEFORE INSERT ON events_standard FOR EACH ROW EXECUTE FUNCTION fail()
"""


class Observed:
    """A node with a stream of one event, and what became of its flights."""

    def __init__(self, place: PostgresPlace, flown: list[Flown]) -> None:
        self.place = place
        self.flown = flown
        self.device = DeviceFixture(ADA, "phone")
        self.log: PostgresLog = place.node()

    async def start(self) -> Principal:
        """Create the account and the stream, which takes more than a flight."""
        principal = await create_account(self.place, self.log, self.device)
        await append(self.log, principal, self.device.event("notes"))
        assert self.flown == []
        return principal

    @property
    def states(self) -> list[str | None]:
        """The SQLSTATE of each flight, ``None`` for one that was committed."""
        return [None if each.error is None else each.error.sqlstate for each in self.flown]


@pytest.fixture
def node(place: PostgresPlace, monkeypatch: pytest.MonkeyPatch) -> Observed:
    """Observed."""
    flown: list[Flown] = []
    land, commit = Flights.land, Commits.append

    def landed(flights: Flights, *arguments: Any, **options: Any) -> Flown:
        flown.append(land(flights, *arguments, **options))
        return flown[-1]

    async def committed(commits: Commits, batch: KnownBatch) -> Ingested | None:
        before = len(flown)
        ingested = await commit(commits, batch)
        if ingested is not None and len(flown) == before:
            flown.append(Flown("", False, None))
        return ingested

    monkeypatch.setattr(Flights, "land", landed)
    monkeypatch.setattr(Commits, "append", committed)
    return Observed(place, flown)


def seqs(results: list[Result]) -> list[int]:
    """Where the events are."""
    return [result.first_seq for result in results if isinstance(result, ResultAccepted)]


async def test_what_only_moves_heads_is_one_flight(node: Observed) -> None:
    """Another node finds it stored."""
    principal = await node.start()

    assert seqs(await append(node.log, principal, *node.device.events("notes", 3))) == [2]

    assert node.states == [None]
    assert len((await read_all(node.place.node(), principal, "notes")).rows) == 4


async def test_a_head_that_moved_leaves_nothing_of_the_flight(node: Observed) -> None:
    """It ends as a whole, and a transaction stores what still can be."""
    principal = await node.start()
    laptop = DeviceFixture(ADA, "laptop")
    on_laptop = await enrol(node.place, node.log, node.device, laptop)
    await append(node.log, principal, node.device.event("other"))
    await append(node.place.node(), on_laptop, laptop.event("notes"))
    node.flown.clear()

    results = await append(node.log, principal, node.device.event("notes"), node.device.event("other"))

    assert (seqs(results), node.states) == ([3, 2], ["22P02"])


async def test_a_connection_that_died_meanwhile_is_replaced_before_the_flight(node: Observed) -> None:
    """Nobody is told of it."""
    principal = await node.start()
    node.place.cut()

    assert seqs(await append(node.log, principal, node.device.event("notes"))) == [2]
    assert node.states == [None]


async def test_news_from_the_server_are_taken_before_the_flight(node: Observed) -> None:
    """Idle sessions may be told something too."""
    principal = await node.start()
    connection = node.log._backend._database.append._idle[0]  # type: ignore[attr-defined]
    connection.execute("LISTEN news")
    node.place.execute("NOTIFY news")

    assert seqs(await append(node.log, principal, node.device.event("notes"))) == [2]
    assert node.states == [None]


async def test_statements_that_a_session_has_lost_are_prepared_again(node: Observed) -> None:
    """The batch that finds it out is stored by a transaction."""
    principal = await node.start()
    await append(node.log, principal, node.device.event("notes"))
    node.log._backend._database.append._idle[0].execute("DEALLOCATE ALL")  # type: ignore[attr-defined]

    for seq in (3, 4):
        assert seqs(await append(node.log, principal, node.device.event("notes"))) == [seq]

    assert node.states == [None, "26000", None]


async def test_a_missing_partition_is_made_for_a_flight_too(node: Observed) -> None:
    """Which goes again afterwards; what changing tables costs the session is known."""
    principal = await node.start()
    node.place.execute("DROP TABLE " + node.place.execute(PARTITION)[0][0])

    (result,) = await append(node.log, principal, node.device.event("notes"))

    assert isinstance(result, ResultAccepted)
    assert node.states == ["23514", None]


async def test_an_error_of_the_data_finds_its_event(node: Observed) -> None:
    """As from psycopg: the batch is decided again from the beginning, and halved until the event is alone."""
    principal = await node.start()
    node.place.refuse(b"bad")
    events = [node.device.event("notes", payload) for payload in (b"good", b"bad")]

    accepted, refused = await append(node.log, principal, *events)

    assert isinstance(accepted, ResultAccepted)
    assert refused == ResultError("unprocessable", [])
    assert node.states == ["23514", None, "23514"]


async def test_a_flight_is_bounded(node: Observed) -> None:
    """It is cancelled where PostgreSQL does not end it by itself, and then nothing of it is stored."""
    node.log = node.place.node(database=node.place.connect(Limits(statement_timeout_ms=400, lock_timeout_ms=60_000)))
    principal = await node.start()
    event = node.device.event("notes")
    connection = node.log._backend._database.append._idle[0]  # type: ignore[attr-defined]
    connection.execute("SET statement_timeout = 0")

    with psycopg.connect(node.place.url) as holder:
        holder.execute("SELECT FROM streams FOR UPDATE")
        with pytest.raises(Unavailable, match="longer than its timeout"):
            await append(node.log, principal, event)

    assert seqs(await append(node.log, principal, event)) == [2]
    assert node.states == ["57014", None]


async def test_a_cancellation_leaves_no_flight_on_its_way(node: Observed) -> None:
    """Whoever gets the connection next would take its answers for its own: it is seen to its end all the same."""
    node.log = node.place.node(database=node.place.connect(Limits(statement_timeout_ms=400, lock_timeout_ms=60_000)))
    principal = await node.start()
    await append(node.log, principal, node.device.event("notes"))
    event = node.device.event("notes")
    connection = node.log._backend._database.append._idle[0]  # type: ignore[attr-defined]
    connection.execute("SET statement_timeout = 0")

    with psycopg.connect(node.place.url) as holder, trio.CancelScope() as scope:
        holder.execute("SELECT FROM streams FOR UPDATE")
        scope.cancel()
        with pytest.raises(Unavailable, match="longer than its timeout"):
            await append(node.log, principal, event)

    assert seqs(await append(node.log, principal, event)) == [3]
    assert node.states == [None, "57014", None]


async def test_a_server_that_cannot_be_told_to_give_up_is_left(node: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome is looked for on another connection."""
    node.log = node.place.node(database=node.place.connect(Limits(statement_timeout_ms=400, lock_timeout_ms=60_000)))
    principal = await node.start()
    event = node.device.event("notes")
    connection = node.log._backend._database.append._idle[0]  # type: ignore[attr-defined]
    connection.execute("SET statement_timeout = 0")
    refusal = psycopg.OperationalError("no connection to be had")

    def cannot_cancel(_connection: object, *, timeout: float) -> None:
        assert timeout > 0
        node.place.cut("keepstep append")
        raise refusal

    with psycopg.connect(node.place.url) as holder:
        holder.execute("SELECT FROM streams FOR UPDATE")
        monkeypatch.setattr(psycopg.Connection, "cancel_safe", cannot_cancel)
        with pytest.raises(Unavailable, match="does not answer"):
            await append(node.log, principal, event)
        monkeypatch.undo()

    assert node.flown[0].error is refusal
    assert seqs(await append(node.log, principal, event)) == [2]


@pytest.mark.parametrize("what", ["TLS", "GSS"])
def test_an_encrypted_connection_takes_no_flight(what: str) -> None:
    """Its socket carries what only libpq can read."""
    session = SimpleNamespace(fetchone=lambda: (4_711, True, []))
    encrypted = SimpleNamespace(pgconn=SimpleNamespace(ssl_in_use=what == "TLS"), execute=lambda _statement: session)

    assert flights_on(cast("Any", encrypted)) is None


async def test_without_flights_everything_goes_through_psycopg(node: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers."""
    without_flights(monkeypatch)
    principal = await node.start()

    assert seqs(await append(node.log, principal, node.device.event("notes"))) == [2]
    assert node.flown == []


async def test_without_descriptors_for_a_thread_it_goes_the_other_way(
    node: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever used them up has done nothing to those who publish."""
    principal = await node.start()
    await append(node.log, principal, node.device.event("notes"))
    node.log._backend._commits._idle.clear()  # type: ignore[attr-defined]

    def exhausted() -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr("keepstep._keepstep.Committer", exhausted)

    assert seqs(await append(node.log, principal, node.device.event("notes"))) == [3]
    assert node.states == [None, None]


async def test_a_statement_that_cannot_be_prepared_is_an_error(place: PostgresPlace) -> None:
    """The schema is another one."""
    place.execute("ALTER TABLE streams RENAME COLUMN authors TO elsewhere")

    with psycopg.connect(place.url, autocommit=True) as connection, pytest.raises(psycopg.errors.UndefinedColumn):
        flights_on(connection)


async def test_an_error_without_a_class_of_its_own_is_one(node: Observed) -> None:
    """An extension may have any."""
    principal = await node.start()
    node.place.execute(RAISE)

    with pytest.raises(Unavailable, match="answered ZZ999"):
        await append(node.log, principal, node.device.event("notes"))
